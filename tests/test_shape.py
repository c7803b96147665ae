"""A bad value is told by its shape: no reader of files shows what it read, in its error, in the details or in the traceback."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from attestation import shape as attestation_shape
from attestation.certificate import Certificate
from attestation.errors import AttestationError
from attestation.log.leaf import Leaf
from attestation.log.note import Note, NoteVerifier
from attestation.receipt import verify_receipt_or_raise
from attestation.shape import shape
from attestation.signing import Envelope
from policies import shape as policies_shape
from policies.cases import load_cases
from policies.errors import PolicyError
from policies.loader import load_policy
from sandbox.customer.trustfile import load_trust
from sandbox.errors import SealrigError
from sandbox.job import parse_job, parse_statement
from sandbox.node.layout import NodeFolder
from sandbox.node.settings import load_node_settings
from sandbox.sealing.format import read_header
from sandbox.sealing.public import IdentityPublic
from tests.attestation.leases import trust
from tests.cli.secret_files import SECRETS
from tests.rig import run


def of_text(read):
    return lambda path: read(path.read_bytes().decode("latin-1"))


def of_bytes(read):
    return lambda path: read(path.read_bytes())


READERS = {
    "policy": of_bytes(load_policy),
    "cases": of_bytes(load_cases),
    "job": of_bytes(parse_job),
    "statement": of_bytes(parse_statement),
    "bundle": of_bytes(read_header),
    "identity": of_text(IdentityPublic.parse),
    "trust": load_trust,
    "settings": lambda path: load_node_settings(NodeFolder(path.parent)),
    "receipt": of_bytes(lambda raw: verify_receipt_or_raise(raw, trust())),
    "envelope": of_bytes(Envelope.from_bytes),
    "certificate": of_bytes(Certificate.from_payload),
    "leaf": of_bytes(Leaf.from_bytes),
    "note": of_bytes(Note.parse),
    "log-key": of_text(NoteVerifier.from_text),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", SECRETS)
def test_a_reader_shows_nothing_of_a_secret(name, kind, tmp_path):
    path = tmp_path / "node.yaml"
    path.write_bytes(SECRETS[kind].raw)
    with pytest.raises((SealrigError, PolicyError, AttestationError)) as refused:
        READERS[name](path)
    details = json.dumps(refused.value.details, default=str, ensure_ascii=False)
    shown = f"{details}{''.join(traceback.format_exception(refused.value))}"
    assert SECRETS[kind].seen_in(shown) is None, shown


@pytest.mark.parametrize("kind", SECRETS)
def test_what_would_show_a_secret_is_found(kind):
    raw = SECRETS[kind].raw
    for shown in (raw.decode("latin-1"), repr(raw), ascii(raw.decode("latin-1")), raw.hex()):
        assert SECRETS[kind].seen_in(f"seen {shown}") is not None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "nothing"),
        (True, "true"),
        (443, "443"),
        (93810274665120984471, "a large number"),
        (0.25, "a fraction"),
        ("", "empty text"),
        ("hunter2 hunter2", "text of 15 characters"),
        (b"hunter2", "7 bytes"),
        (["hunter2"], "a list of 1 values"),
        ({"hunter2": 1}, "a mapping with 1 keys"),
        ("sealrig_hunter2", "a token: text of 15 characters"),
        ({"server": "x", "token": "y"}, "settings with a token: a mapping with 2 keys"),
    ],
)
def test_a_shape_is_kind_and_size(value, told):
    assert shape(value) == told


def test_both_packages_tell_shapes_alike():
    assert Path(attestation_shape.__file__).read_bytes() == Path(policies_shape.__file__).read_bytes()


def test_the_secret_part_of_an_identity_given_to_seal_is_named_and_not_shown(tmp_path):
    run("key", "new", tmp_path / "me").ok()
    (tmp_path / "data").write_bytes(b"data")
    secret = json.loads((tmp_path / "me" / "identity.key").read_bytes())["data"]
    words = ("seal", tmp_path / "data", "-o", tmp_path / "out", "--to", tmp_path / "me" / "identity.key", "--key", tmp_path / "me")
    told = run(*words, "--json", env={"XDG_STATE_HOME": str(tmp_path)})
    assert told.code == 1
    assert told.error["details"]["seen"].startswith("the secret part of an identity: ")
    assert told.error["details"]["fix"] == "name identity.pub, the public part beside it"
    assert not any(secret[start : start + 8] in told.out + told.err for start in range(len(secret) - 7))
