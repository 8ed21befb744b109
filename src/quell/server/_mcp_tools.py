"""What other programs may do with Quell over MCP: ask an agent, look through its senses, and see what waits for people."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from quell.agent import AgentAnswer
from quell.app import App
from quell.domain import (
    ApprovalStatus,
    CallOrigin,
    ChatAsk,
    Heard,
    Message,
    OverloadError,
    Parked,
    Principal,
    QuellError,
    RefusedError,
    Tool,
    ToolCall,
    ToolCaller,
    UsageError,
    may_do,
)
from quell.governance import Approvals
from quell.server._rates import Rates

Progress: TypeAlias = Callable[[float, str], Awaitable[None]]
"""Is told how many things have happened, and the newest in words."""

SENSES = ("investigate", "brief", "what_changed", "system_overview", "incidents", "incident", "advise")
_SEARCH = "search_documents"
_WAIT_S, _WAIT_MAX_S = 300.0, 3_600.0
_ITEMS_MAX = 50
_SUMMARY_CHARS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """One tool as a client sees it."""

    name: str
    description: str
    schema: Mapping[str, object]
    effect: Literal["reads", "asks", "decides"]
    """`asks` begins a run; `decides` uses the authority of whoever calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What a tool brings: a text for models, the same as data, and whether it went wrong."""

    text: str
    data: Mapping[str, object] | None = None
    is_error: bool = False


def _shape(properties: Mapping[str, object], *required: str) -> Mapping[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_ID = {"type": "string", "minLength": 1, "maxLength": 120}
_OWN: tuple[Offered, ...] = (
    Offered(
        name="ask",
        description="Ask an agent about the live system. It looks for itself and answers with cited evidence.",
        schema=_shape(
            {
                "question": {"type": "string", "minLength": 1, "maxLength": 20_000},
                "agent": {"type": "string", "maxLength": 200, "description": "Id of the agent; absent: the default."},
                "session": {"type": "string", "maxLength": 200, "description": "Go on with this conversation."},
                "wait_s": {"type": "number", "minimum": 0, "maximum": _WAIT_MAX_S, "default": _WAIT_S},
            },
            "question",
        ),
        effect="asks",
    ),
    Offered(
        name="run",
        description="How a run of an agent stands, and its answer once it has one.",
        schema=_shape({"run": _ID, "wait_s": {"type": "number", "minimum": 0, "maximum": _WAIT_MAX_S}}, "run"),
        effect="reads",
    ),
    Offered(
        name="evidence",
        description="What an answer rests on: the tool results of a run, by the ids that the answer cites.",
        schema=_shape({"run": _ID, "id": {"type": "string", "maxLength": 40}}, "run"),
        effect="reads",
    ),
    Offered(
        name="memory",
        description="Search the documents that operators gave Quell: passages with source, version and age.",
        schema=_shape(
            {
                "query": {"type": "string", "minLength": 1, "maxLength": 10_000},
                "limit": {"type": "integer", "minimum": 1, "maximum": 20},
            },
            "query",
        ),
        effect="reads",
    ),
    Offered(
        name="approvals",
        description="What waits for people: list it, or show one request whole by its id.",
        schema=_shape({"id": {"type": "string", "maxLength": 120}, "status": {"enum": [*ApprovalStatus]}}),
        effect="reads",
    ),
    Offered(
        name="decide_approval",
        description="Approve or reject one request, as the person whose key this is; bound to the digest that was shown.",
        schema=_shape(
            {
                "id": _ID,
                "decision": {"enum": ["approve", "reject"]},
                "digest": {"type": "string", "minLength": 1, "maxLength": 200},
                "reason": {"type": "string", "maxLength": 2_000},
            },
            "id",
            "decision",
            "digest",
        ),
        effect="decides",
    ),
)


class Handy:
    """The tools, for whoever is at the other end."""

    def __init__(self, app: App, *, rates: Rates | None) -> None:
        """Take the app whose agents and senses these are; without `rates` there is one person, who is not bounded."""
        self._app = app
        self._rates = rates
        self._works: Mapping[str, Callable[[Mapping[str, object], Principal, Progress], Awaitable[Brought]]] = {
            "ask": self._ask,
            "run": self._run,
            "evidence": self._evidence,
            "memory": self._memory,
            "approvals": self._approvals,
            "decide_approval": self._decide,
        }

    async def offered(self) -> tuple[Offered, ...]:
        """Return every tool."""
        authority = await self._app.open_authority()
        there = {tool.name: tool for tool in authority.toolbox.catalog()}
        senses = tuple(_of_tool(there[name]) for name in SENSES if name in there)
        own = (each for each in _OWN if each.name != "memory" or _SEARCH in there)
        return (*own, *senses)

    async def call(
        self, name: str, arguments: Mapping[str, object], *, by: Principal, call: str, progress: Progress
    ) -> Brought:
        """Do what a tool does; what goes wrong is said and never raised. Raises UsageError for a tool that is none."""
        offered = {each.name: each for each in await self.offered()}.get(name)
        if offered is None:
            raise UsageError(f"there is no tool {name[:80]!r}", hint=f"there are: {', '.join(SENSES)}, ask, run")
        try:
            _check(arguments, offered)
            if offered.effect != "asks" or self._rates is None:
                return await self._done(name, arguments, by=by, call=call, progress=progress)
            with self._rates.answering(by):
                return await self._done(name, arguments, by=by, call=call, progress=progress)
        except QuellError as error:
            told = {"retry_after_s": math.ceil(error.retry_after_s)} if isinstance(error, OverloadError) else None
            return Brought(text=f"{error}; {error.hint}" if error.hint else str(error), data=told, is_error=True)

    async def _done(
        self, name: str, arguments: Mapping[str, object], *, by: Principal, call: str, progress: Progress
    ) -> Brought:
        work = self._works.get(name)
        if work is not None:
            return await work(arguments, by, progress)
        return await self._through(name, arguments, by=by, call=call)

    async def _through(self, tool: str, arguments: Mapping[str, object], *, by: Principal, call: str) -> Brought:
        """Make a call of a tool of ours, the one way of every tool call."""
        authority = await self._app.open_authority()
        caller = ToolCaller(
            principal=by, run=f"mcp-{call}", origin=CallOrigin.PERSON, feature="mcp", deadline_s=_WAIT_S
        )
        wanted = ToolCall(id=call, tool=tool, arguments=json.dumps(arguments))
        came = await authority.toolbox.call(wanted, caller=caller)
        if isinstance(came, Parked):
            return Brought(text=f"people are asked first: approval {came.approval}", is_error=True)
        body = json.loads(came.content) if came.is_json else None
        text = came.content or came.detail or "There is nothing."
        return Brought(text=text, data=body if isinstance(body, dict) else None, is_error=not came.kind.is_answer)

    async def _memory(self, arguments: Mapping[str, object], by: Principal, _progress: Progress) -> Brought:
        return await self._through(_SEARCH, arguments, by=by, call=self._app.entropy(8).hex())

    async def _ask(self, arguments: Mapping[str, object], by: Principal, progress: Progress) -> Brought:
        session = str(arguments.get("session", ""))
        desk = self._app.agents
        before = await desk.conversation(session, by=by) if session else ()
        messages = (*before, Message(role="user", text=str(arguments["question"])))
        ask = ChatAsk(messages=messages, agent=str(arguments.get("agent", "")), session=session)
        await self._app.launch()
        run = await desk.start(ask, by=by)
        try:
            async with asyncio.timeout(_seconds(arguments.get("wait_s"), _WAIT_S)):
                await self._told(run.id, progress)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            # Whoever calls it off wants it stopped; a wait that is over, or that a stopping server ends, leaves it going on.
            if self._rates is None or not self._rates.closing.is_closing:
                await asyncio.shield(desk.cancel(run.id))
            raise
        return await self._stands(run.id, wait_s=0.0)

    async def _told(self, run: str, progress: Progress) -> None:
        count = 0
        async with aclosing(self._app.agents.follow(run)) as heard:
            async for each in heard:
                if words := _in_words(each):
                    count += 1
                    await progress(float(count), words)

    async def _run(self, arguments: Mapping[str, object], by: Principal, _progress: Progress) -> Brought:
        run = await self._own(str(arguments["run"]), by=by)
        return await self._stands(run, wait_s=_seconds(arguments.get("wait_s"), 0.0))

    async def _own(self, run: str, *, by: Principal) -> str:
        """Return the id of a run of the caller's. Raises UsageError for any other as if there were none."""
        unknown = UsageError(f"there is no run {run[:100]!r}", hint="`ask` begins one")
        try:
            found = (await self._app.runs.get(run)).id
            wanted = await self._app.agents.wanted(found)
        except UsageError:
            # Also of a beginning that several have: it would tell that they are there.
            raise unknown from None
        if (wanted.by.tenant, wanted.by.user) != (by.tenant, by.user):
            raise unknown
        return found

    async def _stands(self, run: str, *, wait_s: float) -> Brought:
        answer = await self._app.agents.answer(run, timeout_s=wait_s)
        if answer is None:
            parked = [each.id for each in await self._app.warden.waiting(run)]
            going: dict[str, object] = {"run": run, "state": "waits_for_people" if parked else "running"}
            waits = f" and waits for people: {', '.join(parked)}" if parked else ""
            return Brought(
                text=f"Run {run} goes on{waits}. Ask for it again with `run`.", data=going | {"approvals": parked}
            )
        told: dict[str, object] = {"run": run, "state": "ended"} | _of_answer(answer)
        return Brought(text=answer.text or answer.fault, data=told, is_error=bool(answer.fault))

    async def _evidence(self, arguments: Mapping[str, object], by: Principal, _progress: Progress) -> Brought:
        run = await self._own(str(arguments["run"]), by=by)
        wanted = str(arguments.get("id", ""))
        events = await self._app.runs.events(run=run, limit=10_000)
        ended = [msgspec.json.decode(event.body) for event in events if event.name == "agent.call_ended"]
        exhibits = [_exhibit(body) for body in ended if body.get("evidence")]
        if wanted:
            found = [each for each in exhibits if wanted in (each["id"], each["call"])]
            if not found:
                has = ", ".join(str(each["id"]) for each in exhibits[:_ITEMS_MAX])
                raise UsageError(f"the run has no evidence {wanted!r}", hint=f"it has: {has or 'none'}")
            return Brought(text=json.dumps(found[0], ensure_ascii=False), data=found[0])
        short = [each | {"content": str(each["content"])[:_SUMMARY_CHARS]} for each in exhibits]
        lines = [f"[{each['id']}] {each['tool']}: {each['outcome']}: {each['content']}" for each in short]
        return Brought(text="\n".join(lines) or "The run has called no tool.", data={"run": run, "evidence": short})

    async def _approvals(self, arguments: Mapping[str, object], by: Principal, _progress: Progress) -> Brought:
        if not may_do(by, "approval.list"):
            raise RefusedError("you may not do this", hint="it takes the scope verb:approval.list", code="forbidden")
        authority = await self._app.open_authority()
        status = ApprovalStatus(str(arguments.get("status", ApprovalStatus.REQUESTED)))
        identifier = str(arguments.get("id", ""))

        def read() -> list[object]:
            with authority.runs.database.reading() as connection:
                approvals = authority.guard.approvals
                if identifier:
                    return [approvals.find(connection, identifier, tenant=by.tenant)]
                return list(approvals.listed(connection, tenant=by.tenant, status=status, run="", items_max=_ITEMS_MAX))

        found = await asyncio.to_thread(read)
        if identifier and found == [None]:
            raise UsageError(f"there is no approval {identifier!r}", hint="`approvals` without an id lists them")
        shown = [await self._app.warden.shown(each) for each in found if each is not None]  # type: ignore[arg-type]  # of that type
        texts = [Approvals.show(each, form="text") for each in shown]
        rows = [json.loads(Approvals.show(each, form="json")) for each in shown]
        return Brought(text="\n\n".join(texts) or "Nothing waits for people.", data={"approvals": rows})

    async def _decide(self, arguments: Mapping[str, object], by: Principal, _progress: Progress) -> Brought:
        if not may_do(by, "approval.decide"):
            raise RefusedError("you may not do this", hint="it takes the scope verb:approval.decide", code="forbidden")
        decided = await self._app.warden.vote(
            str(arguments["id"]),
            by=by,
            verdict="approve" if arguments["decision"] == "approve" else "reject",
            digest_seen=str(arguments["digest"]),
            reason=str(arguments.get("reason", "")),
            way="api",
        )
        return Brought(text=decided.told, data={"change": decided.change, "told": decided.told})


