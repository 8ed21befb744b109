"""The eight reading tools of the scratchpad: what they take, what they answer, and errors that say what to ask instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import msgspec

from quell.domain import OutcomeKind, PadReading, ResourceRule, ScratchpadLimits, Tool, UsageError, own_read
from quell.tools._scratchpad_files import Form
from quell.tools._scratchpad_grep import PATTERN_MAX, Search, around, compiled, search
from quell.tools._scratchpad_json import Node, Pages, children, count, find, kind_of, raw, root_of, steps_of, text_of
from quell.tools._scratchpad_shape import SAMPLE, Page, brief, head, shape
from quell.tools._scratchpad_text import (
    TOKEN_BYTES,
    Line,
    clip,
    clipped,
    line_count,
    lines_from,
    table_of,
    tokens_of,
    whole_until,
)

_SHOWN_KEYS = 20
_LINE_MAX_BYTES = 2_000
_FIELD_MAX_BYTES = 500
_BIGGEST = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A result while it is read."""

    pages: Pages
    form: Form
    handle: str
    limits: ScratchpadLimits
    monotonic: Callable[[], float]

    @property
    def bytes_max(self) -> int:
        """Most that one answer holds."""
        return self.limits.reading_tokens * TOKEN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Argument:
    what: str
    kind: Literal["string", "integer", "array"] = "string"
    default: str | int | None = None
    """None: it has to be given, unless `is_optional`."""
    is_optional: bool = False
    least: int = 0
    most: int = _BIGGEST

    @property
    def is_required(self) -> bool:
        return self.default is None and not self.is_optional

    def schema(self) -> dict[str, object]:
        shape: dict[str, object] = {"type": self.kind, "description": self.what}
        if self.kind == "integer":
            shape |= {"minimum": self.least, "maximum": self.most}
        elif self.kind == "string":
            shape |= {"minLength": self.least, "maxLength": min(self.most, 4_096)}
        else:
            shape |= {"items": {"type": "string", "maxLength": 4_096}, "minItems": self.least, "maxItems": self.most}
        return shape if self.default is None else {**shape, "default": self.default}


Given = Mapping[str, object]
_HANDLE = _Argument(what="Handle of a result that was put aside, such as pad_0123456789abcdef0123456789abcdef")
_PATH = _Argument(what="Where: `items.0.name`, or a JSON pointer `/items/0/name`; empty for the whole", default="")
_OFFSET = _Argument(what="First item, from 0", kind="integer", default=0)


def _limit(most: int, default: int) -> _Argument:
    return _Argument(what="Items at most", kind="integer", default=default, least=1, most=most)


def arguments_of(tool: str, given: Mapping[str, object]) -> Given:
    """Check arguments strictly and fill in what was left out. Raises UsageError that names every argument."""
    wanted = _TOOLS[tool].arguments
    known = ", ".join(f"{name} ({'required' if it.is_required else 'optional'})" for name, it in wanted.items())
    if unknown := sorted(set(map(str, given)) - set(wanted)):
        raise UsageError(f"{tool} takes no `{clip(unknown[0], bytes_max=60)}`; it takes {known}")
    filled: dict[str, object] = {}
    for name, argument in wanted.items():
        if name not in given:
            if argument.is_required:
                raise UsageError(f"{tool} needs `{name}`; it takes {known}")
            if argument.default is not None:
                filled[name] = argument.default
            continue
        _check(name, argument, given[name])
        filled[name] = given[name]
    return filled


def _check(name: str, argument: _Argument, value: object) -> None:
    if argument.kind == "integer":
        if not isinstance(value, int) or isinstance(value, bool) or not argument.least <= value <= argument.most:
            raise UsageError(f"`{name}` is a whole number from {argument.least} to {argument.most}")
    elif argument.kind == "string":
        most = min(argument.most, 4_096)
        if not isinstance(value, str) or not argument.least <= len(value) <= most:
            raise UsageError(f"`{name}` is a text of {argument.least} to {most} characters")
    elif not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise UsageError(f'`{name}` is a list of texts, such as ["id", "labels.service"]')
    elif not argument.least <= len(value) <= argument.most:
        raise UsageError(f"`{name}` has {argument.least} to {argument.most} entries")


