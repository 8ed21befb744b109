"""Looking up workers' tools: what a coordinator has when its prompt names none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from quell.agent._coordinator import Known
from quell.agent._seat import Closing, Given, Native, brought, refused
from quell.domain import CallWanted, ToolCaller, ToolOutcome, ToolSpec
from quell.runs import RunContext

_LOOK_S = 10.0


def looking_up(workers: Sequence[Known]) -> tuple[Native, ...]:
    """Return `list_tools` and `inspect_tool_params`."""

    async def listed(
        context: RunContext, wanted: CallWanted, given: Given, _caller: ToolCaller
    ) -> ToolOutcome | Closing:
        async def work() -> ToolOutcome:
            name = str(given.get("worker") or "")
            told = {
                worker.name: {tool.name: tool.description for tool in worker.tools}
                for worker in workers
                if name in {"", worker.name}
            }
            return brought(wanted, json.dumps(told, ensure_ascii=False)) if told else refused(wanted, "no such worker")

        return await context.step(f"own.{wanted.id}", work, returns=ToolOutcome, timeout_s=_LOOK_S)

    async def inspected(
        context: RunContext, wanted: CallWanted, given: Given, _caller: ToolCaller
    ) -> ToolOutcome | Closing:
        async def work() -> ToolOutcome:
            name = str(given.get("tool") or "")
            tool = next((tool for worker in workers for tool in worker.tools if tool.name == name), None)
            return brought(wanted, tool.input_schema) if tool else refused(wanted, "no worker has such a tool")

        return await context.step(f"own.{wanted.id}", work, returns=ToolOutcome, timeout_s=_LOOK_S)

    return (
        Native(spec=_spec("list_tools", "List the tools of the workers.", "worker", ()), use=listed),
        Native(spec=_spec("inspect_tool_params", "Read the arguments of a tool.", "tool", ("tool",)), use=inspected),
    )


def _spec(name: str, description: str, argument: str, required: Sequence[str]) -> ToolSpec:
    schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": list(required)}
    return ToolSpec(name=name, description=description, parameters=json.dumps(schema))
