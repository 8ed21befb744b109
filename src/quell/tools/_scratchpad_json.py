"""Walks through JSON of any size in place, without building it.

JSON is kept laid out with one value per line, indented by one space per level. A string of JSON holds no raw line break,
so the line breaks and indents alone say where each value begins and ends, and finding them is a search for bytes.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TypeAlias

import msgspec

from quell.domain import WorldError

Pages: TypeAlias = "mmap.mmap | bytes"

DEPTH_MAX = 64
GROWTH_MAX = 8
_SMALL_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_ESCAPE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.")
_KINDS = {b"{": "object", b"[": "array", b'"': "string", b"t": "boolean", b"f": "boolean", b"n": "null"}


@dataclass(frozen=True, slots=True)
class Node:
    """One value: where its bytes are, how deep it lies, and its key or index."""

    start: int
    end: int
    depth: int
    key: str = ""


def lay_out(content: bytes) -> bytes | None:
    """Write JSON with one value per line; None when it is none, or nested so that it would explode."""
    try:
        if b"\\u" in content:
            content = _ESCAPE.sub(_spelled_out, content)
        msgspec.json.decode(content, type=msgspec.Raw)
        depth = _depth(content)
        lines = content.count(b",") + 2 * (content.count(b"[") + content.count(b"{"))
        grown_bytes = len(content) + lines * (depth + 2)
        if depth > DEPTH_MAX or grown_bytes > max(_SMALL_BYTES, GROWTH_MAX * len(content)):
            return None
        return msgspec.json.format(content, indent=1)
    except (msgspec.DecodeError, RecursionError):
        return None


def _spelled_out(escape: re.Match[bytes]) -> bytes:
    """Write an escaped letter as itself, so that a search finds it, and half a letter as the mark for what is lost."""
    spelled = escape.group()
    if len(spelled) == 2:
        return spelled
    letter = _text_of(b'"' + spelled + b'"')
    if "\ud800" <= letter <= "\udfff":
        return "\ufffd".encode()
    return letter.encode() if letter >= "\u00a0" else spelled


def _depth(content: bytes) -> int:
    """Count the levels of valid JSON: brackets outside of strings."""
    bare = content.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in content else content
    level = deepest = inside = 0
    for at in range(0, len(bare), _CHUNK_BYTES):
        pieces = bare[at : at + _CHUNK_BYTES].split(b'"')
        brackets = b"".join(pieces[inside::2]).translate(None, _NOT_BRACKETS)
        inside ^= (len(pieces) - 1) & 1
        levels = list(accumulate((_STEPS[bracket] for bracket in brackets), initial=level))
        level, deepest = levels[-1], max(deepest, *levels)
    return deepest


def damaged() -> WorldError:
    """Make the error of a file that is not what was written."""
    return WorldError("this result was damaged on disk", hint="call the tool again that brought it")


def root_of(pages: Pages) -> Node:
    """Return the value that is the whole result."""
    return Node(0, len(pages), 0)


def kind_of(pages: Pages, node: Node) -> str:
    """Name the JSON type of a value."""
    first = bytes(pages[node.start : node.start + 1])
    if first in _KINDS:
        return _KINDS[first]
    number = pages[node.start : node.end]
    return "number" if any(letter in number for letter in b".eE") else "integer"


def children(pages: Pages, node: Node) -> Iterator[Node]:
    """Yield the items of an array or the members of an object, in order; nothing for any other value."""
    opening = pages[node.start : node.start + 1]
    if opening not in {b"[", b"{"} or node.end - node.start == 2:
        return
    indent = node.depth + 1
    at = node.start + 2 + indent  # behind the bracket, the line break and the indent
    number = 0
    while True:
        key = str(number)
        if opening == b"{":
            name = _STRING.match(pages, at)
            if name is None:
                raise damaged()
            key = _text_of(name.group())
            at = name.end() + 2
        end = _end_of(pages, at, indent=indent)
        yield Node(at, end, indent, key)
        if pages[end : end + 1] != b",":
            return
        at = end + 2 + indent
        number += 1


def count(pages: Pages, node: Node) -> int:
    """Count the children of a value, by the lines on which they begin."""
    if node.end - node.start == 2 or pages[node.start : node.start + 1] not in {b"[", b"{"}:
        return 0
    return sum(1 for _ in _beginning(node.depth + 1).finditer(pages, node.start, node.end))


@lru_cache(maxsize=DEPTH_MAX)
def _beginning(indent: int) -> re.Pattern[bytes]:
    return re.compile(rb"\n" + b" " * indent + rb"[^ \]}]")


def raw(pages: Pages, node: Node) -> bytes:
    """Write a value on one line, its numbers and strings as they came."""
    return msgspec.json.format(bytes(pages[node.start : node.end]), indent=-1)


def text_of(pages: Pages, node: Node) -> str:
    """Read a string value."""
    return _text_of(bytes(pages[node.start : node.end]))


def _text_of(quoted: bytes) -> str:
    text = json.loads(quoted.decode("utf-8", "replace"))
    assert isinstance(text, str), "a quoted text"
    return text


def _end_of(pages: Pages, at: int, *, indent: int) -> int:
    opening = pages[at : at + 1]
    closing = {b"[": b"]", b"{": b"}"}.get(opening)
    if closing and pages[at + 1 : at + 2] != closing:
        end = pages.find(b"\n" + b" " * indent + closing, at)
        if end < 0:
            raise damaged()
        return end + 1 + indent + 1
    if closing:
        return at + 2
    end = pages.find(b"\n", at)
    if end < 0:
        raise damaged()
    return end - 1 if pages[end - 1 : end] == b"," else end


_PATH_INDEX = re.compile(r"\[(\d+)\]", re.ASCII)


def steps_of(path: str) -> list[str]:
    """Split `a.b.0`, `a.b[0]` or a JSON pointer `/a/b/0` into its steps; an empty path is the whole."""
    if path.startswith("/"):
        return [step.replace("~1", "/").replace("~0", "~") for step in path[1:].split("/")]
    dotted = _PATH_INDEX.sub(r".\1", path).removeprefix(".")
    return dotted.split(".") if dotted else []


def find(pages: Pages, node: Node, steps: list[str]) -> tuple[Node, list[str]]:
    """Walk down as far as the steps lead; return where they ended and the steps that led nowhere."""
    for number, step in enumerate(steps):
        found = next((child for child in children(pages, node) if child.key == step), None)
        if found is None:
            return node, steps[number:]
        node = found
    return node, []
