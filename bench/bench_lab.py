"""Break the lab in every known way and see how often, and how soon, the product names what was broken.

One server and one shop run for a few cases and are then replaced, so that what is called normal stays normal.
Every finished case is written at once; a run that is started again goes on where it stopped.

    python -m bench.bench_lab --faults bad_flag --seeds 1 --healthy 0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from quell_lab import (
    DISTURBANCES,
    FAULTS,
    Lab,
    LabError,
    ProductError,
    Server,
    Truth,
    blames,
    claim,
    finding_of,
    hypotheses_of,
    verdict_on,
)

WARM_UP_S = 60.0
FINDING_TIMEOUT_S = 90.0
QUIET_S = 15.0
"""Without any alert, each of which needs twenty quiet seconds to end: the shop was well for half a minute at least."""
QUIET_TIMEOUT_S = 100.0
WATCH_HEALTHY_S = 35.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """How one case went."""

    case: str
    fault: str
    seed: int
    truth: str
    detail: str
    verdict: str
    """`first`, `top 3`, `not`; for a healthy case `quiet` or `blamed`; `failed` when the lab could not do it."""
    named: str
    hypotheses: tuple[str, ...]
    alert_s: float | None
    report_s: float | None
    incidents: int
    note: str = ""


class Rig:
    """The product and the shop, started together."""

    def __init__(self, work: Path, *, rate_per_s: float) -> None:
        self._work = work
        self._rate_per_s = rate_per_s
        self._stack = contextlib.ExitStack()
        self._server: Server | None = None
        self._lab: Lab | None = None
        self.cases = 0
        self.is_quiet = False
        """Whether a healthy disturbance was just waited out, so that nothing has to be waited for again."""

    @property
    def server(self) -> Server:
        assert self._server is not None, "the rig has not been started"
        return self._server

    @property
    def lab(self) -> Lab:
        assert self._lab is not None, "the rig has not been started"
        return self._lab

    @property
    def runs(self) -> bool:
        return self._lab is not None

    def start(self) -> None:
        """Start both, from nothing, and let a baseline grow."""
        self.stop()
        shutil.rmtree(self._work, ignore_errors=True)
        self._server = Server.start(self._work)
        self._stack.callback(self._server.stop)
        self._lab = Lab.start(
            self._work / "lab", endpoint=self._server.url, rate_per_s=self._rate_per_s, seed=1, tied="bench"
        )
        self._stack.callback(self._lab.stop)
        self.cases = 0
        time.sleep(WARM_UP_S)

    def stop(self) -> None:
        """Stop both; keep the journal, with everything that was asked and answered, for whoever wants to know why."""
        self._stack.close()
        self._server = self._lab = None
        journal = self._work / "state" / "quell.db"
        if journal.exists():
            kept = self._work.parent / "journals"
            kept.mkdir(exist_ok=True)
            shutil.copy(journal, kept / f"{len(list(kept.iterdir())):03}.db")

    def becomes_quiet(self) -> bool:
        """Wait until no alert has been firing for a while, then close what is open; tell whether that came.

        Closing is what the person on call does after the repair: an incident that was handed over stays open by itself.
        """
        began_s = quiet_since_s = time.monotonic()
        while time.monotonic() - began_s < QUIET_TIMEOUT_S:
            if self.server.firing():
                quiet_since_s = time.monotonic()
            elif time.monotonic() - quiet_since_s >= QUIET_S:
                for each in self.server.open_incidents():
                    self.server.close_incident(str(each["id"]), reason="repaired")
                return True
            time.sleep(LOOK_EVERY_S)
        return False


def run_fault(rig: Rig, fault: str, seed: int) -> CaseResult:
    """Put one fault in, wait for the first finding, take the fault back."""
    before = {str(each["id"]) for each in rig.server.incidents()}
    truth = rig.lab.put_in(fault, seed=seed)
    began_s = time.monotonic()
    case: Mapping[str, object] | None = None
    alert_s: float | None = None
    fresh: list[dict[str, object]] = []
    try:
        while time.monotonic() - began_s < FINDING_TIMEOUT_S and case is None:
            time.sleep(LOOK_EVERY_S)
            fresh = [each for each in rig.server.incidents() if str(each["id"]) not in before]
            if fresh and alert_s is None:
                alert_s = _opened_after_s(fresh, truth)
            found = (rig.server.case(str(each["id"])) for each in reversed(fresh))
            case = next((each for each in found if finding_of(each) is not None), None)
        report_s = round(time.monotonic() - began_s, 1) if case is not None else None
    finally:
        rig.lab.heal()
    return CaseResult(
        case=f"{fault}:{seed}",
        fault=fault,
        seed=seed,
        truth=f"{truth.category}: {truth.kind} {truth.subject}",
        detail=truth.detail,
        verdict=verdict_on(case, truth) if case is not None else "not",
        named=claim(finding_of(case)) if case is not None else "nothing",
        hypotheses=tuple(claim(each) for each in hypotheses_of(case))[:3] if case is not None else (),
        alert_s=alert_s,
        report_s=report_s,
        incidents=len(fresh),
    )


def run_healthy(rig: Rig, fault: str, seed: int, *, number: int) -> CaseResult:
    """Disturb the shop without breaking it, and see whether anything is blamed."""
    before = {str(each["id"]) for each in rig.server.incidents()}
    truth = rig.lab.put_in(fault, seed=seed)
    try:
        time.sleep(WATCH_HEALTHY_S)
    finally:
        rig.lab.heal()
    # Taking it back is a disturbance of its own, and an investigation may still be under way.
    rig.is_quiet = rig.becomes_quiet()
    fresh = [each for each in rig.server.incidents() if str(each["id"]) not in before]
    cases = [rig.server.case(str(each["id"])) for each in fresh]
    blamed = [claim(finding_of(each)) for each in cases if blames(each)]
    return CaseResult(
        case=f"healthy:{number}",
        fault=fault,
        seed=seed,
        truth="healthy",
        detail=truth.detail,
        verdict="blamed" if blamed else "quiet",
        named="; ".join(blamed) or "nothing",
        hypotheses=(),
        alert_s=_opened_after_s(fresh, truth) if fresh else None,
        report_s=None,
        incidents=len(fresh),
    )


def measure(
    *,
    faults: Sequence[str] = tuple(FAULTS),
    seeds: Sequence[int] = (1, 2, 3),
    healthy: int = 20,
    out: Path = Path(".bench/lab"),
    fresh_every: int = 5,
    rate_per_s: float = 20.0,
) -> dict[str, object]:
    """Run what has not been run yet and return the figures over all of it.

    Args:
        faults: Names of the catalogue.
        seeds: Each fault is put in once with each of them.
        healthy: Number of healthy disturbances.
        out: Directory of the results; what stands in it is not run again.
        fresh_every: Product and shop are replaced after this many cases.
        rate_per_s: Load of the shop.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = _read(out)
    rig = Rig(out / "work", rate_per_s=rate_per_s)
    try:
        for case, fault, seed in _cases(faults, seeds, healthy):
            if case in results:
                continue
            _ready(rig, fresh_every)
            try:
                number = int(case.split(":")[1])
                found = run_fault(rig, fault, seed) if fault in FAULTS else run_healthy(rig, fault, seed, number=number)
            except (LabError, ProductError, OSError) as error:
                _say(f"{case} failed: {error}")
                rig.stop()
                continue
            rig.cases += 1
            results[case] = found
            (out / "results.json").write_text(json.dumps([asdict(each) for each in results.values()], indent=1))
            _tell(found, results)
    finally:
        rig.stop()
    wanted = {case for case, _fault, _seed in _cases(faults, seeds, healthy)}
    chosen = [each for case, each in results.items() if case in wanted]
    return {**figures(chosen), "missing": sorted(wanted - set(results)), "cases": [asdict(each) for each in chosen]}


