"""The demo: start the shop and Quell, break something, and see whether Quell names it."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quell_lab._clock import system_clock
from quell_lab._control import Lab, LabError
from quell_lab._plan import SERVICES
from quell_lab._product import ProductError, Server
from quell_lab._stages import Stages
from quell_lab._truth import Truth
from quell_lab._verdict import Verdict, claim, finding_of, verdict_on

FINDING_TIMEOUT_S = 75.0
LOOK_EVERY_S = 0.5
MARKER = ".made-by-quell-demo"
QUIET_EVENTS = frozenset(
    {"step.started", "run.queued", "run.started", "run.continued", "incident.investigating", "incident.joined"}
)
QUIET_FIELDS = frozenset({"index", "attempt", "segment", "fingerprint", "source", "kind", "name"})
ID_PREFIXES = ("inc_", "run_", "alr_")
TOLD_MAX = 130


class DemoError(Exception):
    """The demo cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the demo went."""

    truth: Truth
    verdict: Verdict
    incident: str
    named: str
    alert_s: float | None
    """From injection to the incident."""
    report_s: float | None
    """From injection to the finding."""
    paths: dict[str, str]

    def document(self) -> dict[str, object]:
        """Return it as the JSON document of the command."""
        return {
            "kind": "demo",
            "ok": self.verdict != "not",
            "truth": self.truth.encode(),
            "verdict": self.verdict,
            "incident": self.incident,
            "named": self.named,
            "alert_s": self.alert_s,
            "report_s": self.report_s,
            "reports": self.paths,
        }


def draw(fault: str, seed: int | None, *, names: list[str]) -> tuple[str, int]:
    """Choose what is not given: a random seed, and by it a fault."""
    chosen_seed = secrets.randbelow(1000) if seed is None else seed
    chosen = fault or random.Random(chosen_seed).choice(sorted(names))
    return chosen, chosen_seed


def run_demo(*, fault: str, seed: int, out: Path, keep: str, baseline_s: float, stages: Stages) -> Outcome:
    """Run the whole demo; whatever happens, nothing is left running.

    Args:
        fault: A name of the catalogue.
        seed: Chooses the victim.
        out: Directory of the reports.
        keep: Not empty when state and logs stay on disk.
        baseline_s: How long the shop runs healthy first.
        stages: Where progress is told.
    """
    work = _fresh_work(out)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_work, work, keep)
        with stages.stage("starting quell serve"):
            server = Server.start(work)
        stack.callback(server.stop)
        with stages.stage(f"starting the shop: {len(SERVICES)} services, PostgreSQL, users"):
            lab = Lab.start(work / "lab", endpoint=server.url, rate_per_s=20.0, seed=seed, tied="demo")
        stack.callback(lab.stop)
        with stages.stage(f"a healthy baseline of {baseline_s:.0f} s"):
            _baseline(lab, server, baseline_s)
        before = {str(each["id"]) for each in server.incidents()}
        truth = lab.put_in(fault, seed=seed)
        injected_s = time.monotonic()
        stages.say(f"something breaks now ({truth.since:%H:%M:%S} UTC); what it is, Quell has to find out")
        outcome = _watch(server, truth=truth, before=before, injected_s=injected_s, out=out, stages=stages)
        with stages.stage("shutting everything down"):
            stack.close()
    return outcome


def _watch(server: Server, *, truth: Truth, before: set[str], injected_s: float, out: Path, stages: Stages) -> Outcome:
    _tell_events(server, stages)
    incident, alert_s, case = _await_finding(server, before, injected_s, stages)
    report_s = round(time.monotonic() - injected_s, 1) if case is not None else None
    if case is None:
        return Outcome(
            truth=truth,
            verdict="not",
            incident=incident,
            named="nothing",
            alert_s=alert_s,
            report_s=None,
            paths={},
        )
    stages.text("")
    try:
        stages.text(server.show(incident))
    except ProductError as error:
        stages.say(f"the report as text cannot be had: {error}")
    paths = {}
    for form in ("md", "json", "html"):
        path = out / f"report.{form}"
        path.write_bytes(server.raw(f"/api/v1/incidents/{incident}/report.{form}"))
        paths[form] = str(path)
    return Outcome(
        truth=truth,
        verdict=verdict_on(case, truth),
        incident=incident,
        named=claim(finding_of(case)),
        alert_s=alert_s,
        report_s=report_s,
        paths=paths,
    )


def line_of(name: str, fields: Mapping[str, object]) -> str:
    """Say one event in a line for people: what happened and to what; ids are for machines."""
    told = [str(fields["name"])] if "name" in fields else []
    for key, value in fields.items():
        if key in QUIET_FIELDS or not isinstance(value, str | int | float) or str(value).startswith(ID_PREFIXES):
            continue
        told.append(f"{value:.0f} ms" if key == "elapsed_ms" and isinstance(value, int | float) else str(value))
    return f"{name:<16} {' · '.join(told)[:TOLD_MAX]}".rstrip()


def _await_finding(
    server: Server,
    before: set[str],
    injected_s: float,
    stages: Stages,
) -> tuple[str, float | None, Mapping[str, object] | None]:
    incident, alert_s = "", None
    while time.monotonic() - injected_s < FINDING_TIMEOUT_S:
        fresh = [each for each in server.incidents() if str(each["id"]) not in before]
        if fresh and alert_s is None:
            alert_s = round(time.monotonic() - injected_s, 1)
            stages.say(f"detected after {alert_s:.1f} s: {fresh[-1].get('title', '')}")
        for each in reversed(fresh):
            incident = str(each["id"])
            case = server.case(incident)
            if finding_of(case) is not None:
                stages.say(f"investigated after {time.monotonic() - injected_s:.1f} s")
                return incident, alert_s, case
        time.sleep(LOOK_EVERY_S)
    stages.say(f"no finding within {FINDING_TIMEOUT_S:.0f} s")
    return incident, alert_s, None


def _tell_events(server: Server, stages: Stages) -> None:
    """Print Quell's own events while they happen; the thread ends with the server."""

    def tell() -> None:
        for event in server.follow():
            name, body = str(event.get("name", "")), event.get("body")
            if name in QUIET_EVENTS:
                continue
            if isinstance(body, str):
                with contextlib.suppress(ValueError):
                    body = json.loads(body)
            stages.say(f"  {line_of(name, body if isinstance(body, dict) else {})}")

    threading.Thread(target=tell, daemon=True, name="events").start()


def _baseline(lab: Lab, server: Server, baseline_s: float) -> None:
    until_s = time.monotonic() + baseline_s
    while time.monotonic() < until_s:
        time.sleep(min(1.0, max(0.0, until_s - time.monotonic())))
        if server.process.poll() is not None:
            raise DemoError("quell serve ended while it gathered the baseline")
        if Lab.find(lab.layout.root) is None:
            raise DemoError("the shop ended while the baseline was gathered")


def _fresh_work(out: Path) -> Path:
    """Return an empty directory for state and logs; one that is not ours is left alone."""
    out.mkdir(parents=True, exist_ok=True)
    work = out / "work"
    if work.exists() and not (work / MARKER).exists():
        raise DemoError(f"{work} exists and was not made by a demo; choose another --out")
    if Lab.find(work / "lab") is not None:
        raise DemoError(f"a demo runs in {out}; choose another --out")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / MARKER).write_text(f"{system_clock().isoformat()}\n")
    return work


def _remove_work(work: Path, keep: str) -> None:
    if not keep:
        shutil.rmtree(work, ignore_errors=True)


REACH_ERRORS = (ProductError, LabError, OSError)
"""What means that something cannot be started or reached."""
