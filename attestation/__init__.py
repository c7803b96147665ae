"""Attestation: evidence, verifiers, certificates, receipts and the transparency log. Usable alone and offline."""
