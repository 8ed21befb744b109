"""Run the evidence engine on public incident sets and print how often the faulty object comes first.

`python -m bench.bench_incidents [SET ...] [--explain CASE] [--predictions FOLDER]`. The sets are not part of the repository: their folder is
`QUELL_BENCH_DATA`, or `../shared/data` beside it. A set that is missing is left out and named.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.adapters import _nezha, _petshop
from quell.diagnosis import diagnose, explain
from quell.domain import Alert, Diagnosis, Survey

SETS: Mapping[str, tuple[Callable[[Path], Iterator[tuple[str, Survey, Alert]]], str]] = {
    "nezha-tt": (_nezha.load, "service"),
    "petshop": (_petshop.load, "root_cause_node"),
}


def folder() -> Path:
    """Return where the sets lie."""
    return Path(os.environ.get("QUELL_BENCH_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def suspects(diagnosis: Diagnosis) -> list[str]:
    """Return the objects of the hypotheses in rank order; of an edge its callee, then its caller; of a service's own store, the service."""
    named: list[str] = []
    for hypothesis in diagnosis.hypotheses:
        caller, _, callee = hypothesis.subject.name.partition("->")
        named.extend(name.removesuffix(" store") for name in (callee, caller) if name)
    return list(dict.fromkeys(named))


def measure(name: str, root: Path, *, show: str = "") -> tuple[dict[str, object], dict[str, list[str]]]:
    """Diagnose every case of a set and count at which rank its object comes."""
    load, key = SETS[name]
    labels = json.loads((root / name / "labels.json").read_text())
    ranks: dict[str, list[int]] = {}
    predictions: dict[str, list[str]] = {}
    spent = 0.0
    for case, survey, alert in load(root / name):
        started = time.process_time()
        diagnosis = diagnose(survey, alerts=[alert])
        spent += time.process_time() - started
        predictions[case] = suspects(diagnosis)
        truth = labels[case][key]
        rank = predictions[case].index(truth) + 1 if truth in predictions[case] else 99
        for group in ("all", str(labels[case]["fault"])):
            ranks.setdefault(group, []).append(rank)
        if show and case.endswith(show):
            print(f"--- {case}: truth {truth}, {labels[case]['fault']}\n{explain(diagnosis, survey, alerts=[alert])}")
    figures: dict[str, object] = {
        group: {
            "cases": len(found),
            **{f"top{k}": round(sum(r <= k for r in found) / len(found), 3) for k in (1, 3, 5)},
        }
        for group, found in sorted(ranks.items())
    }
    figures["cpu_ms_per_case"] = round(1000 * spent / max(1, len(predictions)), 1)
    return figures, predictions


def main(arguments: Sequence[str]) -> int:
    """Measure the named sets, or all."""
    options = list(arguments)
    show = options.pop(options.index("--explain") + 1) if "--explain" in options else ""
    out = options.pop(options.index("--predictions") + 1) if "--predictions" in options else ""
    names = [o for o in options if not o.startswith("--")] or list(SETS)
    for name in names:
        if not (folder() / name / "labels.json").exists():
            print(f"{name}: not found in {folder()}, left out")
            continue
        figures, predictions = measure(name, folder(), show=show)
        print(f"{name}:")
        for group, figure in figures.items():
            print(f"  {group}: {figure}")
        if out:
            Path(out).mkdir(parents=True, exist_ok=True)
            (Path(out) / f"{name}.json").write_text(json.dumps(predictions, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
