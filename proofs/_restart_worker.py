"""A nursery of processes that hold runs and of people who approve, each forked, armed to kill itself at a moment, and mortal."""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from quell.app import Authority, open_authority
from quell.config import JournalSettings, Secret, Settings
from quell.domain import (
    ApprovalStatus,
    CallRequest,
    Effect,
    EffectState,
    OutcomeKind,
    Parked,
    Principal,
    Recovery,
    RefusedError,
    ResourceRule,
    RunStatus,
    Tool,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
)
from quell.governance import Approvals, Guard
from quell.runs import Done, Ledger, Next, RunContext, Runs, WaitUntil, _ledger, system_clock
from quell.tools import LocalHand

ENDED, ASKED_AGAIN, TORN = 0, 3, 5
"""Exit codes of a life: its work is over; there is nothing to approve yet; the account was found damaged."""
TIMEOUT_S = 1.0
LEASE_S = 1.0
LIFE_MAX_S = 45.0
_ASLEEP_S = 0.1

Moment = Literal["before", "after"]
MOMENTS: dict[str, tuple[type, str, Moment]] = {
    "asking": (Guard, "_park", "before"),
    "asked, not yet kept": (Approvals, "ask", "after"),
    "asked": (Guard, "_park", "after"),
    "voting": (Approvals, "decide", "before"),
    "voted, not yet kept": (Approvals, "decide", "after"),
    "used up, not yet kept": (Approvals, "consume", "after"),
    "intended, not yet kept": (Guard, "on_intent", "after"),
    "intended": (Ledger, "_meet", "after"),
    "starting": (Guard, "on_start", "after"),
    "started": (Ledger, "_start", "after"),
    "ending": (Ledger, "_end", "before"),
    "ended, not yet kept": (Guard, "on_end", "after"),
    "ended": (Ledger, "_end", "after"),
}
"""Where in the one path a process can be told to kill itself: the method, and whether before or after its work."""
SENDING: tuple[str, ...] = ("about to send", "sent, not yet taken", "answered")
"""The moments around the effect itself; in the second the other side has the request and nobody the answer."""

TOOLS: dict[str, tuple[ToolClass, Recovery]] = {
    "set_replicas": (ToolClass.REVERSIBLE, Recovery.KEYED),
    "drop_volume": (ToolClass.IRREVERSIBLE, Recovery.PROBEABLE),
}
"""One whose other side knows keys, approved by one person; one that happens as often as it is sent, approved by two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a nursery's journal and its world are."""

    url: str
    state_dir: str
    port: int
    tool: str
    mutant: str = ""


def die() -> None:
    """End as by a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Make this process kill itself the first time that it comes to a moment of the path."""
    if moment not in MOMENTS:
        return
    owner, name, when = MOMENTS[moment]
    work: Callable[..., object] = getattr(owner, name)

    @functools.wraps(work)
    def mortal(*args: Any, **kwargs: Any) -> object:
        if when == "before":
            die()
        done = work(*args, **kwargs)
        die()
        return done

    setattr(owner, name, mortal)


@dataclass(slots=True, kw_only=True)
class Peer:
    """The client of the other side."""

    port: int
    moment: str

    def ask(self, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S * 4)
        try:
            connection.request(method, path)
            if self.moment == "sent, not yet taken" and method == "POST":
                die()
            return connection.getresponse().status
        finally:
            connection.close()

    async def use(self, request: CallRequest, key: str) -> ToolOutcome:
        call = request.call
        if call.tool == "is_dropped":
            status = await asyncio.to_thread(self.ask, "GET", f"/{call.run}")
            content = json.dumps({"happened": status == http.HTTPStatus.OK})
        else:
            if self.moment == "about to send":
                die()
            status = await asyncio.to_thread(self.ask, "POST", f"/{call.run}/{request.tool.recovery}/{key}")
            if self.moment == "answered":
                die()
            content = json.dumps({"status": status})
        kind = OutcomeKind.OK if status in {200, 404} else OutcomeKind.TRANSPORT_ERROR
        return ToolOutcome(
            call=call.id, tool=call.tool, kind=kind, content=content, is_json=True, size_bytes=len(content)
        )


def tools() -> list[Tool]:
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"service": {"type": "string", "maxLength": 40}},
            "required": ["service"],
            "additionalProperties": False,
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    look = Tool(
        name="is_dropped",
        server="",
        original="is_dropped",
        description="whether it was dropped",
        input_schema=schema,
        tool_class=ToolClass.READ,
        recovery=Recovery.NATURAL,
        resource=ResourceRule(name="/service"),
        timeout_s=TIMEOUT_S,
        result_max_bytes=10_000,
        pin="sha256:is_dropped",
    )
    acting = [
        replace(
            look,
            name=name,
            original=name,
            description=name,
            tool_class=tool_class,
            recovery=recovery,
            probe="is_dropped" if recovery is Recovery.PROBEABLE else "",
            revert=name if tool_class is ToolClass.REVERSIBLE else "",
            pin=f"sha256:{name}",
        )
        for name, (tool_class, recovery) in TOOLS.items()
    ]
    return [look, *acting]


