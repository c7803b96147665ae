"""``sealrig audit``: everything an auditor does, on a copied folder; and what the keeper of the log does to it."""

import json
import re
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from types import SimpleNamespace

import httpx
import pytest

from attestation.log.note import COSIGNATURE, Note, NoteVerifier, cosign
from attestation.log.places import LogPlaces
from attestation.log.rotation import rotate_key
from attestation.signing import SigningKey
from sandbox.cli import main
from tests.attestation.log.logs import KEY, NOW, ORIGIN, OTHER_KEY, VERIFIER, leaf, make_log, open_log
from tests.attestation.log.test_tampering import LEAVES, build
from tests.cli.test_console import Terminal
from tests.ports import free_port

KEY_FLAG = ("--key", VERIFIER.text)
NEW = NoteVerifier(ORIGIN, OTHER_KEY.public)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    make_log(folder, 300)
    with open_log(folder) as writer:
        writer.append([leaf(7, kind="lease.denied", outcome="denied"), leaf(8, kind="node.registered")])
    return folder


def call(capsys, *words):
    code = main(["audit", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def say(capsys, *words):
    code = main(["audit", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ((), 50),
        (("--limit", 1000), 302),
        (("--type", "lease.denied"), 1),
        (("--type", "lease.*", "--limit", 1000), 301),
        (("--outcome", "denied"), 1),
        (("--lease", f"lease-{7:032x}"), 2),
        (("--tenant", f"tenant-{1:032x}", "--limit", 1000), 101),
        (("--actor", "server", "--limit", 1000), 302),
        (("--actor", "node-" + "0" * 32), 0),
        (("--node", f"lease-{7:032x}"), 2),
        (("--text", f"{299:032x}"), 1),
        (("--since", "2026-11-05"), 50),
        (("--since", "2026-11-06"), 0),
        (("--until", "2026-11-05T12:00:00Z"), 0),
    ],
)
def test_list_with_filters(data, capsys, filters, count):
    code, told = call(capsys, "list", "--log", data, *filters)
    assert code == 0
    assert len(told["entries"]) == count


def test_list_is_newest_first_and_readable(data, capsys):
    assert [row["index"] for row in call(capsys, "list", "--log", data, "--limit", 2)[1]["entries"]] == [301, 300]
    assert [row["index"] for row in call(capsys, "list", "--log", data, "--limit", 2, "--oldest-first")[1]["entries"]] == [0, 1]
    code, out, _ = say(capsys, "list", "--log", data, "--type", "lease.denied")
    assert code == 0
    assert "lease.denied" in out


def test_show_by_index_and_by_id(data, capsys):
    _, told = call(capsys, "show", 300, "--log", data)
    assert told["entry"]["type"] == "lease.denied"
    _, again = call(capsys, "show", told["entry"]["id"], "--log", data)
    assert again == told
    for missing in ("302", "936da01f-9abd-4d9d-80c7-02af85c822a8", "9" * 30):
        assert main(["audit", "show", missing, "--log", str(data)]) == 1
        assert "not-found" in capsys.readouterr().err


def test_verify_says_whose_key_it_was(data, tmp_path, capsys):
    code, told = call(capsys, "verify", "--log", data, *KEY_FLAG, "--keep", tmp_path / "held")
    assert (code, told["ok"], told["size"], told["key_trusted"]) == (0, True, 302, True)
    code, told = call(capsys, "verify", "--log", data, "--held", tmp_path / "held")
    assert (code, told["key_trusted"], told["extends_held"]) == (0, False, True)
    (tmp_path / "key").write_text(VERIFIER.text + "\n")
    assert call(capsys, "verify", "--log", data / "log", "--key", tmp_path / "key")[0] == 0


def trust_file(path, **spec):
    """A trust file of the test log; the node in it is nobody."""
    log = {"origin": ORIGIN, "key": NEW.text} | spec.pop("log", {})
    nodes = {"node-" + "0" * 31 + "1": OTHER_KEY.public.text}
    tree = {"apiVersion": "sealrig/v1", "kind": "Trust", "spec": {"level": "software", "nodes": nodes, "log": log} | spec}
    path.write_text(json.dumps(tree))
    return path


def exchange(data):
    rotate_key(LogPlaces(data), origin=ORIGIN, old=KEY, new=OTHER_KEY, at=NOW)
    open_log(data, key=OTHER_KEY).close()


def test_verify_wants_all_that_the_trust_file_says(data, tmp_path, capsys):
    exchange(data)
    witness = NoteVerifier("w.example", KEY.public, COSIGNATURE)
    wanted = trust_file(tmp_path / "wanted.yaml", witnesses=[witness.text], witnessQuorum=1)
    words = ("verify", "--log", data, "--trust", wanted)
    code, told = call(capsys, *words)
    assert (code, told["error"]["details"]["rule"]) == (1, "log-witnesses")
    watching = ("watch", "--once", "--log", data, "--state", tmp_path / "state", "--trust", wanted)
    assert call(capsys, *watching)[1]["error"]["details"]["alarm"] == "quorum-lost"
    leaf_, proof = tmp_path / "leaf", tmp_path / "proof"
    assert call(capsys, "prove", 5, "--log", data, "-o", proof, "--leaf", leaf_)[0] == 0
    code, told = call(capsys, "verify", "--proof", proof, "--leaf", leaf_, "--trust", wanted)
    assert (code, told["error"]["details"]["rule"]) == (1, "log-witnesses")
    file = data / "log" / "checkpoint"
    note = Note.parse(file.read_text())
    file.write_text(Note(note.text, (*note.signatures, cosign(note.text, "w.example", KEY, 5000))).whole)
    assert {"name": "w.example", "time": 5000} in call(capsys, *words)[1]["signers"]
    assert "cosigned by w.example" in say(capsys, *words)[1]
    assert call(capsys, *watching)[0] == 0
    assert call(capsys, *watching, "--witness", witness.text, "--quorum", 1)[0] == 0
    # More can be asked for than the trust file does, and a witness that both name counts once.
    assert main(["audit", *map(str, watching), "--witness", witness.text, "--quorum", "2"]) == 2


def test_a_retired_key_counts_up_to_its_last_size(data, tmp_path, capsys):
    """What was kept under the old key is compared with the log of the new one; a later checkpoint by the old key is a thief's."""
    held, plain = tmp_path / "held", trust_file(tmp_path / "plain.yaml")
    assert call(capsys, "verify", "--log", data, *KEY_FLAG, "--keep", held)[0] == 0
    leaf_, proof = tmp_path / "leaf", tmp_path / "proof"
    assert call(capsys, "prove", 5, "--log", data, "-o", proof, "--leaf", leaf_)[0] == 0
    exchange(data)
    both = trust_file(tmp_path / "both.yaml", log={"retired": [{"key": VERIFIER.text, "size": 303}]})
    early = trust_file(tmp_path / "early.yaml", log={"retired": [{"key": VERIFIER.text, "size": 301}]})
    words = ("verify", "--log", data, "--held", held, "--trust")
    assert call(capsys, *words, plain)[1]["error"]["details"]["rule"] == "signature-unknown"
    code, told = call(capsys, *words, both)
    assert (code, told["size"], told["extends_held"]) == (0, 303, True)
    words = ("verify", "--proof", proof, "--leaf", leaf_)
    assert call(capsys, *words, "--trust", both)[0] == 0
    assert call(capsys, *words, "--trust", early)[1]["error"]["details"]["rule"] == "key-retired"
    assert call(capsys, *words, "--key", NEW.text, "--key", VERIFIER.text)[0] == 0
    assert main(["audit", "verify", "--log", str(data), "--key", NEW.text, "--key", VERIFIER.text]) == 2
    assert "audit-keys" in capsys.readouterr().err


def test_a_fork_over_an_exchange_of_the_key_is_proven_with_both_keys(tmp_path, capsys):
    held, both = tmp_path / "held", trust_file(tmp_path / "both.yaml", log={"retired": [{"key": VERIFIER.text, "size": 301}]})
    held.write_text((build(tmp_path / "log", LEAVES[:300]) / "checkpoint").read_text())
    build(tmp_path / "log", [leaf(), *LEAVES[1:305]], OTHER_KEY)
    code, told = call(capsys, "verify", "--log", tmp_path / "log", "--held", held, "--trust", both)
    assert (code, told["error"]["code"]) == (1, "log-fork")
    (tmp_path / "fork").write_text(told["error"]["details"]["evidence"])
    words = ("verify", "--fork", tmp_path / "fork")
    assert call(capsys, *words, "--key", VERIFIER.text, "--key", NEW.text)[1]["sizes"] == [300, 305]
    assert call(capsys, *words, "--trust", both)[0] == 0
    early = trust_file(tmp_path / "early.yaml", log={"retired": [{"key": VERIFIER.text, "size": 299}]})
    assert call(capsys, *words, "--trust", early)[1]["error"]["details"]["rule"] == "key-retired"


def test_what_is_shown_is_proven_and_what_is_listed_says_that_it_is_not(data, tmp_path, capsys):
    code, told = call(capsys, "list", "--log", data, "--limit", 1)
    assert (code, told["proven"]) == (0, False)
    assert "audit verify" in say(capsys, "list", "--log", data, "--limit", 1)[2]
    assert call(capsys, "export", "--log", data, "-o", tmp_path / "out")[1]["proven"] is False
    assert "audit verify" in say(capsys, "export", "--log", data)[2]
    file = data / "log" / "tile" / "entries" / "000"
    file.write_bytes(file.read_bytes().replace(b'"ok"', b'"no"', 1))
    for words in (("show", 0), ("prove", 0)):
        code, told = call(capsys, *words, "--log", data)
        assert (code, told["error"]["code"]) == (1, "log-proof")


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(28, "no space"), None])
def test_an_export_leaves_no_half_file(data, tmp_path, monkeypatch, capsys, problem):
    def broken(*_):
        yield "one line"
        if problem is not None:
            raise problem

    monkeypatch.setattr("sandbox.cli.auditor.export", broken)
    code = main(["audit", "export", "--log", str(data), "-o", str(tmp_path / "out")])
    assert (code == 0) == (tmp_path / "out").exists() == (problem is None)


