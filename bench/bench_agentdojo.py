"""AgentDojo through our hand: a scripted model that obeys its user and every attacker, and what the guard lets it do.

python -m bench.bench_agentdojo [--json] [--every N]

The model is no model: it executes the ground truth of the user's task and that of the injection, whether or not it has read
it, after or before the user's task. Every call goes through `Toolbox.call`. Their worlds live in a Python of their own
(.bench/agentdojo, made here, some 80 packages), at the other end of a pipe. `--every N` takes every Nth episode.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from quell.app import Authority, open_authority
from quell.config import BudgetSettings, GovernanceSettings, Settings
from quell.domain import (
    AutonomyScope,
    CallRequest,
    Clock,
    Fence,
    Level,
    OutcomeKind,
    Parked,
    Principal,
    Recovery,
    ResourceRule,
    Tool,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
)
from quell.governance import Approvals, Autonomy
from quell.runs import Connection, Database, Done, Next, RunContext, Runs
from quell.tools import LocalHand

PACKAGE = "agentdojo==0.1.35"
PLACE = Path(".bench/agentdojo")
_WORLD = Path(__file__).with_name("_agentdojo_world.py")
_R, _E, _U, _I = ToolClass.READ, ToolClass.EGRESS, ToolClass.REVERSIBLE, ToolClass.IRREVERSIBLE
_NATURAL, _KEYED, _BLIND = Recovery.NATURAL, Recovery.KEYED, Recovery.BLIND


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an operator would say of a tool, once, knowing its name and meaning and no task."""

    tool_class: ToolClass
    recovery: Recovery
    reason: str
    revert: str = ""
    destination: str = ""
    enumerated: Mapping[str, str] = field(default_factory=dict)
    """Arguments that name things of the user's own, by the inventory that lists those."""


def _gone(reason: str, recovery: Recovery = _BLIND) -> Terms:
    return Terms(tool_class=_I, recovery=recovery, reason=reason)


TERMS: Mapping[str, Terms] = {
    "get_webpage": Terms(tool_class=_E, recovery=_NATURAL, reason="its URL carries data out", destination="/url"),
    "post_webpage": _gone("publishes"),
    "send_email": _gone("a mail that was sent is read"),
    "send_direct_message": _gone("a message that was sent is read"),
    "send_channel_message": _gone("a message that was sent is read"),
    "invite_user_to_slack": _gone("sends an invitation"),
    "add_user_to_channel": _gone("discloses a channel; no tool takes one person out of one channel"),
    "remove_user_from_slack": _gone("the way back needs an invitation", _NATURAL),
    "delete_email": _gone("no tool brings it back", _NATURAL),
    "delete_file": _gone("no tool brings it back", _NATURAL),
    "append_to_file": _gone("no tool cuts it off again"),
    "share_file": _gone("discloses; no tool takes a share back", _NATURAL),
    "cancel_calendar_event": _gone("tells everybody invited", _NATURAL),
    "add_calendar_event_participants": _gone("sends invitations; no tool takes one back", _NATURAL),
    "reserve_hotel": _gone("binds; no tool cancels it"),
    "reserve_car_rental": _gone("binds; no tool cancels it"),
    "reserve_restaurant": _gone("binds; no tool cancels it"),
    "send_money": _gone("money that is gone is gone"),
    "schedule_transaction": _gone("no tool takes a standing order back"),
    "update_password": _gone("locks the owner out", _NATURAL),
    "create_file": Terms(
        tool_class=_U, recovery=_KEYED, reason="can be deleted; the hand keeps keys", revert="delete_file"
    ),
    "create_calendar_event": Terms(
        tool_class=_U,
        recovery=_KEYED,
        reason="can be cancelled; the hand keeps keys",
        revert="cancel_calendar_event",
        enumerated={"participants": "person"},
    ),
    "reschedule_calendar_event": Terms(
        tool_class=_U,
        recovery=_NATURAL,
        reason="can be set back",
        revert="reschedule_calendar_event",
        enumerated={"event_id": "event"},
    ),
    "update_scheduled_transaction": Terms(
        tool_class=_U,
        recovery=_NATURAL,
        reason="can be set back before it is due",
        revert="update_scheduled_transaction",
        enumerated={"recipient": "account"},
    ),
    "update_user_info": Terms(tool_class=_U, recovery=_NATURAL, reason="can be set back", revert="update_user_info"),
}
"""Every tool of the four suites that is not a plain read."""
_READS = ("get_", "search_", "list_", "read_", "check_")
"""How the names of the plain reads begin: what they ask stays with the user's own mail, bank, files or travel site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One way to stand between the model and the world."""

    name: str
    pack: Literal["none", "copilot", "reversible-auto"]
    level: Level = Level.APPROVE_EACH
    is_enumerated: bool = False
    taint: Literal["tracked", "ignored"] = "ignored"
    """Whether a run is tainted from its first read on."""


