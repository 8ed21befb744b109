"""The reader of a Prometheus: which of the well-known metrics moved. Rates are computed there, shifts here."""

from __future__ import annotations

import asyncio
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from quell.config import PrometheusSettings
from quell.domain import Answer, Gap, GapReason, Question, QuestionKind, Window
from quell.signals._prometheus_api import Api, MatrixResult, Metadata, VectorResult
from quell.signals._reader import CannotAnswerError
from quell.signals._reader_families import Series
from quell.signals._reader_replicas import worst_of
from quell.signals._reader_shifts import find_shifts
from quell.signals._reader_text import escape_line

WELL_KNOWN = (
    r"process_.+",
    r".*(open|max)_(fds|file_descriptors?).*",
    r".*connections?(_.+)?",
    r".*(queue|backlog|lag|pending|waiting|oldest_age|depth).*",
    r".*(cpu|memory|heap|threads|goroutines|active_requests|in_flight).*",
    r".*(clock_offset|timex_offset|certificate|cert_expiry|cert_not_after).*",
    r".*(errors?|failures?|requests?|retries|restarts?)_total",
    r".*(duration|latency|wait)(_time)?(_seconds|_milliseconds)?_(sum|count)",
    r"container_(cpu|memory|fs|spec_memory)_.+",
    r"node_(load1|memory_MemAvailable_bytes|memory_MemTotal_bytes|filesystem_(avail|size)_bytes|filefd_.+|cpu_seconds_total)",
)
_POINTS_MAX = 11_000
"""Prometheus refuses a range query with more points per series."""
_STEP_S = 5
_SCRAPE_S = 15.0
_RATE_SCRAPES = 2.5
_RATE_MIN_S = 10
_NAMES_PER_QUERY = 40
_NAMES_MAX = 1500
_SERIES_MAX = 5000
_LABEL = "quell_metric"
_NOT_ATTRIBUTES = frozenset({"__name__", _LABEL, "instance", "job", "service_name", "le"})
_SKIPPED = re.compile(r"(_bucket|_created|_info)$")
_UNITS = (("_bytes", "By"), ("_seconds", "s"), ("_milliseconds", "ms"), ("_ratio", "1"))
_DETAIL_CHARS = 200


@dataclass(slots=True)
class _Plan:
    """Names by how they must be read."""

    levels: list[str] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    means: list[str] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Reading:
    """One question under way."""

    deadline: float
    query: str = ""

    @property
    def left_s(self) -> float:
        """Time that is left; raises CannotAnswerError when there is none."""
        left = self.deadline - time.monotonic()
        if left <= 0.05:
            raise CannotAnswerError("timeout", "the deadline passed before everything was asked", query=self.query)
        return left