def _of_tool(tool: Tool) -> Offered:
    effect: Literal["reads", "asks"] = "asks" if tool.name == "investigate" else "reads"
    return Offered(name=tool.name, description=tool.description, schema=json.loads(tool.input_schema), effect=effect)


def _check(arguments: Mapping[str, object], offered: Offered) -> None:
    """Hold arguments against the schema. Raises UsageError with every mistake."""
    # Loading it takes long: only who is called over MCP pays for it.
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    found = [
        f"{'/'.join(map(str, each.absolute_path)) or 'arguments'}: {each.message[:200]}"
        for each in Draft202012Validator(offered.schema).iter_errors(arguments)
    ]
    if found:
        raise UsageError(f"the arguments of {offered.name} do not fit: {'; '.join(found[:10])}", hint="see its schema")


def _seconds(written: object, otherwise: float) -> float:
    return float(written) if isinstance(written, int | float) else otherwise


def _of_answer(answer: AgentAnswer) -> dict[str, object]:
    usage = answer.usage
    return {
        "answer": answer.text,
        "stop": answer.stop.value,
        "confidence": answer.confidence,
        "cited": list(answer.cited),
        "unverified": answer.unverified,
        "model": answer.model,
        "fault": answer.fault,
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
    }


def _exhibit(body: Mapping[str, object]) -> dict[str, object]:
    return {
        "id": body["evidence"],
        "call": body.get("call", ""),
        "tool": body.get("tool", ""),
        "outcome": body.get("kind", ""),
        "content": body.get("content", ""),
        "detail": body.get("detail", ""),
        "digest": body.get("digest", ""),
    }


def _in_words(heard: Heard) -> str:
    """Say what happened, for people who wait; empty for what is not worth a line."""
    body = heard.body
    match heard.name:
        case "agent.call_asked":
            return f"calls {body.get('tool')}"
        case "agent.call_parked":
            return f"waits for people: approval {body.get('approval')}"
        case "agent.call_ended":
            return f"{body.get('tool')}: {body.get('kind')}"
        case "agent.task_started":
            return f"task {body.get('task')}: {body.get('description')}"
        case "agent.plan_made":
            return f"plan: {body.get('goal')}"
        case _:
            return ""
