"""A run that is held, the guard and the hand on a real journal, and a small world of tools that counts what was done to it."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quell.app import Authority, open_authority
from quell.config import (
    BudgetSettings,
    CapSettings,
    GovernanceSettings,
    JournalSettings,
    McpServerSettings,
    McpSettings,
    Secret,
    Settings,
    StoreSettings,
)
from quell.domain import (
    CallRequest,
    Fence,
    Level,
    OutcomeKind,
    Parked,
    Principal,
    Recovery,
    Resource,
    ResourceRule,
    Tool,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
)
from quell.runs import Done, Next, RunContext, Runs
from quell.tools import LocalHand
from tests import _canaries


class MovedClock:
    """A clock that moves only when told to, monotonic beside it."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 20, 12, tzinfo=UTC)
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def forward(self, *, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds


_SERVICE = {"type": "string", "enum": ["web", "api", "pay", "stock", "mail", "maps"]}
_PLACE = {"type": "string", "enum": ["staging", "production"]}


def _schema(**properties: object) -> str:
    return json.dumps(
        {
            "type": "object",
            "properties": properties,
            "required": sorted(properties),
            "additionalProperties": False,
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def _tool(name: str, tool_class: ToolClass, recovery: Recovery, schema: str, **terms: object) -> Tool:
    return replace(
        Tool(
            name=name,
            server="",
            original=name,
            description=f"{name} of the small world",
            input_schema=schema,
            tool_class=tool_class,
            recovery=recovery,
            timeout_s=5.0,
            result_max_bytes=100_000,
            pin=f"sha256:{name}",
        ),
        **terms,  # type: ignore[arg-type]  # fields of a Tool
    )


_AT = ResourceRule(kind="Service", name="/service", environment="/environment")
TOOLS: tuple[Tool, ...] = (
    _tool(
        "logs_search",
        ToolClass.READ,
        Recovery.NATURAL,
        _schema(service=_SERVICE, query={"type": "string", "maxLength": 200}),
        resource=ResourceRule(name="/service"),
    ),
    _tool(
        "fetch_page",
        ToolClass.EGRESS,
        Recovery.NATURAL,
        _schema(url={"type": "string", "maxLength": 200}),
        resource=ResourceRule(kind="Page", destination="/url"),
    ),
    _tool(
        "scale",
        ToolClass.REVERSIBLE,
        Recovery.KEYED,
        _schema(service=_SERVICE, environment=_PLACE, replicas={"type": "integer", "minimum": 0, "maximum": 100}),
        resource=replace(_AT, units="/replicas"),
        revert="scale",
    ),
    _tool(
        "restart",
        ToolClass.REVERSIBLE,
        Recovery.NATURAL,
        _schema(service=_SERVICE, environment=_PLACE),
        resource=_AT,
        revert="restart",
    ),
    _tool(
        "delete_volume",
        ToolClass.IRREVERSIBLE,
        Recovery.PROBEABLE,
        _schema(service=_SERVICE, environment=_PLACE, volume={"type": "string", "pattern": "^[a-z0-9-]{1,20}$"}),
        resource=_AT,
        probe="is_volume_deleted",
    ),
    _tool(
        "is_volume_deleted",
        ToolClass.READ,
        Recovery.NATURAL,
        _schema(service=_SERVICE, environment=_PLACE, volume={"type": "string"}),
        resource=_AT,
    ),
    _tool(
        "page_vendor",
        ToolClass.IRREVERSIBLE,
        Recovery.BLIND,
        _schema(service=_SERVICE, message={"type": "string", "maxLength": 200}),
        resource=ResourceRule(name="/service"),
    ),
)


@dataclass(slots=True)
class SmallWorld:
    """What was done, in the order in which it was done; answers as it is told to."""

    done: list[tuple[str, dict[str, object], str, str]] = field(default_factory=list)
    """Tool, arguments, run, call id."""
    keys: set[str] = field(default_factory=set)
    says: list[ToolOutcome | BaseException] = field(default_factory=list)
    """What the next uses answer instead; a tuple of (do it?, answer) is not needed: errors come after the deed."""
    reads: int = 0
    seen: list[CallRequest] = field(default_factory=list)
    """Everything that came to a hand, reads too."""

    async def use(self, request: CallRequest, key: str) -> ToolOutcome:
        call = request.call
        self.seen.append(request)
        arguments = json.loads(call.arguments)
        await asyncio.sleep(0)
        if request.tool.tool_class.is_effect:
            assert key, "an effect carries a key"
            if key not in self.keys or request.tool.recovery in {Recovery.BLIND, Recovery.PROBEABLE}:
                self.done.append((call.tool, arguments, call.run, call.id))
            self.keys.add(key)
        else:
            self.reads += 1
        if self.says:
            said = self.says.pop(0)
            if isinstance(said, BaseException):
                raise said
            return said
        content = json.dumps({"ok": True, "tool": call.tool, "told": _canaries.RESULT})
        if call.tool == "is_volume_deleted":
            gone = [done for done in self.done if done[0] == "delete_volume" and done[1] == arguments]
            content = json.dumps({"happened": bool(gone), "result": _canaries.RESULT})
        return ToolOutcome(
            call=call.id, tool=call.tool, kind=OutcomeKind.OK, content=content, is_json=True, size_bytes=len(content)
        )

    def hands(self, more: Sequence[Tool] = ()) -> list[tuple[Tool, LocalHand]]:
        return [(tool, LocalHand(tool.name, self.use)) for tool in (*TOOLS, *more)]


def person(user: str, *roles: str, tenant: str = "local") -> Principal:
    return Principal(user=user, roles=roles or ("operator",), tenant=tenant)


@dataclass(slots=True, kw_only=True)
class Room:
    """The guard and the hand, and one run."""

    authority: Authority
    runs: Runs
    world: SmallWorld
    clock: MovedClock
    run: str
    fence: Fence
    calls: int = 0

    def caller(self, **changes: object) -> ToolCaller:
        principal = Principal(
            user="ann",
            roles=("operator",),
            agent="sre",
            agent_tools=("*",),
            workflow="heal",
            workflow_digest="w1",
            workflow_tools=("*",),
            level=Level.APPROVE_EACH,
        )
        return replace(
            ToolCaller(principal=principal, run=self.run, fence=self.fence),
            **changes,  # type: ignore[arg-type]  # fields of a ToolCaller
        )

    async def call(
        self, tool: str, *, call: str = "", caller: ToolCaller | None = None, **arguments: object
    ) -> ToolOutcome | Parked:
        self.calls += 1
        wanted = ToolCall(id=call or f"call-{self.calls}", tool=tool, arguments=json.dumps(arguments))
        return await self.authority.toolbox.call(wanted, caller=caller or self.caller())

    def decide(self, parked: Parked, by: Principal, *, verdict: str = "approve", reason: str = "") -> None:
        with self.runs.database.writing() as connection:
            self.authority.guard.approvals.decide(
                connection,
                parked.approval,
                by=by,
                verdict="approve" if verdict == "approve" else "reject",
                digest_seen=parked.digest,
                reason=reason,
            )

    def hold(self, run: str, *, token: str) -> Fence:
        """Take a run over as an executor does: a new dispatch under another token."""
        with self.runs.database.writing() as connection:
            connection.run(
                "UPDATE quell_runs SET status = 'running', token = :token, dispatch = dispatch + 1 WHERE id = :run",
                run=run,
                token=token,
            )
            row = connection.one("SELECT dispatch FROM quell_runs WHERE id = :run", run=run)
        return Fence(run=run, dispatch=row.dispatch, token=token)


async def _nothing(_context: RunContext) -> Next:
    return Done(result={})


@asynccontextmanager
async def hand_room(
    state_dir: Path,
    *,
    url: str = "",
    pack: str = "copilot",
    services: int = 0,
    policies: Sequence[str] = (),
    budgets: BudgetSettings | None = None,
    caps: Sequence[CapSettings] = (),
    servers: Mapping[str, McpServerSettings] | None = None,
    code_tool: bool = True,
    tools: Sequence[Tool] = (),
    hands: Sequence[tuple[Tool, LocalHand]] = (),
    inventory: Callable[[Resource], Awaitable[Sequence[tuple[str, str]]]] | None = None,
    seed: int = 1,
) -> AsyncIterator[Room]:
    """Open runs, start one and hold it, and give the guard and the hand."""
    clock, random_bytes = MovedClock(), random.Random(seed)
    files = []
    for number, text in enumerate(policies):
        path = state_dir / f"own-{number}.cedar"
        path.write_text(text, encoding="utf-8")
        files.append(str(path))
    settings = Settings(
        state_dir=state_dir,
        journal=JournalSettings(url=Secret(url)),
        store=StoreSettings(password=Secret(_canaries.IN_SETTINGS)),
        governance=GovernanceSettings(pack=pack, services=services, policies=tuple(files), code_tool=code_tool),  # type: ignore[arg-type]  # a pack
        budgets=budgets or BudgetSettings(),
        cap=tuple(caps),
        mcp=McpSettings(servers=servers or {}),
    )
    runs = await Runs.open(settings.journal, state_dir=state_dir, clock=clock, entropy=os.urandom, version="v1")
    runs.register("heal", _nothing)
    world = SmallWorld()
    try:
        authority = await open_authority(
            runs,
            settings,
            clock=clock,
            entropy=random_bytes.randbytes,
            env=_canaries.ENVIRONMENT,
            builtin=[*world.hands(tools), *hands],
            inventory=inventory,
            monotonic=clock.monotonic,
        )
        try:
            run = await runs.start("heal", subject="web", arguments={})
            room = Room(
                authority=authority,
                runs=runs,
                world=world,
                clock=clock,
                run=run.id,
                fence=Fence(run=run.id, dispatch=0, token=""),
            )
            room.fence = room.hold(run.id, token="slot-0.a")
            yield room
        finally:
            await authority.close()
    finally:
        await runs.close()


def play(tmp_path: Path, story: Callable[[Room], Awaitable[None]], **settings: object) -> None:
    """Play a story in a room of its own; its audit log is intact afterwards."""

    async def tell() -> None:
        async with hand_room(tmp_path, **settings) as room:  # type: ignore[arg-type]  # settings of a room
            await story(room)
            assert room.authority.guard.audit.verify().is_intact

    asyncio.run(tell())


def outcome_of(ended: ToolOutcome | Parked) -> ToolOutcome:
    """Return how a call ended that did end."""
    assert isinstance(ended, ToolOutcome), ended
    return ended


def parked_of(ended: ToolOutcome | Parked) -> Parked:
    """Return what waits for people."""
    assert isinstance(ended, Parked), ended
    return ended