@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_person_sees_how_many_entries_were_looked_at(data, tmp_path, monkeypatch, command):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    words = ["-o", str(tmp_path / "out"), "--type", "lease.denied"] if command == "export" else KEY_FLAG
    assert main(["audit", command, "--log", str(data), *words]) == 0
    assert re.search(r"100%.*302/302.*entries", screen.getvalue()), screen.getvalue()


def test_verify_refuses_a_changed_log(data, capsys):
    file = data / "log" / "tile" / "entries" / "000"
    file.write_bytes(file.read_bytes().replace(b'"ok"', b'"no"', 1))
    code, told = call(capsys, "verify", "--log", data, *KEY_FLAG)
    assert code == 1
    assert (told["error"]["code"], told["error"]["details"]["rule"]) == ("log-tile", "tile-entry")


def test_a_fork_prints_evidence_that_can_be_checked_offline(tmp_path, capsys):
    held = tmp_path / "held"
    held.write_text((build(tmp_path / "log", LEAVES[:300]) / "checkpoint").read_text())
    build(tmp_path / "log", [leaf(), *LEAVES[1:305]])
    code, told = call(capsys, "verify", "--log", tmp_path / "log", *KEY_FLAG, "--held", held)
    assert (code, told["error"]["code"]) == (1, "log-fork")
    (tmp_path / "fork").write_text(told["error"]["details"]["evidence"])
    code, told = call(capsys, "verify", "--fork", tmp_path / "fork", *KEY_FLAG)
    assert (code, told["fork"], told["sizes"]) == (0, True, [300, 305])


