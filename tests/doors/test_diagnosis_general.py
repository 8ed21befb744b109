"""Reasoning that must hold in any system: other words, other shapes of the call graph, other ways to sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from quell.diagnosis import assert_cited, diagnose
from quell.domain import (
    Category,
    ChangeKind,
    Diagnosis,
    Observation,
    Survey,
)
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
