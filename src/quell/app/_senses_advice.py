"""Which of the pinned tools would do what a finding asks for: exact calls, what policy says of them, who may approve."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quell.domain import Category, Facts, Finding, FrozenCall, Principal, RefusedError, Tool, Verdict
from quell.governance import PolicySet, freeze

_PROPOSED_MAX = 3
_UNDO = frozenset({"rollback", "revert", "undo"})
_AGAIN = frozenset({"restart", "reboot", "recreate"})
_MORE = frozenset({"scale", "resize"})
_REMEDIES: Mapping[Category, tuple[frozenset[str], ...]] = {
    Category.CRASH_LOOP: (_UNDO, _AGAIN),
    Category.BAD_RELEASE: (_UNDO,),
    Category.BAD_CONFIG: (_UNDO,),
    Category.BAD_FLAG: (frozenset({"flag", "toggle", "switch"}), _UNDO),
    Category.DEPENDENCY_DOWN: (frozenset({"start"}), _AGAIN),
    Category.CPU_SATURATION: (_MORE,),
    Category.MEMORY_EXHAUSTION: (_AGAIN,),
    Category.POOL_EXHAUSTION: (_AGAIN,),
    Category.DESCRIPTOR_EXHAUSTION: (_AGAIN,),
    Category.TRAFFIC_SPIKE: (_MORE,),
    Category.CERTIFICATE_EXPIRED: (frozenset({"renew"}),),
    Category.QUEUE_BACKLOG: (_MORE,),
}
"""Kind of cause -> what tools that may end it are called, best first; a kind that is not here is for people."""
_WORD = re.compile(r"[a-z0-9]+")
_EVIDENT = frozenset({"service", "database", "queue", "host", "flag"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """Who would act, where, and by which rules."""

    tools: tuple[Tool, ...]
    policy: PolicySet
    principal: Principal
    run: str
    environment: str


def proposals(finding: Finding, desired: Desired) -> tuple[str, ...]:
    """Say, in sentences, which calls would be proposed; nothing is asked for and nothing is done by saying so."""
    if finding.category is None or finding.subject is None or finding.subject.kind not in _EVIDENT:
        return ()
    said = [_said(tool, finding.subject.name, desired) for tool in _fitting(finding.category, desired.tools)]
    return tuple(said[:_PROPOSED_MAX])


def _fitting(category: Category, tools: Iterable[Tool]) -> list[Tool]:
    able = [tool for tool in tools if tool.tool_class.is_effect and tool.resource.name.count("/") == 1]
    found: dict[str, Tool] = {}
    for words in _REMEDIES.get(category, ()):
        found |= {tool.name: tool for tool in able if words & set(_WORD.findall(tool.original.lower()))}
    return list(found.values())


def _said(tool: Tool, subject: str, desired: Desired) -> str:
    arguments = {tool.resource.name.removeprefix("/"): subject}
    if tool.resource.environment.count("/") == 1:
        arguments[tool.resource.environment.removeprefix("/")] = desired.environment
    needed = [name for name in json.loads(tool.input_schema).get("required", ()) if name not in arguments]
    written = json.dumps(arguments, sort_keys=True, ensure_ascii=False)
    if needed:
        return f"The call would be {tool.name} with {written}; a person has to choose {', '.join(needed)}"
    try:
        call = freeze(tool, run=desired.run, call="advice", arguments=written, environment=desired.environment)
    except RefusedError as refusal:
        return f"{tool.name} does not fit: {refusal}"
    return f"The call would be {tool.name} with {written}; {_ruled(call, tool, desired)}"


def _ruled(call: FrozenCall, tool: Tool, desired: Desired) -> str:
    explained = desired.policy.explain(call, tool=tool, principal=desired.principal, facts=Facts())
    verdict: Verdict = explained.verdict
    if verdict.decision == "permit":
        return "policy permits it without asking"
    if verdict.decision == "deny":
        return f"policy denies it: {verdict.reason}"
    people = "one approval" if verdict.quorum <= 1 else f"{verdict.quorum} approvals"
    return f"policy asks for {people} by {' or '.join(verdict.approver_roles)}, and never by who asked"
