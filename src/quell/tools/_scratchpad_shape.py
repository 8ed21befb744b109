"""What a result looks like: its shape in a few lines, and the head that stands for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from quell.tools._scratchpad_files import Form
from quell.tools._scratchpad_json import Node, Pages, children, count, kind_of, raw, root_of, text_of
from quell.tools._scratchpad_text import TOKEN_BYTES, clip, clipped, line_count, lines_from, table_of, tokens_of

SAMPLE = 20
_KEYS_MAX = 60
_KEY_MAX_BYTES = 120
_HEAD_DEPTH = 3
_HEAD_ITEMS = 5
_VALUE_MAX_BYTES = 400
_LINE_MAX_BYTES = 400
_FORMAT_MAX_BYTES = 200_000


@dataclass(slots=True)
class Page:
    """Lines under a budget: what no longer fits is not added, and that is remembered."""

    bytes_max: int
    lines: list[str] = field(default_factory=list)
    size_bytes: int = 0
    is_full: bool = False

    def add(self, line: str) -> bool:
        """Add a line; False when it did not fit, or one before it did not."""
        size_bytes = len(line.encode("utf-8", "replace")) + 1
        if self.is_full or self.size_bytes + size_bytes > self.bytes_max:
            self.is_full = True
            return False
        self.lines.append(line)
        self.size_bytes += size_bytes
        return True

    def text(self) -> str:
        """Join what fitted."""
        return "\n".join(self.lines)


def brief(pages: Pages, node: Node, *, bytes_max: int) -> str:
    """Write a value whole when it fits; otherwise the beginning of a text, or kind and size of anything else."""
    kind = kind_of(pages, node)
    size_bytes = node.end - node.start
    if size_bytes <= _FORMAT_MAX_BYTES:
        written = raw(pages, node)
        if len(written) <= bytes_max:
            return written.decode("utf-8", "replace")
        if kind == "string":
            return f'"{clip(text_of(pages, node), bytes_max=bytes_max)}'
    elif kind == "string":
        return clipped(pages, node.start, node.end, bytes_max=bytes_max)
    number = count(pages, node)
    return f"…[{kind} of {number:,} {'keys' if kind == 'object' else 'items'}, {size_bytes:,} bytes]"


def shape(pages: Pages, nodes: list[Node], *, page: Page, depth_max: int, name: str = "", indent: int = 0) -> None:
    """Describe values that stand at the same place: their kinds, the keys they have, what their items are."""
    kinds = sorted({kind_of(pages, node) for node in nodes})
    told = " or ".join(_kind_told(pages, kind, nodes) for kind in kinds)
    if not page.add(f"{' ' * indent}{f'{name}: ' if name else ''}{told}") or depth_max == 0:
        return
    members: dict[str, list[Node]] = {}
    items: list[Node] = []
    objects = unseen = 0
    for node in nodes:
        kind = kind_of(pages, node)
        if kind == "array":
            items += islice(children(pages, node), SAMPLE)
        elif kind == "object":
            objects += 1
            for child in islice(children(pages, node), _KEYS_MAX):
                members.setdefault(child.key, []).append(child)
            unseen = max(unseen, count(pages, node) - _KEYS_MAX)
    for key, found in members.items():
        mark = "" if len(found) == objects else "?"
        label = clip(key, bytes_max=_KEY_MAX_BYTES) + mark
        shape(pages, found[:SAMPLE], page=page, depth_max=depth_max - 1, name=label, indent=indent + 2)
    if unseen > 0:
        page.add(f"{' ' * (indent + 2)}… and {unseen:,} more keys")
    if items:
        shape(pages, items[:SAMPLE], page=page, depth_max=depth_max - 1, name="item", indent=indent + 2)


def _kind_told(pages: Pages, kind: str, nodes: list[Node]) -> str:
    if kind not in {"array", "object"}:
        return kind
    counts = [count(pages, node) for node in nodes if kind_of(pages, node) == kind]
    span = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return f"array of {span}" if kind == "array" else f"object with {span} {'key' if span == '1' else 'keys'}"


def head(pages: Pages, form: Form, *, handle: str, tokens_max: int, lines_max: int = 50) -> str:
    """Write what stands for a whole result: size, shape, the first of it, and how to read on."""
    page = Page(bytes_max=tokens_max * TOKEN_BYTES)
    size = f"{len(pages):,} bytes, about {tokens_of(len(pages)):,} tokens"
    if form == "json":
        page.add(f"{handle}: JSON, {size}; this is its head, the rest was put aside")
        page.add("read on: schema, item_schema, get_in, iterate_over, grep, slice")
        _json_head(pages, page)
    else:
        page.add(f"{handle}: text, {line_count(pages):,} lines, {size}; this is its head, the rest was put aside")
        page.add("read on: slice, grep, read")
        _text_head(pages, page, lines_max=lines_max)
    return page.text()


def _json_head(pages: Pages, page: Page) -> None:
    root = root_of(pages)
    shape_page = Page(bytes_max=(page.bytes_max - page.size_bytes) // 2)
    shape(pages, [root], page=shape_page, depth_max=_HEAD_DEPTH)
    for line in shape_page.lines:
        page.add(line)
    if shape_page.is_full:
        page.add("… (the shape goes on: ask schema)")
    kind = kind_of(pages, root)
    if kind == "object":
        page.add("values:")
        for child in islice(children(pages, root), _KEYS_MAX):
            page.add(
                f"  {clip(child.key, bytes_max=_KEY_MAX_BYTES)} = {brief(pages, child, bytes_max=_VALUE_MAX_BYTES)}"
            )
        first_array = next(
            (child for child in islice(children(pages, root), _KEYS_MAX) if _is_array(pages, child)), None
        )
    else:
        first_array = root if kind == "array" else None
        if first_array is None:
            page.add(brief(pages, root, bytes_max=max(0, page.bytes_max - page.size_bytes - 80)))
    if first_array is not None:
        where = f" of {clip(first_array.key, bytes_max=_KEY_MAX_BYTES)}" if first_array.key else ""
        page.add(f"first items{where}:")
        for item in islice(children(pages, first_array), _HEAD_ITEMS):
            page.add(f"  {brief(pages, item, bytes_max=_VALUE_MAX_BYTES)}")


def _is_array(pages: Pages, node: Node) -> bool:
    return kind_of(pages, node) == "array"


def _text_head(pages: Pages, page: Page, *, lines_max: int) -> None:
    start = pages[:64].lstrip()[:1]
    if start in {b"{", b"["}:
        page.add(
            "it begins like JSON and is none that can be walked: malformed, one document per line, or nested too deep"
        )
    if table := table_of(pages):
        page.add(table)
    for line in islice(lines_from(pages, 1), lines_max):
        if not page.add(f"{line.number}: {clipped(pages, line.start, line.end, bytes_max=_LINE_MAX_BYTES)}"):
            break
