"""The Prometheus reader and the webhook against the real programs."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quell.config import PrometheusSettings
from quell.domain import Alert, Answer, Gap, MetricShift, Question, QuestionKind, Scope, Window
from quell.signals import PrometheusReader, parse_alertmanager
from tests.contracts.prometheus_peer import Watched, prometheus, until
from tests.contracts.reader_contract import ReaderContract

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.flow, pytest.mark.timeout(120)]
BASELINE_S, WINDOW_S, FAULT_S = 600, 180, 100


def _history(until_s: float) -> str:
    """Write a past of samples with their own times: a fault happened FAULT_S ago."""
    fault = until_s - FAULT_S
    lines = [
        "# TYPE process_open_fds gauge",
        "# TYPE process_max_fds gauge",
        "# TYPE queue_depth gauge",
        "# TYPE steady_connections gauge",
        "# TYPE jobs_errors_total counter",
        "# TYPE pool_wait_seconds histogram",
    ]
    failed = waited = waits = 0.0
    for step in range(int((BASELINE_S + WINDOW_S) / 5)):
        at = until_s - BASELINE_S - WINDOW_S + 5 * step
        bad = at >= fault
        failed += 5 * (12 if bad else 1)
        waits += 50
        waited += 50 * (0.8 if bad else 0.01)
        for name, value in (
            ('process_open_fds{service="stock"}', 950 if bad else 100),
            ('process_max_fds{service="stock"}', 1000),
            ('queue_depth{service="worker",queue="jobs"}', 4 + max(0.0, at - fault) * 2),
            ('steady_connections{service="stock"}', 10 + step % 2),
            ('jobs_errors_total{service="worker"}', failed),
            ('pool_wait_seconds_bucket{service="stock",le="+Inf"}', waits),
            ('pool_wait_seconds_count{service="stock"}', waits),
            ('pool_wait_seconds_sum{service="stock"}', waited),
        ):
            lines.append(f"{name} {value} {int(at * 1000)}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> object:
    now = float(int(time.time()) // 5 * 5)  # noqa: TID251 - a real Prometheus keeps real time
    told = _history(now)
    with prometheus(tmp_path_factory.mktemp("prometheus"), metrics=lambda: told) as running:
        until(lambda: "pool_wait_seconds_sum" in str(running.get("/api/v1/label/__name__/values")), within_s=20)
        time.sleep(3)  # a few scrapes, so that the reader can tell how often they happen
        yield running, datetime.fromtimestamp(now, tz=UTC)


def _question(watched: tuple[Watched, datetime], kind: QuestionKind, scope: tuple[str, ...] = ()) -> Question:
    window = Window(start=watched[1] - timedelta(seconds=WINDOW_S), end=watched[1])
    baseline = window.before(length=timedelta(seconds=BASELINE_S))
    return Question(kind=kind, window=window, baseline=baseline, scope=Scope(services=scope))


async def _ask(url: str, question: Question, timeout_s: float) -> tuple[Answer | Gap, list[str]]:
    reader = PrometheusReader(PrometheusSettings(name="prom", url=url))
    try:
        return await reader.ask(question, timeout_s=timeout_s), await reader.check()
    finally:
        await reader.close()


def test_gauges_rates_means_and_limits_are_found_in_a_real_prometheus(watched: tuple[Watched, datetime]) -> None:
    said, problems = asyncio.run(_ask(watched[0].url, _question(watched, QuestionKind.METRIC_SHIFTS), 30))
    assert problems == []
    assert isinstance(said, Answer), said
    assert said.partial == ""
    shown = {row.metric: row for row in said.rows if isinstance(row, MetricShift)}
    assert set(shown) == {"process_open_fds", "queue_depth", "jobs_errors_total", "pool_wait_seconds"}
    fds, queue = shown["process_open_fds"], shown["queue_depth"]
    assert (fds.service, fds.shape, fds.before, fds.after, fds.limit) == ("stock", "step", 100, 950, 1000)
    assert (queue.shape, queue.attributes) == ("trend", (("queue", "jobs"),))
    assert (shown["jobs_errors_total"].before, shown["jobs_errors_total"].unit) == (1.0, "1/s")
    assert shown["jobs_errors_total"].after == pytest.approx(12, rel=0.1)
    assert (shown["pool_wait_seconds"].before, shown["pool_wait_seconds"].unit) == (0.01, "s")
    assert shown["pool_wait_seconds"].after == pytest.approx(0.8, rel=0.1)
    fault = watched[1] - timedelta(seconds=FAULT_S)
    assert all(row.since and abs((row.since - fault).total_seconds()) <= 15 for row in shown.values())


def test_a_scope_keeps_other_services_out(watched: tuple[Watched, datetime]) -> None:
    question = _question(watched, QuestionKind.METRIC_SHIFTS, scope=("worker",))
    said, _ = asyncio.run(_ask(watched[0].url, question, 30))
    assert isinstance(said, Answer)
    assert {row.service for row in said.rows if isinstance(row, MetricShift)} == {"worker"}


class TestPrometheusKeepsTheContract(ReaderContract):
    reader_name = "prom"

    @pytest.fixture(autouse=True)
    def _watched(self, watched: tuple[Watched, datetime]) -> None:
        self.watched = watched

    def ask(self, question: Question, *, timeout_s: float = 10.0) -> Answer | Gap:
        return asyncio.run(_ask(self.watched[0].url, question, timeout_s))[0]

    def question(self, kind: QuestionKind) -> Question:
        return _question(self.watched, kind)


RULES = """
groups:
  - name: shop
    rules:
      - alert: CheckoutErrorRateHigh
        expr: failing > 0
        labels: {severity: critical, service: checkout}
        annotations: {summary: "{{ $value }} of 10 requests fail"}
"""


def test_a_real_alertmanager_tells_of_firing_and_resolved_alerts(tmp_path: Path) -> None:
    failing = ["failing 7\n"]
    with prometheus(tmp_path, metrics=lambda: failing[0], rules=RULES) as running:

        def told() -> list[Alert]:
            return [
                alert
                for body in list(running.posted)
                for alert in parse_alertmanager(
                    body, received_at=datetime(2026, 11, 20, tzinfo=UTC), entropy=lambda n: b"\x01" * n
                )
            ]

        until(lambda: bool(told()), within_s=40)
        failing[0] = "failing 0\n"
        until(lambda: any(alert.status == "resolved" for alert in told()), within_s=40)
        alerts = told()
    assert {alert.fingerprint for alert in alerts} == {alerts[0].fingerprint}
    assert (alerts[0].service, alerts[0].symptom.value, alerts[0].status) == ("checkout", "errors", "firing")
    assert alerts[0].summary == "7 of 10 requests fail"
    assert alerts[-1].ends_at is not None
    assert alerts[-1].ends_at >= alerts[-1].starts_at
