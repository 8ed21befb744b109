"""What every way of showing an identity has to say when it does not believe one."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from quell.domain import Way

SIGNATURES: Mapping[str, tuple[str, str]] = {
    **{f"{family}{bits}": ("RSA", "") for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Key type and curve of every signature that may be accepted. None of them can be made with a public key."""

_NAME_MAX = 256


class UnprovenError(Exception):
    """An identity was not believed; the reason stays inside."""

    def __init__(self, way: Way, reason: str, *, credential: str = "") -> None:
        super().__init__(reason)
        self.way = way
        self.reason = reason
        self.credential = credential


def is_name(text: str) -> bool:
    """Tell whether a text can name a person: visible, in one spelling, not too long."""
    return (
        0 < len(text) <= _NAME_MAX
        and unicodedata.normalize("NFC", text) == text
        and not any(unicodedata.category(letter)[0] in "CZ" for letter in text)
    )
