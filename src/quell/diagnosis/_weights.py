"""Every threshold and every weight of the engine, in one place, to be read and tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["calls", "callee", "changes", "metrics", "logs", "flows", "attributes", "timing"]
"""Kind of signal. `calls` is what callers and servers report, `callee` is the other end of an edge saying otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What counts as a shift, as near, as full. Floors come before significance: a tiny move is no symptom."""

    bucket_s: float = 5.0
    """Width of the finest rollup bucket: two onsets closer than this are equal."""

    error_share_floor: float = 0.015
    """Added share of failed calls below this is noise."""
    errors_min: int = 3
    error_z_min: float = 3.0
    error_z_alerted_min: float = 2.0
    """Where an alert says that calls fail, so much is enough."""
    error_z_onset_min: float = 4.0
    """What came since the onset has to differ by this much: the onset itself was chosen among many buckets."""
    slow_ratio: float = 1.4
    slow_floor_ms: float = 8.0
    """Mean latency must grow by both ratio and floor."""
    alerted_slow_ratio: float = 1.1
    """Where an alert says that it hurts, so little is enough to look below it."""
    tail_ratio: float = 2.0
    tail_floor_ms: float = 40.0
    """Or the 95th percentile by both of these."""
    calls_min: int = 5
    """Fewer calls than this in the window or the baseline tell nothing about latency."""
    gap_ratio: float = 1.5
    gap_floor_ms: float = 5.0
    errors_hurt_share: float = 0.1
    """Added failures of this part of the users' calls hurt in full."""
    time_hurt_share: float = 1.0
    """Added time of this part of the users' usual waiting hurts in full."""
    entry_share_min: float = 0.3
    """Part of a service's calls that no visible service makes, from which on users are taken to wait there."""
    harm_share: float = 0.1
    """All added time together below this part of the time that users usually wait hurts nobody."""
    relevant_share: float = 0.02
    """Added time below this part of all the time that users wait is felt by nobody."""
    self_share_min: float = 0.2
    """Part of a service's added time or errors that must stay unexplained before it is its own."""
    together_ratio: float = 0.3
    """A neighbour edge shifts too when its gap grew by at least this part of the edge's."""
    all_share: float = 0.7
    """`All` callers or callees means at least this part of them."""
    fanout_ratio: float = 1.5
    """Calls to one callee per incoming call that grow by this are the caller's own doing."""
    silent_ratio: float = 0.1
    """Rate that fell below this part of the baseline's is silence."""
    silent_calls_min: float = 20.0
    """Fewer expected calls than this may be missing by chance."""
    serving_ratio: float = 0.7
    blip_share: float = 0.15
    """A planned restart may fail this part of the calls and still be a restart that worked."""
    blip_restarts_max: int = 3
    """Reports of one rollout: the deploy, and a start or two."""
    settled_s: float = 20.0
    """Errors that stopped this long before the end of the window are over."""

    change_full_s: float = 15.0
    change_last_s: float = 240.0
    """A change this much earlier than the onset has nothing to do with it."""
    change_late_s: float = 15.0
    """A change may be recorded this much after the first bucket that shows its effect."""
    change_half_s: float = 60.0
    """Closeness of a change halves with every further stretch of this length before the onset."""
    deploy_restart_s: float = 60.0
    """Exits and restarts this near to a deploy of the same service belong to it."""

    overlap_s: float = 10.0
    """A replacement may start this long before the old process is stopped."""

    full_share: float = 0.95
    near_share: float = 0.85
    cpu_full: float = 0.8
    """Part of one core; event loops starve before 1.0."""
    cpu_rise: float = 0.2
    metric_rise_ratio: float = 1.5
    clock_offset_s: float = 2.0
    exits_loop_min: int = 2
    unrelated: float = 0.3
    """Strength left to a rise of calls whose onset does not fit the trouble's."""
    flow_support: int = 30
    """Occurrences of a step after which a break of what follows it counts in full."""
    traffic_ratio: float = 1.8
    queue_growth_ratio: float = 2.0
    queue_depth_floor: float = 10.0
    queue_age_floor_s: float = 5.0

    bar: float = 3.0
    """A hypothesis below this is not called a cause."""
    locus_min: float = 0.2
    """Share of the badness that a subject must carry before kinds of causes are weighed for it."""
    locus_full: float = 0.5
    """Share of the badness from which on what only measures the same calls again counts in full."""
    high_score: float = 6.0
    medium_score: float = 4.0
    margin: float = 1.0
    """Lead over the next different subject that high confidence needs."""
    tie: float = 1.5
    """Hypotheses closer than this are equal suspects, among which the first mover wins."""
    hypotheses_max: int = 8
    citations_max: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Bounded points of one named contribution."""

    points: float
    """Added in full at strength 1; strengths are 0..1."""
    family: Family
    meaning: str


THRESHOLDS = Thresholds()


def _w(points: float, family: Family, meaning: str) -> Weight:
    return Weight(points=points, family=family, meaning=meaning)


WEIGHTS: Mapping[str, Weight] = MappingProxyType(
    {
        # where
        "locus": _w(4.0, "calls", "the part of all added errors and added time that arises here and nowhere deeper"),
        "suspect": _w(0.5, "calls", "errors or time arise here and no kind of cause is known for it"),
        "first_mover": _w(0.75, "timing", "moved first among otherwise equal suspects"),
        "alerted": _w(0.25, "timing", "an alert names this subject or one of its callers"),
        # changes
        "change_precedes": _w(3.0, "changes", "changed shortly before the trouble began"),
        "change_for_all": _w(2.4, "changes", "a change for every service shortly before the trouble began"),
        "change_marks_bad": _w(0.8, "attributes", "bad records carry the changed version or variant"),
        "fanout": _w(0.8, "calls", "makes more calls per incoming call than before"),
        # processes
        "exit_oom": _w(3.5, "changes", "was killed for memory"),
        "exit_repeated": _w(3.0, "changes", "ended unplanned again and again"),
        "exit_once": _w(1.2, "changes", "ended unplanned"),
        "exit_final": _w(2.5, "changes", "ended and did not come back"),
        "callee_refused": _w(2.5, "calls", "every caller is refused or gets no answer"),
        "callee_silent": _w(1.0, "callee", "reports no calls any more"),
        "metrics_gone": _w(1.0, "metrics", "its metrics stopped"),
        # the wire
        "edge_gap": _w(2.5, "calls", "time is lost between caller and callee"),
        "edge_failing": _w(2.5, "calls", "calls fail on the way: timeouts, resets, no answer"),
        "callee_steady": _w(0.75, "callee", "the callee itself reports nothing unusual"),
        "one_edge_only": _w(0.5, "callee", "other callers of the same callee are well"),
        # resources
        "resource_full": _w(3.0, "metrics", "the resource is at its limit"),
        "resource_near": _w(1.5, "metrics", "the resource comes near its limit"),
        "resource_rise": _w(0.8, "metrics", "the use of the resource rose"),
        "waiting": _w(1.0, "metrics", "work waits for the resource"),
        # stores and queues
        "all_callers": _w(1.0, "callee", "every caller sees it"),
        "lock_waits": _w(2.5, "metrics", "statements wait for locks"),
        "lock_errors": _w(2.0, "calls", "statements are given up for locks"),
        "statement_errors": _w(1.0, "calls", "statements are given up for taking too long"),
        "rows_scanned": _w(2.0, "metrics", "reads far more rows"),
        "query_time": _w(1.0, "metrics", "reports longer queries itself"),
        "one_query": _w(1.5, "calls", "one statement carries the added time"),
        "store_default": _w(0.7, "calls", "a store that is slow for everybody, and nothing says why"),
        "queue_growth": _w(3.0, "metrics", "more waits in the queue"),
        "queue_age": _w(1.0, "metrics", "what waits gets older"),
        "consumer_behind": _w(1.0, "calls", "consumers take less than producers put"),
        # load, clocks, certificates
        "traffic_rise": _w(3.0, "calls", "far more calls come in"),
        "load_spread": _w(2.5, "calls", "the trouble sits where the added calls go"),
        "clock_offset": _w(4.0, "metrics", "its clock is off"),
        "clock_rejections": _w(1.0, "calls", "calls fail between it and others"),
        "certificate_over": _w(4.0, "metrics", "its certificate is past its last day"),
        "certificate_errors": _w(3.0, "calls", "callers refuse its certificate"),
        # words: never more than a hint
        "wording": _w(0.8, "logs", "log lines speak of it"),
        "new_errors": _w(0.3, "logs", "new kinds of error lines"),
        "flow": _w(1.5, "flows", "steps inside the service follow each other differently"),
        # against
        "explained_by_change": _w(-2.5, "changes", "a change of the same service came just before"),
        "explained_by_traffic": _w(-2.5, "calls", "far more calls come in"),
        "explained_by_store": _w(-3.0, "calls", "what it waits for got slow"),
        "explained_by_consumer": _w(-2.5, "calls", "the consumer has a trouble of its own"),
        "explained_by_memory": _w(-2.5, "metrics", "memory was used up before"),
        "explained_by_exit": _w(-2.5, "changes", "the process is gone"),
        "explained_by_resource": _w(-2.0, "metrics", "one of its ends ran out of something"),
        "comes_back": _w(-3.0, "changes", "it comes back again and again"),
        "explained_by_statement": _w(-2.0, "metrics", "the store itself shows what takes the time"),
        "uneven": _w(-3.0, "calls", "one statement is slow and others on the same wire are not"),
        "no_self_badness": _w(-3.0, "calls", "shows no trouble of its own"),
        "fits_load": _w(-2.0, "calls", "the load did not change"),
        "not_hurt": _w(-1.5, "calls", "calls of the service are well"),
        "callee_stuck": _w(-2.0, "metrics", "the callee holds more open requests than before"),
        "moved_later": _w(-1.0, "timing", "moved only after something else had"),
    }
)
"""Name of a contribution -> its weight. The engine adds nothing that is not in this table."""

SAME_CALLS = frozenset(
    {
        "edge_gap",
        "edge_failing",
        "callee_steady",
        "one_edge_only",
        "all_callers",
        "one_query",
        "store_default",
        "suspect",
    }
)
"""Contributions that look at the same calls as the locus from another side: they weigh as much as their place carries."""

WORDING_MAX = 1.0
"""Most that all contributions of the `logs` family together may add to one hypothesis."""
