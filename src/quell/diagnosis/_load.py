"""Candidates from outside the code: load, clocks, certificates; and what is clear in place but not in kind."""

from __future__ import annotations

import math
from collections.abc import Iterator

from quell.diagnosis._blame import Ledger
from quell.diagnosis._candidate import Candidate, with_locus
from quell.diagnosis._changes import closeness
from quell.diagnosis._metrics import MetricFact
from quell.diagnosis._scene import OperationFact, Scene, earliest
from quell.diagnosis._vocabulary import CERTIFICATE_TYPES
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import Category


def entries_of(scene: Scene) -> list[str]:
    """Return the services where calls come in that no visible service makes."""
    return sorted(
        s
        for s, operations in scene.operations.items()
        if any(o.row.span_kind == "server" for o in operations) and scene.is_entry(s)
    )


def traffic_of(scene: Scene, service: str) -> float:
    """Return calls now relative to the baseline's rate; 0 when unknown."""
    calls, expected = scene.calls_of(service)
    return calls / expected if expected >= THRESHOLDS.calls_min else 0.0


def suspect_traffic(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield a spike for every entry that takes far more calls than before."""
    for entry in entries_of(scene):
        rows = [o for o in scene.operations[entry] if o.row.span_kind == "server"]
        ratio = traffic_of(scene, entry)
        busiest = max(rows, key=lambda o: (_added_calls(scene, o), o.id))
        if ratio < THRESHOLDS.traffic_ratio:
            continue
        candidate = Candidate(category=Category.TRAFFIC_SPIKE, subject=scene.subject_of(entry), at=entry)
        candidate.detail = f"{ratio:.1f}x the calls of before"
        ids = [o.id for o in sorted(rows, key=lambda o: (-_added_calls(scene, o), o.id))]
        candidate.since = busiest.row.since or earliest(o.row.since for o in rows)
        strength = min(1.0, math.log2(ratio) / 2 + 0.2)
        if candidate.since is not None and ledger.onset is not None:
            # Load that rose long before the trouble, or after it, does not explain it.
            strength *= max(THRESHOLDS.unrelated, closeness(candidate.since, ledger.onset))
        says = f"{entry} takes {ratio:.1f}x the calls of before"
        candidate.add("traffic_rise", ids=ids[:4], strength=strength, says=says)
        loaded = [s for s in scene.services if traffic_of(scene, s) >= 1 + (ratio - 1) / 2]
        parts = [(scene.subject_of(s), 1.0) for s in loaded]
        parts.extend((scene.subject_of(name), 1.0) for name in sorted(scene.stores))
        parts.extend((e.subject, 0.8) for e in scene.edges if e.row.caller in loaded)
        with_locus(candidate, ledger, parts)
        if candidate.has("locus"):
            candidate.add("load_spread", ids=ids[:2], strength=strength * candidate.strength("locus"))
        candidate.since = earliest((busiest.row.since, candidate.since))
        yield candidate


def _added_calls(scene: Scene, operation: OperationFact) -> float:
    return operation.row.calls - operation.row.calls_before * scene.pace


def suspect_clocks(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield a service whose clock is off, with the calls that fail around it."""
    for service in scene.services:
        off = [m for m in scene.moved(service, "clock") if abs(seconds(m)) >= THRESHOLDS.clock_offset_s]
        words = scene.words(service, "clock")
        if not off and not words:
            continue
        candidate = Candidate(category=Category.CLOCK_SKEW, subject=scene.subject_of(service), at=service)
        around = [e for e in scene.edges if service in {e.row.caller, e.row.callee}]
        neighbours = sorted({n for e in around for n in (e.row.caller, e.row.callee)} - {service})
        factor = 0.9 if off else 0.4
        parts = [
            (scene.subject_of(service), 1.0),
            *((e.subject, factor) for e in around),
            *((scene.subject_of(n), factor) for n in neighbours),
        ]
        with_locus(candidate, ledger, parts)
        if off:
            candidate.detail = f"its clock is {seconds(off[0]):+.0f} s off"
            candidate.add(
                "clock_offset",
                ids=(m.id for m in off[:2]),
                says=f"{off[0].row.metric} {off[0].row.before:.3g} -> {off[0].row.after:.3g}",
            )
            candidate.since = earliest((candidate.since, *(m.since for m in off)))
        failing = [e for e in around if e.errors_added]
        if failing and off:
            candidate.add("clock_rejections", ids=(e.id for e in failing[:3]))
        heard = words or [p for n in neighbours for p in scene.words(n, "clock")]
        if heard:
            candidate.add("wording", ids=(p.id for p in heard[:2]), says="log lines speak of times that do not fit")
        yield candidate


def seconds(fact: MetricFact) -> float:
    """Return a clock's offset or a certificate's time left in seconds."""
    worst = fact.row.after if abs(fact.row.after) >= abs(fact.row.peak) else fact.row.peak
    return fact.in_seconds(worst)


def suspect_certificates(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield a service or store whose certificate is over."""
    for name in (*scene.services, *sorted(scene.stores)):
        candidate = Candidate(category=Category.CERTIFICATE_EXPIRED, subject=scene.subject_of(name), at=name)
        # A series that stopped ends at zero too, and says nothing about the certificate.
        over = [
            m for m in scene.moved(name, "certificate") if m.row.shape != "gone" and min(m.row.after, m.row.peak) <= 0
        ]
        into = scene.into(name)
        refusing = [e for e in into if e.errors_added and CERTIFICATE_TYPES.search(" ".join(e.row.error_types))]
        with_locus(candidate, ledger, ((scene.subject_of(name), 1.0), *((e.subject, 0.9) for e in refusing)))
        if over:
            candidate.add(
                "certificate_over",
                ids=(m.id for m in over[:2]),
                says=f"{over[0].row.metric} is {over[0].row.after:.0f} s",
            )
            candidate.since = earliest((candidate.since, *(m.since for m in over)))
        if refusing:
            part = len(refusing) / max(1, sum(1 for e in into if e.row.calls >= THRESHOLDS.calls_min))
            candidate.add("certificate_errors", ids=(e.id for e in refusing), strength=0.5 + part / 2)
        if words := [p for n in (name, *(e.row.caller for e in refusing)) for p in scene.words(n, "certificate")]:
            candidate.add("wording", ids=(p.id for p in words[:2]), says="log lines speak of a certificate")
        if candidate.has("certificate_over", "certificate_errors", "wording"):
            yield candidate


def suspect_unknown(scene: Scene, ledger: Ledger) -> Iterator[Candidate]:
    """Yield every object where trouble arises, or whose flow broke, as a cause of a kind that nobody knows."""
    placed = {s for s in ledger.of if ledger.share(s) >= THRESHOLDS.locus_min}
    broken = {scene.subject_of(name) for name in scene.flows if name}
    for subject in sorted(placed | broken, key=lambda s: (s.kind, s.name)):
        candidate = Candidate(category=Category.NOVEL, subject=subject, at=subject.name)
        with_locus(candidate, ledger, ((subject, 1.0),))
        if subject in placed:
            candidate.add("suspect", ids=ledger.get(subject).ids)
        fresh = [
            p for p in scene.patterns.get(subject.name, []) if p.row.is_new and p.row.severity in {"error", "fatal"}
        ]
        if fresh:
            candidate.add("new_errors", ids=(p.id for p in fresh[:3]))
        clear, flows = scene.breaks(subject.name)
        candidate.add("flow", ids=(f.id for f in flows), strength=clear)
        yield candidate
