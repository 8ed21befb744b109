"""Identifiers that sort by time: a prefix, 48 bits of milliseconds, 80 bits of entropy (the ULID layout)."""

from __future__ import annotations

from datetime import UTC, datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ENTROPY_BYTES = 10
_MILLIS_BITS = 48


def new_id(prefix: str, *, at: datetime, entropy: bytes) -> str:
    """Build an id such as `inc_01jd3…` from a time and ten random bytes that the caller hands in.

    Ids of one prefix sort by `at` to the millisecond (ULID, github.com/ulid/spec, in lower case).
    """
    assert prefix.isalpha(), f"prefix must be letters: {prefix!r}"
    assert len(entropy) == _ENTROPY_BYTES, "ten bytes of entropy"
    millis = int(at.timestamp() * 1000)
    assert 0 <= millis < 1 << _MILLIS_BITS, f"time out of range: {at}"
    number = (millis << 80) | int.from_bytes(entropy, "big")
    text = "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
    return f"{prefix}_{text}"


def time_of_id(identifier: str) -> datetime:
    """Read the creation time back from an id. Raises ValueError when it is not one of ours."""
    _, _, text = identifier.partition("_")
    if len(text) != 26 or any(letter not in _ALPHABET for letter in text):
        raise ValueError(f"not an id: {identifier!r}")
    number = 0
    for letter in text:
        number = number << 5 | _ALPHABET.index(letter)
    return datetime.fromtimestamp((number >> 80) / 1000, tz=UTC)
