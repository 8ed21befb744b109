"""The one catalogue of metrics: what is counted and measured, in which unit, and by which attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Instrument: TypeAlias = Literal["counter", "level", "gauge", "histogram"]
"""`counter` only grows; `level` goes up and down with what is under way; `gauge` is set to what was seen last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """What one metric means."""

    kind: Instrument
    unit: str
    """As UCUM writes it."""
    meaning: str
    """One sentence for people."""
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of the buckets of a histogram."""


# Of the semantic conventions for generative AI, as they advise them.
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_LONG_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)

_CALL = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.agent.name")
_AGENT = "gen_ai.agent.name"

METRICS: Mapping[str, MetricSpec] = {
    # the four golden signals of agents
    "quell.agent.requests": MetricSpec(
        kind="counter", unit="{request}", meaning="Questions that agents began to work on.", attributes=(_AGENT,)
    ),
    "quell.agent.answers": MetricSpec(
        kind="counter",
        unit="{answer}",
        meaning="Conversations that ended, by why: `answered`, or the bound that stopped them (`loop`, `spent`, …).",
        attributes=(_AGENT, "stop"),
    ),
    "quell.agent.errors": MetricSpec(
        kind="counter",
        unit="{error}",
        meaning="Conversations that ended without a whole answer, or in an error of ours, by kind.",
        attributes=(_AGENT, "error.type"),
    ),
    "quell.agent.duration": MetricSpec(
        kind="histogram",
        unit="s",
        meaning="Work on one question until its end; waits for people do not count.",
        attributes=(_AGENT, "stop"),
        bounds=_LONG_SECONDS,
    ),
    "quell.agent.running": MetricSpec(
        kind="level", unit="{agent}", meaning="Agents that work in this process right now.", attributes=(_AGENT,)
    ),
    "quell.agent.turns": MetricSpec(
        kind="histogram",
        unit="{turn}",
        meaning="Turns of the model that one question took.",
        attributes=(_AGENT,),
        bounds=(1, 2, 3, 5, 8, 13, 21, 34, 55, 89),
    ),
    "quell.agent.waits": MetricSpec(
        kind="counter", unit="{wait}", meaning="How often agents stopped to wait for people.", attributes=(_AGENT,)
    ),
    # models
    "gen_ai.client.operation.duration": MetricSpec(
        kind="histogram",
        unit="s",
        meaning="One try of a model call, from asking to its last word.",
        attributes=(*_CALL, "error.type"),
        bounds=_SECONDS,
    ),
    "gen_ai.client.operation.time_to_first_chunk": MetricSpec(
        kind="histogram", unit="s", meaning="From asking a model to its first word.", attributes=_CALL, bounds=_SECONDS
    ),
    "gen_ai.client.token.usage": MetricSpec(
        kind="histogram",
        unit="{token}",
        meaning="Tokens of one model call; `gen_ai.token.type` is `input` or `output`.",
        attributes=(*_CALL, "gen_ai.token.type"),
        bounds=_TOKENS,
    ),
    "quell.model.cached_tokens": MetricSpec(
        kind="counter", unit="{token}", meaning="Input that was read from a provider's cache.", attributes=_CALL
    ),
    "quell.model.retries": MetricSpec(
        kind="counter", unit="{try}", meaning="Tries of model calls after a first one that failed.", attributes=_CALL
    ),
    "quell.model.errors": MetricSpec(
        kind="counter",
        unit="{error}",
        meaning="Tries of model calls that brought no answer, by the kind of fault.",
        attributes=(*_CALL, "error.type"),
    ),
    "quell.model.cost": MetricSpec(
        kind="counter",
        unit="{micro_usd}",
        meaning="Money that model calls were charged; `basis` is `reported`, or `reserved` where nobody knows the usage.",
        attributes=(_AGENT, "gen_ai.request.model", "basis"),
    ),
    # tools and people
    "quell.tool.calls": MetricSpec(
        kind="counter",
        unit="{call}",
        meaning="Tool calls that ended, by outcome.",
        attributes=("outcome", "tool", _AGENT),
    ),
    "quell.tool.duration": MetricSpec(
        kind="histogram",
        unit="s",
        meaning="One tool call, its attempts and the wait for its turn included.",
        attributes=("outcome", "tool", _AGENT),
        bounds=_SECONDS,
    ),
    "quell.tool.parked": MetricSpec(
        kind="counter", unit="{call}", meaning="Tool calls that people were asked about.", attributes=("tool", _AGENT)
    ),
    "quell.approvals.waiting": MetricSpec(
        kind="gauge", unit="{approval}", meaning="Requests for approval that wait for people, over all processes."
    ),
    "quell.approvals.settled": MetricSpec(
        kind="counter", unit="{approval}", meaning="Requests for approval that ended, by how.", attributes=("status",)
    ),
    "quell.approvals.wait": MetricSpec(
        kind="histogram",
        unit="s",
        meaning="From asking people to their word.",
        attributes=("status",),
        bounds=_LONG_SECONDS,
    ),
    # the house
    "quell.events": MetricSpec(
        kind="counter", unit="{event}", meaning="Events of the catalogue that were written.", attributes=("event",)
    ),
}
_UNLISTED = MetricSpec(kind="counter", unit="1", meaning="")


def find_metric(name: str) -> tuple[str, MetricSpec]:
    """Return the full name of a metric and what it is: names of ours may leave out `quell.`."""
    if name in METRICS:
        return name, METRICS[name]
    full = f"quell.{name}"
    return full, METRICS.get(full, _UNLISTED)
