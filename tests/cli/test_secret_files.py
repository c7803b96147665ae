"""A secret file given where another file is wanted is never shown: not on a stream, not in an error, not in a traceback.

Every command is asked, with every secret in place of every file that it takes; the rest of the command line is as it should be.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import structlog
import yaml

from attestation.collect import runner
from sandbox.cli import _Lazy, root
from sandbox.sealing import keys
from tests.attestation.leases import LEASE, Story, append, documents, extract, receipt_of, trust_tree
from tests.attestation.log.logs import VERIFIER, make_log
from tests.cli.secret_files import SECRETS
from tests.conftest import VECTORS
from tests.rig import run

DIGEST = "sha256:" + "c" * 64
PROFILES = Path(__file__).parents[2] / "policies" / "profiles"
OURS = Path(__file__).parents[1] / "attestation" / "samples"
SAMPLES = {
    "tpm": VECTORS / "tpm" / "tpm_evidence.json",
    "snp": VECTORS / "snp" / "test-report.bin",
    "vcek": VECTORS / "snp" / "test-vcek.der",
    "gpu": VECTORS / "nvidia" / "hopperAttestationReport.txt",
    "gpu-chain": VECTORS / "nvidia" / "hopperCertChain.txt",
    "rim": VECTORS / "nvidia" / "vbios_1010_0200_882_96005E0001.swidtag",
    "tdx": OURS / "tdx_quote",
    "collateral": OURS / "tdx_quote_collateral.json",
}
ANYTHING = {
    "key new folder",
    "key new --passphrase-file",
    "seal sources",
    "seal --out",
    "open --out",
    "mount folder",
    "lease results --out",
    "lease receipt --out",
    "trust init --out",
    "trust tpm challenge offer",
    "trust tpm challenge --out",
    "trust tpm challenge --pending",
    "node init --data",
    "node run --data",
    "node attest --data",
    "node attest offer --out",
    "node attest offer --data",
    "node attest activate --out",
    "evidence collateral import --cache",
    "evidence collateral list --cache",
    "evidence collateral check --cache",
    "audit rotate-key --data",
    "audit witness folder",
    "audit verify --keep",
    "audit verify --leaf",
    "trust runners sign --lock",
}
"""Where any file is right, a folder or a new file is named, or a file is read after another only: one secret, and it may succeed."""
SUCCEEDS = {"receipt show file", "node init --token-file"}
"""What does not verify is shown as well; whether a word is a token is for the server to say."""
NOT_RUN = ("demo", "serve", "node doctor", "node qualify", "evidence verify")
"""They start programs or look at the whole machine, with the readers of other commands; evidence is asked for by kind, below."""
TEXT_THAT_NAMES_A_FILE = {"mount bundle", "cat bundle", "policy check policy", "policy show policy", "policy explain --policy",
                          "node doctor --policy", "serve --policy", "audit verify --key", "policy history --key", "audit watch --key",
                          "audit verify --log", "audit witness --log"}  # fmt: skip


def commands(command=None, words=()):
    command = root() if command is None else command
    command = command.load() if isinstance(command, _Lazy) else command
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield " ".join(words), command
    for name, child in children.items():
        yield from commands(child, (*words, name))


def places(name, command):
    """Yield the name of each parameter that takes a file."""
    for parameter in command.params:
        place = max(parameter.opts, key=len)
        if "Path" in str(parameter.type_descriptor.annotation) or f"{name} {place}" in TEXT_THAT_NAMES_A_FILE:
            yield place


KINDS: dict[str, dict[str, str]] = {
    "software": {"file": "{evidence}"},
    "tpm": {"file": "{tpm}"},
    "sev-snp": {"file": "{snp}", "--chain": "{vcek}"},
    "tdx": {"file": "{tdx}", "--collateral": "{collateral}"},
    "nvidia-gpu": {"file": "{gpu}", "--chain": "{gpu-chain}", "--rim": "{rim}"},
}

FEW = ("identity", "signing-key", "passphrase", "passphrases")
"""A document, bytes, bad YAML and a mapping of other keys: what readers tell apart. ``tests/test_shape.py`` asks them with every kind."""
CASES = [(name, place) for name, command in commands() if name not in NOT_RUN for place in places(name, command)]
EVIDENCE = [(kind, place) for kind in KINDS for place in KINDS[kind]]
EVIDENCE += [("tpm", place) for place in places("evidence verify", dict(commands())["evidence verify"]) if place not in KINDS["tpm"]]


USUAL: dict[str, dict[str, str]] = {
    "key new": {"folder": "{me}", "--passphrase": ""},
    "seal": {"sources": "{plain}", "--out": "{new}", "--key": "{me}"},
    "open": {"file": "{bundle}", "--out": "{new}", "--key": "{me}"},
    "inspect": {"file": "{bundle}", "--key": "{me}"},
    "mount": {"bundle": "{bundle}", "folder": "{empty}", "--key": "{me}"},
    "cat": {"bundle": "{bundle}", "path": "none", "--key": "{me}"},
    "job check": {"file": "{job}", "--policy": "{policy}"},
    "job submit": {"file": "{job}", "--key": "{me}"},
    "release": {"--key": "{me}", "--trust": "{trust}"},
    "lease logs": {"lease": LEASE, "--key": "{me}"},
    "lease results": {"lease": LEASE, "--out": "{new}", "--key": "{me}", "--trust": "{trust}"},
    "lease receipt": {"lease": LEASE, "--out": "{new}"},
    "trust tpm challenge": {"offer": "{plain}", "--out": "{new}", "--pending": "{new}.pending"},
    "trust tpm accept": {"answer": "{plain}", "--pending": "{pending}"},
    "trust runners sign": {"--lock": "{plain}", "--out": "{new}", "--key": "{me}"},
    "trust runners add": {"file": "{plain}", "--trust": "{trust}"},
    "config login": {"server": "{server}"},
    "serve": {"--data": "{plain}"},
    "node init": {"--server": "{server}", "--data": "{new}"},
    "node attest offer": {"--out": "{new}"},
    "node attest activate": {"challenge": "{plain}", "--offer": "{plain}", "--out": "{new}"},
    "policy explain": {"job": "{job}", "--policy": "{policy}"},
    "policy sign-image": {"image": DIGEST, "--key": "{me}"},
    "policy apply": {"--tenant": "tenant"},
    "receipt verify": {"file": "{receipt}", "--trust": "{trust}"},
    "receipt show": {"file": "{receipt}", "--html": "{new}", "--trust": "{trust}"},
    "audit watch": {"--log": "{log}", "--key": VERIFIER.text, "--state": "{new}", "--once": ""},
    "audit witness": {"folder": "{plain}", "--log": VERIFIER.text},
    "audit export": {"--log": "{log}"},
    "audit prove": {"entry": "0", "--log": "{log}"},
    "audit verify": {"--log": "{log}", "--key": VERIFIER.text},
}
"""The rest of a command line. What is not named here and is needed is named by no test: the command says so, and the file is not read."""


class NothingHere(BaseHTTPRequestHandler):
    """A control plane that has nothing of what it is asked for."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"error": {"code": "not-found", "message": "nothing here", "details": {}}}).encode()
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_HEAD = do_PATCH = do_DELETE = answer  # noqa: N815  (names of the standard library)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), NothingHere) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory, server):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield make_world(tmp_path_factory.mktemp("world"), server, monkeypatch)


