"""From a file's text to passages: cut at headings, long ones at paragraphs, each with a little of the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser

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


_SILENT = frozenset({"script", "style", "noscript", "template", "svg", "head"})
_BREAKS = frozenset(
    {"p", "div", "br", "li", "tr", "ul", "ol", "table", "section", "article", "pre", "blockquote", "hr", "dt", "dd"}
)
_TITLES = {f"h{level}": "#" * level for level in range(1, 7)}


class _Reader(HTMLParser):
    """Keeps what a page says, with its headings as headings; tags, scripts, styles and comments go."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent: list[str] = []
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - its signature
        if tag in _SILENT:
            self._silent.append(tag)
        elif tag in _TITLES:
            self.parts.append(f"\n\n{_TITLES[tag]} ")
        elif tag in _BREAKS:
            self.parts.append("\n\n" if tag == "p" else "\n")
        elif tag in {"td", "th"}:
            self.parts.append(" ")
        self._verbatim += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            # An end that was forgotten inside ends with what it stands in.
            while self._silent.pop() != tag:
                continue
        elif tag in _TITLES or tag in _BREAKS:
            self.parts.append("\n\n" if tag in _TITLES or tag == "p" else "\n")
        if tag == "pre" and self._verbatim:
            self._verbatim -= 1

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))


def _text_of_html(text: str) -> str:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    lines = (line.strip() for line in "".join(reader.parts).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
