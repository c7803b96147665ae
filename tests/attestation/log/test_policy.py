"""The policy file about witnesses, after c2sp.org/tlog-policy."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import LogError
from attestation.log.errors import PolicyError
from attestation.log.note import COSIGNATURE, NoteVerifier
from attestation.log.policy import MAX_POLICY_BYTES, WitnessPlace, WitnessPolicy
from attestation.log.quorum import Quorum
from attestation.log.reader import LogReader
from attestation.signing import SigningKey
from tests.attestation.log.logs import OTHER_KEY, VERIFIER

W = {
    name: NoteVerifier(f"{name}.example", SigningKey(bytes([at]) * 32).public, COSIGNATURE)
    for at, name in enumerate(["a", "b", "c", "d"], 1)
}
LINES = [f"witness {name} {each.text} https://{name}.example/" for name, each in W.items()]
ALL = "\n".join(LINES) + "\n"


def read(text: str) -> WitnessPolicy:
    return WitnessPolicy.from_bytes(text.encode())


def test_groups_of_groups() -> None:
    policy = read(f"# who watches\n log\t{VERIFIER.text}  https://log.example/ \n\n{ALL}group x 2 a b c\ngroup y all x d\nquorum y\n")
    assert policy.logs == (VERIFIER,)
    assert policy.witnesses["b"] == WitnessPlace("https://b.example/", W["b"])
    for count in range(5):
        for names in itertools.combinations(W, count):
            wanted = "d" in names and len(set(names) & {"a", "b", "c"}) >= 2
            assert policy.satisfied({W[name] for name in names}) is wanted


@pytest.mark.parametrize(
    ("quorum", "least"), [("quorum none", 0), ("quorum a", 1), ("group g any a b\nquorum g", 1), ("group g all a b\nquorum g", 2)]
)
def test_quorums(quorum: str, least: int) -> None:
    policy = read(f"{ALL}{quorum}\n")
    names = list(W)
    assert policy.satisfied({W[name] for name in names[:least]})
    assert least == 0 or not policy.satisfied({W[name] for name in names[: least - 1]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        ALL,
        "quorum none\nquorum none\n",
        "quorum a\n" + ALL,
        f"{ALL}group g any a a\nquorum g\n",
        f"{ALL}group g any a\ngroup h any a b\nquorum h\n",
        f"{ALL}group g 0 a\nquorum g\n",
        f"{ALL}group g 01 a\nquorum g\n",
        f"{ALL}group g 2 a\nquorum g\n",
        f"{ALL}group g any\nquorum g\n",
        f"{ALL}group g any none\nquorum g\n",
        f"{ALL}group a any b\nquorum a\n",
        f"{ALL}group none any b\nquorum none\n",
        f"{LINES[0]}\n{LINES[0].replace('witness a', 'witness z')}\nquorum none\n",
        f"witness a {VERIFIER.text}\nquorum a\n",
        f"log {W['a'].text}\nquorum none\n",
        f"log {VERIFIER.text}\nlog {VERIFIER.text}\nquorum none\n",
        "witness a key\nquorum a\n",
        "quorum none\r\n",
        "hello\n",
        "quorum\n",
        "quorum none\n" + "#" * MAX_POLICY_BYTES,
    ],
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(LogError) as caught:
        read(text)
    assert caught.value.details["wanted"]


@given(st.binary(max_size=300))
def test_noise(raw: bytes) -> None:
    try:
        WitnessPolicy.from_bytes(raw)
    except LogError:
        return


def test_a_log_asks_only_at_addresses(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        WitnessPolicy.at_least(2, [WitnessPlace("https://w.example", W["a"])])
    with pytest.raises(PolicyError) as caught:
        Quorum(LogReader.from_dir(tmp_path), read(f"witness a {NoteVerifier('w', OTHER_KEY.public, COSIGNATURE).text}\nquorum a\n"))
    assert caught.value.details["rule"] == "policy-url"
