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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from proofs import _oracle as told
from quell.app import Authority, open_authority
from quell.app._toolset import policy_sources
from quell.config import BudgetSettings, GovernanceSettings, JournalSettings, Secret, Settings
from quell.domain import (
    Ask,
    CallRequest,
    Fence,
    Level,
    NeedsPeople,
    OutcomeKind,
    Principal,
    Recovery,
    ResourceRule,
    Standing,
    Tool,
    ToolCaller,
    ToolClass,
    ToolOutcome,
)
from quell.governance import PolicySet
from quell.governance._autonomy import _text
from quell.runs import Connection, Done, Next, RunContext, Runs
from quell.runs._database import SQLITE_FILE, Database, Durability, PostgresDatabase, SqliteDatabase, _Raw
from quell.runs._schema import create_tables
from quell.tools import LocalHand, _asks
from quell.tools._asks import NeedsPeopleError
from quell.tools._registry import Entry

Stopping = Literal["kill here", "kill elsewhere", "freeze"]
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
@id("own.emergency") @break_glass
permit (principal, action == Quell::Action::"drain", resource)
when { context.break_glass && principal.level >= 2 && principal.roles.containsAny(["operator", "admin"]) };
"""
"""The operator's own policies beside the pack `reversible-auto`; `_oracle` says the same in its own words."""


class TimeOfWorld:
    """A clock on the virtual time of the loop, which can also be moved on."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    @property
    def now_s(self) -> float:
        # Whole microseconds, as times of day are: sums of floats would lie a hair beside the end of a stop.
        return round(asyncio.get_running_loop().time() + self._skipped_s, 6)

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


@dataclass(slots=True, kw_only=True)
class Course:
    """The order of things: which transaction was committed as which, by whom, and what happens in between."""

    clock: TimeOfWorld
    between: Callable[[], None] = lambda: None
    """How the world goes on before each transaction that writes."""
    on_its_way: Callable[[], None] = lambda: None
    """How it goes on while a call is between the hand and the tool."""
    number: int = 0
    """Transactions that were committed."""
    last: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Number and time of the last one that was committed for each wish of a model."""
    is_inside: bool = False

    def go_on(self, happen: Callable[[], None]) -> None:
        """Let others do something, in whosever call it happens."""
        self.is_inside = True
        try:
            happen()
        finally:
            self.is_inside = False

    @contextmanager
    def kept(self, transaction: AbstractContextManager[Connection]) -> Iterator[Connection]:
        """Let the world go on, then write; what others do meanwhile is not what the wish does."""
        is_own = not self.is_inside
        if is_own:
            self.go_on(self.between)
        with transaction as connection:
            yield connection
        self.number += 1
        if is_own:
            self.last[ASKED.get()[0]] = (self.number, self.clock.now_s)


class WatchedSqlite(SqliteDatabase):
    """The embedded journal as one process sees it. The proof kills no machine: no flush."""

    def __init__(self, path: Path, *, course: Course) -> None:
        super().__init__(path)
        self._course = course

    @contextmanager
    def writing(self, *, durability: Durability = "flushed") -> Iterator[Connection]:
        del durability
        with self._course.kept(super().writing(durability="written")) as connection:
            yield connection

    def connect(self, durability: Durability) -> _Raw:
        raw = super().connect(durability)
        raw.execute("PRAGMA synchronous=OFF", {})
        return raw


class WatchedPostgres(PostgresDatabase):
    """The journal on a server as one process sees it."""

    def __init__(self, url: str, *, course: Course) -> None:
        super().__init__(Secret(url))
        self._course = course

    @contextmanager
    def writing(self, *, durability: Durability = "flushed") -> Iterator[Connection]:
        del durability
        with self._course.kept(super().writing(durability="written")) as connection:
            yield connection


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
SERVED = ("restart", "set_config", "flip_flag", "read_url", "fetch_page")
"""Tools whose pins change while calls are under way; the others are built in."""
ASKERS = ("restart", "scale", "flip_flag")
"""Tools whose server sometimes asks before it does something."""
_FORMS = {
    "yes": '{"type":"object","properties":{"sure":{"type":"boolean"}},"required":["sure"]}',
    "words": '{"type":"object","properties":{"why":{"type":"string"}},"required":["why"]}',
}