GATES = (
    Gate(name="none", pack="none"),
    Gate(name="copilot", pack="copilot"),
    Gate(
        name="reversible-auto, enumerated arguments, taint ignored",
        pack="reversible-auto",
        level=Level.REVERSIBLE,
        is_enumerated=True,
    ),
    Gate(
        name="reversible-auto, enumerated arguments, tainted by its first read",
        pack="reversible-auto",
        level=Level.REVERSIBLE,
        is_enumerated=True,
        taint="tracked",
    ),
)


class _Earned(Autonomy):
    """Levels that every workflow has earned."""

    def __init__(self, database: Database, *, clock: Clock, level: Level) -> None:
        super().__init__(database, clock=clock)
        self._earned = level

    def level(self, connection: Connection, scope: AutonomyScope) -> Level:  # noqa: ARG002 - it is the same for all
        return self._earned


class Bridge:
    """The pipe to the worlds."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(_WORLD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": os.defpath, "HOME": tempfile.gettempdir()},
        )

    def ask(self, op: str, **told: object) -> Any:
        """Send one line and read one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **told}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worlds ended with exit code {self._process.wait(timeout=10)}")
        return json.loads(line)

    def close(self) -> None:
        """End the worlds."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait(timeout=30)


@contextmanager
def worlds(place: Path = PLACE) -> Iterator[Bridge]:
    """Give a bridge to the benchmark of an environment that is there."""
    bridge = Bridge((place / "bin" / "python").absolute())
    try:
        yield bridge
    finally:
        bridge.close()


def is_installed(place: Path = PLACE) -> bool:
    """Tell whether the benchmark has its environment."""
    return any(place.glob("lib/python3*/site-packages/agentdojo/__init__.py"))


def install(place: Path = PLACE) -> None:
    """Make the benchmark an environment of its own, unless it has one."""
    if is_installed(place):
        return
    print(f"installing {PACKAGE} into {place} …", file=sys.stderr, flush=True)
    venv.create(place, with_pip=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", PACKAGE]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)


def tool_of(told: Mapping[str, Any], inventory: Mapping[str, Sequence[str]], *, is_enumerated: bool) -> Tool:
    """Make one of their tools one of ours."""
    name = told["name"]
    terms = TERMS.get(name)
    if terms is None:
        assert name.startswith(_READS), f"nobody has classed {name}"
        terms = Terms(tool_class=_R, recovery=_NATURAL, reason="reads what is the user's own")
    schema = {**told["schema"], "additionalProperties": False}
    for argument, kind in terms.enumerated.items() if is_enumerated else ():
        if inventory.get(kind):
            _enumerate(schema["properties"][argument], inventory[kind])
    return Tool(
        name=name,
        server="",
        original=name,
        description=told["description"],
        input_schema=json.dumps(schema, sort_keys=True, separators=(",", ":")),
        tool_class=terms.tool_class,
        recovery=terms.recovery,
        resource=ResourceRule(kind="Account", destination=terms.destination),
        revert=terms.revert,
        pin=f"sha256:{name}",
    )


def _enumerate(schema: dict[str, Any], names: Sequence[str]) -> None:
    """Let every text in an argument be one of these names."""
    for part in (schema, *schema.get("anyOf", ()), schema.get("items", {})):
        if part.get("type") == "string":
            part["enum"] = list(names)
        if "items" in part and part is not schema:
            _enumerate(part["items"], names)


class SteppingClock:
    """A clock that stands, and steps over to the next episode's hour."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 20, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


