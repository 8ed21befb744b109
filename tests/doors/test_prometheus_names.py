"""What a Prometheus says of a metric's type goes before what the metric's name suggests."""

from __future__ import annotations

import pytest

from quell.signals._prometheus import _plan_of
from quell.signals._prometheus_api import Metadata


@pytest.mark.parametrize(
    ("name", "told", "is_counter"),
    [
        ("envoy_cluster_membership_total", "gauge", False),
        ("http_requests_total", "counter", True),
        ("http_requests_total", "", True),
        ("http_requests_total", "unknown", True),
        ("pg_stat_database_deadlocks", "counter", True),
        ("pg_stat_database_deadlocks", "", False),
    ],
)
def test_a_gauge_may_be_called_total_and_a_counter_need_not(name: str, told: str, *, is_counter: bool) -> None:
    plan = _plan_of([name], known=frozenset({name}), metadata={name: [Metadata(type=told)]} if told else {})
    assert (plan.counters, plan.levels) == (([name], []) if is_counter else ([], [name]))
