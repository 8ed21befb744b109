"""Regenerate the generated documents; with `--check`, fail when one is old."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

import docs_reference

from quell.domain import APPROVAL_NEXT, CHANGE_NEXT, EFFECT_NEXT, INCIDENT_NEXT, RUN_NEXT

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"


def _diagram(title: str, table: Mapping[StrEnum, frozenset[StrEnum]]) -> str:
    lines = [f"## {title}", "", "```mermaid", "stateDiagram-v2"]
    first = next(iter(table))
    lines.append(f"    [*] --> {first}")
    for now, then in table.items():
        lines += [f"    {now} --> {state}" for state in sorted(then)]
        if not then:
            lines.append(f"    {now} --> [*]")
    return "\n".join([*lines, "```", ""])


def lifecycles() -> str:
    """Draw every life-cycle table of the domain."""
    parts = ["# Life cycles", "", "Generated from the tables of `quell.domain` by `make docs`.", ""]
    tables = {
        "Incident": INCIDENT_NEXT,
        "Run": RUN_NEXT,
        "Approval": APPROVAL_NEXT,
        "Effect": EFFECT_NEXT,
        "Change": CHANGE_NEXT,
    }
    parts += [_diagram(title, table) for title, table in tables.items()]  # type: ignore[arg-type]  # Mapping is invariant in its key
    return "\n".join(parts)


DOCUMENTS: Mapping[str, Callable[[], str]] = {
    "lifecycles.md": lifecycles,
    "configuration.md": docs_reference.configuration,
    "cli.md": docs_reference.command_line,
    "events.md": docs_reference.events,
    "metrics.md": docs_reference.metrics,
    "errors.md": docs_reference.errors,
}


def main() -> int:
    """Write the documents, or say which are old."""
    old = [
        name
        for name, text in DOCUMENTS.items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != text()
    ]
    if "--check" in sys.argv[1:]:
        for name in old:
            print(f"error: docs/reference/{name} is old\nhint: run `make docs`", file=sys.stderr)
        return 1 if old else 0
    for name in old:
        (REFERENCE / name).write_text(DOCUMENTS[name]())
        print(f"written: docs/reference/{name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
