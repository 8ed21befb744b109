"""When a certificate runs out, read from its DER."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

UTC_TIME = 0x17
GENERALIZED_TIME = 0x18


def not_after(path: str) -> datetime:
    """Return the end of validity of the first certificate of a PEM file."""
    der = ssl.PEM_cert_to_DER_cert(Path(path).read_text())
    # Validity is a sequence of exactly two times, the first two time values of a certificate.
    times: list[datetime] = []
    at = 0
    while at < len(der) - 2 and len(times) < 2:
        tag, length = der[at], der[at + 1]
        text = der[at + 2 : at + 2 + length]
        parsed = _time(tag, text) if length in {13, 15} and text.endswith(b"Z") else None
        if parsed is None:
            at += 1
        else:
            times.append(parsed)
            at += 2 + length
    if len(times) < 2:
        raise ValueError(f"{path} holds no certificate with a validity")
    return times[1]


def _time(tag: int, text: bytes) -> datetime | None:
    layout = {UTC_TIME: "%y%m%d%H%M%SZ", GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
    try:
        return datetime.strptime(text.decode(), layout).replace(tzinfo=UTC) if layout else None
    except ValueError:
        return None