def _text(given: Given, name: str) -> str:
    value = given[name]
    assert isinstance(value, str), "checked by arguments_of"
    return value


def _number(given: Given, name: str) -> int:
    value = given[name]
    assert isinstance(value, int), "checked by arguments_of"
    return value


def _head(opened: Opened, given: Given) -> PadReading:
    told = head(
        opened.pages,
        opened.form,
        handle=opened.handle,
        tokens_max=opened.limits.reading_tokens,
        lines_max=_number(given, "lines"),
    )
    return PadReading(kind=OutcomeKind.OK, content=told)


def _slice(opened: Opened, given: Given) -> PadReading:
    start, end = _number(given, "start"), _number(given, "end")
    lines = line_count(opened.pages)
    if end < start or start > lines:
        raise UsageError(f"there are no lines {start} to {end}; this result has lines 1 to {lines:,}")
    page = Page(bytes_max=opened.bytes_max)
    for line in islice(lines_from(opened.pages, start), min(end, lines) - start + 1):
        if not page.add(f"{line.number}: {clipped(opened.pages, line.start, line.end, bytes_max=_LINE_MAX_BYTES)}"):
            detail = f"lines {start} to {line.number - 1} of {start} to {end} fitted; go on with start={line.number}"
            return PadReading(kind=OutcomeKind.TRUNCATED, content=page.text(), detail=detail)
    return PadReading(kind=OutcomeKind.OK, content=page.text())


def _grep(opened: Opened, given: Given) -> PadReading:
    pattern = compiled(_text(given, "pattern"))
    until_s = opened.monotonic() + opened.limits.grep_s
    limit = _number(given, "limit")
    found = search(opened.pages, pattern, lines_max=limit, until_s=until_s, monotonic=opened.monotonic)
    notes = []
    if pattern.fault:
        notes.append(f"the pattern is no expression that can be searched ({pattern.fault}) and was taken literally")
    is_whole = found.searched_bytes == len(opened.pages)
    if not is_whole:
        notes.append(f"the time was up after {found.searched_bytes:,} of {len(opened.pages):,} bytes")
    if found.is_split:
        notes.append("a very long line was searched in pieces; a match across two pieces is not seen")
    page = Page(bytes_max=opened.bytes_max)
    shown = _show(opened, found, page=page, context=_number(given, "context"), show=lambda text: around(text, pattern))
    if shown < found.matching:
        notes.append(f"{shown} of {found.matching:,} matching lines are shown; make the pattern narrower")
    if not found.matching:
        notes.insert(0, "no line matches")
    whole_kind = OutcomeKind.OK if found.matching else OutcomeKind.EMPTY
    is_partial = shown < found.matching or not is_whole or found.is_split
    kind = OutcomeKind.TRUNCATED if is_partial else whole_kind
    return PadReading(kind=kind, content=page.text(), detail="; ".join(notes))


def _show(opened: Opened, found: Search, *, page: Page, context: int, show: Callable[[str], str]) -> int:
    """Write matching lines with those around them; return how many matching ones fitted."""
    context = 0 if found.is_split else context
    matching = {line.start for line in found.lines}
    wanted = {near.start: near for line in found.lines for near in _lines_around(opened.pages, line, context=context)}
    shown = written = 0
    for start, line in sorted(wanted.items()):
        if written and line.number > written + 1:
            page.add("--")
        written = line.number
        text = opened.pages[line.start : line.end].decode("utf-8", "replace").rstrip("\r")
        is_match = start in matching
        told = f": {show(text)}" if is_match else f"- {clip(text, bytes_max=_FIELD_MAX_BYTES)}"
        if not page.add(f"{line.number}{told}"):
            break
        shown += is_match
    return shown


