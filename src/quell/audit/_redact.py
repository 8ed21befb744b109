"""Redaction: no secret that the harness holds leaves it, in any encoding; what looks like another one does not either.

Held secrets are found exactly. An index knows the first six bytes of every form of every secret; a text is looked
through six bytes at a time, and only where they are known is a whole form compared. It takes as long for two hundred
secrets as for one, grows while texts are looked through, and large texts are looked through by numpy at once (the
q-gram filter of Karp and Rabin's multiple pattern search, with a table of bits for the hashes).
"""

from __future__ import annotations

import re
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Literal, Self

from quell.audit._redact_forms import FORM_MIN_BYTES, credentials_of, forms_of, secrets_inside, unquoted
from quell.audit._redact_rules import RULE_MAX_BYTES, RULE_NAMES, Span, looks_random, rule_of_key, spans_by_rule
from quell.config import Secret
from quell.domain import BoundExceededError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEPTH_MAX = 64
_GRAM = FORM_MIN_BYTES
_WIDE_MIN_BYTES = 128
_LOAD_MIN_BYTES = 16_384
"""Loading numpy takes as long as looking through a megabyte without it."""
_LOAD_AFTER_BYTES = 65_536
"""Who looks through that much will look through more: then the faster way is worth loading."""
_PIECE = 65_536
_TORN_MIN_BYTES = 8
_TABLE_BITS = 20
_MULTIPLIER = 0x9E3779B97F4A7C15
_MARKER = re.compile(rb"\[redacted:([A-Za-z0-9_.:/-]{1,64})\]")
_CREDENTIAL_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|PWD$|API[_-]?KEY|ACCESS[_-]?KEY|PRIVATE[_-]?KEY|CREDENTIAL|AUTH(?!OR(?!I[SZ]))|_KEY$|_PAT$"
    r"|_DSN$|WEBHOOK",
    re.IGNORECASE,
)
LATE_MAX = 256
"""Credentials that were shown to us and are held at a time."""
_TOKEN_ENDS = (b" ", b"\n", b"\t", b"\r", b'"', b"'", b"<", b">", b"\0")
_WORDS_BEFORE = 96
_CHANGING_MAX_BYTES = 4 * RULE_MAX_BYTES


