"""Policy: whatever goes wrong in a policy denies, and a tool that changed in any way is another tool."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from enum import Enum
from typing import ClassVar

import cedarpy

from proofs._proof import Promise, Result, Scale
from quell.domain import (
    ConfigError,
    Facts,
    FrozenCall,
    Level,
    PolicySource,
    Principal,
    Recovery,
    ResourceRule,
    ServerIdentity,
    Tool,
    ToolClass,
)
from quell.governance import PolicySet, freeze, pin_of
from quell.governance._policy_engine import Answer, Engine, decided_by
from quell.governance._policy_load import Examined, examine
from quell.tools._pins import definition_digest

# --- policy errors deny ---------------------------------------------------------------------------------------------

_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "n": {"type": "integer"},
            "maybe": {"type": "integer"},
            "share": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "n"],
    }
)
_TOOLS = tuple(
    Tool(
        name=f"shop.{tool_class}",
        server="shop",
        original=tool_class,
        description="",
        input_schema=_SCHEMA,
        tool_class=tool_class,
        recovery=Recovery.NATURAL,
        revert="shop.undo",
        resource=ResourceRule(name="/name"),
        pin=f"sha256:{tool_class}",
    )
    for tool_class in (ToolClass.READ, ToolClass.EGRESS, ToolClass.REVERSIBLE)
)
_CONTROL = PolicySource(name="control", text='@id("control.all") permit (principal, action, resource);')
_ERRORS = (
    "context.args.n * context.args.n > 0",
    "context.args.n * 4096 > context.args.n",
    "context.args.n + 9223372036854775807 > 0",
    "-(context.args.n * 1024 - 9223372036854775807) < 0 || context.args.n * context.args.n == 4",
    "context.args.absent == 1",
    "context.args.maybe > 1",
    "context.history.calls_2h > 1",
    "principal.owner == 1",
    'resource.tier == "gold"',
    'context.args.name.first == "x"',
    'context.args.name < 3 || "a" < 3',
    "context.args.name + 1 > 2",
    'context.args.n like "a*"',
    "principal.level.contains(1)",
    "!context.args.n",
    'decimal(context.args.name).lessThan(decimal("1.0"))',
    "ip(context.args.name).isLoopback()",
    'datetime(context.args.name) == datetime("2026-01-01")',
    "context.args.tags.contains(context.args.nothing)",
    'Quell::User::"nobody".level > 3',
)
_SHAPES = (
    "forbid (principal, action, resource) when {{ {0} }};",
    "forbid (principal, action, resource) unless {{ {0} }};",
    "forbid (principal, action, resource) when {{ true }} when {{ {0} }};",
    'forbid (principal, action, resource) when {{ principal.user != "" && ({0}) }};',
    "forbid (principal, action, resource) when {{ if ({0}) then true else true }};",
    "forbid (principal, action, resource) when {{ !({0}) }};",
    "permit (principal, action, resource) when {{ {0} }};",
)


class Unjudged(PolicySet):
    """A set that skips what is judged at load, so that what the decision itself does with errors shows."""

    @staticmethod
    def _examined(sources: tuple[PolicySource, ...], tools: tuple[Tool, ...]) -> Examined:
        return replace(examine(sources, tools), problems=())


class _ErrorBlind(Engine):
    """The mutant: it believes a yes although policies failed."""

    @staticmethod
    def judged(result: cedarpy.AuthzResult) -> Answer:
        return Answer(
            is_allowed=result.decision is cedarpy.Decision.Allow,
            policies=decided_by(result),
            errors=(),
        )


class ErrorBlind(Unjudged):
    """What a kernel would be that takes Cedar's word and not its diagnostics."""

    _engine: ClassVar[type[Engine]] = _ErrorBlind