def _lines_around(pages: Pages, line: Line, *, context: int) -> list[Line]:
    """List a line with up to that many before and behind it."""
    found = [line]
    while len(found) <= context and found[0].start > 0:
        end = found[0].start - 1
        found.insert(0, Line(found[0].number - 1, pages.rfind(b"\n", 0, end) + 1, end))
    last = len(found) + context
    while len(found) < last and found[-1].end + 1 < len(pages):
        start = found[-1].end + 1
        end = pages.find(b"\n", start)
        found.append(Line(found[-1].number + 1, start, len(pages) if end < 0 else end))
    return found


def _place(opened: Opened, given: Given) -> Node:
    """Find the value at the path. Raises UsageError that says what is there instead."""
    if opened.form != "json":
        raise UsageError(f"{opened.handle} is text, and has no paths; use head, slice, grep or read")
    path = _text(given, "path")
    steps = steps_of(path)
    node, missing = find(opened.pages, root_of(opened.pages), steps)
    if not missing:
        return node
    at = ".".join(steps[: len(steps) - len(missing)]) or "the top"
    raise UsageError(f"{_nothing_at(opened.pages, node, missing[0])} at {clip(at, bytes_max=200)}")


def _nothing_at(pages: Pages, node: Node, step: str) -> str:
    kind = kind_of(pages, node)
    name = clip(step, bytes_max=100)
    if kind == "array":
        items = count(pages, node)
        return f"there is no item `{name}`; items here: {f'0 to {items - 1:,}' if items else 'none'}, in an array"
    if kind == "object":
        keys = [clip(child.key, bytes_max=60) for child in islice(children(pages, node), _SHOWN_KEYS)]
        more = count(pages, node) - len(keys)
        return (
            f"there is no key `{name}`; keys here: {', '.join(keys) or 'none'}{f' and {more:,} more' if more else ''},"
        )
    return f"there is no `{name}`; a {kind} has nothing in it,"


def _array(opened: Opened, given: Given) -> Node:
    node = _place(opened, given)
    kind = kind_of(opened.pages, node)
    if kind != "array":
        arrays = [child.key for child in islice(children(opened.pages, node), 200) if _kind(opened, child) == "array"]
        hint = f"; arrays below it: {', '.join(arrays[:_SHOWN_KEYS])}" if arrays and kind == "object" else ""
        raise UsageError(f"at this path is no array: {kind}{hint}; get_in reads it")
    return node


def _kind(opened: Opened, node: Node) -> str:
    return kind_of(opened.pages, node)


def _some(opened: Opened, node: Node, given: Given) -> list[Node]:
    offset = _number(given, "offset")
    items = list(islice(children(opened.pages, node), offset, offset + _number(given, "limit")))
    if not items and offset:
        raise UsageError(
            f"there is no item {offset}; the array has {count(opened.pages, node):,} items, counted from 0"
        )
    return items


def _schema(opened: Opened, given: Given) -> PadReading:
    page = Page(bytes_max=opened.bytes_max)
    if opened.form == "text":
        if _text(given, "path"):
            raise UsageError(f"{opened.handle} is text, and has no paths; leave `path` out")
        page.add(f"text of {line_count(opened.pages):,} lines, {len(opened.pages):,} bytes")
        if table := table_of(opened.pages):
            page.add(table)
        for line in lines_from(opened.pages, 1):
            if opened.pages[line.start : line.start + 1] == b"#":
                page.add(f"{line.number}: {clipped(opened.pages, line.start, line.end, bytes_max=200)}")
    else:
        shape(opened.pages, [_place(opened, given)], page=page, depth_max=_number(given, "max_depth"))
    return _of_page(page, detail="it goes on; give a `path` or a smaller `max_depth`")


def _item_schema(opened: Opened, given: Given) -> PadReading:
    node = _array(opened, given)
    items = _some(opened, node, given)
    if not items:
        return PadReading(kind=OutcomeKind.EMPTY, detail="the array is empty")
    page = Page(bytes_max=opened.bytes_max)
    offset = _number(given, "offset")
    page.add(f"items {offset} to {offset + len(items) - 1} of {count(opened.pages, node):,}; `?` is not in all of them")
    for at in range(0, len(items), SAMPLE):
        shape(opened.pages, items[at : at + SAMPLE], page=page, depth_max=3, name="item")
    return _of_page(page, detail="it goes on; give a smaller `limit`, or use schema with a `path`")