def test_prove_and_check_offline(data, tmp_path, capsys):
    code, told = call(capsys, "prove", 5, "--log", data, "-o", tmp_path / "p.tlog-proof", "--leaf", tmp_path / "leaf")
    assert code == 0
    assert (tmp_path / "p.tlog-proof").read_text() == told["proof"]
    code, told = call(capsys, "verify", "--proof", tmp_path / "p.tlog-proof", "--leaf", tmp_path / "leaf", *KEY_FLAG)
    assert (code, told["index"], told["size"]) == (0, 5, 302)
    (tmp_path / "leaf").write_bytes(b"x")
    assert main(["audit", "verify", "--proof", str(tmp_path / "p.tlog-proof"), "--leaf", str(tmp_path / "leaf"), *KEY_FLAG]) == 1
    assert "proof-root" in capsys.readouterr().err
    assert main(["audit", "prove", "5", "--log", str(data), "-o", str(tmp_path / "p.tlog-proof")]) == 1
    assert "no-overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["jsonl", "ocsf", "cef"])
def test_export_is_marked_as_derived(data, tmp_path, capsys, form):
    code, told = call(capsys, "export", "--log", data, "--format", form, "-o", tmp_path / "out", "--type", "lease.denied")
    assert (code, told["entries"], told["derived"]) == (0, 1, True)
    (line,) = (tmp_path / "out").read_text().splitlines()
    if form == "cef":
        assert line.startswith("CEF:0|Sealrig|Sealrig|1|lease.denied|lease.denied (derived)|6|rt=1793880000000 externalId=")
    elif form == "ocsf":
        event = json.loads(line)
        assert (event["class_uid"], event["type_uid"], event["status_id"]) == (3004, 300499, 2)
        assert (event["unmapped"]["derived"], event["unmapped"]["derived_from"]["index"]) == (True, 300)
    else:
        assert (json.loads(line)["derived"], json.loads(line)["source"]["index"]) == (True, 300)
    _, out, _ = say(capsys, "export", "--log", data, "--format", form)
    assert len(out.splitlines()) == 302


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--log", "DATA", "--since", "yesterday"),
        ("export", "--log", "DATA", "--format", "xml"),
        ("verify", "--proof", "x"),
        ("verify", "--proof", "x", *KEY_FLAG),
        ("verify", "--log", "DATA", "--key", "nothing"),
        ("watch", "--log", "DATA", "--quorum", "1", "--once"),
        ("watch", "--log", "DATA", "--every", "soon", "--once"),
        ("witness", "DIR", "--log", VERIFIER.text, "--listen", "nowhere"),
    ],
)
def test_usage(data, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *(str(data) if word == "DATA" else word for word in words)]) == 2
    assert "error:" in capsys.readouterr().err