class Redactor:
    """Replaces secrets by `[redacted:name]`; safe to use from any thread."""

    def __init__(
        self,
        secrets: Mapping[str, Secret] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        rules: Literal["on", "off"] = "on",
    ) -> None:
        """Hold secrets by name, and what looks like credentials in an environment; `rules` are the second net."""
        self._lock = threading.Lock()
        self._looked_bytes = 0
        self._rules = rules
        self._forms: dict[bytes, tuple[tuple[bytes, str], ...]] = {}
        self._names: set[str] = set(RULE_NAMES)
        self._longest = 1
        self._table: npt.NDArray[np.bool_] | None = None
        self._refused: list[str] = []
        self._kept: list[tuple[str, frozenset[bytes]]] = []
        self._late: dict[str, tuple[str, frozenset[bytes]]] = {}
        for name, secret in (secrets or {}).items():
            self.hold(name, secret)
        for name, secret in _credentials(environment or {}):
            self.hold(name, secret)

    @classmethod
    def of(cls, settings: object, *, environment: Mapping[str, str]) -> Self:
        """Hold every secret of settings under the key that it stands at, and the credentials of an environment."""
        redactor = cls()
        # Keys of the settings first: they tell an operator more than the variable that they were taken from.
        for name, secret in (*_secrets_of(settings, ""), *_credentials(environment)):
            redactor.hold(name, secret)
        return redactor

    def hold_all(self, name: str, settings: object) -> None:
        """Redact every secret of further settings, such as an agent's, from now on."""
        for path, secret in _secrets_of(settings, name):
            self.hold(path, secret)

    @property
    def refused(self) -> tuple[str, ...]:
        """Names of secrets that are too short to be found without finding everything: tell the operator."""
        return tuple(self._refused)

    def hold(self, name: str, secret: Secret) -> None:
        """Redact one more secret from now on, such as a token that was just fetched."""
        value = secret.reveal().strip()
        if not value:
            return
        # Errors tell a password without the URL, and a token without the word `Bearer`.
        for part in (value, *secrets_inside(value)):
            if len(part) < FORM_MIN_BYTES:
                self._refused.append(name)
                continue
            held = _label(name), forms_of(part)
            with self._lock:
                self._kept.append(held)
                self._index(self._forms, *held)

    def hold_shown(self, headers: Iterable[tuple[str, str]]) -> None:
        """Redact the credentials in headers of a request, as long as they are among the latest `LATE_MAX`.

        Call it once they proved somebody, never for those of a stranger: they are taken out of everything.
        """
        for name, value in headers:
            if name.lower() == "cookie" or _CREDENTIAL_NAME.search(name):
                for part in credentials_of(value):
                    self._hold_lately(f"header.{name.lower()}", part)

    def _hold_lately(self, name: str, value: str) -> None:
        if value in self._late or not _is_telling(value.encode("utf-8", "surrogatepass")):
            return
        held = _label(name), forms_of(value)
        with self._lock:
            self._late[value] = held
            if len(self._late) <= LATE_MAX:
                self._index(self._forms, *held)
                return
            # The older half goes; who still shows one of those has it held again.
            self._late = dict(list(self._late.items())[LATE_MAX // 2 :])
            forms: dict[bytes, tuple[tuple[bytes, str], ...]] = {}
            for each in (*self._kept, *self._late.values()):
                self._index(forms, *each)
            self._forms = forms

    def _index(self, index: dict[bytes, tuple[tuple[bytes, str], ...]], label: str, forms: frozenset[bytes]) -> None:
        self._names.add(label)
        self._longest = max(self._longest, *map(len, forms))
        for form in forms:
            known = index.get(form[:_GRAM], ())
            if all(form != other for other, _ in known):
                longest_first = sorted((*known, (form, label)), key=lambda pair: -len(pair[0]))
                index[form[:_GRAM]] = tuple(longest_first)
            if self._table is not None:
                self._table[_slot(form[:_GRAM])] = True

    def text(self, text: str) -> str:
        """Return a text without secrets; the very same one when it had none."""
        if not text:
            return text
        data = text.encode("utf-8", "surrogatepass")
        spans = self.spans(data)
        return _replaced(data, spans).decode("utf-8", "surrogatepass") if spans else text

    def raw(self, data: bytes) -> bytes:
        """Return bytes without secrets."""
        spans = self.spans(data)
        return _replaced(data, spans) if spans else data

    def value(self, value: object) -> object:
        """Return a JSON value without secrets in its texts, keys and numbers; the very same one when it had none.

        Raises:
            BoundExceededError: it is nested too deeply.
        """
        texts: list[str] = []
        suspects = _gather(value, texts, depth=0)
        if not suspects and not self.spans("\0".join(texts).encode("utf-8", "surrogatepass")):
            return value
        return self._clean(value)

    def stream(self) -> TextStream:
        """Redact a text that arrives in pieces, a secret that is split over them included."""
        return TextStream(ByteStream(self))

    def byte_stream(self) -> ByteStream:
        """Redact bytes that arrive in pieces."""
        return ByteStream(self)

    def held_in(self, text: str) -> str:
        """Return the name of a held secret that stands in a text; empty when none does. Rules do not count."""
        return next((name for _, _, name, _ in self._held(text.encode("utf-8", "surrogatepass"))), "")

    def spans(self, data: bytes) -> list[Span]:
        """Return where secrets stand, in order, none touching the other."""
        found = list(self._held(data))
        if self._rules == "on":
            found += spans_by_rule(data)
        if not found:
            return []
        return _merged(self._unmarked(data, found), data)

    @property
    def longest(self) -> int:
        """Length of the longest form of a held secret in bytes."""
        return self._longest

    @property
    def looks_back(self) -> bool:
        """Whether pattern rules are on, which need the words before a value."""
        return self._rules == "on"

    def _held(self, data: bytes) -> Iterator[Span]:
        if not self._forms or len(data) < _GRAM:
            return
        for at in self._candidates(data):
            known = self._forms.get(data[at : at + _GRAM], ())
            whole = next(((len(form), name) for form, name in known if data.startswith(form, at)), None)
            many, name = whole or max(((_torn(data, at, form), name) for form, name in known), default=(0, ""))
            if many:
                yield at, at + many, name, at

    def _candidates(self, data: bytes) -> Iterable[int]:
        self._looked_bytes += len(data)
        is_loaded = "numpy" in sys.modules or self._looked_bytes >= _LOAD_AFTER_BYTES
        is_wide = len(data) >= (_WIDE_MIN_BYTES if is_loaded else _LOAD_MIN_BYTES)
        if not is_wide:
            forms = self._forms
            return [at for at in range(len(data) - _GRAM + 1) if data[at : at + _GRAM] in forms]
        return self._wide(data)

    def _wide(self, data: bytes) -> Iterator[int]:
        # Loaded here: small texts do without it.
        import numpy as np  # noqa: PLC0415

        table = self._table
        if table is None:
            with self._lock:
                table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
                for gram in self._forms:
                    table[_slot(gram)] = True
                self._table = table
        for low in range(0, len(data) - _GRAM + 1, _PIECE):
            # Two bytes more, so that every six bytes are the low ones of eight.
            piece = data[low : low + _PIECE + _GRAM - 1] + b"\0\0"
            windows = np.ndarray((len(piece) - 7,), dtype="<u8", buffer=piece, strides=(1,))
            slots = ((windows << np.uint64(16)) * np.uint64(_MULTIPLIER)) >> np.uint64(64 - _TABLE_BITS)
            yield from (np.flatnonzero(table[slots]) + low).tolist()

    def _unmarked(self, data: bytes, found: list[Span]) -> list[Span]:
        """Leave out what lies within a marker of ours: what was redacted stays as it is."""
        if b"[redacted:" not in data:
            return found
        marks = [match.span() for match in _MARKER.finditer(data) if match[1].decode() in self._names]
        starts = [start for start, _ in marks]

        def is_marked(span: Span) -> bool:
            at = bisect_right(starts, span[0]) - 1
            return at >= 0 and span[1] <= marks[at][1]

        return [span for span in found if not is_marked(span)]

    def _clean(self, value: object) -> object:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            cleaned: dict[str, object] = {}
            for key, under in value.items():
                name = once = self.text(str(key))
                # Two secrets of one name as keys: neither value may push the other out.
                while name in cleaned:
                    name = f"{once}#{len(cleaned)}"
                cleaned[name] = self._clean_under(str(key), under)
            return cleaned
        if isinstance(value, Sequence):
            return [self._clean(part) for part in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            told = str(value)
            return value if self.text(told) == told else self.text(told)
        return value

    def _clean_under(self, key: str, value: object) -> object:
        cleaned = self._clean(value)
        if isinstance(value, str) and cleaned == value and self._rules == "on":
            rule = rule_of_key(key, value)
            is_mark = (mark := _MARKER.fullmatch(value.encode("utf-8", "surrogatepass"))) and mark[
                1
            ].decode() in self._names
            return f"[redacted:{rule}]" if rule and not is_mark else value
        return cleaned


class ByteStream:
    """Bytes in pieces: gives back what can no longer be a part of a secret, and keeps the rest."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._kept = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take a piece and return what is safe by now."""
        data = self._kept + chunk
        spans = self._redactor.spans(data)
        cut = self._cut(data, spans)
        self._kept = data[cut:]
        return _replaced(data[:cut], [span for span in spans if span[0] < cut])

    def close(self) -> bytes:
        """Return the rest."""
        rest, self._kept = self._redactor.raw(self._kept), b""
        return rest

    def _cut(self, data: bytes, spans: list[Span]) -> int:
        furthest = _letter_start(data, max(len(data) - self._redactor.longest + 1, 0))
        cut = min(furthest, _letter_start(data, _open_token(data))) if self._redactor.looks_back else furthest
        moved = True
        while moved:
            inside = [min(start, words) for start, end, _, words in spans if min(start, words) < cut < end]
            moved = bool(inside)
            cut = min([cut, *inside])
        if len(data) - cut > _CHANGING_MAX_BYTES:
            # It neither ends nor may be kept for ever. What is held is still found: only rules see less.
            cut = next((end for start, end, _, _ in spans if start < furthest < end), furthest)
        return cut


class TextStream:
    """Text in pieces: gives back what can no longer be a part of a secret, and keeps the rest."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def feed(self, chunk: str) -> str:
        """Take a piece and return what is safe by now."""
        return self._stream.feed(chunk.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def close(self) -> str:
        """Return the rest."""
        return self._stream.close().decode("utf-8", "surrogatepass")


def _open_token(data: bytes) -> int:
    """Return from where on a rule could still match when more comes."""
    low = max(len(data) - RULE_MAX_BYTES, 0)
    token = max(data.rfind(end, low) + 1 for end in _TOKEN_ENDS)
    if token == 0 and low > 0:
        # Longer than any credential.
        token = len(data)
    block = data.rfind(b"-----BEGIN", low)
    if block >= 0 and data.find(b"-----END", block) < 0:
        token = min(token, block)
    return max(token - _WORDS_BEFORE, 0)


def _torn(data: bytes, at: int, form: bytes) -> int:
    """Return how much of a form stands there when it is more than half: somebody cut the text before it came here."""
    many = max(len(form) // 2 + 1, _TORN_MIN_BYTES)
    if many >= len(form) or not data.startswith(form[:many], at):
        return 0
    while data.startswith(form[: many + 1], at) and many < len(form):
        many += 1
    return many


def _slot(gram: bytes) -> int:
    number = int.from_bytes(gram, "little") << 16
    return ((number * _MULTIPLIER) & 0xFFFFFFFFFFFFFFFF) >> (64 - _TABLE_BITS)


def _merged(found: list[Span], data: bytes) -> list[Span]:
    """Join what overlaps, under the name of the first, and let no span end inside of a letter."""
    found.sort(key=lambda span: (span[0], -span[1]))
    merged: list[Span] = []
    for start, end, name, words in found:
        if merged and start < merged[-1][1]:
            first, last, told, before = merged[-1]
            merged[-1] = (first, max(last, end), told, min(before, words))
        else:
            merged.append((start, end, name, words))
    return [(start, _letter_end(data, end), name, words) for start, end, name, words in merged]


def _letter_start(data: bytes, start: int) -> int:
    for _ in range(3):
        if 0 < start < len(data) and data[start] & 0xC0 == 0x80:
            start -= 1
    return start


def _letter_end(data: bytes, end: int) -> int:
    for _ in range(3):
        if end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
    return end


def _replaced(data: bytes, spans: list[Span]) -> bytes:
    parts: list[bytes] = []
    at = 0
    for start, end, name, _ in spans:
        parts += (data[at:start], f"[redacted:{name}]".encode())
        at = end
    return b"".join((*parts, data[at:]))


def _gather(value: object, texts: list[str], *, depth: int) -> bool:
    """Collect every text of a JSON value; tell whether a key makes a secret of its value."""
    if depth > DEPTH_MAX:
        raise BoundExceededError("nesting of a JSON value", limit=DEPTH_MAX)
    if isinstance(value, str):
        texts.append(value)
        return False
    if value is None or isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        texts.append(str(value))
        return False
    # Plain containers first: asking for the abstract classes is what costs.
    if type(value) is dict or isinstance(value, Mapping):
        return _gather_table(value, texts, depth=depth)
    is_suspect = False
    if isinstance(value, Sequence):
        for part in value:
            is_suspect |= _gather(part, texts, depth=depth + 1)
    return is_suspect


def _gather_table(value: Mapping[object, object], texts: list[str], *, depth: int) -> bool:
    is_suspect = False
    for key, under in value.items():
        texts.append(str(key))
        if isinstance(under, str):
            texts.append(under)
            is_suspect |= bool(rule_of_key(str(key), under))
        elif type(under) is int:
            texts.append(str(under))
        elif under is not None and type(under) is not bool:
            is_suspect |= _gather(under, texts, depth=depth + 1)
    return is_suspect


def _secrets_of(value: object, path: str) -> Iterator[tuple[str, Secret]]:
    if isinstance(value, Secret):
        yield path, value
    elif isinstance(value, str):
        if "://" in value:
            # An address that carries its credential, for servers that know no other way.
            yield from ((path, Secret(inside)) for inside in secrets_inside(value))
    else:
        for name, under in _parts_of(value):
            yield from _secrets_of(under, f"{path}.{name}" if path else name)


def _parts_of(value: object) -> Iterable[tuple[str, object]]:
    if is_dataclass(value):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    return [(str(index), item) for index, item in enumerate(value)] if isinstance(value, tuple) else ()


def _is_telling(value: bytes) -> bool:
    """Tell a credential from a word: who may call could else have words taken out of what others are told."""
    return looks_random(value) or 24 <= len(value) <= RULE_MAX_BYTES


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.:/-]", "_", name)[:64] or "secret"


def _credentials(environment: Mapping[str, str]) -> Iterator[tuple[str, Secret]]:
    """Give the variables whose name or value says that they hold a credential, under `env.NAME`."""
    for name, value in environment.items():
        if "://" in value and (passwords := secrets_inside(value)):
            yield from ((f"env.{name}", Secret(password)) for password in passwords)
        elif name.upper().endswith("HEADERS"):
            # As OpenTelemetry writes them, `authorization=Bearer%20abc,x-scope=1`, or AURA, `authorization:Bearer abc`.
            pairs = (re.split("[=:]", pair, maxsplit=1) for pair in value.split(","))
            held = (unquoted(pair[-1]).strip() for pair in pairs if _CREDENTIAL_NAME.search(pair[0]))
            yield from ((f"env.{name}", Secret(told)) for told in held if len(told) >= FORM_MIN_BYTES)
        elif _CREDENTIAL_NAME.search(name) and not value.startswith(("/", "./", "~")) and len(value) >= FORM_MIN_BYTES:
            yield f"env.{name}", Secret(value)