def _get_in(opened: Opened, given: Given) -> PadReading:
    node = _place(opened, given)
    kind = _kind(opened, node)
    if "offset" in given or "limit" in given:
        window = {"offset": given.get("offset", 0), "limit": given.get("limit", _BIGGEST)}
        if kind == "array":
            return _items(opened, node, window)
        if kind == "string":
            return _letters(opened, node, window)
        raise UsageError(f"offset and limit are for arrays and texts; at this path is a {kind}")
    written = raw(opened.pages, node) if node.end - node.start <= 20 * opened.bytes_max else b""
    if written and len(written) <= opened.bytes_max:
        return PadReading(kind=OutcomeKind.OK, content=written.decode("utf-8", "replace"), is_json=True)
    tokens = tokens_of(len(written) or node.end - node.start)
    if kind == "object":
        parts = [
            f"{child.key} ({child.end - child.start:,} bytes)"
            for child in islice(children(opened.pages, node), _SHOWN_KEYS)
        ]
        words = f"an object with {clip(', '.join(parts), bytes_max=2_000)}: ask for one of its keys"
        return _too_large(opened, "get_in", words, tokens=tokens, instead=("schema", "get_in of one of its keys"))
    if kind == "array":
        words = f"an array of {count(opened.pages, node):,}: give offset and limit, or use item_schema or iterate_over"
        instead = ("get_in with offset and limit", "item_schema", "iterate_over")
        return _too_large(opened, "get_in", words, tokens=tokens, instead=instead)
    words = "give offset and limit, counted in characters"
    return _too_large(opened, "get_in", words, tokens=tokens, instead=("get_in with offset and limit",))


def _too_large(opened: Opened, tool: str, words: str, *, tokens: int, instead: tuple[str, ...]) -> PadReading:
    """Say that an answer would be too large: in words, and in the JSON by which AURA's tools say it."""
    most = opened.limits.reading_tokens
    told = {"error": f"{tool}_too_large", "tokens": tokens, "tokens_max": most, "suggestions": instead}
    detail = f"too large: about {tokens:,} of {most:,} tokens; {words}"
    return PadReading(
        kind=OutcomeKind.TOOL_ERROR, content=msgspec.json.encode(told).decode(), is_json=True, detail=detail
    )


def _items(opened: Opened, node: Node, window: Given) -> PadReading:
    offset = _number(window, "offset")
    items = _some_until(opened, node, window)
    page = Page(bytes_max=opened.bytes_max - 2)
    for number, item in enumerate(items):
        if item.end - item.start > 20 * opened.bytes_max or not page.add(
            raw(opened.pages, item).decode("utf-8", "replace")
        ):
            if not page.lines:
                words = f"item {offset} alone is too large; ask for its parts, such as `{offset}.…` behind the path"
                instead = ("item_schema", f"get_in of a part of item {offset}")
                return _too_large(opened, "get_in", words, tokens=tokens_of(item.end - item.start), instead=instead)
            detail = f"items {offset} to {offset + number - 1} fitted; go on with offset={offset + number}"
            return PadReading(
                kind=OutcomeKind.TRUNCATED, content=f"[{','.join(page.lines)}]", is_json=True, detail=detail
            )
    kind = OutcomeKind.OK if page.lines else OutcomeKind.EMPTY
    return PadReading(kind=kind, content=f"[{','.join(page.lines)}]", is_json=True)


def _some_until(opened: Opened, node: Node, window: Given) -> list[Node]:
    # More items than the answer has bytes cannot fit, whatever was asked for.
    most = min(_number(window, "limit"), opened.bytes_max)
    return _some(opened, node, {**window, "limit": most})


