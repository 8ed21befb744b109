"""PROMISES.md, written from what the last full run of each proof found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from proofs._proof import Promise, Result, Scale

RESULTS = Path(".proofs") / "results.json"
DOCUMENT = Path("PROMISES.md")
_HEAD = """# Promises

Each line is a promise that a user may hold Quell to, with what tries to break it. `make prove` tries all of them at the sizes below and prints this table; `python -m proofs NAME` tries one, `--seed N` repeats a run. The suite tries every promise at a smaller size, and shows that deliberately broken variants are caught.

*Exhaustive* means: all cases of the space that the note names. *Sampled* means: that many random cases; no violation in n of them bounds the rate by 3/n at 95 %, and proves no more.

What is not promised stands in the [threat model](docs/explanation/threat-model.md): a compromised model can still lie in prose.

| promise | proof | kind | cases | violations | seed | what a case is, and what else was counted |
|---|---|---|--:|--:|--:|---|
"""


def keep(name: str, result: Result, *, scale: Scale, seed: int) -> None:
    """Remember what a proof found; a full run is not replaced by a smaller one."""
    RESULTS.parent.mkdir(exist_ok=True)
    found = _found()
    if found.get(name, {}).get("scale") == "full" and scale != "full":
        return
    found[name] = {
        "scale": scale,
        "seed": seed,
        "cases": result.cases,
        "violations": result.violations,
        "kind": "exhaustive" if result.is_exhaustive else "sampled",
        "note": result.note,
    }
    RESULTS.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write(promises: Iterable[Promise]) -> list[str]:
    """Write the document; return the promises that have no full run yet and stand in it without figures."""
    found, missing, lines = _found(), [], []
    for promise in promises:
        row = found.get(promise.name)
        if row is None or row["scale"] != "full":
            missing.append(promise.name)
            lines.append(f"| {promise.promise} | `{promise.name}` | | | | | not run at this size yet |")
            continue
        note = str(row["note"]).replace("|", "/")
        figures = f"{row['kind']} | {row['cases']:,} | {row['violations']:,} | {row['seed']}"
        lines.append(f"| {promise.promise} | `{promise.name}` | {figures} | {note} |")
    DOCUMENT.write_text(_HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return missing


def _found() -> dict[str, dict[str, int | str]]:
    found: dict[str, dict[str, int | str]] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return found
