"""A report as plain text for a terminal, and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from quell.incidents._view import Card, Line, Report, Section

_WIDTH_MIN = 40
_WIDTH_MAX = 120
_INERT = re.compile(r"([\\`*_\[\]<>|~&#])")
_QUIET_IN_TEXT = {"asked", "briefing"}


def render_text(report: Report, *, width: int) -> str:
    """Write a report for a terminal of `width` columns."""
    width = max(_WIDTH_MIN, min(width, _WIDTH_MAX))
    chips = " | ".join(word for word, _ in report.chips)
    lines = [*_wrapped(report.title, width), *_wrapped(chips, width), ""]
    for section in report.sections:
        if section.key not in _QUIET_IN_TEXT or section.key == "asked":
            lines += [section.title, "-" * len(section.title), *_text_section(section, width), ""]
    lines += _wrapped(report.footer, width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _text_section(section: Section, width: int) -> Iterator[str]:
    for line in section.prose:
        yield from _wrapped(_with_cites(line), width)
    claims = section.claims
    if section.about and claims:
        yield from _wrapped(_with_cites(claims[0]), width)
        claims = claims[1:]
    for line in section.about:
        yield from _wrapped(line.text, width, first="  ", rest="  ")
    for line in claims:
        yield from _wrapped(_with_cites(line), width, first="- ", rest="  ")
    for number, line in enumerate(section.numbered, start=1):
        yield from _wrapped(_with_cites(line), width, first=f"{number}. ", rest="   ")
    for card in section.cards:
        yield from _text_card(card, width, is_short=section.key == "evidence")
    yield from _text_table(section.rows, width)


def _text_card(card: Card, width: int, *, is_short: bool) -> Iterator[str]:
    if card.head:
        yield from _wrapped(card.head, width, first=f"{card.id:<4} ", rest="     ")
        yield from _wrapped(" | ".join(card.chips), width, first="     ", rest="     ")
    for name, lines in card.groups:
        for line in lines:
            label = line.label or (f"{name}:" if name else "")
            first = f"{'     ' if card.head else ''}{label} " if label else "- "
            yield from _wrapped(_with_cites(line), width, first=first, rest=" " * min(len(first), 20))
    if card.groups and card.head and not is_short:
        yield ""


def _text_table(rows: Sequence[tuple[str, ...]], width: int) -> Iterator[str]:
    if not rows:
        return
    columns = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(size) for cell, size in zip(row, columns, strict=True)]
        line = "  ".join(cells).rstrip()
        yield from [line] if len(line) <= width else _wrapped("  ".join(row), width, first="", rest="    ")


def _with_cites(line: Line) -> str:
    return f"{line.text} [{', '.join(line.cites)}]" if line.cites else line.text


def _wrapped(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=True, break_on_hyphens=False
    ) or [first.rstrip()]


def render_markdown(report: Report) -> str:
    """Write a report as Markdown in which text of strangers cannot act."""
    lines = [f"# {_inert(report.title)}", "", " · ".join(f"**{_inert(word)}**" for word, _ in report.chips), ""]
    for section in report.sections:
        lines += [f"## {section.title}", "", *_markdown_section(section)]
    lines += ["---", "", _inert(report.footer)]
    return "\n".join(lines) + "\n"


def _markdown_section(section: Section) -> Iterator[str]:
    for line in section.prose:
        yield from (_marked(line), "")
    claims = section.claims
    if section.about and claims:
        yield from (f"**{_inert(claims[0].text)}** [{', '.join(claims[0].cites)}]", "")
        claims = claims[1:]
    if section.about:
        yield from ("  \n".join(_inert(line.text) for line in section.about), "")
    yield from (f"- {_marked(line)}" for line in claims)
    yield from (f"{number}. {_marked(line)}" for number, line in enumerate(section.numbered, start=1))
    if section.claims or section.numbered:
        yield ""
    for card in section.cards:
        yield from _markdown_card(card)
    if section.rows:
        head = section.columns if any(section.columns) else tuple(" " for _ in section.columns)
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        yield from (f"| {' | '.join(_inert(cell) for cell in row)} |" for row in section.rows)
        yield ""
    if section.code:
        yield from _fenced(section.code)


def _markdown_card(card: Card) -> Iterator[str]:
    if card.head:
        yield f"### {_inert(card.id)}"
        yield ""
        yield _code(card.head) if card.code or not card.groups else _inert(card.head)
        yield ""
        yield " · ".join(_inert(chip) for chip in card.chips)
        yield ""
    for name, lines in card.groups:
        for line in lines:
            label = line.label or name
            yield f"- **{_inert(label)}** {_marked(line)}" if label else f"- {_marked(line)}"
    if card.groups:
        yield ""
    if card.code:
        yield from _fenced(card.code)


def _marked(line: Line) -> str:
    return f"{_inert(line.text)} [{', '.join(line.cites)}]" if line.cites else _inert(line.text)


def _inert(text: str) -> str:
    """Escape whatever Markdown or HTML would act on, links without brackets included."""
    return _INERT.sub(r"\\\1", text).replace("://", "\\://").replace("@", "\\@").replace("www.", "www\\.")


def _code(text: str) -> str:
    """Put text into a code span that it cannot close."""
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}"


def _fenced(code: str) -> Iterator[str]:
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", code)), default=0) + 1)
    yield from (f"{fence}text", code, fence, "")
