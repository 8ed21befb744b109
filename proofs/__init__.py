"""Proofs: what Quell promises, tried by adversaries and by enumeration; `python -m proofs` prints the table."""
