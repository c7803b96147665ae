"""Fuzz the verifiers and parsers of evidence: ``python -m bench.fuzz.evidence [--seconds 60] [--seed N] [--parsers] [--every-byte]``.

Public reports, certificates, references, quotes and logs are altered at random. A verifier must refuse each case by an
``AttestationError`` or, where the change touches nothing that counts (white space in PEM, XML or JSON), come to the same result; a
parser must return or refuse. Anything else, and any case over a second of processor time or 256 MiB more memory, is printed with its
seed and ends the run with exit code 1. ``--parsers`` leaves the verifiers out, whose signatures take nearly all of the time, so that
a run reaches hundreds of times as many cases. ``--every-byte`` flips each byte of each signed sample once instead, and wants each refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from attestation.enrolment import Answer, Challenge, Offer, Pending
from attestation.errors import AttestationError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.runners import ReleaseStatement, build_release
from attestation.signing import Envelope, SigningKey, b64decode, b64encode, sign_envelope
from attestation.verify.certificates import load_chain
from attestation.verify.eventlog import replay_event_log
from attestation.verify.ima import parse_ima
from attestation.verify.nvidia_report import parse_gpu_report
from attestation.verify.ocsp import load_ocsp
from attestation.verify.revocation import load_crl
from attestation.verify.single import Kind, verify_single
from attestation.verify.snp_report import parse_report
from attestation.verify.tdx_collateral import stated_window
from attestation.verify.tdx_quote import parse_tdx_quote
from attestation.verify.tpm import parse_quote
from attestation.verify.tpm_public import parse_public

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
PUBLIC = Path(__file__).resolve().parents[2] / "tests" / "attestation" / "samples"
AT = datetime(2024, 6, 1, tzinfo=UTC)
TDX_AT = datetime(2025, 6, 25, tzinfo=UTC)
SLOW_SECONDS = 1.0
MORE_MEMORY = 256 * 1024  # KiB, as getrusage counts
IMA = b"".join(
    b"10 " + hashlib.sha1(name, usedforsecurity=False).hexdigest().encode() + b" ima-ng sha256:" + hashlib.sha256(name).hexdigest().encode()
    + b" " + name + b"\n" for name in (b"/bin/sh", b"/usr/bin/a name", b"boot_aggregate")
)  # fmt: skip
TPM_PUBLIC = bytes.fromhex("005600230 00b00050072 0000 0010 0018 000b 0003 0010 0020".replace(" ", "")) + bytes(32) + b"\0\x20" + bytes(32)
ENROLMENT = b'{"v":1,"node":"node-00000000000000000000000000000001","ek":"AAAA","ak":"AAAA","ek_certificate":"","offer":"","proof":""}'
ENVELOPE = sign_envelope(
    b'{"v":1,"lease":"lease-00000000000000000000000000000001","posture":[],"tee":null}', EVIDENCE_PAYLOAD_TYPE, SigningKey(bytes(32))
).to_bytes()
RELEASE = build_release("0.1.0", "sha256:" + "1" * 64, {"cpython-3.11.7-linux-x86_64": "sha256:" + "2" * 64}, AT)
BLOCKS = (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00")


@dataclass(frozen=True)
class Parse:
    """One call of a parser, which returns something or refuses."""

    kind: str
    parser: Callable[[bytes], object]
    raw: bytes

    def run(self) -> None:
        """Parse; the result has no good or bad."""
        self.parser(self.raw)


@dataclass(frozen=True)
class Case:
    """One call of ``verify_single``."""

    kind: Kind
    raw: bytes
    others: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> object:
        """Return what must not change: the submods of the result."""
        return verify_single(self.kind, self.raw, at=TDX_AT if self.kind == "tdx" else AT, **self.others).ear["submods"]


def alter(dice: random.Random, raw: bytes) -> bytes:
    """Return ``raw`` after one to five random changes: bits, bytes, cuts, fillings, extreme numbers."""
    data = bytearray(raw)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(data) + 1)
        change = dice.randrange(4)
        if change == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            del data[at : at + dice.randrange(1, 40)]
        elif change == 2:
            data[at:at] = dice.randbytes(dice.randrange(1, 20))
        else:
            data[at : at + 4] = dice.choice(BLOCKS)
    return bytes(data)


def _parse(kind: str, parser: Callable[[bytes], object], raw: bytes, dice: random.Random) -> Parse:
    return Parse(kind, parser, alter(dice, raw))


class Samples:
    """The public samples, and a way to alter each part of them."""

    def __init__(self, folder: Path) -> None:
        self._tpm = json.loads((folder / "tpm" / "tpm_evidence.json").read_bytes())
        self._snp = ((folder / "snp" / "test-report.bin").read_bytes(), (folder / "snp" / "test-vcek.der").read_bytes())
        gpu = folder / "nvidia"
        self._gpu = (bytes.fromhex((gpu / "hopperAttestationReport.txt").read_text()), (gpu / "hopperCertChain.txt").read_bytes())
        self._tdx = ((PUBLIC / "tdx_quote").read_bytes(), (PUBLIC / "tdx_quote_collateral.json").read_bytes())
        self._rim = (gpu / "vbios_1010_0200_882_96005E0001.swidtag").read_bytes()
        tables = json.loads(self._tdx[1])
        crl = bytes.fromhex(tables["pck_crl"])
        self._parsed: list[tuple[str, Callable[[bytes], object], bytes]] = [
            ("event-log", replay_event_log, (PUBLIC / "crypto_agile_eventlog").read_bytes()),
            ("ima", parse_ima, IMA),
            ("crl", load_crl, crl),
            ("ocsp", load_ocsp, _ocsp()),
            ("certificates", load_chain, self._gpu[1]),
            ("tpm-public", parse_public, TPM_PUBLIC),
            ("tpm-quote", parse_quote, b64decode(self._tpm["tpm_quote"]["message"])),
            ("snp-report", lambda raw: [parse_report(raw, turin=turin) for turin in (False, True)], self._snp[0]),
            ("tdx-quote", parse_tdx_quote, self._tdx[0]),
            ("tdx-collateral", stated_window, self._tdx[1]),
            ("gpu-report", parse_gpu_report, self._gpu[0]),
            ("envelope", Envelope.from_bytes, ENVELOPE),
            ("release", ReleaseStatement.from_payload, RELEASE),
            ("evidence", Evidence.from_payload, b64decode(json.loads(ENVELOPE)["payload"])),
            *(("enrolment", kind.from_payload, ENROLMENT) for kind in (Offer, Challenge, Pending, Answer)),
        ]

    def parsers(self) -> list[Callable[[random.Random], Case | Parse]]:
        """Return one maker of cases for each parser."""
        return [partial(_parse, *what) for what in self._parsed]

    def verifiers(self) -> list[Callable[[random.Random], Case | Parse]]:
        """Return one maker of cases for each part of what verifiers are given."""
        (report, chip), (gpu, chain), (quote, tables) = self._snp, self._gpu, self._tdx
        return [
            lambda dice: self._altered_tpm(dice, "message"),
            lambda dice: self._altered_tpm(dice, "signature"),
            lambda dice: Case("tpm", alter(dice, json.dumps(self._tpm).encode())),
            lambda dice: Case("sev-snp", alter(dice, report), {"chain": chip}),
            lambda dice: Case("sev-snp", report, {"chain": alter(dice, chip)}),
            lambda dice: Case("tdx", alter(dice, quote), {"collateral": tables}),
            lambda dice: Case("tdx", quote, {"collateral": alter(dice, tables)}),
            lambda dice: Case("nvidia-gpu", alter(dice, gpu), {"chain": chain}),
            lambda dice: Case("nvidia-gpu", gpu, {"chain": alter(dice, chain)}),
            lambda dice: Case("nvidia-gpu", gpu, {"chain": chain, "rims": [alter(dice, self._rim)]}),
        ]

    def flips(self) -> Iterator[tuple[str, int, Case]]:
        """Yield each signed sample with each of its bytes flipped once."""
        (report, chip), (gpu, chain), (quote, tables) = self._snp, self._gpu, self._tdx
        message = b64decode(self._tpm["tpm_quote"]["message"])
        for at in range(len(message)):
            changed = self._tpm["tpm_quote"] | {"message": b64encode(_flipped(message, at))}
            yield "tpm quote", at, Case("tpm", json.dumps(self._tpm | {"tpm_quote": changed}).encode())
        for at in range(len(report)):
            yield "sev-snp report", at, Case("sev-snp", _flipped(report, at), {"chain": chip})
        for at in range(len(chip)):
            yield "sev-snp chip certificate", at, Case("sev-snp", report, {"chain": _flipped(chip, at)})
        for at in range(len(quote.rstrip(bytes(1)))):
            yield "tdx quote", at, Case("tdx", _flipped(quote, at), {"collateral": tables})
        for at in range(len(gpu)):
            yield "nvidia report", at, Case("nvidia-gpu", _flipped(gpu, at), {"chain": chain})
        for at in range(len(self._rim)):
            yield "nvidia reference", at, Case("nvidia-gpu", gpu, {"chain": chain, "rims": [_flipped(self._rim, at)]})

    def _altered_tpm(self, dice: random.Random, part: str) -> Case:
        quote = dict(self._tpm["tpm_quote"])
        quote[part] = b64encode(alter(dice, b64decode(quote[part])))
        return Case("tpm", json.dumps(self._tpm | {"tpm_quote": quote}).encode())

    def good(self) -> list[object]:
        """Return the results of the samples as they are."""
        whole = Case("nvidia-gpu", self._gpu[0], {"chain": self._gpu[1]})
        return [
            Case("tpm", json.dumps(self._tpm).encode()).run(),
            Case("sev-snp", self._snp[0], {"chain": self._snp[1]}).run(),
            Case("tdx", self._tdx[0], {"collateral": self._tdx[1]}).run(),
            whole.run(),
        ]


def _flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x01]) + raw[at + 1 :]


def _ocsp() -> bytes:
    """Return an OCSP response of a key made now: there is no public one among the samples."""
    key, name = ec.generate_private_key(ec.SECP384R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fuzz")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, AT, AT + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA384())
    answer = ocsp.OCSPResponseBuilder().add_response(
        certificate, certificate, hashes.SHA256(), ocsp.OCSPCertStatus.GOOD, AT, AT + timedelta(days=1), None, None
    )
    signed = answer.responder_id(ocsp.OCSPResponderEncoding.HASH, certificate).certificates([certificate]).sign(key, hashes.SHA384())
    return signed.public_bytes(Encoding.DER)


def flip_every_byte(samples: Samples) -> int:
    """Flip each byte of each signed sample; print how many changed nothing that counts, by sample. Return the exit code."""
    good, refused, same = samples.good(), Counter[str](), Counter[str]()
    for name, at, case in samples.flips():
        try:
            if case.run() not in good:
                print(f"{name}, byte {at}: another result verifies", file=sys.stderr)
                return 1
            same[name] += 1
        except AttestationError:
            refused[name] += 1
    for name in refused | same:
        print(f"{name}: {refused[name]} refused, {same[name]} with nothing changed that counts")
    return 0


def fuzz(samples: Samples, seed: int, seconds: float, *, parsers: bool = False) -> int:
    """Run altered cases for a while, of parsers alone if so wished; return the exit code."""
    dice = random.Random(seed)  # noqa: S311  (cases must repeat by their seed)
    good, makers = samples.good(), samples.parsers() if parsers else samples.parsers() + samples.verifiers()
    counts, same = Counter[str](), 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        case = dice.choice(makers)(dice)
        counts[case.kind] += 1
        where = f"seed {seed}, case {counts.total()}: {case.kind}"
        began = time.process_time()
        try:
            result = case.run()
            if isinstance(case, Case) and result not in good:
                print(f"{where}: another result verifies", file=sys.stderr)
                return 1
            same += isinstance(case, Case)
        except AttestationError:
            pass
        except Exception as error:  # noqa: BLE001  (any other error is what is looked for)
            print(f"{where}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        if time.process_time() - began > SLOW_SECONDS:
            print(f"{where}: took {time.process_time() - began:.1f} s", file=sys.stderr)
            return 1
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > memory + MORE_MEMORY:
            print(f"{where}: took more than {MORE_MEMORY // 1024} MiB", file=sys.stderr)
            return 1
    print(f"{counts.total()} cases, {same} with nothing changed that counts, seed {seed}")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
    return 0


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--parsers", action="store_true")
    parser.add_argument("--every-byte", action="store_true")
    options = parser.parse_args()
    if not VECTORS.is_dir():
        print(f"the public vectors are not at {VECTORS}", file=sys.stderr)
        return 1
    warnings.simplefilter("error")
    samples = Samples(VECTORS)
    return flip_every_byte(samples) if options.every_byte else fuzz(samples, options.seed, options.seconds, parsers=options.parsers)


if __name__ == "__main__":
    sys.exit(main())
