"""A measured boot that really happened, in a virtual machine: the firmware's log, the TPM's values and its quote agree."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from attestation.errors import AttestationError
from attestation.steps import Steps
from attestation.verify.eventlog import replay_event_log
from attestation.verify.tpm import TpmEvidence, parse_quote, verify_signature, verify_tpm
from attestation.verify.tpm_rules import TpmRules

BOOT = Path(__file__).parent / "samples" / "ovmf"
VALUES = {int(pcr): bytes.fromhex(value) for pcr, value in json.loads((BOOT / "pcrs.json").read_text()).items()}
LOG = (BOOT / "binary_bios_measurements").read_bytes()
QUOTE = (BOOT / "quote.msg").read_bytes()
KEY = load_pem_public_key((BOOT / "ak.pub.pem").read_bytes()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
NONCE = bytes.fromhex("00112233445566778899aabbccddeeff") * 2


def test_the_firmwares_log_leads_to_the_values_that_the_tpm_had():
    log = replay_event_log(LOG)
    assert sorted(log.pcrs) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert {pcr: value for pcr, value in log.pcrs.items() if pcr in VALUES} == {pcr: VALUES[pcr] for pcr in VALUES if pcr != 10}


def test_the_quote_is_over_these_values_and_signed():
    quote = parse_quote(QUOTE)
    assert (quote.nonce, quote.pcrs) == (NONCE, tuple(sorted(VALUES)))
    assert quote.digest == hashlib.sha256(b"".join(VALUES[pcr] for pcr in quote.pcrs)).digest()
    assert verify_signature(KEY, (BOOT / "quote.sig").read_bytes(), QUOTE) == "sha256"
    with pytest.raises(AttestationError):
        verify_signature(KEY, (BOOT / "quote.sig").read_bytes(), QUOTE[:-1] + bytes([QUOTE[-1] ^ 1]))


def test_the_kernels_command_line_and_initrd_are_measured_by_its_own_stub():
    """PCR 9 (Linux 6.1 and later, EFI stub): what booted is not the kernel alone."""
    measured = replay_event_log(LOG).of(9)
    line = "root=/dev/vda rw console=ttyS0 panic=-1 systemd.show_status=1 net.ifnames=0 ima_policy=tcb ima_hash=sha256 initrd=initrd\0"
    assert hashlib.sha256(line.encode("utf-16-le")).digest() == measured[0]
    assert len(measured) == 2


def appraise(nonce=NONCE, **changes):
    log = replay_event_log(LOG)
    accepted = {index: set(log.of(index)) for index in log.pcrs if index in VALUES} | changes.pop("accepted", {})
    shown = TpmEvidence(QUOTE, (BOOT / "quote.sig").read_bytes(), VALUES, KEY, event_log=changes.pop("log", LOG))
    steps = Steps("the capture")
    submod = verify_tpm(shown, nonce=nonce, keys=[KEY], rules=TpmRules(events=accepted), steps=steps)
    return submod, [step.step for step in steps.all if not step.ok]


def test_the_verifier_accepts_this_boot_and_what_it_was_told_to_accept_only():
    submod, failed = appraise()
    assert failed == []
    assert submod.claims["executables"] > 0
    assert appraise(nonce=bytes(32))[1] == ["tpm-nonce"]
    assert appraise(accepted={4: set()})[1] == ["tpm-events-4"]
    assert appraise(accepted={10: set()})[1] == ["tpm-events"]  # the firmware's log says nothing of what IMA extends
    assert appraise(log=LOG[:-200])[1] == ["tpm-events"]
