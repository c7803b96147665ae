import base64
import itertools
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from policies.engine import evaluate
from policies.loader import load_policy
from policies.model import LaunchRequest
from policies.signatures import SIGNATURE_MAX_CHARS, check_public_key, image_message, signed_by_any

A = "sha256:" + "a" * 64
B = "sha256:" + "b" * 64


def b64(raw):
    return base64.b64encode(raw).decode()


ED = Ed25519PrivateKey.generate()
ED_TEXT = "ed25519:" + b64(ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
EC = ec.generate_private_key(ec.SECP256R1())
EC_TEXT = EC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def ed_signature(digest, key=ED):
    return "ed25519:" + b64(key.sign(image_message(digest)))


def cosign_signature(digest, key=EC, kind="cosign container image signature"):
    payload = json.dumps({"critical": {"identity": {"docker-reference": "reg.example/app"}, "image": {"docker-manifest-digest": digest},
                                       "type": kind}, "optional": None}).encode()  # fmt: skip
    return f"cosign:{b64(payload)}:{b64(key.sign(payload, ec.ECDSA(SHA256())))}"


@pytest.mark.parametrize("signature", [ed_signature(A), cosign_signature(A)], ids=["ed25519", "cosign"])
def test_a_true_signature_counts(signature):
    assert signed_by_any(A, [signature], [ED_TEXT, EC_TEXT])


@pytest.mark.parametrize(
    "signature",
    [
        ed_signature(B),
        ed_signature(A, Ed25519PrivateKey.generate()),
        cosign_signature(B),
        cosign_signature(A, ec.generate_private_key(ec.SECP256R1())),
        cosign_signature(A, kind="something else"),
        "",
        "ed25519:",
        "ed25519:****",
        "cosign::",
        "cosign:e30=",
        "gpg:AAAA",
        "ed25519:" + "A" * SIGNATURE_MAX_CHARS,
    ],
    ids=itertools.count(),
)
def test_any_other_counts_as_none(signature):
    assert not signed_by_any(A, [signature], [ED_TEXT, EC_TEXT])


def test_a_signed_payload_that_is_no_object_counts_as_none():
    for payload in (b"[]", b"{}", b"not json", b'{"critical": 3}', b'{"critical": {"image": []}}', b"[" * 5000):
        signature = f"cosign:{b64(payload)}:{b64(EC.sign(payload, ec.ECDSA(SHA256())))}"
        assert not signed_by_any(A, [signature], [EC_TEXT])


@pytest.mark.parametrize("text", ["", "ed25519:AAAA", "-----BEGIN PUBLIC KEY-----\nxx\n-----END PUBLIC KEY-----", "rsa:1"])
def test_a_key_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="public key"):
        check_public_key(text)


def test_a_key_on_another_curve_is_refused():
    other = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="P-256"):
        check_public_key(other.decode())


def test_a_policy_can_demand_a_signature():
    spec = f"{{images: {{allow: ['sha256:*'], signatures: {{keys: ['{ED_TEXT}']}}}}}}"
    policy = load_policy(f"apiVersion: sealrig/v1\nkind: Policy\nmetadata: {{name: signed}}\nspec: {spec}\n".encode())
    unsigned = LaunchRequest(tenant="t", name="n", image=A)
    (reason,) = evaluate(policy, unsigned, None).reasons
    assert reason.rule == "image-signed"
    assert evaluate(policy, unsigned.model_copy(update={"image_signatures": (ed_signature(A),)}), None).allowed


# Made by cosign itself; public in Sigstore's transparency log (Rekor, entry 13452680), whose certificate holds this key.
REAL_DIGEST = "sha256:623621b56649b5e0c2c7cf3ffd987932f8f9a5a01036e00d6f3ae9480087621c"
REAL_PAYLOAD = (
    b'{"critical":{"identity":{"docker-reference":"wabbitnetworks.azurecr.io/test/cosign-image"},"image":{"docker-manifest-digest":"'
    + REAL_DIGEST.encode()
    + b'"},"type":"cosign container image signature"},"optional":null}'
)
REAL_SIGNATURE = "MEUCIFBlKbxxg1Ni++g99jeWO8Of3g5L0Xd+qMzdqCZySQ8DAiEA3lcOJPJ1FQOahtWaRU0hG0XxFEsbcVx6SIyzYQMMR0A="
REAL_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7eKu8pk7g2/IRhRy2P/2HcsSBcX6
BZhOCIslH05AXqK5eKBFO0eM+hHqqiima4Tnwzc1sOot8tTFw9yDDmxpNA==
-----END PUBLIC KEY-----
"""


def test_a_signature_made_by_cosign_itself():
    text = f"cosign:{b64(REAL_PAYLOAD)}:{REAL_SIGNATURE}"
    assert signed_by_any(REAL_DIGEST, [text], [REAL_KEY])
    assert not signed_by_any(A, [text], [REAL_KEY])
    assert not signed_by_any(REAL_DIGEST, [f"cosign:{b64(REAL_PAYLOAD + b' ')}:{REAL_SIGNATURE}"], [REAL_KEY])
