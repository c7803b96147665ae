"""Measurements against named peers. Each module is a program: ``python -m bench.NAME [--json]``; ``./dev bench`` runs them."""
