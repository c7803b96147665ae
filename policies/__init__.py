"""Policies: typed YAML and CEL rules in, a decision with every reason out. Pure; imports neither the sandbox nor attestation."""