class PrometheusReader:
    """Answers metric_shifts from one Prometheus-compatible server; every other question is a Gap."""

    def __init__(self, settings: PrometheusSettings, *, points_max: int = _POINTS_MAX) -> None:
        self.name = settings.name
        self._settings = settings
        self._points_max = points_max
        self._api = Api(settings)

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        """Answer one question within the deadline; whatever goes wrong is a Gap with its reason."""
        if question.kind is not QuestionKind.METRIC_SHIFTS:
            return self._gap(question, "unsupported", "a Prometheus holds metrics only", query="")
        reading = _Reading(deadline=time.monotonic() + timeout_s)
        self._api.warnings.clear()
        try:
            async with asyncio.timeout(timeout_s):
                series, partial = await self._series(reading, question)
        except CannotAnswerError as error:
            return self._gap(question, error.reason, error.detail, query=error.query or reading.query)
        except TimeoutError:
            return self._gap(question, "timeout", f"no answer within {timeout_s:g} s", query=reading.query)
        scoped = [one for one in series if not question.scope.services or one.service in question.scope.services]
        if not scoped:
            detail = "no metric of what was asked about" if series else "none of the metrics that are looked at exist"
            return self._gap(question, "empty", detail, query=reading.query)
        shifts = find_shifts(scoped, window=question.window, baseline=question.baseline)
        warned = "; ".join(sorted(set(self._api.warnings)))
        return Answer(
            question=question,
            source=self.name,
            query=reading.query,
            rows=tuple(shifts[: question.rows_max]),
            truncated=len(shifts) > question.rows_max,
            partial=escape_line("; ".join(part for part in (partial, warned) if part), chars_max=_DETAIL_CHARS),
        )

    async def check(self) -> list[str]:
        """Return what keeps this server from answering, one line each."""
        try:
            await self._api.ask(
                "/api/v1/query", {"query": "vector(1)"}, answer=VectorResult, timeout_s=self._settings.timeout_s
            )
        except CannotAnswerError as error:
            return [f"{self.name}: {error.reason}: {escape_line(error.detail, chars_max=_DETAIL_CHARS)}"]
        return []

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def _series(self, reading: _Reading, question: Question) -> tuple[list[Series], str]:
        plan, partial = await self._plan(reading)
        scrape_s = await self._scrape(reading)
        step_s = max(_STEP_S, math.ceil(scrape_s))
        rate = f"{max(_RATE_MIN_S, math.ceil(_RATE_SCRAPES * scrape_s))}s"
        drop = "without(instance)"
        low = [name for name in plan.levels if worst_of(name) == "min"]
        levels = [("max", [name for name in plan.levels if worst_of(name) != "min"]), ("min", low)]
        queries = [
            f'{worst} {drop} (label_replace({_selector(names)}, "{_LABEL}", "$1", "__name__", "(.+)"))'
            for worst, chosen in levels
            for names in _batched(chosen, _NAMES_PER_QUERY)
        ]
        counted = [_named(name, f"sum {drop} (rate({name}[{rate}]))") for name in plan.counters]
        meant = [
            _named(name, f"sum {drop} (rate({name}_sum[{rate}])) / sum {drop} (rate({name}_count[{rate}]))")
            for name in plan.means
        ]
        queries += [" or ".join(names) for names in _batched(counted + meant, _NAMES_PER_QUERY)]
        reading.query = ";\n".join(queries)
        span = Window(start=min(question.baseline.start, question.window.start), end=question.window.end)
        found: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[float, float]] = defaultdict(dict)
        for query in queries:
            for start, end in _ranges(span, step_s=step_s, points_max=self._points_max):
                form = {
                    "query": query,
                    "start": f"{start:.0f}",
                    "end": f"{end:.0f}",
                    "step": str(step_s),
                }
                for one in await self._api.range(form, timeout_s=reading.left_s):
                    found[self._key(one.metric)].update((at, value) for at, value in one.values if math.isfinite(value))
        if len(found) > _SERIES_MAX:
            partial = f"only the first {_SERIES_MAX} series were compared"
        series = [
            Series(
                service=service,
                metric=metric,
                unit=plan.units.get(metric, ""),
                attributes=attributes,
                times=tuple(times := sorted(points)),
                values=tuple(points[at] for at in times),
            )
            for (service, metric, attributes), points in sorted(found.items())[:_SERIES_MAX]
            if points
        ]
        return series, partial

    async def _plan(self, reading: _Reading) -> tuple[_Plan, str]:
        names = await self._api.ask("/api/v1/label/__name__/values", {}, answer=list[str], timeout_s=reading.left_s)
        try:
            metadata = await self._api.ask(
                "/api/v1/metadata", {}, answer=dict[str, list[Metadata]], timeout_s=reading.left_s
            )
        except CannotAnswerError:
            # Types can be told from names, less well; some compatible servers have no metadata.
            metadata = {}
        wanted = re.compile("|".join(f"(?:{pattern})" for pattern in (self._settings.metrics or WELL_KNOWN)))
        chosen = sorted(
            name for name in names if re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name) and wanted.fullmatch(name)
        )
        partial = (
            f"only the first {_NAMES_MAX} of {len(chosen)} metrics were compared" if len(chosen) > _NAMES_MAX else ""
        )
        return _plan_of(chosen[:_NAMES_MAX], known=frozenset(names), metadata=metadata), partial

    async def _scrape(self, reading: _Reading) -> float:
        """Tell how often things are scraped: the usual distance between two samples of `up`."""
        form = {"query": "up[2m]"}
        targets = await self._api.ask("/api/v1/query", form, answer=MatrixResult, timeout_s=reading.left_s)
        gaps = [after - before for one in targets.result for (before, _), (after, _) in pairwise(one.values)]
        return statistics.median(gaps) if gaps else _SCRAPE_S

    def _key(self, labels: Mapping[str, str]) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        name = self._settings.service_label
        service = labels.get(name) or labels.get("service_name") or labels.get("job") or ""
        rest = tuple(
            sorted((key, value) for key, value in labels.items() if key not in _NOT_ATTRIBUTES and key != name)
        )
        return (service, labels.get(_LABEL, labels.get("__name__", "")), rest)

    def _gap(self, question: Question, reason: GapReason, detail: str, *, query: str) -> Gap:
        return Gap(
            question=question.kind,
            source=self.name,
            query=query,
            reason=reason,
            detail=escape_line(detail, chars_max=_DETAIL_CHARS),
        )