def test_no_log_named(monkeypatch, tmp_path, capsys):
    for name in ("SEALRIG_SERVER", "SEALRIG_TRUST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["audit", "list"]) == 2
    assert "--log" in capsys.readouterr().err


def test_on_a_server(data, capsys):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(data))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            for place in (url, f"{url}/log", f"{url}/log/"):
                assert call(capsys, "verify", "--log", place, *KEY_FLAG)[1]["size"] == 302
            assert main(["audit", "list", "--log", f"{url}/log/tile"]) == 1
            assert "log-missing" in capsys.readouterr().err
        finally:
            server.shutdown()
            thread.join()


def test_watch_goes_on_where_it_stopped_and_raises_the_alarm(tmp_path, capsys):
    log, state = build(tmp_path / "log", LEAVES[:300]), tmp_path / "state"
    words = ("watch", "--log", log, "--state", state, "--once", *KEY_FLAG)
    assert call(capsys, *words) == (0, {"ok": True, "alarms": [], "size": 300})
    build(log, LEAVES[:400])
    assert call(capsys, *words)[1]["size"] == 400
    build(log, [leaf(), *LEAVES[1:410]])
    took = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            took.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        code, told = call(capsys, *words, "--webhook", f"http://127.0.0.1:{server.server_port}/")
        thread.join()
    assert (code, [alarm["kind"] for alarm in told["alarms"]], told["size"]) == (1, ["fork"], 400)
    assert [alarm["alarm"] for alarm in took] == ["fork"]
    code, told = call(capsys, *words, "--webhook", "http://127.0.0.1:1/")
    assert (code, told["error"]["details"]["alarm"]) == (1, "fork")


