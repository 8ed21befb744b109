"""Text that is safe to put into a line: no secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_SECRET_KEY = re.compile(
    r"(^|[_.\-])(password|passwd|secret|authorization|cookie|api[_-]?key|token|bearer|dsn)$", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
REDACTED = "[redacted]"
_SECRET_CHARACTERS_MIN = 4


class Redactor:
    """Takes known secret values, credentials in URLs and values under secret-looking keys out of text."""

    def __init__(self, secrets: Iterable[str], *, clean: Callable[[str], str] = str) -> None:
        """Know secrets as they stand; `clean` comes first, and may know more."""
        self._clean = clean
        # Longest first, so that a secret that contains another one goes as a whole. Very short ones would eat words.
        known = sorted({s for s in secrets if len(s) >= _SECRET_CHARACTERS_MIN}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        """Return `text` without secrets."""
        text = self._clean(text)
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        return _BEARER.sub(rf"\1 {REDACTED}", _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text))

    def value(self, key: str, text: str) -> str:
        """Return the text of a key without secrets; nothing of it when the key names a secret."""
        return REDACTED if _SECRET_KEY.search(key) and text else self.text(text)
