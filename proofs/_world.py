"""A small world under the real guard and hand: time that is told, tools that keep a record, a journal, some people.

Everything runs in one thread on virtual time, so that a seed gives the same story each time. What threads would do
between two transactions of a call is done there on purpose: `World.between` is called before each of them.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

from proofs import _oracle as told
from quell.app import Authority, open_authority
from quell.config import BudgetSettings, GovernanceSettings, JournalSettings, Secret, Settings
from quell.domain import (
    CallRequest,
    Fence,
    Level,
    OutcomeKind,
    Principal,
    Recovery,
    ResourceRule,
    Tool,
    ToolCaller,
    ToolClass,
    ToolOutcome,
)
from quell.runs import Connection, Done, Next, RunContext, Runs
from quell.runs._database import SQLITE_FILE, Durability, SqliteDatabase, _Raw
from quell.runs._schema import create_tables
from quell.tools import LocalHand

P = ParamSpec("P")
T = TypeVar("T")

START = datetime(2026, 11, 20, 6, tzinfo=UTC)
ASKED: ContextVar[tuple[int, float]] = ContextVar("asked", default=(0, 0.0))
"""Which wish of a model is being carried out, and when it was made."""
_PLACES = {"type": "string", "enum": ["staging", "production"]}
_SERVICES = {"type": "string", "enum": [name for names in told.SERVICES.values() for name in names]}
_TEXT = {"type": "string", "maxLength": 200}

POLICY = """
@id("own.tenants") @reason("a tenant touches and reads its own services only")
forbid (principal, action, resource) when { resource.kind == "Service" } unless {
    (principal.tenant == "acme" && ["web", "api", "pay", "stock"].contains(resource.name)) ||
    (principal.tenant == "umbra" && ["mail", "maps"].contains(resource.name))
};
@id("own.listed")
permit (principal, action in Quell::Action::"class:egress", resource)
when { ["status.example", "docs.example"].contains(context.host) && principal.roles.containsAny(["operator", "admin"]) };
@id("own.hosts") @reason("only listed hosts are reached, or the vendor after approval")
forbid (principal, action in Quell::Action::"class:egress", resource)
unless { ["status.example", "docs.example", "vendor.example"].contains(context.host) };
@id("own.scaling") @reason("scaling has its own cap")
forbid (principal, action == Quell::Action::"scale", resource) when { context.history.units_1h > 60 };
@id("own.least") @reason("production is never scaled below two")
forbid (principal, action == Quell::Action::"scale", resource)
when { resource.environment == "production" && context.args.replicas < 2 };
@id("own.nudge")
permit (principal, action == Quell::Action::"nudge", resource)
when { principal.level >= 3 && principal.stage == "stable" && !principal.tainted && principal.roles.contains("operator") };
"""
"""The operator's own policies beside the pack `reversible-auto`; `_oracle` says the same in its own words."""


class TimeOfWorld:
    """A clock on the virtual time of the loop, which can also be moved on."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    @property
    def now_s(self) -> float:
        return asyncio.get_running_loop().time() + self._skipped_s

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.now_s)

    def monotonic(self) -> float:
        return self.now_s

    def forward(self, *, seconds: float) -> None:
        self._skipped_s += seconds

    @staticmethod
    def of(at: datetime) -> float:
        return (at - START).total_seconds()


class Inline(ThreadPoolExecutor):
    """Does at once, in the only thread, what would be done in another."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
            future.set_exception(error)
        return future