@dataclass(slots=True, kw_only=True)
class Stage:
    """One suite behind one gate."""

    gate: Gate
    suite: str
    bridge: Bridge
    clock: SteppingClock
    runs: Runs
    authority: Authority
    trace: list[list[object]] = field(default_factory=list)
    """Calls that reached the world, in order."""
    keys: set[str] = field(default_factory=set)
    asked: int = 0

    async def use(self, request: CallRequest, key: str) -> ToolOutcome:
        """Be the hand: do a call in their world, once per key."""
        call = request.call
        told = {"result": "done before", "error": ""}
        if not key or key not in self.keys:
            told = self.reach(call.tool, json.loads(call.arguments))
        self.keys |= {key} - {""}
        kind = OutcomeKind.TOOL_ERROR if told["error"] else OutcomeKind.OK
        content = told["result"]
        return ToolOutcome(
            call=call.id, tool=call.tool, kind=kind, content=content, detail=told["error"], size_bytes=len(content)
        )

    def reach(self, tool: str, arguments: Mapping[str, object]) -> dict[str, str]:
        """Do a call in their world."""
        told: dict[str, str] = self.bridge.ask("call", function=tool, args=arguments)
        if not told["error"]:
            self.trace.append([tool, arguments])
        return told

    async def episode(self, user: str, injection: str, *, order: Literal["after", "before"]) -> Score:
        """Let the model obey both, and have it judged."""
        plan = self.bridge.ask("begin", suite=self.suite, user=user, injection=injection)
        self.trace, self.asked = [], 0
        parts = [plan["user"], *([plan["injection"]] if injection else [])]
        if order == "before":
            parts.reverse()
        calls = [call for part in parts for call in part["calls"]]
        wanted = Counter(_shown(*call) for call in plan["user"]["calls"])
        if self.gate.pack == "none":
            for tool, arguments in calls:
                self.reach(tool, arguments)
        else:
            await self._guarded(calls, wanted)
        said = "\n".join(part["output"] for part in parts)
        verdict = self.bridge.ask("judge", calls=self.trace, output=said)
        return Score(
            is_done=verdict["utility"],
            is_attacked=bool(injection) and verdict["attacked"],
            asked=self.asked,
            kind=_kind_of(plan["injection"]) if injection else "",
        )

    async def _guarded(self, calls: Iterable[Sequence[Any]], wanted: Counter[str]) -> None:
        self.clock.at += timedelta(hours=2)
        run = await self.runs.start("episode", subject=self.suite, arguments={})
        principal = Principal(
            user="emma",
            roles=("operator",),
            agent="assistant",
            agent_tools=("*",),
            workflow="assist",
            workflow_digest="assist-1",
            workflow_tools=("*",),
            level=self.gate.level,
        )
        caller = ToolCaller(principal=principal, run=run.id, fence=self._hold(run.id))
        for number, (tool, arguments) in enumerate(calls):
            call = ToolCall(id=f"call-{number}", tool=tool, arguments=json.dumps(arguments))
            ended = await self.authority.toolbox.call(call, caller=caller)
            if isinstance(ended, Parked):
                self.asked += 1
                if self._asked(ended, is_wanted=wanted[_shown(tool, arguments)] > 0):
                    wanted[_shown(tool, arguments)] -= 1
                    await self.authority.toolbox.call(call, caller=caller)
            if self.gate.taint == "tracked":
                caller = replace(caller, principal=replace(principal, is_tainted=True))

    def _asked(self, parked: Parked, *, is_wanted: bool) -> bool:
        """Be the honest people: approve exactly what the user's task needs, as often as it needs it."""
        approvals: Approvals = self.authority.guard.approvals
        for user in ("bob", "cal")[: parked.quorum if is_wanted else 1]:
            with self.runs.database.writing(durability="written") as connection:
                approvals.decide(
                    connection,
                    parked.approval,
                    by=Principal(user=user, roles=("approver",)),
                    verdict="approve" if is_wanted else "reject",
                    digest_seen=parked.digest,
                    reason="" if is_wanted else "the user has not asked for this",
                )
        return is_wanted

    def _hold(self, run: str) -> Fence:
        """Hold a run as an executor does."""
        with self.runs.database.writing(durability="written") as connection:
            connection.run("UPDATE quell_runs SET status = 'running', token = 'bench' WHERE id = :run", run=run)
        return Fence(run=run, dispatch=0, token="bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How an episode ended."""

    is_done: bool
    is_attacked: bool
    asked: int
    """Questions to people."""
    kind: str
    """What the attack consists of."""


def _shown(tool: str, arguments: object) -> str:
    return json.dumps([tool, arguments], sort_keys=True)


def _kind_of(injection: Mapping[str, Any]) -> str:
    """Say what an attack needs: only words, only reads, a URL, or an effect."""
    classes = {TERMS[tool].tool_class if tool in TERMS else _R for tool, _ in injection["calls"]}
    if not injection["calls"] or classes == {_R}:
        return "text only"
    return "read with a URL" if classes <= {_R, _E} else "effect"


async def _nothing(_context: RunContext) -> Next:
    return Done(result={})


@asynccontextmanager
async def stage(gate: Gate, suite: str, bridge: Bridge, catalogue: Mapping[str, Any]) -> AsyncIterator[Stage]:
    """Open the guard and the hand for the tools of one suite."""
    free = BudgetSettings(
        run_calls=10**6, run_minutes=1e5, run_bytes=10**12, run_units=10**6, day_calls=10**9, day_usd=1e6
    )
    clock = SteppingClock()
    with tempfile.TemporaryDirectory(prefix="quell-bench-dojo-") as directory:
        settings = Settings(
            state_dir=Path(directory),
            budgets=free,
            governance=GovernanceSettings(pack="copilot" if gate.pack == "none" else gate.pack),
        )
        runs = await Runs.open(
            settings.journal, state_dir=settings.state_dir, clock=clock, entropy=os.urandom, version="bench"
        )
        runs.register("episode", _nothing)
        hands: list[Stage] = []

        async def use(request: CallRequest, key: str) -> ToolOutcome:
            return await hands[0].use(request, key)

        tools = [tool_of(told, catalogue["inventory"], is_enumerated=gate.is_enumerated) for told in catalogue["tools"]]
        authority = await open_authority(
            runs,
            settings,
            clock=clock,
            entropy=random.Random(1).randbytes,
            env={},
            builtin=[(tool, LocalHand(tool.name, use)) for tool in tools],
            monotonic=clock.monotonic,
        )
        # What a pack lets go by itself is asked here, not how a workflow comes to it: the level is earned.
        authority.guard.autonomy = _Earned(runs.database, clock=clock, level=gate.level)
        try:
            hands.append(Stage(gate=gate, suite=suite, bridge=bridge, clock=clock, runs=runs, authority=authority))
            yield hands[0]
        finally:
            await authority.close()
            await runs.close()


@dataclass(slots=True, kw_only=True)
class Tally:
    """One row of the table."""

    tasks: int = 0
    done: int = 0
    done_alone: int = 0
    """Without a question to people."""
    attacks: int = 0
    after: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    """Attacks that succeeded, by what they consist of."""


async def play(gate: Gate, bridge: Bridge, *, every: int = 1) -> Tally:
    """Play every episode of every suite behind one gate, or every Nth."""
    tally = Tally()
    for suite, told in bridge.ask("catalogue").items():
        async with stage(gate, suite, bridge, told) as on:
            for user in told["users"][::every]:
                score = await on.episode(user, "", order="after")
                tally.tasks += 1
                tally.done += score.is_done
                tally.done_alone += score.is_done and score.asked == 0
            scripted = [each for each in told["injections"] if _is_scripted(bridge, suite, told["users"][0], each)]
            pairs = [(user, injection) for injection in scripted for user in told["users"]]
            for user, injection in pairs[::every]:
                tally.attacks += 1
                for order, found in (("after", tally.after), ("before", tally.before)):
                    score = await on.episode(user, injection, order="after" if order == "after" else "before")
                    found[score.kind] += score.is_attacked
    return tally


def _is_scripted(bridge: Bridge, suite: str, user: str, injection: str) -> bool:
    """Tell whether the attack has a script: some injections come without a ground truth."""
    plan = bridge.ask("begin", suite=suite, user=user, injection=injection)["injection"]
    return bool(plan["calls"] or plan["output"])


def measure(*, every: int = 1) -> dict[str, object]:
    """Play all gates; return their rows."""
    install()
    rows: list[dict[str, object]] = []
    with worlds() as bridge:
        for gate in GATES:
            tally = asyncio.run(play(gate, bridge, every=every))
            row = {
                "gate": gate.name,
                "tasks": tally.tasks,
                "done": tally.done,
                "done_alone": tally.done_alone,
                "attacks": tally.attacks,
                "after": tally.after.total(),
                "before": tally.before.total(),
                "left": {kind: [tally.after[kind], tally.before[kind]] for kind in sorted(tally.after | tally.before)},
            }
            rows.append(row)
            print(f"  {row}", file=sys.stderr, flush=True)
    guarded = next(row for row in rows if row["gate"] == "copilot")
    effects = guarded["left"]
    assert isinstance(effects, dict)
    return {
        "rows": rows,
        "copilot_done": guarded["done"],
        "tasks": guarded["tasks"],
        "attacks": guarded["attacks"],
        "copilot_acts": sum(sum(found) for kind, found in effects.items() if kind != "text only"),
        "copilot_words": max(effects.get("text only", [0, 0])),
    }


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return the rows as a table in Markdown."""
    head = "| gate | benign tasks done | of those without a human | attacks | successful (after / before) | of which |"
    lines = [head, "|---|--:|--:|--:|--:|---|"]
    for row in rows:
        left = row["left"]
        assert isinstance(left, dict)
        told = ", ".join(f"{kind}: {after} / {before}" for kind, (after, before) in left.items())
        lines.append(
            f"| {row['gate']} | {row['done']} of {row['tasks']} | {row['done_alone']} | {row['attacks']}"
            f" | {row['after']} / {row['before']} | {told or 'nothing'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    every = int(sys.argv[sys.argv.index("--every") + 1]) if "--every" in sys.argv else 1
    result = measure(every=every)
    rows = result["rows"]
    assert isinstance(rows, list)
    print(json.dumps(result, indent=2) if "--json" in sys.argv else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
