"""Reading what runs left behind: artifacts of this run, and of earlier runs of the same session and tenant."""

from __future__ import annotations

import json
from dataclasses import replace

from quell.agent._run_files import RunFiles
from quell.agent._seat import Closing, Given, Native, brought, refused
from quell.domain import CallWanted, OutcomeKind, RefusedError, ToolCaller, ToolOutcome, ToolSpec
from quell.runs import RunContext

READ, PRIOR = "read_artifact", "list_prior_runs"
_READ_S = 30.0
_PART_MAX_CHARS = 32_000
_RUNS_MAX = 20


def reading(files: RunFiles) -> tuple[Native, ...]:
    """Return the tool that reads artifacts."""

    async def read(context: RunContext, wanted: CallWanted, given: Given, _caller: ToolCaller) -> ToolOutcome | Closing:
        async def work() -> ToolOutcome:
            offset = given.get("offset", 0)
            try:
                text = await files.read_artifact(str(given.get("filename") or ""), run=str(given.get("run_id") or ""))
            except RefusedError as refusal:
                return refused(wanted, f"{refusal}; {refusal.hint}")
            at = offset if isinstance(offset, int) and offset > 0 else 0
            told = brought(wanted, text[at : at + _PART_MAX_CHARS])
            left = len(text) - at - _PART_MAX_CHARS
            if left <= 0:
                return told
            more = f"{left} characters follow: read on with offset {at + _PART_MAX_CHARS}"
            return replace(told, kind=OutcomeKind.TRUNCATED, detail=more)

        return await context.step(f"own.{wanted.id}", work, returns=ToolOutcome, timeout_s=_READ_S)

    properties = {
        "filename": {"type": "string"},
        "run_id": {"type": "string", "description": "An earlier run of this session; left out: this run."},
        "offset": {"type": "integer", "minimum": 0},
    }
    schema = {"type": "object", "properties": properties, "required": ["filename"]}
    spec = ToolSpec(
        name=READ, description="Read a file that a task of this session left.", parameters=json.dumps(schema)
    )
    return (Native(spec=spec, use=read),)


def prior_runs(files: RunFiles) -> tuple[Native, ...]:
    """Return the tool that lists earlier runs of the session."""

    async def prior(
        context: RunContext, wanted: CallWanted, _given: Given, _caller: ToolCaller
    ) -> ToolOutcome | Closing:
        async def work() -> ToolOutcome:
            found = await files.prior(runs_max=_RUNS_MAX)
            return brought(wanted, json.dumps(found))

        return await context.step(f"own.{wanted.id}", work, returns=ToolOutcome, timeout_s=_READ_S)

    spec = ToolSpec(
        name=PRIOR,
        description="List earlier runs of this session, the newest first.",
        parameters='{"type":"object","properties":{}}',
    )
    return (Native(spec=spec, use=prior),)
