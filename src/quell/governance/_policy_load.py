"""Judge policies before they may decide: every mistake of every source at once, each with the policy it stands in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import cedarpy

from quell.domain import PolicySource, Problem, RefusedError, Tool, ToolClass
from quell.governance._canonical import Json, canonical
from quell.governance._packs import kernel
from quell.governance._policy_lint import lint
from quell.governance._policy_schema import (
    CONTEXT,
    PRINCIPAL,
    RESOURCE,
    ArgumentType,
    argument_type,
    cedar_schema,
    effective_class,
    group_of,
    server_group_of,
)
from quell.governance._policy_source import POLICIES_MAX, Policy, attributes_read, read_sources

_ABOUT = re.compile(r' for Quell::Action::"([^"]*)"')
"""One mistake is told once, with the tools that it concerns, not once for each tool."""
_TOOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """Policies and tools as they were judged."""

    policies: tuple[Policy, ...]
    problems: tuple[Problem, ...]
    unchecked: tuple[str, ...]
    types: Mapping[str, ArgumentType]
    """Argument types by tool."""
    schema: str
    """The Cedar schema in its JSON form."""
    digest: str


def examine(sources: Iterable[PolicySource], tools: Iterable[Tool] | None) -> Examined:
    """Read, validate and lint policies, for these tools or, with None, for tools that are not known."""
    named = (kernel(), *sources)
    policies, problems = read_sources(named)
    known = tuple(tools or ())
    types, tool_problems = _types_of(known)
    told = [*problems, *tool_problems]
    if len(policies) > POLICIES_MAX:
        told.append(
            Problem(
                path="", source="policies", reason=f"{len(policies)} policies; at most {POLICIES_MAX} are taken",
                hint="a decision takes time linear in them: merge policies that differ in a value only",
            )
        )  # fmt: skip
        policies = ()
    sound = [tool for tool in known if tool.name in types]
    schema = json.dumps(cedar_schema(types, sound))
    unchecked = () if tools is not None else tuple(policy for policy in policies if _needs_tools(policy))
    for source in named:
        checked = [policy for policy in policies if policy.source == source.name and policy not in unchecked]
        told += _validated(checked, schema, sound)
    for policy in policies:
        told += lint(policy, _scope_of(policy, sound, types, is_known=tools is not None))
    return Examined(
        policies=policies,
        problems=tuple(told),
        unchecked=tuple(policy.id for policy in unchecked),
        types=types,
        schema=schema,
        digest=_digest(named),
    )


def _digest(sources: Iterable[PolicySource]) -> str:
    listed: list[Json] = [[source.name, source.mode, source.text] for source in sorted(sources, key=lambda s: s.name)]
    return "sha256:" + hashlib.sha256(canonical(listed, size_max_bytes=1 << 25).encode()).hexdigest()


def _types_of(tools: Sequence[Tool]) -> tuple[dict[str, ArgumentType], list[Problem]]:
    types: dict[str, ArgumentType] = {}
    problems: list[Problem] = []
    from quell.governance._schema import compiled  # noqa: PLC0415 - what judges schemas is large; many never call

    for tool in tools:
        try:
            _judge_name(tool.name, types)
            schema = compiled(tool.input_schema).closed
            _judge_rule(tool, schema)
        except RefusedError as error:
            problems.append(
                Problem(path=ascii(tool.name)[1:-1][:130], source=f"tools of {tool.server!a}", reason=str(error), hint=error.hint)
            )  # fmt: skip
            continue
        found = argument_type(schema, root=schema)
        assert found is not None
        types[tool.name] = found
    return types, problems


def _judge_name(name: str, taken: Iterable[str]) -> None:
    if not _TOOL_NAME.match(name):
        raise RefusedError("its name is no tool name", hint="letters, digits, _ - . of ASCII, at most 128")
    if name in taken:
        raise RefusedError("two tools have this name", hint="qualify it by its server")


def _judge_rule(tool: Tool, schema: Mapping[str, Json]) -> None:
    """Refuse a pointer that can lead nowhere: every call of the tool would be refused for it."""
    rule = tool.resource
    named = schema.get("properties")
    known = list(named) if isinstance(named, dict) else []
    is_open = bool({"$ref", "allOf", "anyOf", "oneOf", "patternProperties"} & schema.keys())
    for pointer in (rule.name, rule.environment, rule.units, rule.destination):
        first = pointer[1:].split("/", maxsplit=1)[0].replace("~1", "/").replace("~0", "~")
        if pointer and not (pointer.startswith("/") and (first in known or is_open)):
            raise RefusedError(
                f"the pointer {ascii(pointer)[:80]} of its resource leads to no argument",
                hint=f"a JSON pointer such as /service; arguments: {', '.join(known[:20]) or 'none'}",
            )


def _needs_tools(policy: Policy) -> bool:
    groups = {group_of(each) for each in ToolClass}
    return "args" in attributes_read([policy]) or not set(policy.actions or ()) <= groups


def _scope_of(
    policy: Policy, tools: Sequence[Tool], types: Mapping[str, ArgumentType], *, is_known: bool
) -> list[ArgumentType | None]:
    """List the argument types of the tools that a policy covers; one None when they do not matter or are not known."""
    if not is_known or "args" not in attributes_read([policy]):
        return [None]
    wanted = policy.actions
    covered = [
        types[tool.name]
        for tool in tools
        if wanted is None or {tool.name, group_of(effective_class(tool)), server_group_of(tool)} & set(wanted)
    ]
    return list({str(each): each for each in covered}.values()) or [None]


def _validated(policies: Sequence[Policy], schema: str, tools: Sequence[Tool]) -> Iterator[Problem]:
    """Ask Cedar's validator, and add to each of its words what to do."""
    by_id = {policy.id: policy for policy in policies}
    # The validator numbers the policies of a text; their @id tells which is which.
    result = cedarpy.validate_policies("\n".join(policy.text for policy in policies), schema)
    names = result.id_annotations_by_policy_id
    told: dict[tuple[str, str], list[str]] = {}
    for error in result.errors:
        reason = error.error.removeprefix(f"for policy `{error.policy_id}`, ")
        about = _ABOUT.search(reason)
        actions = told.setdefault((names.get(error.policy_id, ""), _ABOUT.sub("", reason)), [])
        actions += [about[1].replace("none:", "any other class:")] if about else []
    for (name, reason), actions in told.items():
        policy = by_id.get(name)
        yield Problem(
            path=name,
            source=policy.place if policy else "policies",
            reason=reason[:400] + (f", for {', '.join(actions[:4])}" if actions else ""),
            hint=_hint(reason, tools),
        )
    if not result.validation_passed and not result.errors:
        yield Problem(path="", source="policies", reason="Cedar's validator refuses them without words", hint="")


def _hint(reason: str, tools: Sequence[Tool]) -> str:
    named = re.search(r'unrecognized action `Quell::Action::"([^"]*)"`', reason)
    if named:
        names = [tool.name for tool in tools] + [group_of(each) for each in ToolClass]
        names += sorted({server_group_of(tool) for tool in tools})
        near = get_close_matches(named[1], names, n=3)
        return (
            f"did you mean {', '.join(near)}?" if near else "see the names of the tools, and groups such as class:read"
        )
    if "optional attribute" in reason:
        return "it may be absent: ask first, such as `context.args has x && context.args.x ...`"
    if "applicable action" in reason:
        return "it can never apply: no tool has these actions, this principal and this resource"
    if "not found" in reason:
        known = (
            f"principal: {', '.join(PRINCIPAL)}; resource: {', '.join(RESOURCE)}; context: args, {', '.join(CONTEXT)}"
        )
        return f"known are {known}"
    return "see docs/explanation/policy.md for what a policy can say"
