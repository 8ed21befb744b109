"""A report as one self-contained page: no script, no request, every word escaped."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from quell.incidents._charts import Chart
from quell.incidents._view import Report

_PACKAGE = "quell.incidents"


def render_html(report: Report, charts: tuple[Chart, ...]) -> str:
    """Write a report as one HTML file."""
    style = (files(_PACKAGE) / "templates" / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = _environment().get_template("report.html.j2")
    # The style is ours and must reach the page byte for byte: its digest is what the page allows.
    return template.render(report=report, charts=charts, style=Markup(style), digest=digest)  # noqa: S704


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(_PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
