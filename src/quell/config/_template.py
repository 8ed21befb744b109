"""Environment references in a TOML text: `{{ env.NAME }}` and `{{ env.NAME | default: 'x' }}`.

References are put in after the text was parsed, so that no value can open a string, a key or a table. Comments are left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Toml: TypeAlias = object
"""What `tomllib` yields: str, int, float, bool, dates, lists and tables."""

_REFERENCE = re.compile(
    r"""\{\{\s*env\.(?P<name>[A-Z_][A-Z0-9_]*)\s*(?:\|\s*default:\s*(?:'(?P<single>[^'\n]*)'|"(?P<double>[^"\n]*)")\s*)?\}\}"""
)
_ALMOST = re.compile(r"\{\{\s*env\b[^}\n]*\}?\}?")
# In a string of one line a whole reference counts as one letter: the quotes of its default do not end the string.
_PIECE = re.compile(
    r"(?P<comment>\#[^\n]*)"
    r'|(?P<string>"""(?:[^\\]|\\.)*?"""(?:""|"(?!"))?|\'\'\'.*?\'\'\'(?:\'\'|\'(?!\'))?|"(?:(?>\{\{\s*env\.[^{}\n]*\}\})|[^"\\\n]|\\.)*+"'
    r"|'(?:(?>\{\{\s*env\.[^{}\n]*\}\})|[^'\n])*+')"
    r"|(?P<bare>\{\{[^\n]*?\}\})",
    re.DOTALL,
)
_NUMBER_CHARACTERS_MAX = 40
_WHOLE = re.compile(r"[+-]?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One place where the environment is asked."""

    name: str
    default: str | None
    line: int
    is_quoted: bool
    """Inside quotes it is text; outside it may be a number or true/false as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """Something that was meant as a reference and is none."""

    text: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Stands where a value would, had the variable been set."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A TOML text whose references were replaced by marks that are plain text to the parser."""

    text: str
    references: tuple[Reference, ...]
    malformed: tuple[Malformed, ...]
    mark: str

    def fill(self, value: Toml, env: Mapping[str, str]) -> Toml:
        """Return `value` with every mark replaced; a string that lacks a variable becomes `Missing`."""
        if isinstance(value, str):
            return self._fill_text(value, env)
        if isinstance(value, list):
            return [self.fill(item, env) for item in value]
        if isinstance(value, dict):
            # A reference in a key was reported; what stands in its place means nothing to anybody.
            return {key: self.fill(item, env) for key, item in value.items() if not self.has_mark(key)}
        return value

    def has_mark(self, text: str) -> bool:
        """Tell whether a reference stood in `text`."""
        return self.mark in text

    def _fill_text(self, text: str, env: Mapping[str, str]) -> Toml:
        marks = re.compile(re.escape(self.mark) + r"(\d+)x")
        used = [self.references[int(found.group(1))] for found in marks.finditer(text)]
        absent = tuple(dict.fromkeys(r.name for r in used if _value_of(r, env) is None))
        if absent:
            return Missing(names=absent)
        if len(used) == 1 and not used[0].is_quoted and marks.fullmatch(text):
            return _scalar(_value_of(used[0], env) or "")
        return marks.sub(lambda found: _value_of(self.references[int(found.group(1))], env) or "", text)


def templated(text: str) -> Template:
    """Find the references of a TOML text and put marks in their place; lines keep their numbers."""
    # The mark holds a digest of the text, so the text cannot hold the mark.
    mark = f"quell{hashlib.sha256(text.encode()).hexdigest()[:20]}r"
    references: list[Reference] = []
    malformed: list[Malformed] = []
    pieces: list[str] = []
    at = 0
    for found in _PIECE.finditer(text):
        pieces.append(text[at : found.start()])
        at = found.end()
        piece = found.group()
        if found.lastgroup == "comment":
            pieces.append(piece)
            continue
        line = text.count("\n", 0, found.start()) + 1
        is_quoted = found.lastgroup == "string"
        marked = _marked(piece, line=line, is_quoted=is_quoted, mark=mark, references=references)
        malformed.extend(_malformed(marked, line=line))
        pieces.append(marked)
    pieces.append(text[at:])
    return Template(text="".join(pieces), references=tuple(references), malformed=tuple(malformed), mark=mark)


def _marked(piece: str, *, line: int, is_quoted: bool, mark: str, references: list[Reference]) -> str:
    def put(found: re.Match[str]) -> str:
        single, double = found.group("single"), found.group("double")
        references.append(
            Reference(
                name=found.group("name"),
                default=single if single is not None else double,
                line=line + piece.count("\n", 0, found.start()),
                is_quoted=is_quoted,
            )
        )
        token = f"{mark}{len(references) - 1}x"
        return token if is_quoted else f'"{token}"'

    return _REFERENCE.sub(put, piece)


def _malformed(piece: str, *, line: int) -> Iterator[Malformed]:
    for found in _ALMOST.finditer(piece):
        yield Malformed(text=found.group()[:80], line=line + piece.count("\n", 0, found.start()))


def _value_of(reference: Reference, env: Mapping[str, str]) -> str | None:
    return env.get(reference.name, reference.default)


def _scalar(text: str) -> str | int | float | bool:
    """Read a value that stood outside quotes: a number, true or false, and text otherwise. Never more than one value."""
    if text in {"true", "false"}:
        return text == "true"
    if len(text) > _NUMBER_CHARACTERS_MAX:
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text