def policy_errors_deny(scale: Scale, seed: int, kernel: type[PolicySet] = Unjudged) -> Result:
    """Count permits, and questions that people could answer with yes, of calls on which a policy fails."""
    wanted = 500 if scale == "ci" else 10_000
    dice = random.Random(seed)
    failures: list[str] = []
    control = PolicySet.load([_CONTROL], tools=_TOOLS)
    cases = refused = permitted = 0
    while cases < wanted:
        text = "\n".join(
            f'@id("fuzz.{number}") {dice.choice(_SHAPES).format(dice.choice(_ERRORS))}'
            for number in range(dice.randint(1, 3))
        )
        sources = [_CONTROL, PolicySource(name="fuzz", text=text)]
        try:
            PolicySet.load(sources, tools=_TOOLS)
            failures.append(f"seed {seed}: the load let pass: {text}")
        except ConfigError:
            refused += 1
        policies = kernel.load(sources, tools=_TOOLS)
        for _ in range(10):
            call, tool, principal, facts = _request(dice)
            cases += 1
            verdict = policies.admit(call, tool=tool, principal=principal, facts=facts)
            permitted += control.admit(call, tool=tool, principal=principal, facts=facts).decision == "permit"
            if verdict.decision != "deny":
                failures.append(f"seed {seed}: {verdict.decision} of {call.arguments} by {text}")
    failures += _broken_facts(control)
    return Result(
        cases=cases,
        violations=len(failures),
        is_exhaustive=False,
        note=f"calls on which a policy fails; {permitted} of them go without it; all {refused} sets refused at load",
        failures=tuple(failures[:5]),
    )


def _request(dice: random.Random) -> tuple[FrozenCall, Tool, Principal, Facts]:
    """Make a call that every failing expression fails on: a large `n`, no `maybe`, a name that is no number."""
    tool = dice.choice(_TOOLS)
    arguments = {
        "name": dice.choice(["web", "käse", 'q"uote', "1.00000", "a" * 200, "x\\y"]),
        "n": dice.choice([2**53, 2**53 - 1, 2**52 + dice.randrange(1_000_000)]),
        "tags": dice.sample(["a", "b", "c"], dice.randint(0, 3)),
    }
    call = freeze(tool, run=f"run_{dice.randrange(99)}", call="call", arguments=arguments)
    principal = Principal(
        user=dice.choice(["ada", "böb", 'eve"', "new\nline"]),
        roles=tuple(dice.sample(["viewer", "operator", "admin"], dice.randint(0, 3))),
        level=dice.choice(list(Level)),
        is_tainted=dice.random() < 0.5,
    )
    facts = Facts(calls_1h=dice.randrange(99), approvals=dice.randrange(7), is_break_glass=dice.random() < 0.3)
    return call, tool, principal, facts


def _broken_facts(control: PolicySet) -> Iterator[str]:
    """Yield what a set that permits everything lets pass although the request itself is broken."""
    good = freeze(_TOOLS[0], run="run", call="call", arguments={"name": "web", "n": 1})
    who = Principal(user="ada")
    broken: list[tuple[str, FrozenCall, Tool, Principal, Facts]] = [
        ("unknown tool", replace(good, tool="shop.other"), _TOOLS[0], who, Facts()),
        ("other tool handed in", good, _TOOLS[1], who, Facts()),
        ("other pin", replace(good, pin="sha256:x"), _TOOLS[0], who, Facts()),
        ("changed arguments", replace(good, arguments='{"n":2,"name":"web"}'), _TOOLS[0], who, Facts()),
        ("changed resource", replace(good, resource=replace(good.resource, name="db")), _TOOLS[0], who, Facts()),
        ("arguments no JSON", replace(good, arguments="{"), _TOOLS[0], who, Facts()),
        ("nobody", good, _TOOLS[0], Principal(user=""), Facts()),
        ("group for a tool", replace(good, tool="class:read"), _TOOLS[0], who, Facts()),
        ("stand-in for a tool", replace(good, tool="none:read"), _TOOLS[0], who, Facts()),
    ]
    counts = ("calls_1h", "services_1h", "units_1h", "failures_1h", "in_flight", "blast_percent")
    broken += [
        (f"{name}={number}", good, _TOOLS[0], who, replace(Facts(), **{name: number}))  # type: ignore[arg-type]  # one field, by its name
        for name in counts
        for number in (-1, 2**53 + 1, 2**70)
    ]
    for what, call, tool, principal, facts in broken:
        if control.admit(call, tool=tool, principal=principal, facts=facts).decision != "deny":
            yield f"permitted: {what}"
    if control.admit(good, tool=_TOOLS[0], principal=who, facts=Facts()).decision != "permit":
        yield "the control is not permitted: the cases above prove nothing"