def test_watch_outlives_the_server(tmp_path, monkeypatch, capsys):
    """The log's server is away when the watch begins, comes, goes and comes again: an alarm each time it is away, and one connection."""
    log, port = build(tmp_path / "log", LEAVES[:300]), free_port()
    servers, took, opened = [], [], []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def up():
        server = HTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(log)))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))

    def down():
        server, thread = servers.pop()
        server.shutdown()
        server.server_close()
        thread.join()

    def stop():
        raise KeyboardInterrupt

    class Client(httpx.Client):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            opened.append(self)

    turns = iter([up, lambda: build(log, LEAVES[:400]), down, lambda: None, up, stop])
    monkeypatch.setattr("sandbox.cli.witnesses.time", SimpleNamespace(time=time.time, sleep=lambda _: next(turns)()))
    monkeypatch.setattr("sandbox.cli.witnesses._tell", lambda alarm, _: took.append(alarm.kind))
    monkeypatch.setattr("sandbox.cli.logs.httpx.Client", Client)
    words = ["--log", f"http://127.0.0.1:{port}", "--state", str(tmp_path / "state"), *KEY_FLAG, "--keep-going", "--webhook", "nowhere"]
    try:
        assert main(["audit", "watch", *words]) == 130
    finally:
        while servers:
            down()
    told = [line for line in capsys.readouterr().err.splitlines() if "entr" in line]
    assert told == [
        "0 entries, 1 alarm",
        "300 entries, in order",
        "400 entries, in order",
        "400 entries, 1 alarm",
        "400 entries, 1 alarm",
        "400 entries, in order",
    ]
    assert took == ["unreachable"] * 3
    assert len(opened) == 2  # one that found nothing, and the one in use ever since
    assert all(client.is_closed for client in opened)


def test_watch_with_a_wrong_flag_is_no_alarm(data, tmp_path, capsys):
    assert main(["audit", "watch", "--log", str(data), "--state", str(tmp_path / "state"), "--key", "no+key+", "--once"]) == 1
    told = capsys.readouterr().err
    assert "vkey-type" in told
    assert "warning" not in told


def _keep(data):
    KEY.save(data / "log.key")


def test_erase_is_not_begun_without_a_clear_yes(capsys):
    assert main(["audit", "erase", "tenant-" + "a" * 32, "--server", "http://127.0.0.1:1"]) == 2
    assert "--yes" in capsys.readouterr().err


def test_rotating_needs_the_log_alone(data, tmp_path, capsys):
    _keep(data)
    with open_log(data):
        assert main(["audit", "rotate-key", "--data", str(data)]) == 1
    assert "log-locked" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    OTHER_KEY.save(tmp_path / "empty" / "log.key")
    assert main(["audit", "rotate-key", "--data", str(tmp_path / "empty")]) == 1
    assert "log-data" in capsys.readouterr().err


@pytest.mark.parametrize("crash", [None, "before the handover", "after the handover"])
def test_rotate_key(data, capsys, crash):
    _keep(data)
    if crash:
        OTHER_KEY.save(data / "log.key.next")
    if crash == "after the handover":
        rotate_key(LogPlaces(data), origin=ORIGIN, old=KEY, new=OTHER_KEY, at=NOW)
    shown = (data / "log" / "checkpoint").read_text()
    code, told = call(capsys, "rotate-key", "--data", data)
    assert (code, told["retired"]) == (0, {"key": VERIFIER.text, "size": 303})
    assert (data / "log" / "checkpoint").read_text() == shown
    new = SigningKey.load(data / "log.key")
    assert (new.public == OTHER_KEY.public) == bool(crash)
    assert not (data / "log.key.next").exists()
    open_log(data, key=new).close()
    for key in (VERIFIER.text, told["vkey"]):
        assert call(capsys, "verify", "--log", data, "--key", key)[1]["size"] == 303
