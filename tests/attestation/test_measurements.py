"""Logs replayed against quoted PCRs, and the runner measured at start: on public data, on made logs, and on a software TPM."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.appraisal import Level
from attestation.collect import collect
from attestation.collect.tpm import MAX_LOG_BYTES, Tools, TpmSource, measure_runner
from attestation.errors import AttestationError, FormatError, LimitError, VerificationError
from attestation.signing import b64encode
from attestation.steps import Steps
from attestation.verify import verify_evidence
from attestation.verify.eventlog import EV_NO_ACTION, extend, replay_event_log
from attestation.verify.ima import parse_ima, replay_ima
from attestation.verify.tee import tpm_evidence
from attestation.verify.tpm import verify_tpm
from attestation.verify.tpm_rules import TpmRules, check_rules
from tests.attestation.leases import AT, NODE, NODE_KEY, RUNNER, evidence, expected, trust
from tests.attestation.software_tpm import HANDLE, Tpm, software_tpm

EVENT_LOG = (Path(__file__).parent / "samples" / "crypto_agile_eventlog").read_bytes()
# As 'tpm2_eventlog' of tpm2-tools replays the same file.
REPLAYED = {0: "1536de22", 1: "f883c25e", 2: "3d458cfe", 3: "3d458cfe", 4: "b0af298e", 5: "3f2855fc", 6: "3d458cfe", 7: "3d6207f9"}
BINDING = hashlib.sha256(b"binding").digest()
RUNNER_BYTES = bytes.fromhex(RUNNER.removeprefix("sha256:"))


def le(number, size=4):
    return number.to_bytes(size, "little")


def header(banks=((0x000B, 32),)):
    spec = b"Spec ID Event03\0" + bytes(4) + bytes((0, 2, 0, 2)) + le(len(banks)) + b"".join(le(a, 2) + le(s, 2) for a, s in banks) + b"\0"
    return le(0) + le(EV_NO_ACTION) + bytes(20) + le(len(spec)) + spec


def event(pcr, digest, kind=8, data=b"x"):
    return le(pcr) + le(kind) + le(1) + le(0x000B, 2) + digest + le(len(data)) + data


def ima_data(name, content, *, signature=None):
    fields = [b"sha256:\0" + hashlib.sha256(content).digest(), name.encode() + b"\0", *([] if signature is None else [signature])]
    return b"".join(le(len(item)) + item for item in fields)


def ima_binary(*entries, template=b"ima-ng"):
    return b"".join(
        le(10) + hashlib.sha1(data, usedforsecurity=False).digest() + le(len(template)) + template + le(len(data)) + data
        for data in entries
    )


def ima_line(name, content, template="ima-ng", signature=None):
    data = ima_data(name, content, signature=signature)
    tail = f" {signature.hex()}" if signature else ""
    shown = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return f"10 {shown} {template} sha256:{hashlib.sha256(content).hexdigest()} {name}{tail}\n".encode()


FILES = [("/usr/bin/python3", b"python"), ("/a name with spaces", b"a"), ("/usr/lib/x.so", b"x")]
IMA_BINARY = ima_binary(*(ima_data(name, content) for name, content in FILES))
IMA_ASCII = b"".join(ima_line(name, content) for name, content in FILES)
DIGESTS = {f"sha256:{hashlib.sha256(content).hexdigest()}" for _, content in FILES}


def steps_of(quoted, rules, **logs):
    steps = Steps("the PCRs")
    judged = check_rules(quoted, rules, **({"event_log": None, "ima_log": None} | logs), steps=steps)
    return judged, [step.step for step in steps.all if not step.ok]


def test_a_public_log_replays_as_another_tool_replays_it():
    assert {index: value.hex()[:8] for index, value in replay_event_log(EVENT_LOG).pcrs.items()} == REPLAYED


def test_each_truncation_of_a_log_is_refused_or_leads_elsewhere():
    whole = replay_event_log(EVENT_LOG).pcrs
    for end in range(0, len(EVENT_LOG), 37):
        try:
            assert replay_event_log(EVENT_LOG[:end]).pcrs != whole
        except FormatError:
            continue


def test_the_cpus_own_start_leaves_its_locality_in_pcr_0():
    digest = hashlib.sha256(b"crtm").digest()
    started = header() + event(0, bytes(32), EV_NO_ACTION, b"StartupLocality\0\x03") + event(0, digest)
    assert replay_event_log(started).pcrs[0] == extend(bytes(31) + b"\x03", digest)
    late = header() + event(0, digest) + event(0, bytes(32), EV_NO_ACTION, b"StartupLocality\0\x03")
    assert replay_event_log(late).pcrs[0] == extend(bytes(32), digest)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        header(((0x0004, 20),)),
        header(tuple((number, 32) for number in range(9))),
        header() + event(24, bytes(32)),
        header() + le(0) + le(8) + le(0) + le(0),
        header() + le(0) + le(8) + le(2) + (le(0x000B, 2) + bytes(32)) * 2 + le(0),
        header() + le(0) + le(8) + le(1) + le(0x0004, 2) + bytes(20) + le(0),
        header() + event(0, bytes(32)) + b"\0",
        bytes(MAX_LOG_BYTES + 1),
    ],
)
def test_a_log_that_is_none_is_refused(raw):
    with pytest.raises((FormatError, LimitError)):
        replay_event_log(raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_clear_error_or_a_log(raw):
    for parse, start in ((replay_event_log, header()), (parse_ima, le(10)), (parse_ima, b"")):
        try:
            parse(start + raw)
        except AttestationError:
            continue


def test_both_forms_of_an_ima_log_say_the_same():
    assert parse_ima(IMA_BINARY) == parse_ima(IMA_ASCII)
    assert [entry.name for entry in parse_ima(IMA_ASCII)] == [name for name, _ in FILES]
    assert {entry.digest for entry in parse_ima(IMA_ASCII)} == DIGESTS
    signed = ima_line("/bin/a b", b"c", "ima-sig", b"\3\2\1") + ima_line("/bin/c", b"d", "ima-sig", b"")
    entries = (ima_data("/bin/a b", b"c", signature=b"\3\2\1"), ima_data("/bin/c", b"d", signature=b""))
    assert parse_ima(signed) == parse_ima(ima_binary(*entries, template=b"ima-sig"))


def test_a_quote_may_be_older_than_the_log():
    entries = parse_ima(IMA_BINARY)
    second = extend(extend(bytes(32), entries[0].extended), entries[1].extended)
    assert replay_ima(entries, second) == entries[:2]
    assert replay_ima(entries, bytes(32)) is None
    assert replay_ima(entries[1:], second) is None


def test_an_altered_ima_entry_is_found():
    for position in range(24, len(IMA_BINARY)):
        altered = bytearray(IMA_BINARY)
        altered[position] ^= 1
        try:
            changed = parse_ima(bytes(altered))
        except AttestationError:
            continue
        assert changed == parse_ima(IMA_BINARY)  # the flip hit nothing that counts
    with pytest.raises(FormatError):
        parse_ima(IMA_ASCII.replace(b"/usr/bin/python3", b"/usr/bin/python4"))
    with pytest.raises(FormatError):
        parse_ima(IMA_ASCII.replace(b" sha256:", b" sha256:0"))  # an odd number of hex digits


def test_accepted_measurements_and_only_those_pass():
    log = replay_event_log(EVENT_LOG)
    good = TpmRules(events={4: log.of(4), 7: log.of(7)})
    assert steps_of(log.pcrs, good, event_log=EVENT_LOG) == ((True, False), [])
    assert steps_of(log.pcrs, replace(good, events={4: log.of(4)[1:]}), event_log=EVENT_LOG) == ((False, False), ["tpm-events-4"])
    assert steps_of(log.pcrs | {4: bytes(32)}, good, event_log=EVENT_LOG)[1] == ["tpm-events"]
    assert steps_of({4: log.pcrs[4]}, good, event_log=EVENT_LOG)[1] == ["tpm-events"]  # PCR 7 was not quoted
    assert steps_of(log.pcrs, good)[1] == ["tpm-events"]  # no log


def test_ima_passes_with_accepted_files_only():
    entries = parse_ima(IMA_BINARY)
    value = bytes(32)
    for entry in entries:
        value = extend(value, entry.extended)
    rules = TpmRules(pcrs={10: [value]}, ima=DIGESTS)
    assert steps_of({10: value}, rules, ima_log=IMA_BINARY) == ((True, False), [])
    assert steps_of({10: value}, replace(rules, ima=set()), ima_log=IMA_ASCII)[1] == ["tpm-ima-files"]
    assert steps_of({10: value}, rules, ima_log=IMA_BINARY[:90])[1] == ["tpm-ima"]
    assert steps_of({}, replace(rules, pcrs={}), ima_log=IMA_BINARY)[1] == ["tpm-ima"]
    # a file that was changed while it was measured: its content is not known, whatever its entry says
    broken = le(10) + bytes(20) + le(6) + b"ima-ng" + le(len(ima_data("/x", b""))) + ima_data("/x", b"")
    violated = extend(value, b"\xff" * 32)
    rules = TpmRules(pcrs={10: [violated]}, ima=DIGESTS | {f"sha256:{hashlib.sha256(b'').hexdigest()}"})
    assert steps_of({10: violated}, rules, ima_log=IMA_BINARY + broken)[1] == ["tpm-ima-files"]


def test_the_runner_alone_is_no_judged_boot():
    value = extend(bytes(32), RUNNER_BYTES)
    alone = TpmRules(runner_pcr=23, runner=RUNNER_BYTES)
    assert steps_of({23: value}, alone) == ((False, False), [])
    both = replace(alone, pcrs={0: [b"\1" * 32]})
    assert steps_of({0: b"\1" * 32, 23: value}, both) == ((True, True), [])
    assert steps_of({0: b"\1" * 32, 23: extend(value, RUNNER_BYTES)}, both)[1] == ["tpm-runner"]
    assert steps_of({0: b"\1" * 32}, both)[1] == ["tpm-runner"]


# ---- on a software TPM


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    device = Tpm(tmp_path_factory.mktemp("tpm"))
    device.start()
    device.make_key()
    yield device
    device.stop()


def refused(source_evidence, rules, **changes):
    steps = Steps("the quote")
    verify_tpm(replace(source_evidence, **changes), nonce=BINDING, keys=[source_evidence.key], rules=rules, steps=steps)
    with pytest.raises(VerificationError) as caught:
        steps.finish()
    return [step.step for step in caught.value.steps if not step.ok]


@software_tpm
def test_boot_logs_and_runner_are_proven_by_a_tpm_until_it_reboots(tpm, tmp_path):
    """A machine boots, measures files, starts the runner, and vouches for all of it; afterwards nothing of that is left."""
    log, files = replay_event_log(EVENT_LOG), parse_ima(IMA_BINARY)
    for item in log.events:
        tpm.tool("tpm2_pcrextend", f"{item.pcr}:sha256={item.digest.hex()}")
    for entry in files:
        tpm.tool("tpm2_pcrextend", f"10:sha256={entry.extended.hex()}")
    tools = Tools(tpm.tcti)
    assert measure_runner(23, RUNNER_BYTES, tools)
    (tmp_path / "events").write_bytes(EVENT_LOG)
    (tmp_path / "ima").write_bytes(IMA_BINARY + ima_binary(ima_data("/later", b"later")))
    source = TpmSource(HANDLE, (0, 4, 7, 10, 23), tpm.tcti, tmp_path / "events", tmp_path / "ima")
    good = tpm_evidence(source.quote(BINDING))
    events = {str(index): [digest.hex() for digest in dict.fromkeys(log.of(index))] for index in (0, 4, 7)}
    section = {"keys": {NODE: b64encode(good.key)}, "events": events, "ima": sorted(DIGESTS), "runner": 23}
    accepted = trust(level="measured", tpm=section)
    signed = collect(evidence(), NODE_KEY, devices=[source])
    result = verify_evidence(signed, trust=accepted, expected=expected(), at=AT)
    assert result.level is Level.MEASURED
    assert result.ear["submods"]["node"]["ear_trustworthiness_vector"]["executables"] == 2

    rules = TpmRules(events={4: log.of(4)}, ima=DIGESTS, runner_pcr=23, runner=RUNNER_BYTES)
    assert refused(good, rules, event_log=EVENT_LOG[:-60]) == ["tpm-events"]
    assert refused(good, rules, ima_log=IMA_BINARY.replace(b"python3", b"python4")) == ["tpm-ima"]
    assert refused(good, replace(rules, runner=bytes(32))) == ["tpm-runner"]

    # the same runner again, and another one
    assert measure_runner(23, RUNNER_BYTES, tools)
    assert measure_runner(23, b"\7" * 32, tools)
    assert refused(tpm_evidence(source.quote(BINDING)), rules) == ["tpm-runner"]
    # a PCR that cannot be reset remembers the first runner until the machine boots anew
    assert measure_runner(14, RUNNER_BYTES, tools)
    assert measure_runner(14, RUNNER_BYTES, tools)
    assert not measure_runner(14, b"\7" * 32, tools)
    assert not measure_runner(14, RUNNER_BYTES, tools)

    tpm.stop()
    tpm.start()
    rebooted = tpm_evidence(TpmSource(HANDLE, (0, 4, 7, 10, 23), tpm.tcti, tmp_path / "events", tmp_path / "ima").quote(BINDING))
    assert refused(rebooted, rules) == ["tpm-events", "tpm-ima", "tpm-runner"]


@software_tpm
def test_a_log_that_cannot_travel_is_a_clear_error(tpm, tmp_path):
    for path in (tmp_path / "missing", tmp_path / "large"):
        if path.name == "large":
            path.write_bytes(bytes(MAX_LOG_BYTES + 1))
        with pytest.raises(AttestationError) as caught:
            TpmSource(HANDLE, (0,), tpm.tcti, path).quote(BINDING)
        assert caught.value.details["rule"] == "tpm-log"
