"""Makes what NVIDIA makes, under roots of its own: chips with their chains, signed reports of both architectures, references, OCSP."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from lxml import etree
from signxml.algorithms import CanonicalizationMethod, DigestAlgorithm, SignatureMethod
from signxml.signer import XMLSigner

AT = datetime(2026, 6, 1, tzinfo=UTC)
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384_NS = "http://www.w3.org/2001/04/xmlenc#sha384"
NAME = x509.NameOID.COMMON_NAME
DRIVER, VBIOS = "590.12", "97.00.88.00.0F"
_VBIOS_BYTES = bytes.fromhex("008800970f000000")
SHA384_OID = bytes.fromhex("0609608648016503040202")


def der(tag, *parts):
    body = b"".join(parts)
    length = bytes([len(body)]) if len(body) < 0x80 else bytes([0x81, len(body)])
    return bytes([tag]) + length + body


def fwid_extension(architecture, fwid):
    """The two layouts as public certificates have them."""
    listed = der(0x30, SHA384_OID, der(0x04, fwid))
    if architecture == "Hopper":
        return "2.23.133.5.4.1", der(0x30, der(0x02, b"\1"), der(0x30, bytes(118 - 2)), listed)
    second = der(0x30, SHA384_OID, der(0x04, bytes(48)))
    parts = [der(0x80, b"NVIDIA"), der(0x81, b"GB100 A01 GSP"), der(0x82, b"01"), der(0x83, b"\1"), der(0x84, b"\0"), der(0x85, b"\0")]
    return "2.23.133.5.4.1.1", der(0x30, *parts, der(0xA6, listed, second), der(0x87, b"\0\x80\0\0\1"))


@dataclass
class Authority:
    """A key with its certificate and those above it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    above: list = field(default_factory=list)

    @classmethod
    def root(cls, name="Test Root"):
        key = ec.generate_private_key(ec.SECP384R1())
        return cls(key, certificate(name, key, name, key, ca=True))

    def issue(self, name, *, ca=True, extension=None, purposes=()):
        key = ec.generate_private_key(ec.SECP384R1())
        made = certificate(name, key, self.certificate.subject, self.key, ca=ca, extension=extension, purposes=purposes)
        return Authority(key, made, [self.certificate, *self.above])

    @property
    def chain(self):
        return [self.certificate, *self.above]

    @property
    def pem(self):
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.chain)


def certificate(name, key, issuer, issuer_key, *, ca, extension=None, purposes=()):
    subject = x509.Name([x509.NameAttribute(NAME, name)])
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer if isinstance(issuer, x509.Name) else x509.Name([x509.NameAttribute(NAME, issuer)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=AT - timedelta(days=365),
        not_valid_after=AT + timedelta(days=365),
    ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(extension[0]), extension[1]), critical=False)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
    return builder.sign(issuer_key, hashes.SHA384())


class Maker:
    """Both roots, and chips under them."""

    def __init__(self):
        self.root, self.rim_root = Authority.root("Device Root"), Authority.root("RIM Root")
        self.identity = self.root.issue("NVIDIA Identity")
        self.ica = self.identity.issue("NVIDIA Provisioner")
        self.rim_signer = self.rim_root.issue("RIM L3").issue("RIM Signer", ca=False)

    def chip(self, architecture="Blackwell", name=None, *, fwid=b"\7" * 48):
        name = name or {"Hopper": "GH100", "Blackwell": "GB100"}[architecture]
        extension = fwid_extension(architecture, fwid) if architecture in {"Hopper", "Blackwell"} else None
        leaf = self.ica.issue(f"{name} A01 GSP BROM").issue(f"{name} A01 GSP FMC LF", ca=False, extension=extension)
        return Chip(leaf, fwid)

    def rim(self, product, version, golden):
        """A signed reference: ``golden`` maps the index (from 0) to accepted values."""
        tag = etree.Element(f"{{{SWID}}}SoftwareIdentity", nsmap={None: SWID})
        etree.SubElement(tag, f"{{{SWID}}}Meta", product=product, colloquialVersion=version)
        payload = etree.SubElement(tag, f"{{{SWID}}}Payload")
        for index, values in golden.items():
            row = etree.SubElement(payload, f"{{{SWID}}}Resource", type="Measurement", active="True", index=str(index))
            row.set("alternatives", str(len(values)))
            for number, each in enumerate(values):
                row.set(f"{{{SHA384_NS}}}Hash{number}", each.hex())
        signer = XMLSigner(
            signature_algorithm=SignatureMethod.ECDSA_SHA384,
            digest_algorithm=DigestAlgorithm.SHA384,
            c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
        )
        chain = [each.public_bytes(Encoding.PEM).decode() for each in self.rim_signer.chain]
        return etree.tostring(signer.sign(tag, key=self.rim_signer.key, cert=chain))

    def answer(self, authority, issuer, *, status=ocsp.OCSPCertStatus.GOOD, responder=None, at=AT, days=7):
        """An OCSP response about ``authority``'s certificate, by its issuer or a delegate."""
        signer = responder or issuer
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=authority.certificate,
            issuer=issuer.certificate,
            algorithm=hashes.SHA256(),
            cert_status=status,
            this_update=at - timedelta(hours=1),
            next_update=at + timedelta(days=days),
            revocation_time=at - timedelta(days=1) if status is ocsp.OCSPCertStatus.REVOKED else None,
            revocation_reason=x509.ReasonFlags.key_compromise if status is ocsp.OCSPCertStatus.REVOKED else None,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate).certificates([signer.certificate])
        return builder.sign(signer.key, hashes.SHA384()).public_bytes(Encoding.DER)


@dataclass
class Chip:
    """One GPU: it signs reports."""

    leaf: Authority
    fwid: bytes

    @property
    def pem(self):
        return self.leaf.pem

    def report(self, nonce, measurements, **opaque):
        """A signed report over ``measurements`` (block index from 1); ``opaque`` replaces fields, None leaves one out."""
        fields = {
            3: DRIVER.encode() + b"\0",
            6: _VBIOS_BYTES,
            11: b"\x55",
            15: b"886\0",
            17: b"G525\0",
            18: b"0220\0",
            20: self.fwid,
            34: b"\1\0",
            36: b"\1\0",
        } | {int(name.removeprefix("f")): value for name, value in opaque.items()}
        record = b"".join(
            bytes([index, 1]) + (len(value) + 3).to_bytes(2, "little") + b"\1" + len(value).to_bytes(2, "little") + value
            for index, value in measurements.items()
        )
        data = b"".join(
            name.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value for name, value in fields.items() if value is not None
        )
        signed = (
            b"\x11\xe0\x01\xff" + nonce + b"\0" + b"\x11\x60\0\0" + bytes([len(measurements)]) + len(record).to_bytes(3, "little") + record
            + bytes(32) + len(data).to_bytes(2, "little") + data
        )  # fmt: skip
        r, s = decode_dss_signature(self.leaf.key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")
