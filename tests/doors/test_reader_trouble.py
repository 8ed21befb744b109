"""Sources that fail, hang, refuse, break off or talk nonsense: each is a Gap with its reason, never an exception."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from quell.config import PrometheusSettings, Secret
from quell.domain import Answer, Gap, Question, QuestionKind, Window
from quell.signals import ClickHouseReader, PrometheusReader
from quell.signals._client import Endpoint, StoreClient
from tests.contracts.reader_peer import Behaviour, Reply, peer

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(start=NOW - timedelta(minutes=5), end=NOW)
BASELINE = WINDOW.before(length=timedelta(minutes=10))

TROUBLE: list[tuple[Reply | str, str]] = [
    ("hang", "timeout"),
    ("drop", "failed"),
    ("half", "failed"),
    ((500, b"Code: 999. DB::Exception: oh dear"), "failed"),
    ((403, b"Code: 516. DB::Exception: Authentication failed"), "refused"),
    ((200, b"<html>login</html>"), "nonsense"),
    ((200, b'{"status": 7}'), "nonsense"),
    ((200, b'{"status": "success", "now": ' + b"[" * 60_000 + b"]" * 60_000 + b"}"), "nonsense"),
    ((200, b"\xff\xfe\x00"), "nonsense"),
]


def _question(kind: QuestionKind) -> Question:
    return Question(kind=kind, window=WINDOW, baseline=BASELINE)


async def _ask_clickhouse(url: str, kind: QuestionKind, *, timeout_s: float) -> Answer | Gap:
    client = StoreClient(Endpoint(url=url), client_id="t")
    try:
        return await ClickHouseReader(client).ask(_question(kind), timeout_s=timeout_s)
    finally:
        await client.aclose()


async def _ask_prometheus(url: str, kind: QuestionKind, *, timeout_s: float, points_max: int = 11_000) -> Answer | Gap:
    reader = PrometheusReader(PrometheusSettings(name="prom", url=url, bearer=Secret("t0k")), points_max=points_max)
    try:
        return await reader.ask(_question(kind), timeout_s=timeout_s)
    finally:
        await reader.close()


@pytest.mark.parametrize(("behaviour", "reason"), TROUBLE)
def test_a_clickhouse_in_trouble_is_a_gap(behaviour: Reply | str, reason: str) -> None:
    with peer(lambda _path, _body: behaviour) as url:
        said = asyncio.run(_ask_clickhouse(url, QuestionKind.ERROR_RATES, timeout_s=0.5))
    assert isinstance(said, Gap)
    assert said.reason == reason
    assert said.detail
    assert "\n" not in said.detail


@pytest.mark.parametrize(("behaviour", "reason"), [*TROUBLE, ((404, b"nothing here"), "unsupported")])
def test_a_prometheus_in_trouble_is_a_gap(behaviour: Reply | str, reason: str) -> None:
    with peer(lambda _path, _body: behaviour) as url:
        said = asyncio.run(_ask_prometheus(url, QuestionKind.METRIC_SHIFTS, timeout_s=0.5))
    assert isinstance(said, Gap)
    assert said.reason == reason
    assert "\n" not in said.detail


def test_nobody_listening_is_a_gap_and_a_line_of_check() -> None:
    said = asyncio.run(_ask_prometheus("http://127.0.0.1:9", QuestionKind.METRIC_SHIFTS, timeout_s=1))
    assert isinstance(said, Gap)
    assert said.reason == "failed"
    assert asyncio.run(PrometheusReader(PrometheusSettings(name="prom", url="http://127.0.0.1:9")).check())


def test_trouble_in_the_middle_of_a_question_is_a_gap_too() -> None:
    def behaviour(_path: str, body: bytes) -> Reply | str:
        if b"system.tables" in body:
            return 200, b'{"name":"otel_traces","sorting_key":"Timestamp"}\n'
        if b"system.columns" in body:
            return 200, b'{"table":"otel_traces","name":"Timestamp","type":"DateTime64(9)"}\n'
        return (200, b'{"now":1795000000}\n') if b"now()" in body and b"FROM" not in body else (200, b'{"service":3}\n')

    with peer(behaviour) as url:
        said = asyncio.run(_ask_clickhouse(url, QuestionKind.ERROR_RATES, timeout_s=2))
    assert isinstance(said, Gap)
    assert said.reason == "nonsense"
    assert "otel_traces" in said.query


@pytest.mark.parametrize("kind", [kind for kind in QuestionKind if kind is not QuestionKind.METRIC_SHIFTS])
def test_a_prometheus_says_that_it_holds_metrics_only(kind: QuestionKind) -> None:
    said = asyncio.run(_ask_prometheus("http://127.0.0.1:9", kind, timeout_s=1))
    assert isinstance(said, Gap)
    assert said.reason == "unsupported"


def _prometheus(
    series: Mapping[str, object], *, asked: list[dict[str, str]], warnings: tuple[str, ...] = ()
) -> Behaviour:
    from urllib.parse import parse_qsl  # noqa: PLC0415 - only this peer reads forms

    def behaviour(path: str, body: bytes) -> Reply:
        form = dict(parse_qsl(body.decode()))
        if path.startswith("/api/v1/label"):
            data: object = ["queue_depth", "process_open_fds", "process_max_fds", "irrelevant_thing"]
        elif path.startswith("/api/v1/metadata"):
            data = {"queue_depth": [{"type": "gauge", "unit": "", "help": ""}]}
        elif path.startswith("/api/v1/query_range"):
            asked.append(form)
            data = {"resultType": "matrix", "result": [series] if series else []}
        else:
            data = {"resultType": "matrix", "result": [{"metric": {}, "values": [[0, "1"], [5, "1"], [10, "1"]]}]}
        return 200, json.dumps({"status": "success", "data": data, "warnings": list(warnings)}).encode()

    return behaviour


def _values(level: str = "9") -> list[list[object]]:
    start = int(BASELINE.start.timestamp())
    return [[start + 5 * i, "2" if start + 5 * i < NOW.timestamp() - 120 else level] for i in range(180)]


def test_a_long_range_is_cut_into_pieces_that_the_server_accepts() -> None:
    asked: list[dict[str, str]] = []
    series = {"metric": {"service": "s", "quell_metric": "queue_depth"}, "values": _values("90")}
    with peer(_prometheus(series, asked=asked)) as url:
        said = asyncio.run(_ask_prometheus(url, QuestionKind.METRIC_SHIFTS, timeout_s=3, points_max=50))
    assert isinstance(said, Answer)
    assert len(asked) == 4
    assert all((int(form["end"]) - int(form["start"])) / int(form["step"]) < 50 for form in asked)
    assert [form["start"] for form in asked] == sorted({form["start"] for form in asked})


def test_values_that_are_no_numbers_are_left_out_and_the_rest_is_read() -> None:
    values = _values("90")
    values[10][1], values[20][1] = "NaN", "+Inf"
    series = {"metric": {"service": "s", "quell_metric": "queue_depth"}, "values": values}
    with peer(_prometheus(series, asked=[])) as url:
        said = asyncio.run(_ask_prometheus(url, QuestionKind.METRIC_SHIFTS, timeout_s=3))
    assert isinstance(said, Answer)
    assert len(said.rows) == 1


def test_a_warning_of_the_server_makes_the_answer_partial() -> None:
    series = {"metric": {"job": "s", "quell_metric": "queue_depth"}, "values": _values()}
    with peer(_prometheus(series, asked=[], warnings=("some\x1b shards did not answer",))) as url:
        said = asyncio.run(_ask_prometheus(url, QuestionKind.METRIC_SHIFTS, timeout_s=3))
    assert isinstance(said, Answer)
    assert "shards did not answer" in said.partial
    assert "\x1b" not in said.partial


def test_no_series_at_all_is_empty() -> None:
    with peer(_prometheus({}, asked=[])) as url:
        said = asyncio.run(_ask_prometheus(url, QuestionKind.METRIC_SHIFTS, timeout_s=3))
    assert isinstance(said, Gap)
    assert said.reason == "empty"
