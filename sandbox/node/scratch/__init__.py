"""Scratch: the one place on a node where a lease's plaintext may stand, and how it is made to be gone.

Each kind can open a file system for a lease and destroy it with proof. ``choose`` picks the kind; a policy can pin it.
"""