def _carried(request: CallRequest) -> tuple[Literal["", "yes", "words"], str]:
    """Return what the server of a call had asked, and the words that the call takes to it, as its hand sends them."""
    if request.needs is None:
        return "", ""
    if all(ask.schema == _FORMS["yes"] for ask in request.needs.asks):
        return "yes", ""
    replies = _asks.replies_of(request.needs.asks, answers=request.answers) or {}
    return "words", "".join(str(json.loads(reply.content).get("why", "")) for reply in replies.values())


@dataclass(slots=True)
class World:
    """What the tools saw, in its order, with the oracle beside it."""

    authorities: list[Authority]
    """One per process; a run is at home in one of them."""
    course: Course
    clock: TimeOfWorld
    rng: random.Random
    oracle: told.Oracle
    fences: dict[str, Fence] = field(default_factory=dict)
    homes: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    deleted: set[str] = field(default_factory=set)
    pins: dict[str, str] = field(default_factory=dict)
    """What is pinned otherwise than at first; empty: not any more."""
    fates: tuple[float, ...] = (100, 0, 0, 0)
    """How often the tools answer well, get nothing, do it and say nothing, or fail."""
    asking: float = 0.0
    """How often a tool that may ask people does so before it does anything."""
    is_earned: bool = False
    """Whether levels are those that workflows have earned here, and not all that there are."""

    @property
    def authority(self) -> Authority:
        """The process in which people work."""
        return self.authorities[0]

    @property
    def database(self) -> Database:
        return self.authority.runs.database

    # -- the tools ----------------------------------------------------------------------------------------------------

    async def use(self, request: CallRequest, key: str) -> ToolOutcome:
        """Take a call as a downstream does: it knows what reached it, and nothing of why."""
        call, tool = request.call, request.tool
        for _ in range(self.rng.choice((0, 0, 0, 1, 2, 4))):
            await asyncio.sleep(0)
        self.course.go_on(self.course.on_its_way)
        begun_at_s = self.course.last[ASKED.get()[0]][1]
        if self.clock.now_s > begun_at_s + told.READ_S:
            # It was on its way for longer than anybody waits: the connection is gone, and nothing arrives.
            return ToolOutcome(call=call.id, tool=tool.name, kind=OutcomeKind.TIMEOUT, detail="no answer in time")
        asks = key and request.needs is None and tool.name in ASKERS and self.rng.random() < self.asking
        fate = "asks" if asks else self.rng.choices(_FATES, self.fates)[0]
        is_done = fate not in {"lost", "fails", "asks"} and bool(key)
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
        if asks:
            self.counts["asked"] += 1
            form = self.rng.choice(("yes", "yes", "words"))
            raise NeedsPeopleError(NeedsPeople(asks=(Ask(key="q", message=f"{form}?", schema=_FORMS[form]),)))
        kind = {
            "lost": OutcomeKind.TRANSPORT_ERROR,
            "silent": OutcomeKind.TIMEOUT,
            "fails": OutcomeKind.TOOL_ERROR,
        }.get(fate, OutcomeKind.OK)
        return ToolOutcome(
            call=call.id, tool=tool.name, kind=kind, content=content, is_json=True, size_bytes=len(content)
        )

    def _seen_as(self, request: CallRequest, key: str, *, is_done: bool) -> told.Use:
        call, now_s, fence = request.call, self.clock.now_s, request.caller.fence
        asked, asked_at_s = ASKED.get()
        begun, begun_at_s = self.course.last[asked]
        with self.database.reading() as connection:
            audited = connection.one("SELECT size FROM quell_audit_head").size
        form, words = _carried(request)
        return told.Use(
            at_s=now_s,
            tool=call.tool,
            arguments=call.arguments,
            run=call.run,
            call=call.id,
            key=key,
            asked=asked,
            asked_at_s=asked_at_s,
            begun=begun,
            begun_at_s=begun_at_s,
            pin=call.pin,
            token=fence.token if fence is not None else "",
            form=form,
            words=words,
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
        self.homes[run] = self.rng.randrange(len(self.authorities))
        begun = replace(actor, run=run)
        self.oracle.see(begun)
        self.oracle.see(told.Held(run=run, token="slot", number=self.course.number))
        return begun

    def earn(self, tenant: str, digest: str) -> None:
        """Let a workflow version have earned some level for each of its scopes, or all that there are."""
        for kind in (ToolClass.REVERSIBLE, ToolClass.IRREVERSIBLE):
            for place in ("staging", "production"):
                level = Level(self.rng.choice((1, 2, 3, 4, 5, 5)))
                with self.database.writing() as connection:
                    connection.run(
                        "INSERT INTO quell_autonomy (tenant, workflow_digest, action_class, environment, level, body)"
                        " VALUES (:tenant, :digest, :kind, :place, :level, :body) ON CONFLICT DO NOTHING",
                        tenant=tenant,
                        digest=digest,
                        kind=kind.value,
                        place=place,
                        level=int(level),
                        body=_text(Standing(level=level)),
                    )
                self.oracle.see(
                    told.Earned(
                        digest=digest, kind=kind.value, environment=place, level=level, number=self.course.number
                    )
                )

    def take_over(self, run: str) -> tuple[Fence, Authority]:
        """Give a run to another worker; return what the one before went by, and where it was."""
        before = self.fences[run], self.authorities[self.homes[run]]
        token = f"slot-{self.rng.getrandbits(32):08x}"
        with self.database.writing() as connection:
            connection.run(
                "UPDATE quell_runs SET token = :token, dispatch = dispatch + 1 WHERE id = :run", run=run, token=token
            )
        self.fences[run] = Fence(run=run, dispatch=before[0].dispatch + 1, token=token)
        self.homes[run] = self.rng.randrange(len(self.authorities))
        self.oracle.see(told.Held(run=run, token=token, number=self.course.number))
        return before

    def stop(self, way: Stopping, *, by: Principal, tool: str, environment: str, lasts_s: float = 600) -> str:
        """Stop what the globs cover, and return the id of the stop."""
        switches, now = self.authority.guard.switches, self.clock()
        ends_at_s, keys = float("inf"), None
        if way == "kill here":
            killed = switches.kill_now(by=by, reason="stop", tool=tool, environment=environment)
            stop, keys = killed.switch, frozenset(killed.in_flight)
        elif way == "kill elsewhere":  # as another process does: this one hears of it by the rows alone
            with self.database.writing() as connection:
                killed = switches.kill(connection, by=by, reason="stop", tool=tool, environment=environment)
            stop, keys = killed.switch, frozenset(killed.in_flight)
        else:
            ends = now + timedelta(seconds=lasts_s)
            with self.database.writing() as connection:
                stop = switches.freeze(
                    connection, by=by, reason="stop", starts_at=now, ends_at=ends, tool=tool, environment=environment
                )
            ends_at_s = self.clock.of(ends)
        self.oracle.see(
            told.Stop(
                id=stop.id,
                at_s=self.clock.now_s,
                number=self.course.number,
                kind=stop.kind,
                tenant=by.tenant,
                tool=tool,
                environment=environment,
                ends_at_s=ends_at_s,
                told=keys,
            )
        )
        return stop.id

    def repin(self, name: str, pin: str, *, asked: int) -> None:
        """Take another definition of a tool, or none, as a reload does: policies first, then the registry."""
        self.pins[name] = pin
        served = {
            each: Entry(tool=replace(BY_NAME[each], pin=kept), hand=LocalHand(each, self.use))
            for each, kept in self.pins.items()
            if kept
        }
        policy = _policy_over(self.authority, tuple(sorted(self.pins.items())), served)
        for authority in self.authorities:
            authority.guard.policy = policy
            authority.registry.serve(served, turn=authority.registry.turn)
        self.oracle.see(told.Pinned(tool=name, pin=pin, asked=asked, number=self.course.number))

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

    def check_audit(self) -> None:
        """Let the oracle compare what happened with what is on record."""
        for authority in self.authorities:
            authority.guard.audit.flush()
        records: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
        with self.database.reading() as connection:
            rows = connection.all(
                "SELECT number, kind, run, body FROM quell_audit WHERE kind IN ('effect', 'decision') ORDER BY number"
            )
        for row in rows:
            body = json.loads(row.body)
            records[row.kind, row.run, body["call"]].append((row.number, body["arguments"]))
        self.oracle.check_audit(records, is_intact=self.authority.guard.audit.verify().is_intact)


_FATES = ("well", "lost", "silent", "fails")


async def _nothing(_context: RunContext) -> Next:
    return Done(result={})


_LOADED: dict[tuple[tuple[str, str], ...], PolicySet] = {}


def _policy_over(authority: Authority, pins: tuple[tuple[str, str], ...], served: Mapping[str, Entry]) -> PolicySet:
    """Return the policies over what is pinned so; loaded once per process, as a set never changes."""
    if pins not in _LOADED:
        _LOADED[pins] = PolicySet.load(policy_sources(authority.settings), tools=authority.registry.tools_with(served))
    return _LOADED[pins]


@asynccontextmanager
async def small_world(
    rng: random.Random, *, url: str = "", is_earned: bool | None = None, processes: int = 0
) -> AsyncIterator[World]:
    """Open the real thing over a fresh journal: on that server, or in memory where the machine has such a place."""
    asyncio.get_running_loop().set_default_executor(Inline(max_workers=1))
    shared = Path("/dev/shm")
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="quell-proof-", dir=shared if shared.is_dir() else None)
        )
        state_dir, clock = Path(directory), TimeOfWorld()
        course = Course(clock=clock)
        settings = _settings(state_dir)
        world = World(
            authorities=[],
            course=course,
            clock=clock,
            rng=rng,
            oracle=told.Oracle(),
            is_earned=rng.random() < 0.4 if is_earned is None else is_earned,
            asking=rng.choice((0, 0, 0.1, 0.4)),
        )
        for _ in range(processes or rng.choice((1, 2))):
            database: Database = (
                WatchedPostgres(url, course=course) if url else WatchedSqlite(state_dir / SQLITE_FILE, course=course)
            )
            runs = Runs(database, settings=settings.journal, clock=clock, entropy=rng.randbytes, version="v1")
            create_tables(database)
            runs.register("heal", _nothing)
            stack.push_async_callback(runs.close)
            authority = await open_authority(
                runs,
                settings,
                clock=clock,
                entropy=rng.randbytes,
                env={},
                builtin=[(tool, LocalHand(tool.name, world.use)) for tool in TOOLS if tool.name not in SERVED],
                monotonic=clock.monotonic,
            )
            stack.push_async_callback(authority.close)
            if not world.is_earned:
                # How levels are earned has a proof of its own; here each workflow has earned all there are.
                authority.guard.autonomy.level = lambda *_all, **_named: Level.CLOSED_LOOP  # type: ignore[method-assign]
            world.authorities.append(authority)
        for name in SERVED:
            world.pins[name] = BY_NAME[name].pin
        world.repin(SERVED[0], BY_NAME[SERVED[0]].pin, asked=-1)
        for name in SERVED[1:]:
            world.oracle.see(told.Pinned(tool=name, pin=BY_NAME[name].pin, asked=-1, number=-1))
        try:
            yield world
        finally:
            course.between = lambda: None


def _settings(state_dir: Path) -> Settings:
    (state_dir / "own.cedar").write_text(POLICY, encoding="utf-8")
    return Settings(
        state_dir=state_dir,
        journal=JournalSettings(url=Secret("")),
        governance=GovernanceSettings(pack="reversible-auto", policies=(str(state_dir / "own.cedar"),)),
        budgets=BudgetSettings(
            run_calls=told.RUN_CALLS, run_units=told.RUN_UNITS, day_calls=told.DAY_CALLS, run_minutes=100_000.0
        ),
    )