def _letters(opened: Opened, node: Node, window: Given) -> PadReading:
    text = text_of(opened.pages, node)
    offset = _number(window, "offset")
    if offset and offset >= len(text):
        raise UsageError(f"the text has {len(text):,} characters, counted from 0")
    wanted = text[offset : offset + _number(window, "limit")]
    content = wanted.encode("utf-8", "replace")
    cut = whole_until(content, 0, end=opened.bytes_max)
    shown = content[:cut].decode("utf-8", "replace")
    if cut == len(content):
        return PadReading(kind=OutcomeKind.OK, content=shown)
    end = offset + len(shown)
    detail = f"characters {offset} to {end - 1} of {len(text):,} fitted; go on with offset={end}"
    return PadReading(kind=OutcomeKind.TRUNCATED, content=shown, detail=detail)


def _iterate_over(opened: Opened, given: Given) -> PadReading:
    node = _array(opened, given)
    fields = given["fields"]
    assert isinstance(fields, list | tuple), "checked by arguments_of"
    items = _some(opened, node, given)
    if not items:
        return PadReading(kind=OutcomeKind.EMPTY, detail="the array is empty")
    page = Page(bytes_max=opened.bytes_max)
    missing = dict.fromkeys(fields, 0)
    notes = []
    for number, item in enumerate(items, start=_number(given, "offset")):
        row = _row(opened, item, fields=list(fields), missing=missing)
        if not page.add(f"{number}: {row}"):
            notes.append(f"what fitted ends before item {number}; go on with offset={number}, or ask for fewer fields")
            break
    if all(lacking == len(items) for lacking in missing.values()):
        raise UsageError(f"{_nothing_at(opened.pages, items[0], str(fields[0]))} in the first of these items")
    notes += [f"`{name}` is missing in {lacking} of {len(items)}" for name, lacking in missing.items() if lacking]
    kind = OutcomeKind.TRUNCATED if page.is_full else OutcomeKind.OK
    return PadReading(kind=kind, content=page.text(), detail="; ".join(notes))


def _row(opened: Opened, item: Node, *, fields: list[str], missing: dict[str, int]) -> str:
    parts = []
    for name in fields:
        found, rest = find(opened.pages, item, steps_of(name))
        if rest:
            missing[name] += 1
        else:
            parts.append(
                f"{json.dumps(name, ensure_ascii=False)}: {brief(opened.pages, found, bytes_max=_FIELD_MAX_BYTES)}"
            )
    return f"{{{', '.join(parts)}}}"


def _read(opened: Opened, given: Given) -> PadReading:
    size_bytes = len(opened.pages)
    if "offset" not in given:
        compact = (
            raw(opened.pages, root_of(opened.pages))
            if opened.form == "json" and size_bytes <= 20 * opened.bytes_max
            else b""
        )
        whole = compact or bytes(opened.pages[: opened.bytes_max + 1])
        if len(whole) <= opened.bytes_max:
            return PadReading(
                kind=OutcomeKind.OK, content=whole.decode("utf-8", "replace"), is_json=opened.form == "json"
            )
        better = ("schema", "get_in", "iterate_over") if opened.form == "json" else ("head", "slice", "grep")
        words = f"use {better[0]}, {better[1]} or {better[2]}, or read it piece by piece from offset=0"
        return _too_large(opened, "read", words, tokens=tokens_of(size_bytes), instead=(*better, "read with offset=0"))
    offset = _number(given, "offset")
    if offset >= size_bytes:
        raise UsageError(f"the result has {size_bytes:,} bytes, counted from 0")
    start = whole_until(opened.pages, max(0, offset - 4), end=offset) if offset else 0
    cut = whole_until(opened.pages, start, end=start + opened.bytes_max)
    content = opened.pages[start:cut].decode("utf-8", "replace")
    if cut == size_bytes:
        return PadReading(kind=OutcomeKind.OK, content=content, detail=f"bytes {start} to the end")
    detail = f"bytes {start} to {cut - 1} of {size_bytes:,}; go on with offset={cut}"
    return PadReading(kind=OutcomeKind.TRUNCATED, content=content, detail=detail)