class WatchedDatabase(SqliteDatabase):
    """The embedded journal; before each write transaction the world may go on. The proof kills no machine: no flush."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.between: Callable[[], None] = lambda: None
        self._is_inside = False

    @contextmanager
    def writing(self, *, durability: Durability = "flushed") -> Iterator[Connection]:
        del durability
        if not self._is_inside:
            self._is_inside = True
            try:
                self.between()
            finally:
                self._is_inside = False
        with super().writing(durability="written") as connection:
            yield connection

    def connect(self, durability: Durability) -> _Raw:
        raw = super().connect(durability)
        raw.execute("PRAGMA synchronous=OFF", {})
        return raw


@functools.cache
def _schema(*, may: tuple[str, ...] = (), **properties: str) -> str:
    known = {name: json.loads(text) for name, text in properties.items()}
    whole = {
        "type": "object",
        "properties": known,
        "required": sorted(set(known) - set(may)),
        "additionalProperties": False,
    }
    return json.dumps(whole, sort_keys=True, separators=(",", ":"))


def _tool(name: str, tool_class: ToolClass, recovery: Recovery, schema: dict[str, object], **terms: object) -> Tool:
    may = ("note",) if "note" in schema else ()
    tool = Tool(
        name=name,
        server="",
        original=name,
        description=f"{name} of the small world",
        input_schema=_schema(may=may, **{key: json.dumps(value) for key, value in schema.items()}),
        tool_class=tool_class,
        recovery=recovery,
        timeout_s=told.READ_S,
        result_max_bytes=100_000,
        pin=f"sha256:{name}",
    )
    return replace(tool, **terms)  # type: ignore[arg-type]  # fields of a Tool


_HERE = ResourceRule(name="/service", environment="/environment")
_AT: dict[str, object] = {"service": _SERVICES, "environment": _PLACES}
_CHANGES = {
    "type": "array",
    "maxItems": 3,
    "items": {
        "type": "object",
        "properties": {"key": _TEXT, "value": _TEXT},
        "required": ["key", "value"],
        "additionalProperties": False,
    },
}
_READ, _EGRESS, _BACK, _GONE = ToolClass.READ, ToolClass.EGRESS, ToolClass.REVERSIBLE, ToolClass.IRREVERSIBLE
_SETS, _KEYED, _BLIND = Recovery.NATURAL, Recovery.KEYED, Recovery.BLIND
TOOLS: tuple[Tool, ...] = (
    _tool("logs_search", _READ, _SETS, {"service": _SERVICES, "query": _TEXT}, resource=ResourceRule(name="/service")),
    _tool("big_report", _READ, _SETS, {"service": _SERVICES}, resource=ResourceRule(name="/service"), server="lab"),
    _tool("is_volume_deleted", _READ, _SETS, {**_AT, "volume": _TEXT}, resource=_HERE),
    _tool("fetch_page", _EGRESS, _SETS, {"url": _TEXT}, resource=ResourceRule(kind="Page", destination="/url")),
    _tool("read_url", _READ, _SETS, {"url": _TEXT}, resource=ResourceRule(kind="Page", destination="/url")),
    _tool(
        "scale",
        _BACK,
        _KEYED,
        {**_AT, "replicas": {"type": "integer", "minimum": 0, "maximum": 100}},
        resource=replace(_HERE, units="/replicas"),
        revert="scale",
    ),
    _tool("restart", _BACK, _SETS, _AT, resource=_HERE, revert="restart"),
    _tool("drain", _BACK, _KEYED, _AT, resource=_HERE, revert="drain"),
    _tool(
        "set_config",
        _BACK,
        _SETS,
        {**_AT, "changes": _CHANGES, "is_live": {"type": "boolean"}, "note": _TEXT},
        resource=_HERE,
        revert="set_config",
    ),
    _tool("nudge", _BACK, _BLIND, _AT, resource=_HERE, revert="nudge"),
    _tool("flip_flag", _BACK, _SETS, _AT, resource=_HERE),
    _tool(
        "delete_volume",
        _GONE,
        Recovery.PROBEABLE,
        {**_AT, "volume": {"type": "string", "pattern": "^[a-z0-9-]{1,20}$"}},
        resource=_HERE,
        probe="is_volume_deleted",
    ),
    _tool(
        "page_vendor", _GONE, _BLIND, {"service": _SERVICES, "message": _TEXT}, resource=ResourceRule(name="/service")
    ),
)
BY_NAME = {tool.name: tool for tool in TOOLS}


@dataclass(slots=True)
class World:
    """What the tools saw, in its order, with the oracle beside it."""

    authority: Authority
    runs: Runs
    clock: TimeOfWorld
    rng: random.Random
    oracle: told.Oracle
    actors: list[told.Actor] = field(default_factory=list)
    fences: dict[str, Fence] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    deleted: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    fates: tuple[float, ...] = (100, 0, 0, 0)
    """How often the tools answer well, get nothing, do it and say nothing, or fail."""

    @property
    def database(self) -> WatchedDatabase:
        found = self.runs.database
        assert isinstance(found, WatchedDatabase)
        return found

    # -- the tools ----------------------------------------------------------------------------------------------------

    async def use(self, request: CallRequest, key: str) -> ToolOutcome:
        """Take a call as a downstream does: it knows what reached it, and nothing of why."""
        call, tool = request.call, request.tool
        for _ in range(self.rng.choice((0, 0, 0, 1, 2, 4))):
            await asyncio.sleep(0)
        fate = self.rng.choices(_FATES, self.fates)[0]
        is_done = fate not in {"lost", "fails"} and bool(key)
        self.oracle.see(self._seen_as(request, key, is_done=is_done))
        if is_done and call.tool == "delete_volume":
            self.deleted.add(call.arguments)
        content = self._content(request)
        try:
            if key:
                for _ in range(self.rng.choice((1, 2, 4, 8))):
                    await asyncio.sleep(0)
        finally:
            # A call that is cut off has left too: what it did is done, and the ledger leaves it to people.
            self.oracle.see(told.Left(key=key, run=call.run, asked=ASKED.get()[0], size_bytes=len(content)))
        kind = {
            "lost": OutcomeKind.TRANSPORT_ERROR,
            "silent": OutcomeKind.TIMEOUT,
            "fails": OutcomeKind.TOOL_ERROR,
        }.get(fate, OutcomeKind.OK)
        return ToolOutcome(
            call=call.id, tool=tool.name, kind=kind, content=content, is_json=True, size_bytes=len(content)
        )

    def _seen_as(self, request: CallRequest, key: str, *, is_done: bool) -> told.Use:
        call, now_s = request.call, self.clock.now_s
        asked, asked_at_s = ASKED.get()
        with self.database.reading() as connection:
            audited = connection.one("SELECT size FROM quell_audit_head").size
            begun = connection.first("SELECT sent_at FROM quell_effects WHERE key = :key", key=key) if key else None
        begun_s = TimeOfWorld.of(datetime.fromisoformat(begun.sent_at)) if begun and begun.sent_at else asked_at_s
        return told.Use(
            at_s=now_s,
            tool=call.tool,
            arguments=call.arguments,
            run=call.run,
            call=call.id,
            key=key,
            asked=asked,
            asked_at_s=asked_at_s,
            begun_at_s=begun_s,
            is_done=is_done,
            audited=int(audited),
        )

    def _content(self, request: CallRequest) -> str:
        mark = f"only-for-{request.call.run}"
        if request.call.tool == "is_volume_deleted":
            return json.dumps({"happened": request.call.arguments in self.deleted})
        if request.call.tool == "big_report":
            return json.dumps({"rows": [f"{mark} {request.call.id} {number}" for number in range(500)]})
        return json.dumps({"ok": True, "mark": mark})

    # -- runs ---------------------------------------------------------------------------------------------------------

    def new_run(self, actor: told.Actor) -> told.Actor:
        """Start a run, held by this worker."""
        run = f"run_{self.rng.getrandbits(96):024x}"
        with self.database.writing() as connection:
            connection.run(
                "INSERT INTO quell_runs (id, kind, subject, status, version, arguments, dispatch, token, created_at, updated_at)"
                " VALUES (:run, 'heal', 'web', 'running', 'v1', '{}', 1, 'slot', '', '')",
                run=run,
            )
        self.fences[run] = Fence(run=run, dispatch=1, token="slot")
        begun = replace(actor, run=run)
        self.oracle.see(begun)
        return begun

    def caller(self, actor: told.Actor) -> ToolCaller:
        principal = Principal(
            user=actor.user,
            tenant=actor.tenant,
            roles=actor.roles,
            agent=actor.agent,
            agent_tools=actor.tools,
            workflow=actor.workflow,
            workflow_digest=actor.digest,
            workflow_tools=("*",),
            stage=actor.stage,  # type: ignore[arg-type]  # one of its words
            level=Level(actor.level),
            is_tainted=actor.is_tainted,
        )
        return ToolCaller(principal=principal, run=actor.run, fence=self.fences[actor.run])

    def begun(self) -> frozenset[str]:
        """Return the keys of what was let go and has not ended, as the journal has it."""
        with self.database.reading() as connection:
            rows = connection.all("SELECT key FROM quell_effects WHERE state = 'started'")
        return frozenset(str(row.key) for row in rows)

    def check_audit(self) -> None:
        """Let the oracle compare what happened with what is on record."""
        audit = self.authority.guard.audit
        audit.flush()
        records: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
        for record in audit.records():
            if record.kind in {"effect", "decision"}:
                body = json.loads(record.body)
                records[record.kind, record.run, body["call"]].append((record.number, body["arguments"]))
        self.oracle.check_audit(records, is_intact=audit.verify().is_intact)


_FATES = ("well", "lost", "silent", "fails")


async def _nothing(_context: RunContext) -> Next:
    return Done(result={})


@asynccontextmanager
async def small_world(rng: random.Random) -> AsyncIterator[World]:
    """Open the real thing over a fresh journal, in memory where the machine has such a place."""
    asyncio.get_running_loop().set_default_executor(Inline(max_workers=1))
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="quell-proof-", dir=shared if shared.is_dir() else None) as directory:
        state_dir, clock = Path(directory), TimeOfWorld()
        (state_dir / "own.cedar").write_text(POLICY, encoding="utf-8")
        settings = Settings(
            state_dir=state_dir,
            journal=JournalSettings(url=Secret("")),
            governance=GovernanceSettings(pack="reversible-auto", policies=(str(state_dir / "own.cedar"),)),
            budgets=BudgetSettings(
                run_calls=told.RUN_CALLS, run_units=told.RUN_UNITS, day_calls=told.DAY_CALLS, run_minutes=100_000.0
            ),
        )
        database = WatchedDatabase(state_dir / SQLITE_FILE)
        runs = Runs(database, settings=settings.journal, clock=clock, entropy=rng.randbytes, version="v1")
        create_tables(database)
        runs.register("heal", _nothing)
        hands: dict[str, World] = {}

        async def use(request: CallRequest, key: str) -> ToolOutcome:
            return await hands["world"].use(request, key)

        authority = await open_authority(
            runs,
            settings,
            clock=clock,
            entropy=rng.randbytes,
            env={},
            builtin=[(tool, LocalHand(tool.name, use)) for tool in TOOLS],
            monotonic=clock.monotonic,
        )
        # How levels are earned has a proof of its own; here each workflow has earned all, so that what is said counts.
        authority.guard.autonomy.level = lambda *_all, **_named: Level.CLOSED_LOOP  # type: ignore[method-assign]
        hands["world"] = world = World(authority=authority, runs=runs, clock=clock, rng=rng, oracle=told.Oracle())
        try:
            yield world
        finally:
            database.between = lambda: None
            await authority.close()
            await runs.close()