@asynccontextmanager
async def house(place: Place, *, moment: str) -> AsyncIterator[tuple[Runs, Authority]]:
    """Open the journal and everything that decides and acts on it, as one process of many does."""
    settings = Settings(
        state_dir=Path(place.state_dir),
        journal=JournalSettings(url=Secret(place.url), lease_s=LEASE_S, attempts_max=99),
    )
    peer = Peer(port=place.port, moment=moment)
    runs = await Runs.open(
        settings.journal, state_dir=settings.state_dir, clock=system_clock, entropy=os.urandom, version="v1"
    )
    try:
        authority = await open_authority(
            runs,
            settings,
            clock=system_clock,
            entropy=os.urandom,
            env={},
            builtin=[(tool, LocalHand("peer", peer.use)) for tool in tools()],
        )
        try:
            yield runs, authority
        finally:
            await authority.close()
    finally:
        await runs.close()


async def work(context: RunContext, *, authority: Authority, tool: str) -> Next:
    """Want one thing of the world; while people are asked be nothing but a row."""
    principal = Principal(user="ann", roles=("operator",), agent="sre", agent_tools=("*",))
    caller = ToolCaller(principal=principal, run=context.run.id, fence=context.fence)
    wanted = ToolCall(id="call-1", tool=tool, arguments='{"service":"web"}')

    async def act() -> dict[str, str]:
        ended = await authority.toolbox.call(wanted, caller=caller)
        return {"kind": "parked"} if isinstance(ended, Parked) else {"kind": ended.kind.value, "detail": ended.detail}

    told = await context.step("act", act, returns=dict[str, str], timeout_s=30)
    if told["kind"] == "parked":
        return WaitUntil(at=await context.now() + timedelta(seconds=_ASLEEP_S), state={"waits": True})
    return Done(result=told)


async def hold(place: Place, *, moment: str, life_s: float) -> int:
    """Be the worker: start the run or take it over, and stay until it has ended."""
    async with house(place, moment=moment) as (runs, authority):
        if place.mutant == "forgets":
            _forget(authority)

        async def heal(context: RunContext) -> Next:
            return await work(context, authority=authority, tool=place.tool)

        runs.register("heal", heal)
        await runs.launch()
        run = await runs.start("heal", subject="web", arguments={}, key="the only one")
        ended = await runs.wait(run.id, timeout_s=life_s)
        is_whole = (await asyncio.to_thread(authority.guard.audit.verify)).is_intact
        return TORN if not is_whole else ENDED if ended.status is RunStatus.SUCCEEDED else 1


async def found(place: Place) -> int:
    """Make the tables and keys."""
    async with house(place, moment=""):
        return ENDED


async def approve(place: Place, *, moment: str, user: str) -> int:
    """Be a person at another process: read what is asked, and say yes to exactly that."""
    by = Principal(user=user, roles=("approver",))
    async with house(place, moment="") as (runs, authority):
        approvals = authority.guard.approvals
        with runs.database.reading() as connection:
            asked = [a for a in approvals.listed(connection, tenant="local") if a.status is ApprovalStatus.REQUESTED]
        if not asked:
            return ASKED_AGAIN
        with runs.database.writing() as connection:
            approvals.decide(connection, asked[0].id, by=by, verdict="approve", digest_seen=asked[0].digest)
        if moment == "voted":
            die()
    return ENDED


def _forget(authority: Authority) -> None:
    """A mutant: approvals live with the process that asked, as workflow engines with live waits have it."""
    with authority.runs.database.writing() as connection:
        for approval in authority.guard.approvals.listed(connection, tenant="local"):
            try:
                authority.guard.approvals.void(connection, approval.id, reason="its process is gone")
            except RefusedError:
                continue


def _careless(effect: Effect, **_: object) -> Literal["send", "stop"]:
    """A mutant: send everything again that is not settled, as a retry loop would."""
    return "send" if effect.state in {EffectState.INTENT, EffectState.STARTED} else "stop"


def live(place: Place, plan: dict[str, str]) -> int:
    """Live one life as planned."""
    arm(plan["moment"])
    if place.mutant == "careless":
        _ledger.next_move = _careless  # type: ignore[attr-defined]  # this process is a mutant and dies soon
    if plan["role"] == "founder":
        return asyncio.run(found(place))
    if plan["role"] == "worker":
        return asyncio.run(hold(place, moment=plan["moment"], life_s=float(plan["life_s"])))
    return asyncio.run(approve(place, moment=plan["moment"], user=plan["user"]))


def main() -> None:
    """Answer lines on standard input: a plan gives the pid of a new life, a pid waits for its end and gives its code."""
    # Imported once for every life: what a launch would load.
    import cedarpy  # noqa: F401, PLC0415
    import psycopg  # noqa: F401, PLC0415

    from quell.runs import _dispatch, _engine, _executor  # noqa: F401, PLC0415

    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            _, status = os.waitpid(asked, 0)
            told = os.waitstatus_to_exitcode(status)
        else:
            told = os.fork()
            if told == 0:
                code = 1
                try:
                    code = live(Place(**asked["place"]), asked["plan"])
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