# --- definitions are pinned -----------------------------------------------------------------------------------------

Pin = Callable[..., str]
Digest = Callable[[Mapping[str, object], ServerIdentity], str]

_DEFINITION: Mapping[str, object] = {
    "name": "scale",
    "title": "Scale",
    "description": "Set the number of replicas.",
    "inputSchema": {
        "type": "object",
        "properties": {"service": {"type": "string"}, "replicas": {"type": "integer", "minimum": 0, "maximum": 50}},
        "required": ["service", "replicas"],
        "additionalProperties": False,
    },
    "outputSchema": {"type": "object", "properties": {"done": {"type": "boolean"}}},
    "annotations": {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": True, "openWorldHint": None},
    "_meta": {"vendor/version": 3, "weights": [0.5, 1.5]},
}
_SERVER: Mapping[str, object] = {
    "name": "k8s",
    "instructions": "Ask before you scale down.",
    "transport": "stdio",
    "command": "k8s-tools",
    "arguments": ["--cluster", "one"],
    "environment": {"REGION": "eu"},
    "url": "",
    "headers": {"X-Team": "sre"},
}
_IDENTITY = ServerIdentity(
    address="https://tools.example/mcp", instructions="Ask before you scale down.", product="k8s-tools", version="1.2.0"
)
_TOOL = Tool(
    name="k8s.scale",
    server="k8s",
    original="scale",
    description="Set the number of replicas.",
    input_schema="{}",
    output_schema="{}",
    tool_class=ToolClass.REVERSIBLE,
    recovery=Recovery.KEYED,
    resource=ResourceRule(name="/service", environment="/environment", units="/replicas", destination="/url"),
    key_argument="key",
    probe="k8s.get",
    revert="k8s.scale",
    pin="",
)


def definition_pinned(_scale: Scale, seed: int, pin: Pin = pin_of, digest: Digest = definition_digest) -> Result:
    """Change every field of a definition, of its server and of what people set, in several ways each.

    There are two names of a definition, and both have to change: the pin that policies, approvals and the ledger bind,
    and the digest that a connection compares with what the server offers before each call.
    """
    first = pin(_DEFINITION, tool=_TOOL, server=_SERVER)
    failures = [f"unchanged, and yet another pin: {what}" for what, again in _unchanged(pin) if again != first]
    cases = 0
    for what, changed in _changed(pin):
        cases += 1
        if changed == first:
            failures.append(f"changed, and yet the same pin: {what}")
    offered = digest(_DEFINITION, _IDENTITY)
    for what, other in _offered(digest):
        cases += 1
        if other == offered:
            failures.append(f"offered otherwise, and yet taken for what was pinned: {what}")
    return Result(
        cases=cases,
        violations=len(failures),
        is_exhaustive=True,
        note="fields of definition, server, tool and resource rule x changes of each, by the pin and by what a connection compares; other orders of keys keep the pin",
        failures=tuple(failures[:5]) if seed >= 0 else (),
    )


def _offered(digest: Digest) -> Iterator[tuple[str, str]]:
    for what, definition in _mutated(_DEFINITION, "definition"):
        assert isinstance(definition, dict)
        yield what, digest(definition, _IDENTITY)
    for part in fields(ServerIdentity):
        for value in _other_values(getattr(_IDENTITY, part.name)):
            changed = replace(_IDENTITY, **{part.name: value})  # type: ignore[arg-type]  # one field, by its name
            yield f"identity.{part.name} = {value!r:.40}", digest(_DEFINITION, changed)


def _unchanged(pin: Pin) -> Iterator[tuple[str, str]]:
    backwards = dict(reversed(list(_DEFINITION.items())))
    yield "keys in another order", pin(backwards, tool=_TOOL, server=dict(reversed(list(_SERVER.items()))))
    yield "the pin itself", pin(_DEFINITION, tool=replace(_TOOL, pin="sha256:other"), server=_SERVER)
    called = replace(_TOOL, stands_for="k8s", also=("k8s__scale",))
    yield "what it is called beside others", pin(_DEFINITION, tool=called, server=_SERVER)
    yield "a whole number of seconds", pin(_DEFINITION, tool=replace(_TOOL, timeout_s=60), server=_SERVER)


def _changed(pin: Pin) -> Iterator[tuple[str, str]]:
    for what, definition in _mutated(_DEFINITION, "definition"):
        assert isinstance(definition, dict)
        yield what, pin(definition, tool=_TOOL, server=_SERVER)
    for what, server in _mutated(_SERVER, "server"):
        assert isinstance(server, dict)
        yield what, pin(_DEFINITION, tool=_TOOL, server=server)
    for part in fields(Tool):
        if part.name not in {"pin", "resource", "stands_for", "also"}:
            for value in _other_values(getattr(_TOOL, part.name)):
                tool = replace(_TOOL, **{part.name: value})  # type: ignore[arg-type]  # one field, by its name
                yield f"tool.{part.name} = {value!r:.40}", pin(_DEFINITION, tool=tool, server=_SERVER)
    for part in fields(ResourceRule):
        for value in _other_values(getattr(_TOOL.resource, part.name)):
            rule = replace(_TOOL.resource, **{part.name: value})  # type: ignore[arg-type]  # one field, by its name
            yield (
                f"tool.resource.{part.name} = {value!r:.40}",
                pin(_DEFINITION, tool=replace(_TOOL, resource=rule), server=_SERVER),
            )


def _mutated(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield every value that differs from this one at one place."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"{path} without {key}", {name: other for name, other in value.items() if name != key}
            yield (
                f"{path}.{key} renamed",
                {(f"{name}x" if name == key else name): other for name, other in value.items()},
            )
            for what, changed in _mutated(part, f"{path}.{key}"):
                yield what, {**value, key: changed}
        yield f"{path} with one more", {**value, "extra": None}
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield f"{path} without {index}", value[:index] + value[index + 1 :]
            for what, changed in _mutated(part, f"{path}.{index}"):
                yield what, [*value[:index], changed, *value[index + 1 :]]
        yield f"{path} longer", [*value, None]
        yield f"{path} backwards", value[::-1]
    else:
        for other in _other_values(value):
            yield f"{path} = {other!r:.40}", other


def _other_values(value: object) -> list[object]:
    """Return values of the same kind, close to this one, and one of another kind."""
    match value:
        case Enum():
            return [each for each in type(value) if each is not value]
        case bool():
            return [not value, int(value)]
        case str():
            # A zero-width space, a homoglyph and another case: what a reader would not see.
            return [value + " ", value + "\u200b", value.replace("a", "\u0430") + "\u0430", value.swapcase() + "A"]
        case int():
            return [value + 1, -value - 1, str(value)]
        case float():
            return [value + 0.5, value * 2, value + 1e-9]
        case None:
            return [False, 0, ""]
    raise AssertionError(f"no other values are known for {value!r}: say how this new kind of field changes")


PROMISES = (
    Promise(
        name="policy-errors-deny",
        promise="A call on which any policy fails to evaluate, or whose request is broken, is denied.",
        try_it=policy_errors_deny,
    ),
    Promise(
        name="definition-pinned",
        promise="Any change of a tool's definition, of its server or of what people set about it changes its pin.",
        try_it=definition_pinned,
    ),
)
