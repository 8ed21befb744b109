"""From a file's text to passages: cut at headings, long ones at paragraphs, each with a little of the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import unescape

PIECE_CHARS = 1_600
"""A piece is about a screen: large enough to say something, small enough that four of them fit a prompt."""
_OVERLAP_CHARS = 200
_HEADING_CHARS_MAX = 160
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_NO_PARAGRAPH = re.compile(r"\s*(?:[-*+>|#]|\d+[.)]\s|$)")
_MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
_HTML = frozenset({".html", ".htm"})
_PLAIN = frozenset({".txt", ".text", ".rst", ".adoc"})
SUFFIXES = _MARKDOWN | _HTML | _PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A passage of a document before it is kept."""

    heading: str
    line: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    heading: str
    lines: Sequence[tuple[int, str]]


def pieces_of(text: str, *, suffix: str) -> list[Piece]:
    """Cut a document into its passages, by the rules of its kind of file."""
    if suffix in _HTML:
        text = _text_of_html(text)
    lines = text.splitlines()
    sections = _plain(lines) if suffix in _PLAIN else _sections(lines)
    return [piece for section in sections for piece in _cut(section)]


def _plain(lines: Sequence[str]) -> Iterator[_Section]:
    yield _Section(heading="", lines=tuple(enumerate(lines, start=1)))


def _sections(lines: Sequence[str]) -> Iterator[_Section]:
    """Yield what stands below each heading; what looks like one in a code block is none."""
    path: list[tuple[int, str]] = []
    held: list[tuple[int, str]] = []
    fence = ""
    for number, line in list(enumerate(lines, start=1))[_front_matter(lines) :]:
        mark = _FENCE.match(line)
        if mark is not None:
            if not fence:
                fence = mark[1]
            elif mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line.strip(" `~"):
                fence = ""
        found = None if fence or mark is not None else _heading(line, held)
        if found is None:
            held.append((number, line))
            continue
        level, words, is_underlined = found
        if is_underlined:
            held.pop()
        yield _Section(heading=_joined(path), lines=tuple(held))
        path = [each for each in path if each[0] < level]
        path.append((level, words))
        held = []
    yield _Section(heading=_joined(path), lines=tuple(held))


def _heading(line: str, held: Sequence[tuple[int, str]]) -> tuple[int, str, bool] | None:
    """Return level and words of a heading, and whether the line before holds the words."""
    atx = _ATX.fullmatch(line)
    if atx is not None:
        return len(atx[1]), (atx[2] or "").strip(), False
    before = held[-1][1] if held else ""
    is_alone = len(held) < 2 or not held[-2][1].strip()
    if is_alone and _UNDERLINE.fullmatch(line) and not _NO_PARAGRAPH.match(before):
        return (1 if "=" in line else 2), before.strip(), True
    return None


def _front_matter(lines: Sequence[str]) -> int:
    """Return how many lines at the top are about the document and not of it."""
    if not lines or lines[0].rstrip() != "---":
        return 0
    return next((at + 1 for at, line in enumerate(lines[1:200], start=1) if line.rstrip() == "---"), 0)


def _joined(path: Sequence[tuple[int, str]]) -> str:
    return " > ".join(words[:_HEADING_CHARS_MAX] for _, words in path if words)


def _cut(section: _Section) -> Iterator[Piece]:
    """Yield a section in pieces: cut between lines, best at an empty one, with the last lines of the piece before."""
    held: list[tuple[int, str]] = []
    size = fresh = 0
    for number, line in _short(section.lines):
        is_full = size + len(line) > PIECE_CHARS or (size > PIECE_CHARS * 3 // 4 and not line.strip())
        if is_full and fresh:
            yield from _piece(section.heading, held)
            held = _tail(held)
            size, fresh = sum(len(each) + 1 for _, each in held), 0
        held.append((number, line))
        size += len(line) + 1
        fresh += bool(line.strip())
    if fresh:
        yield from _piece(section.heading, held)


def _short(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield lines, those that are longer than a piece in parts, at a space where there is one."""
    for number, line in lines:
        rest = line
        while len(rest) > PIECE_CHARS // 2:
            at = rest.rfind(" ", PIECE_CHARS // 4, PIECE_CHARS // 2)
            at = at if at > 0 else PIECE_CHARS // 2
            yield number, rest[:at]
            rest = rest[at:].lstrip()
        yield number, rest


def _tail(lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    size, kept = 0, 0
    for _, line in reversed(lines):
        size += len(line) + 1
        if size > _OVERLAP_CHARS:
            break
        kept += 1
    return list(lines[len(lines) - kept :])


def _piece(heading: str, lines: Sequence[tuple[int, str]]) -> Iterator[Piece]:
    text = "\n".join(line.rstrip() for _, line in lines)
    if text.strip():
        first = next(number for number, line in lines if line.strip())
        yield Piece(heading=heading, line=first, text=text.strip("\n"))


_SILENT = frozenset({"script", "style", "noscript", "template", "svg", "title"})
_BREAKS = frozenset(
    {"p", "div", "br", "li", "tr", "ul", "ol", "table", "section", "article", "pre", "blockquote", "hr", "dt", "dd"}
)
_TITLES = {f"h{level}": "#" * level for level in range(1, 7)}
_TAG = re.compile(
    r"""<!--|<(?P<end>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]*)(?:[^<>"']|"[^"<]*"|'[^'<]*')*>|<[!?][^<>]*>""",
)
"""No tag reaches over a `<`, so that a page of nothing but beginnings is read in one pass as well."""


def _text_of_html(text: str) -> str:
    """Return what a page says, with its headings as headings; tags, scripts, styles and comments go.

    The standard library's parser takes minutes for some broken pages of a few hundred kilobytes.
    """
    parts: list[str] = []
    endless: set[str] = set()
    at = verbatim = 0
    while (tag := _TAG.search(text, at)) is not None:
        _say(parts, text[at : tag.start()], is_verbatim=verbatim > 0)
        at = tag.end()
        name = (tag["name"] or "").lower()
        if tag[0] == "<!--":
            at = _after(text, "-->", at, endless)
        elif name in _SILENT and not tag["end"]:
            at = _after(text, f"</{name}", at, endless)
        elif name:
            parts.append(_break(name, is_end=bool(tag["end"])))
            verbatim += 0 if name != "pre" else -1 if tag["end"] and verbatim else not tag["end"]
    _say(parts, text[at:], is_verbatim=verbatim > 0)
    lines = (line.strip() for line in "".join(parts).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _say(parts: list[str], text: str, *, is_verbatim: bool) -> None:
    if text:
        said = unescape(text)
        parts.append(said if is_verbatim else re.sub(r"\s+", " ", said))


def _after(text: str, end: str, at: int, endless: set[str]) -> int:
    """Return where something silent ends; what has no end is not silent, and is looked for once."""
    if end in endless:
        return at
    found = re.compile(re.escape(end), re.IGNORECASE).search(text, at)
    if found is None:
        endless.add(end)
        return at
    # Of an end tag the rest is left: it is no tag any more, so it goes here.
    close = text.find(">", found.end() - 1, found.end() + 100)
    return close + 1 if close >= 0 else found.end()


def _break(name: str, *, is_end: bool) -> str:
    if name in _TITLES:
        return "\n\n" if is_end else f"\n\n{_TITLES[name]} "
    if name in _BREAKS:
        return "\n\n" if name == "p" else "\n"
    return " " if name in {"td", "th"} else ""
