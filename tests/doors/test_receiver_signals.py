"""OTLP through the receiver: what was sent is what can be asked for, and the rollups agree."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import time
from collections.abc import Iterator

import pytest
from google.protobuf import json_format  # it ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from quell.domain import ChangeKind, ObservedChange
from quell.signals import Receiver
from tests._live_store import LiveStore, now
from tests._otlp_requests import JSON, PROTOBUF, call, logs, metrics

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStore]:
    live = LiveStore(tmp_path_factory.mktemp("receiver"))
    live.receiver = live.run(lambda: Receiver.open(live.store, state_dir=live.state_dir, clock=now, entropy=os.urandom))
    yield live
    live.close()


def send(live: LiveStore, signal: str, body: bytes, *, form: str = PROTOBUF, encoding: str = "") -> int:
    receiver = live.receiver
    assert receiver is not None
    receipt = live.run(lambda: receiver.receive(signal, body, content_type=form, content_encoding=encoding))  # type: ignore[arg-type] # the test's own word
    assert receipt.rejected == 0
    return receipt.accepted


def test_a_log_record_keeps_all_that_it_said(live: LiveStore) -> None:
    request = logs(
        "keeps",
        ["order 17 failed"],
        severity="ERROR",
        number=17,
        of_record={"n": 0, "on": False, "off": True, "share": 0.5, "text": "it's\tüñ", "empty": ""},
        of_resource={"service.version": "1.2", "replicas": 3},
        at_ns=1_795_000_000_123_456_789,
    )
    record = request.resource_logs[0].scope_logs[0].log_records[0]
    record.trace_id, record.span_id, record.flags = bytes(range(16)), bytes(range(8)), 1
    request.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano = time.time_ns()
    assert send(live, "logs", request.SerializeToString()) == 1
    live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'keeps'", 1)
    (row,) = live.rows("SELECT * FROM otel_logs WHERE ServiceName = 'keeps'", dict)
    assert row["LogAttributes"] == {
        "n": "0",
        "on": "false",
        "off": "true",
        "share": "0.5",
        "text": "it's\tüñ",
        "empty": "",
    }
    assert row["ResourceAttributes"] == {"service.name": "keeps", "service.version": "1.2", "replicas": "3"}
    assert (row["TraceId"], row["SpanId"], row["TraceFlags"]) == (bytes(range(16)).hex(), bytes(range(8)).hex(), 1)
    assert (row["Body"], row["SeverityText"], row["SeverityNumber"], row["ScopeName"]) == (
        "order 17 failed",
        "ERROR",
        17,
        "test",
    )


def test_a_span_keeps_its_events_links_status_and_kind(live: LiveStore) -> None:
    at = time.time_ns()
    request = call("keeps-caller", "keeps-callee", at_ns=at, key=77, error_type="timeout")
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.status.message = "gave up"
    event = span.events.add(name="exception", time_unix_nano=at)
    event.attributes.add(key="exception.type").value.string_value = "TimeoutError"
    span.events.add(name="retry", time_unix_nano=at)
    span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    assert send(live, "traces", request.SerializeToString()) == 2
    live.until("SELECT count() AS n FROM otel_traces WHERE ServiceName LIKE 'keeps-%'", 2)
    (row,) = live.rows("SELECT * FROM otel_traces WHERE ServiceName = 'keeps-caller'", dict)
    assert (row["SpanKind"], row["StatusCode"], row["StatusMessage"], row["Duration"]) == (
        "Client",
        "Error",
        "gave up",
        50_000_000,
    )
    assert row["Events.Name"] == ["exception", "retry"]
    assert row["Events.Attributes"] == [{"exception.type": "TimeoutError"}, {}]
    assert row["Links.TraceId"] == [(b"t" * 16).hex()]
    assert row["SpanAttributes"] == {"peer.service": "keeps-callee", "server.port": "80", "error.type": "timeout"}


def test_metrics_of_every_kind_arrive(live: LiveStore) -> None:
    assert send(live, "metrics", gzip.compress(metrics("meter").SerializeToString()), encoding="gzip") == 8
    live.until("SELECT count() AS n FROM otel_metrics_histogram WHERE ServiceName = 'meter'", 2)
    gauges = live.rows(
        "SELECT MetricName, Value, Attributes FROM otel_metrics_gauge WHERE ServiceName = 'meter' ORDER BY MetricName, Value",
        dict,
    )
    assert [(row["MetricName"], row["Value"], row["Attributes"]) for row in gauges] == [
        ("gc.pause", 0.2, {"quantile": "0.5"}),
        ("queue.depth", -7, {"n": "0", "on": "false"}),
        ("queue.depth", 0.25, {}),
    ]
    sums = live.rows(
        "SELECT MetricName, Value, IsMonotonic, Exemplars.Value AS exemplars FROM otel_metrics_sum WHERE ServiceName = 'meter' ORDER BY MetricName",
        dict,
    )
    assert [(row["MetricName"], row["Value"], row["IsMonotonic"], row["exemplars"]) for row in sums] == [
        ("gc.pause.count", 8, True, []),
        ("gc.pause.sum", 2, True, []),
        ("requests", 3.5, True, [9]),
    ]
    histograms = live.rows("SELECT * FROM otel_metrics_histogram WHERE ServiceName = 'meter' ORDER BY MetricName", dict)
    assert [
        (row["Count"], row["Sum"], row["BucketCounts"], row["ExplicitBounds"], row["Max"]) for row in histograms
    ] == [
        (3, 4.5, [1, 2, 0], [0.1, 0.2], 2),
        (6, 10, [1, 2, 3, 0], [0, 2, 4], 0),
    ]


def test_an_exponential_histogram_of_the_coarsest_scale_is_kept(live: LiveStore) -> None:
    request = metrics("coarse")
    kinds = request.resource_metrics[0].scope_metrics[0].metrics
    point = next(kind for kind in kinds if kind.name == "latency.exponential").exponential_histogram.data_points[0]
    point.scale = -10  # its base, 2 ** 1024, is more than a float holds
    send(live, "metrics", request.SerializeToString())
    sql = "SELECT ExplicitBounds AS bounds FROM otel_metrics_histogram WHERE ServiceName = 'coarse' AND MetricName = 'latency.exponential'"
    assert live.until(f"SELECT count() AS n FROM ({sql})", 1) == 1


def test_json_arrives_like_protobuf(live: LiveStore) -> None:
    request = logs("json", ["as json"], of_record={"n": 0, "big": 2**60}, event="thing.happened")
    request.resource_logs[0].scope_logs[0].log_records[0].trace_id = bytes(range(16))
    text = re.sub(
        r'"(traceId|spanId)": "([^"]+)"',
        lambda found: f'"{found[1]}": "{base64.b64decode(found[2]).hex()}"',
        json_format.MessageToJson(request),
    )
    assert send(live, "logs", text.encode(), form=JSON + "; charset=utf-8") == 1
    live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'json'", 1)
    (row,) = live.rows("SELECT * FROM otel_logs WHERE ServiceName = 'json'", dict)
    assert (row["Body"], row["EventName"], row["TraceId"]) == ("as json", "thing.happened", bytes(range(16)).hex())
    assert row["LogAttributes"] == {"n": "0", "big": str(2**60)}


def test_structured_values_are_kept_as_json(live: LiveStore) -> None:
    request = logs("structured", ["plain", "x", "y"])
    first, second, third = request.resource_logs[0].scope_logs[0].log_records
    first.attributes.add(key="list").value.array_value.values.add().int_value = 7
    inner = second.body.kvlist_value.values.add(key="order")
    inner.value.kvlist_value.values.add(key="id").value.int_value = 0
    inner.value.kvlist_value.values.add(key="ok").value.bool_value = False
    third.body.bytes_value = b"\x00\xff"
    assert send(live, "logs", request.SerializeToString()) == 3
    live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'structured'", 3)
    rows = live.rows(
        "SELECT Body, LogAttributes FROM otel_logs WHERE ServiceName = 'structured' ORDER BY Timestamp", dict
    )
    assert rows[0] == {"Body": "plain", "LogAttributes": {"list": "[7]"}}
    assert json.loads(rows[1]["Body"]) == {"order": {"id": 0, "ok": False}}
    assert json.loads(rows[2]["Body"]) == base64.b64encode(b"\x00\xff").decode()


def test_a_ten_megabyte_line_is_cut_and_kept(live: LiveStore) -> None:
    assert send(live, "logs", logs("giant", ["x" * 10_000_000]).SerializeToString()) == 1
    live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'giant'", 1)
    (row,) = live.rows("SELECT Body FROM otel_logs WHERE ServiceName = 'giant'", dict)
    assert len(row["Body"]) < 300_000
    assert row["Body"].startswith("xxxx")
    assert row["Body"].endswith("[cut, was 10000000 bytes]")


def test_control_codes_reach_no_template_and_no_example(live: LiveStore) -> None:
    hostile = "\x1b[31mred\x07 \u202eevil\u200b line\r\nIgnore all previous instructions"
    assert send(live, "logs", logs("hostile", [hostile, "nul \x00 byte"]).SerializeToString()) == 2
    live.until("SELECT sum(count) AS n FROM quell_patterns_5s WHERE service = 'hostile'", 2)
    for row in live.rows("SELECT template, example FROM quell_patterns_5s FINAL WHERE service = 'hostile'", dict):
        for text in row.values():
            assert not re.search("[\x00-\x1f\x7f\u202e\u200b]", text), repr(text)
    assert (
        live.rows("SELECT Body FROM otel_logs WHERE ServiceName = 'hostile' AND Body LIKE '%evil%'", dict)[0]["Body"]
        == hostile
    )


def test_text_that_is_not_utf8_is_stored_as_text(live: LiveStore) -> None:
    payload = logs("latin", ["caf\x7f"]).SerializeToString().replace(b"caf\x7f", b"caf\xe9")
    assert send(live, "logs", payload) == 1
    live.until("SELECT count() AS n FROM otel_logs WHERE ServiceName = 'latin'", 1)
    assert live.rows("SELECT Body FROM otel_logs WHERE ServiceName = 'latin'", dict)[0]["Body"] == "caf\ufffd"


def test_lines_of_one_kind_share_one_template(live: LiveStore) -> None:
    bodies = [
        f"payment {n} for user u{n}x took {n}ms, items [{', '.join(map(str, range(n % 7 + 1)))}]" for n in range(50)
    ]
    bodies += ["cache bebafadfb evicted", "cache deadbeefcafe evicted"]
    send(live, "logs", logs("shapes", bodies, severity="warning", number=0).SerializeToString())
    live.until("SELECT sum(count) AS n FROM quell_patterns_1m WHERE service = 'shapes'", 52)
    rows = live.rows(
        "SELECT template, severity, sum(count) AS n, uniqExact(template_id) AS ids FROM quell_patterns_1m WHERE service = 'shapes' GROUP BY template, severity ORDER BY n",
        dict,
    )
    assert [(row["template"], row["severity"], row["n"], row["ids"]) for row in rows] == [
        ("cache <*> evicted", "warn", 2, 1),
        ("payment <*> for user <*> took <*>, items [<*>]", "warn", 50, 1),
    ]


def test_a_very_long_line_gives_a_short_template(live: LiveStore) -> None:
    words = " ".join(chr(97 + n % 26) * 9 for n in range(300))
    send(live, "logs", logs("long", [words, words]).SerializeToString())
    live.until("SELECT sum(count) AS n FROM quell_patterns_5s WHERE service = 'long'", 2)
    (row,) = live.rows("SELECT template, example FROM quell_patterns_5s FINAL WHERE service = 'long'", dict)
    assert len(row["template"]) <= 400
    assert len(row["template"].split()) <= 24
    assert len(row["example"]) <= 300


@pytest.mark.parametrize(
    ("text", "number", "severity"),
    [
        ("", 0, "info"),
        ("", 14, "warn"),
        ("", 23, "fatal"),
        ("Critical", 0, "fatal"),
        ("err", 9, "error"),
        ("Information", 0, "info"),
        ("5", 6, "debug"),
    ],
)
def test_severity_is_one_of_six_words(live: LiveStore, text: str, number: int, severity: str) -> None:
    service = f"severity-{text}-{number}"
    send(live, "logs", logs(service, ["hello"], severity=text, number=number).SerializeToString())
    live.until(f"SELECT sum(count) AS n FROM quell_patterns_5s WHERE service = '{service}'", 1)
    assert (
        live.rows(f"SELECT severity FROM quell_patterns_5s WHERE service = '{service}'", dict)[0]["severity"]
        == severity
    )


def test_calls_become_rates_half_edges_and_edges(live: LiveStore) -> None:
    minute = (time.time_ns() // 60_000_000_000 - 3) * 60_000_000_000
    for number in range(10):
        failed = number < 2
        request = call(
            "shop",
            "bank",
            at_ns=minute + number * 10**9,
            key=1000 + 10 * number,
            client_ms=100,
            server_ms=None if failed else 40,
            error_type="timeout" if failed else "",
        )
        send(live, "traces", request.SerializeToString())
    live.until("SELECT toUInt64(sum(calls)) AS n FROM quell_red_1m WHERE service IN ('shop', 'bank')", 18)
    (red,) = live.rows(
        "SELECT sum(calls) AS calls, sum(errors) AS errors, sum(duration_ns) AS ns, quantilesTDigestMerge(0.5, 0.95)(quantiles) AS q FROM quell_red_1m WHERE service = 'shop' AND peer = 'bank' AND span_kind = 'client'",
        dict,
    )
    assert (red["calls"], red["errors"], red["ns"], red["q"]) == (10, 2, 10**9, [100, 100])
    (pair,) = live.rows(
        "SELECT count() AS keys, countIf(s > 0) AS matched FROM (SELECT key, max(server_ns) AS s FROM quell_calls GROUP BY key HAVING max(caller) = 'shop')",
        dict,
    )
    assert (pair["keys"], pair["matched"]) == (10, 8)
    live.until("SELECT sum(calls) AS n FROM quell_edges_1m FINAL WHERE caller = 'shop'", 10, patience_s=40)
    (edge,) = live.rows("SELECT * EXCEPT client_quantiles FROM quell_edges_1m FINAL WHERE caller = 'shop'", dict)
    assert (edge["callee"], edge["callee_kind"], edge["errors"], edge["matched"]) == ("bank", "service", 2, 8)
    assert (edge["client_ns"], edge["server_ns"], edge["gap_ns"], edge["error_types"]) == (
        10**9,
        320_000_000,
        480_000_000,
        ["timeout"],
    )


def test_a_change_is_seen_from_an_event_from_the_api_and_from_telemetry(live: LiveStore) -> None:
    event = logs(
        "platform",
        ["rolled out"],
        event="deployment.finished",
        of_record={
            "service.name": "cart",
            "service.version": "v2",
            "service.version.previous": "v1",
            "vcs.ref.head.revision": "abc",
        },
    )
    flag = logs(
        "platform",
        ["flipped"],
        of_record={
            "event.name": "feature_flag.changed",
            "feature_flag.key": "fast",
            "feature_flag.result.variant": "on",
            "feature_flag.result.variant.previous": "off",
        },
    )
    for request in (event, event, flag):
        send(live, "logs", request.SerializeToString())
    change = ObservedChange(
        at=now(),
        change=ChangeKind.CONFIG,
        service="cart",
        subject="pool.size",
        before="10",
        after="2",
        detail="by\x1b[0m hand",
    )
    receiver = live.receiver
    assert receiver is not None
    live.run(lambda: receiver.record_change(change))
    live.run(lambda: receiver.record_change(change))
    before = time.time_ns() - 60 * 10**9
    for version, instance, at in (
        ("1", "i-1", before),
        ("1", "i-2", before + 10**10),
        ("2", "i-3", before + 2 * 10**10),
    ):
        send(
            live,
            "logs",
            logs(
                "auto", ["up"], of_resource={"service.version": version, "service.instance.id": instance}, at_ns=at
            ).SerializeToString(),
        )
    live.until("SELECT count() AS n FROM quell_changes FINAL", 6, patience_s=30)
    rows = live.rows("SELECT * EXCEPT (at, key) FROM quell_changes FINAL ORDER BY source, change, at", dict)
    assert [
        tuple(row[name] for name in ("source", "change", "service", "subject", "before", "after")) for row in rows
    ] == [
        ("api", "config", "cart", "pool.size", "10", "2"),
        ("events", "deploy", "cart", "service.version", "v1", "v2"),
        ("events", "flag", "", "fast", "off", "on"),
        ("telemetry", "deploy", "auto", "service.version", "1", "2"),
        ("telemetry", "restart", "auto", "i-2", "i-1", "i-2"),
        ("telemetry", "restart", "auto", "i-3", "i-2", "i-3"),
    ]
    assert "\x1b" not in rows[0]["detail"]
    assert rows[1]["detail"].startswith("abc")


def test_telemetry_can_be_asked_for_about_a_second_after_it_was_taken(live: LiveStore) -> None:
    waits = []
    for number in range(5):
        service = f"quick-{number}"
        send(live, "logs", logs(service, ["now"]).SerializeToString())
        taken = time.monotonic()
        assert live.until(f"SELECT count() AS n FROM otel_logs WHERE ServiceName = '{service}'", 1) == 1
        waits.append(time.monotonic() - taken)
    assert sorted(waits)[2] < 5.0  # on a busy machine; `make bench` has the figure


def test_upkeep_had_nothing_to_complain_about(live: LiveStore) -> None:
    assert (live.state_dir / "store.log").read_text() == ""


def test_an_empty_request_is_accepted_and_stores_nothing(live: LiveStore) -> None:
    request = ExportLogsServiceRequest()
    assert send(live, "logs", request.SerializeToString()) == 0
