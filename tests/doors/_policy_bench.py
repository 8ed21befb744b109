"""A few tools, and short ways to load policies, freeze calls and decide about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from quell.domain import (
    Facts,
    FrozenCall,
    PolicySource,
    Principal,
    Recovery,
    ResourceRule,
    Tool,
    ToolClass,
    Verdict,
)
from quell.governance import PolicySet, freeze


def tool(
    name: str,
    tool_class: ToolClass = ToolClass.READ,
    *,
    properties: Mapping[str, object] | None = None,
    required: tuple[str, ...] = (),
    resource: ResourceRule | None = None,
    recovery: Recovery = Recovery.NATURAL,
    revert: str = "undo",
    server: str = "k8s",
    more: Mapping[str, object] | None = None,
) -> Tool:
    schema = {"type": "object", "properties": dict(properties or {}), "required": list(required), **(more or {})}
    return Tool(
        name=name,
        server=server,
        original=name,
        description="",
        input_schema=json.dumps(schema),
        tool_class=tool_class,
        recovery=recovery,
        resource=resource or ResourceRule(),
        revert=revert,
        pin=f"sha256:{name}",
    )


SERVICE = {"service": {"type": "string"}, "environment": {"type": "string"}}
SCALE = tool(
    "k8s.scale",
    ToolClass.REVERSIBLE,
    properties={**SERVICE, "replicas": {"type": "integer", "minimum": 0, "maximum": 50}},
    required=("service", "environment", "replicas"),
    resource=ResourceRule(name="/service", environment="/environment", units="/replicas"),
)
DELETE = tool(
    "k8s.delete",
    ToolClass.IRREVERSIBLE,
    properties=SERVICE,
    required=("service", "environment"),
    resource=ResourceRule(name="/service", environment="/environment"),
)
FETCH = tool(
    "http.fetch",
    ToolClass.READ,
    properties={"url": {"type": "string"}},
    required=("url",),
    resource=ResourceRule(destination="/url"),
    server="web",
)
LOGS = tool("logs.search", properties={"query": {"type": "string"}}, server="")
TOOLS = (SCALE, DELETE, FETCH, LOGS)
ADA = Principal(user="ada", roles=("operator",))
ON_WEB: Mapping[Tool, Mapping[str, object]] = {
    SCALE: {"service": "web", "environment": "prod", "replicas": 3},
    DELETE: {"service": "web", "environment": "prod"},
    FETCH: {"url": "https://status.example/x"},
    LOGS: {"query": "error"},
}


def source(text: str, name: str = "mine.cedar", mode: str = "enforce") -> PolicySource:
    return PolicySource(name=name, text=text, mode="log" if mode == "log" else "enforce")


def load(*sources: PolicySource | str, tools: tuple[Tool, ...] = TOOLS) -> PolicySet:
    return PolicySet.load([each if isinstance(each, PolicySource) else source(each) for each in sources], tools=tools)


def call(of: Tool, arguments: Mapping[str, object] | None = None) -> FrozenCall:
    return freeze(of, run="run_1", call="call_1", arguments=ON_WEB[of] if arguments is None else arguments)


def decide(
    policies: PolicySet,
    of: Tool,
    who: Principal = ADA,
    facts: Facts | None = None,
    arguments: Mapping[str, object] | None = None,
) -> Verdict:
    return policies.admit(call(of, arguments), tool=of, principal=who, facts=facts or Facts())


def as_role(role: str, **changes: object) -> Principal:
    return replace(ADA, roles=(role,), **changes)  # type: ignore[arg-type]  # fields of Principal
