"""What quoted PCRs must show: accepted values, accepted measurements in replayed logs, and the runner.

Steps: ``tpm-pcr-N`` an accepted value · ``tpm-events`` the firmware's log gives the quoted values · ``tpm-events-N`` only accepted
measurements were extended into PCR N · ``tpm-ima`` IMA's log gives the quoted value · ``tpm-ima-files`` it lists accepted files only ·
``tpm-runner`` the runner that the evidence names is the one measured when the node started, and no other was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from attestation.errors import AttestationError
from attestation.steps import Steps
from attestation.verify.eventlog import extend, replay_event_log
from attestation.verify.ima import IMA_PCR, parse_ima, replay_ima

_SHA256_BYTES = 32


@dataclass(frozen=True)
class TpmRules:
    """What is accepted. ``events`` by PCR; ``ima`` holds file digests (``sha256:…``), None does not judge the log.

    ``runner_pcr`` of None does not look for the runner; else its value must come from ``runner`` (32 bytes) and nothing else.
    """

    pcrs: Mapping[int, Collection[bytes]] = field(default_factory=dict)
    events: Mapping[int, Collection[bytes]] = field(default_factory=dict)
    ima: Collection[str] | None = None
    runner_pcr: int | None = None
    runner: bytes = b""


def check_rules(
    quoted: Mapping[int, bytes], rules: TpmRules, *, event_log: bytes | None, ima_log: bytes | None, steps: Steps
) -> tuple[bool, bool]:
    """Record the steps; return whether the boot was judged and accepted, and whether the runner was too.

    ``quoted`` holds the values that the TPM signed.
    """
    boot = bool(rules.pcrs or rules.events)
    for index in sorted(rules.pcrs):
        value = quoted.get(index, b"")
        boot &= steps.check(
            f"tpm-pcr-{index}",
            ok=value in rules.pcrs[index],
            seen=value.hex() or "not quoted",
            wanted=" or ".join(sorted(item.hex() for item in rules.pcrs[index]))[:400],
            fix="boot what the trust file accepts, or add this value to it",
        )
    if rules.events:
        boot &= _check_events(quoted, rules.events, event_log, steps)
    files = _check_ima(quoted, rules.ima, ima_log, steps) if rules.ima is not None else True
    runner = _check_runner(quoted, rules.runner_pcr, rules.runner, steps) if rules.runner_pcr is not None else False
    return boot and files, boot and files and runner


def _check_events(quoted: Mapping[int, bytes], accepted: Mapping[int, Collection[bytes]], raw: bytes | None, steps: Steps) -> bool:
    try:
        log = replay_event_log(raw or b"")
    except AttestationError as error:
        steps.note("tpm-events", error)
        return False
    differing = [index for index in sorted(accepted) if log.pcrs.get(index, bytes(_SHA256_BYTES)) != quoted.get(index)]
    if not steps.check(
        "tpm-events",
        ok=not differing,
        seen=f"{len(log.events)} events; PCRs that differ or were not quoted: {', '.join(map(str, differing)) or 'none'}",
        wanted="a log that leads to the quoted values",
        fix="quote these PCRs, and boot anew if the log was cut",
    ):
        return False
    good = True
    for index in sorted(accepted):
        unknown = [digest.hex() for digest in log.of(index) if digest not in accepted[index]]
        good &= steps.check(
            f"tpm-events-{index}",
            ok=not unknown,
            seen=f"{len(log.of(index))} measurements" + (f", unknown: {', '.join(unknown[:4])}" if unknown else ""),
            wanted="accepted measurements only",
            fix="boot what the trust file accepts, or add these measurements to it",
        )
    return good


def _check_ima(quoted: Mapping[int, bytes], accepted: Collection[str], raw: bytes | None, steps: Steps) -> bool:
    try:
        entries = replay_ima(parse_ima(raw or b""), quoted.get(IMA_PCR, b""))
    except AttestationError as error:
        steps.note("tpm-ima", error)
        return False
    if not steps.check(
        "tpm-ima",
        ok=entries is not None,
        seen="no part of the log leads to the quoted value" if entries is None else f"{len(entries)} entries",
        wanted=f"a log that leads to the quoted PCR {IMA_PCR}",
        fix=f"quote PCR {IMA_PCR}; the log must be read after the quote and be complete since boot",
    ):
        return False
    unknown = [f"{entry.name} {'changed while measured' if entry.violation else entry.digest}" for entry in entries or ()
               if entry.violation or entry.digest not in accepted]  # fmt: skip
    return steps.check(
        "tpm-ima-files",
        ok=not unknown,
        seen="; ".join(unknown[:4])[:600] or "accepted files only",
        wanted="accepted files only",
        fix="remove what is not accepted, boot anew; or add these digests to the trust file",
    )


def _check_runner(quoted: Mapping[int, bytes], pcr: int, runner: bytes, steps: Steps) -> bool:
    wanted = extend(bytes(_SHA256_BYTES), runner)
    return steps.check(
        "tpm-runner",
        ok=quoted.get(pcr) == wanted,
        seen=f"PCR {pcr}: {quoted[pcr].hex() if pcr in quoted else 'not quoted'}",
        wanted=f"{wanted.hex()}, from the runner that the evidence names",
        fix="restart the node; a PCR that cannot be reset needs a boot after each update",
    )
