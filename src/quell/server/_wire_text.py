"""Text on the wire: escaped for JSON, cut between characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

Clean: TypeAlias = Callable[[str], str]
"""Takes out secrets that are held here."""
_encode = msgspec.json.Encoder().encode


def json_text(text: str) -> bytes:
    """Write text as a string of JSON; half a character, which a model may say, becomes a question mark."""
    try:
        return _encode(text)
    except UnicodeEncodeError:
        return _encode(text.encode("utf-8", "replace").decode())


def cut_bytes(text: str, bytes_max: int) -> str:
    """Return at most so many bytes of a text, never half a character; 0: all of it."""
    if not bytes_max or len(text) * 4 <= bytes_max:
        return text
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= bytes_max else raw[:bytes_max].decode("utf-8", "ignore")


def event_frame(name: str, payload: object) -> bytes:
    """Write a named event."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(payload) + b"\n\n"