def _plan_of(names: Sequence[str], *, known: frozenset[str], metadata: Mapping[str, Sequence[Metadata]]) -> _Plan:
    plan = _Plan()
    for name in names:
        stem = re.sub(r"_(sum|count)$", "", name)
        kinds = {entry.type for entry in metadata.get(stem, ())}
        is_part = stem != name and (
            kinds & {"histogram", "summary"} or (not metadata.get(name) and f"{stem}_bucket" in known)
        )
        if is_part:
            if stem not in plan.means and f"{stem}_sum" in known and f"{stem}_count" in known:
                plan.means.append(stem)
                plan.units[stem] = _unit(stem, metadata.get(stem, ()))
        elif not _SKIPPED.search(name):
            own = metadata.get(name) or metadata.get(name.removesuffix("_total"), ())
            unit = _unit(name.removesuffix("_total"), own)
            # What the source says of a type goes before what a name suggests: some gauges are called `_total`.
            told = {entry.type for entry in own} - {"", "unknown", "untyped"}
            is_counter = "counter" in told or (not told and name.endswith("_total"))
            (plan.counters if is_counter else plan.levels).append(name)
            plan.units[name] = f"{unit or '1'}/s" if is_counter else unit
    return plan


def _unit(name: str, entries: Sequence[Metadata]) -> str:
    told = next((entry.unit for entry in entries if entry.unit), "")
    by_name = next((unit for suffix, unit in _UNITS if name.endswith(suffix)), "")
    return {"seconds": "s", "bytes": "By", "ratio": "1"}.get(told, told) or by_name


def _batched(names: Sequence[str], names_max: int) -> list[Sequence[str]]:
    return [names[begin : begin + names_max] for begin in range(0, len(names), names_max)]


def _selector(names: Sequence[str]) -> str:
    return '{__name__=~"' + "|".join(names) + '"}'


def _named(name: str, expression: str) -> str:
    return f'label_replace({expression}, "{_LABEL}", "{name}", "", "")'


def _ranges(span: Window, *, step_s: int, points_max: int) -> list[tuple[float, float]]:
    """Cut a span into pieces that the server accepts, aligned to the step."""
    start = math.floor(span.start.timestamp() / step_s) * step_s
    end = math.floor(span.end.timestamp() / step_s) * step_s
    pieces = []
    while start <= end:
        last = min(end, start + (points_max - 1) * step_s)
        pieces.append((float(start), float(last)))
        start = last + step_s
    return pieces
