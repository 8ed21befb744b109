"""Where an agent sits: how its steps, calls and evidence are named, and which tools it has beyond those of the toolbox."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from quell.agent._talk import Exhibit
from quell.domain import CallWanted, OutcomeKind, ToolCaller, ToolOutcome, ToolSpec
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


Given: TypeAlias = Mapping[str, object]
Use: TypeAlias = Callable[[RunContext, CallWanted, Given, ToolCaller], Awaitable[ToolOutcome | Closing]]
"""Answers a call with its arguments. Whatever looks at a clock, a disk or the world does so in a step of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """A tool that is no tool of the world: answered by our own code, within the run."""

    spec: ToolSpec
    use: Use


class Witness(Protocol):
    """Sees every tool call that ended, again when a run comes back."""

    async def saw(self, wanted: CallWanted, outcome: ToolOutcome, exhibit: Exhibit, *, reason: str) -> None:
        """Take note of it; the same once more changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The place of an agent in a run; the only agent of one has a seat without a name."""

    tag: str = ""
    """Such as `t3`: unique in the run, and told as `task` of what happens here."""
    natives: tuple[Native, ...] = ()
    witness: Witness | None = None
    asks_reasons: bool = False
    """Whether tools are offered with an argument that says why."""

    @property
    def prefix(self) -> str:
        """Return what names of steps and calls begin with."""
        return f"{self.tag}." if self.tag else ""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """Return its own tools as a model is told of them."""
        return tuple(native.spec for native in self.natives)

    async def use(self, context: RunContext, wanted: CallWanted, *, caller: ToolCaller) -> ToolOutcome | Closing:
        """Answer a call of one of its own tools."""
        native = next(each for each in self.natives if each.spec.name == wanted.name)
        try:
            given = json.loads(wanted.arguments or "{}")
        except (ValueError, RecursionError):
            return refused(wanted, "the arguments are no JSON")
        if not isinstance(given, dict):
            return refused(wanted, "the arguments are no JSON object")
        return await native.use(context, wanted, given, caller)

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
        needed = schema.get("required", [])
        if schema.get("additionalProperties") is False and set(needed) == set(properties):
            schema["required"] = [*needed, REASON]  # in a strict schema everything is required
        schema = {**schema, "type": "object", "properties": {**properties, REASON: _REASON_SCHEMA}}
        return replace(spec, parameters=json.dumps(schema, separators=(",", ":")))


def refused(wanted: CallWanted, why: str) -> ToolOutcome:
    """Refuse a call of a native tool, and say what would be taken."""
    return ToolOutcome(call=wanted.id, tool=wanted.name, kind=OutcomeKind.DENIED, detail=why)


def brought(wanted: CallWanted, content: str) -> ToolOutcome:
    """Answer a call of a native tool."""
    return ToolOutcome(call=wanted.id, tool=wanted.name, kind=OutcomeKind.OK, content=content)