def _of_page(page: Page, *, detail: str) -> PadReading:
    if page.is_full:
        return PadReading(kind=OutcomeKind.TRUNCATED, content=page.text(), detail=detail)
    return PadReading(kind=OutcomeKind.OK, content=page.text())


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadingTool:
    description: str
    read: Callable[[Opened, Given], PadReading]
    arguments: Mapping[str, _Argument]


_CONTEXT_MAX = 10
_TOOLS: Mapping[str, _ReadingTool] = {
    "head": _ReadingTool(
        description="Show size, shape and the first of a result that was put aside.",
        read=_head,
        arguments={
            "handle": _HANDLE,
            "lines": _Argument(what="Lines of a text", kind="integer", default=50, least=1, most=1_000),
        },
    ),
    "slice": _ReadingTool(
        description="Read lines by number, both ends included. JSON has one value per line.",
        read=_slice,
        arguments={
            "handle": _HANDLE,
            "start": _Argument(what="First line, from 1", kind="integer", least=1),
            "end": _Argument(what="Last line", kind="integer", least=1),
        },
    ),
    "grep": _ReadingTool(
        description="Find lines by a regular expression (RE2 syntax: no look-around, no back-references; (?i) ignores case).",
        read=_grep,
        arguments={
            "handle": _HANDLE,
            "pattern": _Argument(what="Expression; what is none is searched for literally", least=1, most=PATTERN_MAX),
            "context": _Argument(what="Lines shown around a match", kind="integer", default=2, most=_CONTEXT_MAX),
            "limit": _Argument(what="Matching lines shown", kind="integer", default=50, least=1, most=1_000),
        },
    ),
    "schema": _ReadingTool(
        description="Describe the structure: keys, kinds and counts of JSON; columns and headings of a text.",
        read=_schema,
        arguments={
            "handle": _HANDLE,
            "path": _PATH,
            "max_depth": _Argument(what="Levels", kind="integer", default=4, least=1, most=16),
        },
    ),
    "item_schema": _ReadingTool(
        description="Describe what the items of an array have in common.",
        read=_item_schema,
        arguments={"handle": _HANDLE, "path": _PATH, "offset": _OFFSET, "limit": _limit(20, 20)},
    ),
    "get_in": _ReadingTool(
        description="Read the value at a path; of a long array or text a part.",
        read=_get_in,
        arguments={
            "handle": _HANDLE,
            "path": _Argument(what=_PATH.what),
            "offset": _Argument(what="First item or character, from 0", kind="integer", is_optional=True),
            "limit": _Argument(what="Items or characters at most", kind="integer", is_optional=True, least=1),
        },
    ),
    "iterate_over": _ReadingTool(
        description="Read only some fields of the items of an array, one item per line.",
        read=_iterate_over,
        arguments={
            "handle": _HANDLE,
            "path": _PATH,
            "fields": _Argument(what="Paths within an item", kind="array", least=1, most=20),
            "offset": _OFFSET,
            "limit": _limit(1_000, 50),
        },
    ),
    "read": _ReadingTool(
        description="Read the whole when it is small enough, or a piece from a byte offset on.",
        read=_read,
        arguments={
            "handle": _HANDLE,
            "offset": _Argument(what="First byte, from 0", kind="integer", is_optional=True),
        },
    ),
}
NAMES = tuple(_TOOLS)


def answer(tool: str, opened: Opened, given: Given) -> PadReading:
    """Let a reading tool answer from an open result. Raises UsageError that teaches."""
    return _TOOLS[tool].read(opened, given)


def definitions() -> tuple[Tool, ...]:
    """Define the eight tools for the registry."""
    return tuple(_definition(name, it) for name, it in _TOOLS.items())


def _definition(name: str, it: _ReadingTool) -> Tool:
    takes = {
        "type": "object",
        "properties": {name: argument.schema() for name, argument in it.arguments.items()},
        "required": sorted(name for name, argument in it.arguments.items() if argument.is_required),
        "additionalProperties": False,
    }
    resource = ResourceRule(kind="Result", name="/handle")
    return own_read(name, description=it.description, takes=takes, resource=resource)
