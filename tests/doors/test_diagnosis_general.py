"""Reasoning that must hold in any system: other words, other shapes of the call graph, other ways to sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from quell.diagnosis import assert_cited, diagnose, next_steps
from quell.domain import (
    Category,
    ChangeKind,
    Diagnosis,
    EdgeShift,
    Gap,
    GapReason,
    MetricShift,
    Observation,
    OperationShift,
    Outcome,
    QuestionKind,
    Survey,
)
from tests.doors._diagnosis_faults import FAULTS, tell
from tests.doors._diagnosis_story import Story


def _diagnosed(survey: Survey) -> Diagnosis:
    diagnosis = diagnose(survey)
    assert_cited(diagnosis, survey)
    return diagnosis


def _edited(survey: Survey, edit: Callable[[Observation], Observation]) -> Survey:
    return replace(survey, facts=tuple(replace(f, observation=edit(f.observation)) for f in survey.facts))


# -- words inside words


@pytest.mark.parametrize("kind", ["BusinessLogicException", "AccessLimitExceeded", "ProcessLost", "ConcertNotFound"])
def test_an_error_type_that_only_contains_the_letters_of_ssl_is_no_certificate(kind: str) -> None:
    story = Story()
    story.now.rejected["api", "stock"] = 0.3
    story.types["api", "stock"] = (kind,)
    hypotheses = _diagnosed(story.survey()).hypotheses
    assert hypotheses
    assert all(h.category is not Category.CERTIFICATE_EXPIRED for h in hypotheses)


@pytest.mark.parametrize(
    "kind",
    ["ssl.SSLError", "ClientConnectorSSLError", "CERTIFICATE_VERIFY_FAILED", "ClientConnectorCertificateError", "tls_error", "cert_expired"],
)  # fmt: skip
def test_the_names_that_libraries_give_to_refused_certificates_are_known(kind: str) -> None:
    story = Story()
    story.fail_into("stock", 0.9, kind)
    assert _diagnosed(story.survey()).finding.category is Category.CERTIFICATE_EXPIRED


@pytest.mark.parametrize("detail", ["chatroom exited with code 1", "zoom-bridge exited with code 1"])
def test_a_crash_of_what_has_oom_in_its_name_is_no_want_of_memory(detail: str) -> None:
    story = Story()
    for at_s in (0, 20, 40):
        story.change(ChangeKind.EXIT, "stock", at_s=at_s, subject="4711", after="1", detail=detail)
        story.start("stock", at_s=at_s + 3)
    story.fail_into("stock", 0.2, "connection_refused")
    assert _diagnosed(story.survey()).finding.category is Category.CRASH_LOOP


@pytest.mark.parametrize("metric", ["jvm_threads_blocked_count", "hdfs_blocks_total", "rocksdb_block_cache_count"])
def test_blocks_are_no_locks_of_a_database(metric: str) -> None:
    story = Story()
    story.now.gap_ms = {(caller, "maindb"): 150.0 for caller in ("search", "stock", "bill", "worker")}
    story.metric("search", metric, 1, 40)
    hypotheses = _diagnosed(story.survey()).hypotheses
    assert hypotheses[0].category is Category.SLOW_QUERY
    assert all(h.category is not Category.LOCK_CONTENTION for h in hypotheses)


# -- sources tell only what moved


def _only(survey: Survey, *kinds: type[Observation]) -> Survey:
    return replace(survey, facts=tuple(f for f in survey.facts if isinstance(f.observation, kinds)))


def test_a_system_in_which_nothing_moved_is_healthy_by_its_call_graph() -> None:
    finding = _diagnosed(_only(Story().survey(), EdgeShift)).finding
    assert finding.outcome is Outcome.HEALTHY
    assert finding.citations


def test_a_single_service_in_which_only_a_metric_moved_is_healthy_too() -> None:
    story = Story()
    story.metric("search", "process.cpu.utilization", 0.1, 0.4)
    empty = Gap(question=QuestionKind.EDGE_GAPS, source="clickhouse", query="q", reason="empty", detail="no calls")
    survey = replace(_only(story.survey(), MetricShift), gaps=(empty,))
    assert _diagnosed(survey).finding.outcome is Outcome.HEALTHY


def test_a_source_that_has_only_one_half_of_the_calls_is_not_enough_for_healthy() -> None:
    survey = _only(Story().survey(), EdgeShift)
    gaps = tuple(
        Gap(question=kind, source="clickhouse", query="q", reason="timeout", detail="late")
        for kind in (QuestionKind.ERROR_RATES, QuestionKind.SLOW_OPERATIONS)
    )
    assert _diagnosed(replace(survey, gaps=gaps)).finding.outcome is Outcome.INCONCLUSIVE


def test_healthy_cites_no_operation_that_got_worse_as_one_that_is_well() -> None:
    story = Story()
    survey = story.survey()

    def slower_where_nobody_waits(row: Observation) -> Observation:
        if isinstance(row, OperationShift) and row.service == "search":
            return replace(row, total_ms=row.total_ms + 9 * row.calls)
        return row

    told = _edited(survey, slower_where_nobody_waits)
    finding = _diagnosed(told).finding
    assert finding.outcome is Outcome.HEALTHY
    cited = {c.evidence for c in finding.citations}
    assert not [f for f in told.facts if f.evidence.id in cited and getattr(f.observation, "service", "") == "search"]


# -- shapes of the call graph


def _with_edge(survey: Survey, caller: str, callee: str, *, calls: int, calls_before: int) -> Survey:
    known = next(f for f in survey.facts if isinstance(f.observation, EdgeShift) and f.observation.callee == "search")
    assert isinstance(known.observation, EdgeShift)
    row = replace(known.observation, caller=caller, callee=callee, calls=calls, calls_before=calls_before)
    fact = replace(known, evidence=replace(known.evidence, id="E900"), observation=row)
    return replace(survey, facts=(*survey.facts, fact))


@pytest.mark.parametrize("caller", ["api", "worker", "bill"])
def test_users_still_wait_at_an_entry_that_an_inner_service_calls_too(caller: str) -> None:
    story = Story()
    story.now.own_ms["bill"] = 300
    survey = _with_edge(story.survey(), caller, "web", calls=90, calls_before=300)
    finding = _diagnosed(survey).finding
    assert finding.outcome is Outcome.CAUSE_FOUND
    assert finding.subject is not None
    assert finding.subject.name == "bill"


@pytest.mark.parametrize("caller", ["api", "worker"])
def test_a_spike_is_seen_at_an_entry_that_an_inner_service_calls_too(caller: str) -> None:
    story = Story()
    story.now.rate = 60
    story.now.own_ms = {name: 9 * ms for name, ms in story.now.own_ms.items()}
    survey = _with_edge(story.survey(), caller, "web", calls=90, calls_before=300)
    assert _diagnosed(survey).finding.category is Category.TRAFFIC_SPIKE


@pytest.mark.parametrize("calls_of_the_rest", [0, 40_000])
def test_one_route_that_is_called_more_is_no_spike_of_a_service_that_takes_far_more_calls(
    calls_of_the_rest: int,
) -> None:
    story = Story()
    story.now.rate = 60
    story.now.own_ms = {name: 9 * ms for name, ms in story.now.own_ms.items()}

    def counted(row: Observation) -> Observation:
        if isinstance(row, OperationShift) and row.service == "web":
            calls, before = row.calls + calls_of_the_rest, row.calls_before + 3 * calls_of_the_rest
            return replace(row, service_calls=calls, service_calls_before=before)
        return row

    category = _diagnosed(_edited(story.survey(), counted)).finding.category
    assert (category is Category.TRAFFIC_SPIKE) is (calls_of_the_rest == 0)


def test_calls_of_a_service_to_itself_do_not_make_it_an_entry() -> None:
    story = Story()
    story.now.own_ms["search"] = 13
    survey = _with_edge(story.survey(), "stock", "stock", calls=4000, calls_before=13000)

    def busy(row: Observation) -> Observation:
        if isinstance(row, OperationShift) and row.service == "stock":
            return replace(
                row, calls=row.calls + 4000, calls_before=row.calls_before + 13000, total_ms=3 * row.total_ms
            )
        return row

    assert _diagnosed(_edited(survey, busy)).finding.outcome is not Outcome.CAUSE_FOUND


# -- spans that were never kept


def _sampled(survey: Survey, service: str, *, now: float, before: float = 1.0) -> Survey:
    """Keep a part of the spans that a service makes as a callee, now and before."""

    def thin(row: Observation) -> Observation:
        if isinstance(row, EdgeShift) and row.callee == service:
            return replace(
                row, unanswered=round(row.calls * (1 - now)), unanswered_before=round(row.calls_before * (1 - before))
            )
        if isinstance(row, OperationShift) and row.service == service:
            kept, kept_before = round(row.calls * now), round(row.calls_before * before)
            return replace(
                row,
                calls=kept,
                errors=round(row.errors * now),
                total_ms=row.total_ms * now,
                calls_before=kept_before,
                errors_before=round(row.errors_before * before),
                total_ms_before=row.total_ms_before * before,
            )
        return row

    return _edited(survey, thin)


@pytest.mark.parametrize("now", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("service", ["stock", "bill"])
def test_a_callee_that_begins_to_keep_fewer_spans_fails_nobody(service: str, now: float) -> None:
    finding = _diagnosed(_sampled(Story().survey(), service, now=now)).finding
    assert finding.outcome is Outcome.HEALTHY, finding


def test_calls_that_fail_at_a_callee_that_keeps_one_span_in_ten_still_count() -> None:
    story = Story()
    story.now.own_errors["stock"] = 0.4
    finding = _diagnosed(_sampled(story.survey(), "stock", now=0.1, before=0.1)).finding
    assert finding.outcome is Outcome.CAUSE_FOUND
    assert finding.subject is not None
    assert finding.subject.name == "stock"


def test_spans_that_were_never_kept_make_no_wire_slow() -> None:
    story = Story()
    story.now.own_ms["bill"] = 120
    story.before.own_ms["stock"] = story.now.own_ms["stock"] = 60
    diagnosis = _diagnosed(_sampled(story.survey(), "stock", now=0.1, before=0.1))
    assert diagnosis.finding.subject is not None
    assert diagnosis.finding.subject.name == "bill"
    assert all(h.category is not Category.NETWORK_LATENCY for h in diagnosis.hypotheses)


# -- names that strangers chose


def _renamed(value: object, name: str, new: str) -> object:
    if isinstance(value, str):
        return value.replace(name, new)
    return tuple(_renamed(part, name, new) for part in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_name_of_a_service_cannot_write_lines_into_a_diagnosis(name: str) -> None:
    hostile = "st\x1b[31mock\n\u202eOutcome: healthy"

    def rename(row: Observation) -> Observation:
        kept = {"kind", "change", "severity", "shape", "span_kind", "callee_kind"}
        texts = {f.name: _renamed(getattr(row, f.name), "stock", hostile) for f in fields(row) if f.name not in kept}
        return replace(row, **texts)  # type: ignore[arg-type] # every field keeps its type

    diagnosis = _diagnosed(_edited(tell(name).survey(), rename))
    spoken = [diagnosis.finding.statement, diagnosis.finding.cap, *(h.statement for h in diagnosis.hypotheses)]
    cited = [*diagnosis.finding.citations, *diagnosis.impact]
    cited.extend(c for h in diagnosis.hypotheses for c in (*h.support, *h.against))
    assert all(text.isprintable() for text in (*spoken, *next_steps(diagnosis), *(c.says for c in cited)))


def test_the_reason_that_caps_a_confidence_does_not_hang_on_the_order_of_gaps() -> None:
    reasons: tuple[GapReason, ...] = ("timeout", "refused")
    gaps = tuple(
        Gap(question=QuestionKind.CHANGES, source="clickhouse", query="q", reason=reason, detail="")
        for reason in reasons
    )
    survey = tell("slow_query").survey()
    assert diagnose(replace(survey, gaps=gaps)) == diagnose(replace(survey, gaps=gaps[::-1]))


# -- units and names of metrics


@pytest.mark.parametrize(
    ("metric", "unit", "before", "after"),
    [
        ("kafka_message_size_bytes", "By", 120, 9000),
        ("messaging.message.size", "By", 120, 9000),
        ("queue_usage_ratio", "1", 0.1, 9),
        ("queue.oldest_message.age", "ms", 3, 900),
    ],
)
def test_larger_messages_and_milliseconds_are_no_backlog(metric: str, unit: str, before: float, after: float) -> None:
    story = Story()
    story.metric("worker", metric, before, after, unit=unit)
    diagnosis = _diagnosed(story.survey())
    assert diagnosis.finding.outcome is Outcome.HEALTHY
    assert not diagnosis.hypotheses


def test_a_pool_of_memory_is_no_pool_of_connections() -> None:
    story = Story()
    story.now.own_ms["bill"] = 300
    story.metric("bill", "jvm_memory_pool_bytes_used", 3e8, 9.9e8, limit=1e9, unit="By")
    hypotheses = _diagnosed(story.survey()).hypotheses
    assert hypotheses[0].category is Category.MEMORY_EXHAUSTION
    assert all(h.category is not Category.POOL_EXHAUSTION for h in hypotheses)


def test_processes_that_a_release_brought_did_not_rise_from_nothing() -> None:
    story = Story()
    story.now.own_ms["bill"] = 300
    for resource, level in (("process_resident_memory_bytes", 3e8), ("process_cpu_utilization", 0.3)):
        story.metric("bill", resource, 0, level, shape="appeared", unit="By" if level > 1 else "1", pod="bill-7")
    story.metric("bill", "http_active_requests", 0, 3, shape="appeared", unit="1", pod="bill-7")
    finding = _diagnosed(story.survey()).finding
    assert finding.category is Category.NOVEL
    assert finding.subject is not None
    assert finding.subject.name == "bill"


def test_a_line_that_says_stopped_does_not_turn_a_crash_into_an_orderly_end() -> None:
    story = Story()
    for at_s in (0, 20, 40):
        detail = "the worker process stopped unexpectedly"
        story.change(ChangeKind.EXIT, "stock", at_s=at_s, subject="4711", after="signal 11", detail=detail)
        story.start("stock", at_s=at_s + 3)
    story.fail_into("stock", 0.2, "connection_refused")
    assert _diagnosed(story.survey()).finding.category is Category.CRASH_LOOP


@pytest.mark.parametrize(("count", "count_before", "speaks"), [(60, 100, True), (20, 100, False)])
def test_a_line_grew_when_it_comes_more_often_not_when_it_was_counted_for_longer(
    count: int, count_before: int, *, speaks: bool
) -> None:
    story = Story()
    story.now.own_ms["bill"] = 300
    story.metric("bill", "db.client.connection.count", 3, 10, limit=10, unit="{connection}", state="used")
    story.log("bill", "connection pool exhausted, waited <*> ms", count=count, count_before=count_before)
    top = _diagnosed(story.survey()).hypotheses[0]
    assert top.category is Category.POOL_EXHAUSTION
    assert any("log lines" in c.says for c in top.support) is speaks


@pytest.mark.parametrize("name", ["pool_exhausted", "release_with_latency", "release_with_more_queries"])
def test_users_who_wait_longer_are_not_told_that_all_is_well_when_the_cause_was_not_read(name: str) -> None:
    story = tell(name)
    survey = story.survey()
    subject = diagnose(survey).finding.subject
    assert subject is not None
    kept = tuple(
        f
        for f in survey.facts
        if not (isinstance(f.observation, OperationShift) and f.observation.service == subject.name)
    )
    assert _diagnosed(replace(survey, facts=kept)).finding.outcome is not Outcome.HEALTHY
