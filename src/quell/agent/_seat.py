"""Where an agent sits: how its steps, calls and evidence are named, and which tools it has beyond those of the toolbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from quell.agent._talk import Exhibit
from quell.domain import CallWanted, ToolCaller, ToolOutcome, ToolSpec
from quell.runs import RunContext

REASON = "_aura_reasoning"
"""Name of the argument in which a worker says why it calls a tool; it never reaches the tool. AURA's name of it."""
_REASON_MAX_CHARS = 1_000
_REASON_SCHEMA = {"type": "string", "description": "Why you call this, in one sentence."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """A call that ends a conversation: what it carries is what came of it."""

    tool: str
    given: Mapping[str, object] = field(default_factory=dict)


class Natives(Protocol):
    """Tools that are no tools of the world: answered by our own code, within the run."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """Return them as a model is told of them."""

    async def use(self, context: RunContext, wanted: CallWanted, *, caller: ToolCaller) -> ToolOutcome | Closing:
        """Answer a call of one of them. Whatever looks at a clock, a disk or the world does so in a step of the run."""


class Witness(Protocol):
    """Sees every tool call that ended, again when a run comes back."""

    async def saw(self, wanted: CallWanted, outcome: ToolOutcome, exhibit: Exhibit, *, reason: str) -> None:
        """Take note of it; the same once more changes nothing."""


class NoNatives:
    """None of them."""

    specs: tuple[ToolSpec, ...] = ()

    async def use(self, context: RunContext, wanted: CallWanted, *, caller: ToolCaller) -> ToolOutcome | Closing:
        """Be called never: no call is of one of them."""
        raise AssertionError(f"nobody was offered {wanted.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The place of an agent in a run; the only agent of one has a seat without a name."""

    tag: str = ""
    """Such as `t3`: unique in the run, and told as `task` of what happens here."""
    natives: Natives = field(default_factory=NoNatives)
    witness: Witness | None = None
    asks_reasons: bool = False
    """Whether tools are offered with an argument that says why."""

    @property
    def prefix(self) -> str:
        """Return what names of steps and calls begin with."""
        return f"{self.tag}." if self.tag else ""

    def plain(self, wanted: CallWanted) -> tuple[CallWanted, str]:
        """Return a call without the reason that it gives, and the reason."""
        if not self.asks_reasons or REASON not in wanted.arguments:
            return wanted, ""
        try:
            given = json.loads(wanted.arguments)
        except (ValueError, RecursionError):
            return wanted, ""
        if not isinstance(given, dict) or REASON not in given:
            return wanted, ""
        reason = str(given.pop(REASON) or "")[:_REASON_MAX_CHARS]
        return replace(wanted, arguments=json.dumps(given)), reason

    def offered(self, spec: ToolSpec) -> ToolSpec:
        """Return a tool as it is offered here."""
        if not self.asks_reasons:
            return spec
        schema = json.loads(spec.parameters or "{}")
        properties = schema.get("properties", {})
        if not isinstance(properties, dict) or REASON in properties:
            return spec
        schema = {**schema, "type": "object", "properties": {**properties, REASON: _REASON_SCHEMA}}
        return replace(spec, parameters=json.dumps(schema, separators=(",", ":")))


