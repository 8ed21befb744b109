"""Render a case file: one layout, four forms."""

from __future__ import annotations

from typing import Literal

import msgspec

from quell.incidents._charts import charts_of
from quell.incidents._model import CaseFile
from quell.incidents._render_html import render_html
from quell.incidents._render_text import render_markdown, render_text
from quell.incidents._view import report_of

_WIDTH = 100


def render(case: CaseFile, form: Literal["text", "markdown", "json", "html"], *, width: int = _WIDTH) -> str:
    """Write a case file as plain text of `width` columns, Markdown, JSON or one self-contained HTML page."""
    if form == "json":
        return (
            msgspec.json.format(msgspec.json.encode({"kind": "case_file", "ok": True, **_fields(case)})).decode() + "\n"
        )
    report = report_of(case)
    if form == "text":
        return render_text(report, width=width)
    if form == "markdown":
        return render_markdown(report)
    return render_html(report, charts_of(case))


def _fields(case: CaseFile) -> dict[str, object]:
    return {name: getattr(case, name) for name in CaseFile.__slots__}