def make_world(folder, server, monkeypatch):
    """Where each good file is that a command line names, and the environment of the person who types it."""
    found = {"server": server, "root": str(folder)}

    def put(name, content):
        found[name] = str(folder / name)
        (folder / name).write_bytes(content)

    found |= {name: str(folder / name) for name in ("me", "locked", "bundle", "log", "empty")}
    monkeypatch.setattr(keys, "_stretch", lambda passphrase, salt: sha256(passphrase.encode("utf-8", "surrogateescape") + salt).digest())
    monkeypatch.setattr(runner, "runner_digest", lambda: (DIGEST, "0.1.0"))
    run("key", "new", found["me"]).ok()
    run("key", "new", found["locked"], "--passphrase", "--passphrase-file", "-", stdin=b"of nobody's\n").ok()
    put("plain", b"nothing in particular\n")
    run("seal", found["plain"], "-o", found["bundle"], "--key", found["me"], env={"XDG_STATE_HOME": str(folder / "state")}).ok()
    make_log(folder / "log", 3)
    (folder / "empty").mkdir()
    spec = {"image": DIGEST, "command": ["/bin/true"]}
    put("job", json.dumps({"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": spec}).encode())
    put("policy", (PROFILES / "standard.yaml").read_bytes())
    put("trust", yaml.safe_dump(trust_tree()).encode())
    put("pending", SECRETS["pending"].raw)
    papers = documents()
    (indexes,) = append(folder / "story", Story(papers))
    put("receipt", receipt_of(papers, extract(folder / "story", indexes)))
    put("evidence", papers["evidence"])
    for name, place in SAMPLES.items():
        put(name, place.read_bytes() if place.exists() else b"not beside this checkout")
    found["env"] = {
        "SEALRIG_SERVER": server, "SEALRIG_TOKEN": "sealrig_" + "0" * 43, "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CONFIG_HOME": str(folder / "config"), "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def process(tmp_path):
    """Give the process back as it was: commands that serve set handlers, a umask and a log of their own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    mask, place, environment, logging = os.umask(0o022), Path.cwd(), dict(os.environ), structlog.get_config()
    os.umask(mask)
    os.chdir(tmp_path)
    yield
    structlog.configure(**logging)
    os.chdir(place)
    os.umask(mask)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


def words(name, place, secret, world, usual):
    """Return a command line with ``secret`` at ``place`` and what is usual elsewhere."""
    values = {**usual, place: str(secret)}
    if place == "--passphrase-file":
        values["--key"] = "{locked}"  # it is read for an identity under a passphrase only
    if name.startswith("audit") and place == "--trust":
        del values["--key"]  # which stands for a trust file
    named = [word for flag, value in values.items() if flag.startswith("-") for word in (flag, value) if word]
    parameters = dict(commands_by_name())[name].params
    order = [parameter.opts[0] for parameter in parameters if not parameter.opts[0].startswith("-")]
    line = [*name.split(), *named, *(values[each] for each in order if each in values), "--json", "--debug"]
    return [word.format(**world) if word != str(secret) else word for word in line]


@cache
def commands_by_name():
    return tuple(commands())


def ask(name, place, usual, world, tmp_path, kinds):  # noqa: PLR0917  (a test's own helper)
    """Ask a command for a file with each kind of secret in it; return the exit codes."""
    codes = []
    for kind in kinds:
        secret, folder = SECRETS[kind], tmp_path / kind
        folder.mkdir()
        path = folder / f"misplaced-{kind}"
        path.write_bytes(secret.raw)
        path.chmod(0o600)
        told = run(*words(name, place, path, {**world, "new": str(folder / "new")}, usual), env=world["env"])
        shown = secret.seen_in(f"{told.raw.decode('latin-1')}{told.err}")
        assert shown is None, f"{name} {place} shows {kind}: {shown!r}\n{told.out}\n{told.err}"
        codes.append(told.code)
    return codes


@pytest.mark.parametrize(("name", "place"), CASES)
def test_a_secret_in_place_of_another_file_is_not_shown(name, place, world, tmp_path):
    anything = f"{name} {place}" in ANYTHING
    codes = ask(name, place, USUAL.get(name, {}), world, tmp_path, FEW[:1] if anything else FEW)
    refused = codes[1:] if place == "--key" else codes  # an identity, the first, is right where a key is wanted
    assert anything or f"{name} {place}" in SUCCEEDS or all(refused), codes


@pytest.mark.parametrize(("kind", "place"), EVIDENCE)
def test_a_secret_in_place_of_evidence_is_not_shown(kind, place, world, tmp_path):
    ask("evidence verify", place, {"--kind": kind, **KINDS[kind]}, world, tmp_path, FEW[:2])