def figures(results: Sequence[CaseResult]) -> dict[str, object]:
    """Return the figures of the issue over finished cases."""
    broken = [each for each in results if each.truth != "healthy"]
    calm = [each for each in results if each.truth == "healthy"]
    alerts = sorted(FINDING_TIMEOUT_S if each.alert_s is None else each.alert_s for each in broken)
    reports = sorted(FINDING_TIMEOUT_S if each.report_s is None else each.report_s for each in broken)
    first = sum(each.verdict == "first" for each in broken)
    top_3 = sum(each.verdict in {"first", "top 3"} for each in broken)
    return {
        "fault_cases": len(broken),
        "named_first": first,
        "named_first_share": first / len(broken) if broken else 0.0,
        "named_top3": top_3,
        "named_top3_share": top_3 / len(broken) if broken else 0.0,
        "never_alerted": sum(each.alert_s is None for each in broken),
        "never_reported": sum(each.report_s is None for each in broken),
        # What was never reported counts as the longest wait there was, not as nothing.
        "alert_median_s": _quantile(alerts, 0.5),
        "alert_p95_s": _quantile(alerts, 0.95),
        "report_median_s": _quantile(reports, 0.5),
        "report_p95_s": _quantile(reports, 0.95),
        "healthy_cases": len(calm),
        "healthy_blamed": sum(each.verdict == "blamed" for each in calm),
        "healthy_incidents": sum(each.incidents > 0 for each in calm),
    }


