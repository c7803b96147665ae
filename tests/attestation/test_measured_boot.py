"""A measured boot that really happened, in a virtual machine: the firmware's log, the TPM's values and its quote agree."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from attestation.errors import AttestationError
from attestation.verify.eventlog import replay_event_log
from attestation.verify.tpm import parse_quote, verify_signature

BOOT = Path(__file__).parent / "samples" / "ovmf"
VALUES = {int(pcr): bytes.fromhex(value) for pcr, value in json.loads((BOOT / "pcrs.json").read_text()).items()}
LOG = (BOOT / "binary_bios_measurements").read_bytes()
QUOTE = (BOOT / "quote.msg").read_bytes()


def test_the_firmwares_log_leads_to_the_values_that_the_tpm_had():
    log = replay_event_log(LOG)
    assert sorted(log.pcrs) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert {pcr: value for pcr, value in log.pcrs.items() if pcr in VALUES} == {pcr: VALUES[pcr] for pcr in VALUES if pcr != 10}


def test_the_quote_is_over_these_values_and_signed():
    quote = parse_quote(QUOTE)
    assert (quote.nonce.hex(), quote.pcrs) == ("00112233445566778899aabbccddeeff" * 2, tuple(sorted(VALUES)))
    assert quote.digest == hashlib.sha256(b"".join(VALUES[pcr] for pcr in quote.pcrs)).digest()
    key = load_pem_public_key((BOOT / "ak.pub.pem").read_bytes()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert verify_signature(key, (BOOT / "quote.sig").read_bytes(), QUOTE) == "sha256"
    with pytest.raises(AttestationError):
        verify_signature(key, (BOOT / "quote.sig").read_bytes(), QUOTE[:-1] + bytes([QUOTE[-1] ^ 1]))


def test_the_kernels_command_line_and_initrd_are_measured_by_its_own_stub():
    """PCR 9 (Linux 6.1 and later, EFI stub): what booted is not the kernel alone."""
    measured = replay_event_log(LOG).of(9)
    line = "root=/dev/vda rw console=ttyS0 panic=-1 systemd.show_status=1 net.ifnames=0 ima_policy=tcb ima_hash=sha256 initrd=initrd\0"
    assert hashlib.sha256(line.encode("utf-16-le")).digest() == measured[0]
    assert len(measured) == 2