def _cases(faults: Sequence[str], seeds: Sequence[int], healthy: int) -> Iterator[tuple[str, str, int]]:
    for seed in seeds:
        for fault in faults:
            yield f"{fault}:{seed}", fault, seed
    names = list(DISTURBANCES)
    for number in range(healthy):
        yield f"healthy:{number}", names[number % len(names)], number // len(names)


def _ready(rig: Rig, fresh_every: int) -> None:
    """Make sure that product and shop run, are quiet, and have not seen too much."""
    for _ in range(3):
        if not rig.runs or rig.cases >= fresh_every:
            rig.start()
        elif rig.is_quiet and not rig.server.firing():
            rig.is_quiet = False
            return
        rig.is_quiet = False
        if rig.becomes_quiet():
            return
        _say("not quiet: starting afresh")
        rig.stop()
    raise SystemExit("the healthy shop is never quiet: the product sees incidents where nothing is wrong")


def _opened_after_s(fresh: Sequence[Mapping[str, object]], truth: Truth) -> float:
    opened = min(datetime.fromisoformat(str(each["opened_at"])) for each in fresh)
    return round(max(0.0, (opened - truth.since).total_seconds()), 1)


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank quantile of sorted values; 0 when there are none."""
    return values[max(0, math.ceil(len(values) * share) - 1)] if values else 0.0


def _read(out: Path) -> dict[str, CaseResult]:
    try:
        stored = json.loads((out / "results.json").read_text())
    except (OSError, ValueError):
        return {}
    return {each["case"]: CaseResult(**{**each, "hypotheses": tuple(each["hypotheses"])}) for each in stored}


def _tell(found: CaseResult, results: Mapping[str, CaseResult]) -> None:
    sums = figures(list(results.values()))
    _say(
        f"{found.case}: {found.verdict}: truth {found.truth} ({found.detail}), named {found.named}, "
        f"alert {found.alert_s} s, report {found.report_s} s"
    )
    _say(
        f"  so far {sums['named_first']}/{sums['fault_cases']} first, {sums['named_top3']} in top 3, "
        f"alert p95 {sums['alert_p95_s']} s, report p95 {sums['report_p95_s']} s, "
        f"healthy blamed {sums['healthy_blamed']}/{sums['healthy_cases']}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", default=",".join(FAULTS), help="comma-separated names")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(".bench/lab"))
    parser.add_argument("--fresh-every", type=int, default=5)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    arguments = parser.parse_args()
    if arguments.again:
        (arguments.out / "results.json").unlink(missing_ok=True)
    found = measure(
        faults=[name for name in arguments.faults.split(",") if name],
        seeds=[int(seed) for seed in arguments.seeds.split(",")],
        healthy=arguments.healthy,
        out=arguments.out,
        fresh_every=arguments.fresh_every,
        rate_per_s=arguments.rate,
    )
    print(json.dumps({key: value for key, value in found.items() if key != "cases"}, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    with contextlib.suppress(KeyboardInterrupt):
        main()
