"""The part of a process that executes runs: it holds a slot, keeps it, and takes over what others left behind."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from quell import telemetry
from quell.config import JournalSettings
from quell.domain import Clock, Fence, JournalError, RunStatus, StateHeldError
from quell.runs._begun import Begun, Due, Hold, SupersededError
from quell.runs._bell import Bells
from quell.runs._context import Continue, Done, Next, RunContext, WaitUntil, Work
from quell.runs._journal import Journal
from quell.runs._lane import Lane
from quell.runs._lease import Lease, Leases
from quell.runs._pen import SegmentPen
from quell.runs._thread import Call, in_thread, whole

if TYPE_CHECKING:
    from quell.runs._dispatch import Dispatched, Dispatcher

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("quell.runs")

_RENEWALS_PER_LEASE = 4
_FENCE_SHARE = 0.7
_SWEEP_MAX_S = 1.0
_WATCH_S = 0.2
_GRACE_S = 2.0
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 2.0
_ENQUEUE_TIMEOUT_S = 10.0
_SWEEP_ROWS_MAX = 500
_WAKE_HORIZON_S = 3600.0


@dataclass(slots=True, kw_only=True)
class _Active:
    """A segment that is being executed here."""

    begun: Begun
    task: asyncio.Task[None] | asyncio.Task[Begun | None]
    interrupted: str = ""
    """Why it was interrupted: `cancelled`, `superseded` or `fenced`."""


class Executor:
    """Executes runs under a lease; every background task of it ends with `close`."""

    def __init__(
        self,
        *,
        journal: Journal,
        leases: Leases,
        settings: JournalSettings,
        clock: Clock,
        works: Mapping[str, Work],
        lanes: Mapping[str, Lane],
        call: Call,
        write: Call,
        write_beside: Call,
        bells: Bells,
        clean: Callable[[str], str],
    ) -> None:
        self._journal = journal
        self._leases = leases
        self._settings = settings
        self._clock = clock
        self._works = works
        self._lanes = lanes
        self._call = call
        self._write = write
        self._write_beside = write_beside
        self._bells = bells
        self._dispatcher: Dispatcher | None = None
        self._clean = clean
        self._lease: Lease | None = None
        self._slot_turn = asyncio.Lock()
        self._active: dict[str, _Active] = {}
        self._orphans: set[tuple[str, int]] = set()
        self._chains: set[asyncio.Task[None]] = set()
        self._fresh: set[str] = set()
        self._adrift: set[str] = set()
        self._ripe: set[str] = set()
        self._sweep_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._context = contextvars.copy_context()

    async def launch(self, dispatcher: Dispatcher | None) -> None:
        """Take a slot, bring DBOS up under it, and begin to recover. Raises StateHeldError when the slot is held.

        Without a dispatcher only what goes the direct way is executed.
        """
        self._dispatcher = dispatcher
        try:
            await whole(self._take_slot())
        except BaseException:
            await self._give_slot_back()
            raise
        self._tasks = [asyncio.create_task(loop()) for loop in (self._renew_forever, self._sweep_forever, self._watch)]

    @property
    def _queued(self) -> list[str]:
        return sorted(self._works.keys() - self._lanes.keys())

    @property
    def has_queues(self) -> bool:
        """Whether what goes by queue is executed here too."""
        return self._dispatcher is not None

    async def open_queues(self, dispatcher: Dispatcher) -> None:
        """Bring DBOS up under the lease that is held, to execute what goes by queue too.

        Raises JournalError when it does not come up; what goes the direct way is executed as before.
        """
        await whole(self._open_queues(dispatcher))
        self._sweep_now.set()

    async def _open_queues(self, dispatcher: Dispatcher) -> None:
        async with self._slot_turn:
            if self._lease is not None:  # else it comes up with the next one
                await in_thread(dispatcher.launch, token=self._lease.token, kinds=self._queued)
            self._dispatcher = dispatcher

    async def close(self) -> None:
        """Interrupt what runs here, stop DBOS and give the slot back; others may go on with it at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._give_slot_back()

    async def _take_slot(self) -> None:
        async with self._slot_turn:
            lease = await self._call(self._leases.take, self._settings.executor)
            try:
                if self._dispatcher is not None:
                    await in_thread(self._dispatcher.launch, token=lease.token, kinds=self._queued)
            except BaseException:
                with suppress(JournalError):
                    await self._call(self._leases.release, lease)
                raise
            self._lease = lease

    async def _give_slot_back(self) -> None:
        lease, self._lease = self._lease, None  # from here on nothing begins
        await self._interrupt_all()
        await self._close_queues()
        if lease is not None:
            with suppress(JournalError):
                await self._call(self._leases.release, lease)

    async def _close_queues(self) -> None:
        async with self._slot_turn:
            if self._dispatcher is not None:
                await in_thread(self._dispatcher.close)

    def is_here(self, run: str) -> bool:
        """Whether this process executes a run."""
        return run in self._active

    async def enqueue(self, run: str, *, kind: str, dispatch: int) -> None:
        """Send a run on its way; when that fails, the next sweep does it."""
        if self._lease is None:
            return
        if kind in self._lanes:
            self._offer(run, kind=kind, dispatch=dispatch)
            return
        if self._dispatcher is None:
            return  # whoever executes what goes by queue finds it
        try:
            async with asyncio.timeout(_ENQUEUE_TIMEOUT_S):
                await in_thread(self._dispatcher.enqueue, run, kind=kind, dispatch=dispatch)
        except Exception as error:  # noqa: BLE001 - the row is written; whatever failed here is made up for
            log.warning("run %s could not be queued, the next sweep tries again: %s", run, error)

    def interrupt(self, run: str, *, why: str) -> None:
        """Stop executing a run here, if it is."""
        active = self._active.get(run)
        if active is not None and not active.interrupted:
            active.interrupted = why
            active.task.cancel()

    async def forget(self, ended: list[tuple[str, int]]) -> None:
        """Delete the workflows of runs that ended, each with all its dispatches."""
        if self._dispatcher is not None:
            workflows = [f"{run}.{dispatch}" for run, last in ended for dispatch in range(last + 1)]
            await in_thread(self._dispatcher.forget, workflows)

    # -- the direct way -----------------------------------------------------------------------------------------

    def reserve(self, kind: str) -> Hold | None:
        """Keep a place for a run that is about to be written, and say under what to begin it; None when it must wait."""
        lane = self._lanes.get(kind)
        if lane is None or not lane.is_clear:
            return None
        hold = self._hold()
        if hold is not None:
            lane.reserved += 1
        return hold

    def take_place(self, kind: str, begun: Begun | None) -> None:
        """Execute what was begun at the place that was reserved for it; without it, give the place back."""
        lane = self._lanes[kind]
        lane.reserved -= 1
        # What was begun under a lease that is gone by now goes on elsewhere.
        if begun is not None and self._lease is not None and begun.token == self._lease.token:
            self._spawn(lane, begun.run.id, dispatch=begun.dispatch, begun=begun)
        self._pump(lane)

    def _hold(self) -> Hold | None:
        lease = self._lease
        if lease is None:
            return None
        return Hold(slot=lease.slot, token=lease.token, attempts_max=self._settings.attempts_max)

    def _offer(self, run: str, *, kind: str, dispatch: int) -> None:
        lane = self._lanes[kind]
        lane.wait(run, dispatch=dispatch, place="last")
        self._pump(lane)

    def _pump(self, lane: Lane) -> None:
        while self._lease is not None and (next_one := lane.next()) is not None:
            run, dispatch = next_one
            self._spawn(lane, run, dispatch=dispatch, begun=None)

    def _spawn(self, lane: Lane, run: str, *, dispatch: int, begun: Begun | None) -> None:
        if run in lane.busy:
            return
        lane.busy.add(run)
        # Of neither the request that started it nor the run whose end made room: where it belongs, its row says.
        task = asyncio.create_task(self._chain(run, dispatch, begun), context=self._context.copy())
        self._chains.add(task)
        task.add_done_callback(partial(self._leave, lane, run))

    def _leave(self, lane: Lane, run: str, task: asyncio.Task[None]) -> None:
        self._chains.discard(task)
        self._active.pop(run, None)
        lane.busy.discard(run)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("run %s was left, the next sweep takes it up: %s", run, error, exc_info=error)
        self._bells.ring(run)
        self._pump(lane)

    async def _chain(self, run: str, dispatch: int, begun: Begun | None) -> None:
        """Execute a run here, segment after segment, until it ends, waits, or is interrupted."""
        task = asyncio.current_task()
        assert task is not None
        hold = self._hold()
        if begun is None and hold is not None:
            try:
                begun = await self._write(self._journal.begin, run, dispatch=dispatch, hold=hold)
            except (SupersededError, JournalError) as error:
                log.warning("run %s cannot begin here: %s", run, error or "the slot is lost")
        while begun is not None:
            self._active[run] = _Active(begun=begun, task=task)
            self._fresh.add(run)
            begun = await self._perform(begun, hold=hold)

    # -- one segment --------------------------------------------------------------------------------------------

    async def execute(self, run: str, dispatch: int) -> None:
        """Execute one dispatch of a run. Cancelled, and so left to be recovered, when this process may not go on."""
        hold = self._hold()
        if hold is None or not await self._is_free(run):
            raise asyncio.CancelledError
        try:
            begun = await self._call(self._journal.begin, run, dispatch=dispatch, hold=hold)
        except (SupersededError, JournalError) as error:
            log.warning("run %s cannot begin here: %s", run, error or "the slot is lost")
            raise asyncio.CancelledError from error
        if begun is None:
            return
        active = _Active(begun=begun, task=asyncio.create_task(self._perform(begun, hold=None)))
        self._active[run] = active
        self._fresh.add(run)
        try:
            await asyncio.wait({active.task})
        finally:
            if not active.task.done():
                active.task.cancel()
                await asyncio.wait({active.task}, timeout=_GRACE_S)
            self._active.pop(run, None)
            self._bells.ring(run)
        if active.interrupted == "fenced" or (active.task.cancelled() and not active.interrupted):
            raise asyncio.CancelledError

    async def _is_free(self, run: str) -> bool:
        """Let an earlier dispatch of the same run end here first."""
        earlier = self._active.get(run)
        if earlier is not None:
            self.interrupt(run, why="superseded")
            await asyncio.wait({earlier.task}, timeout=_GRACE_S)
            await asyncio.sleep(0)
        return run not in self._active

    async def _perform(self, begun: Begun, *, hold: Hold | None) -> Begun | None:
        """Execute one segment; return the next one if the run goes on at once under the same hold."""
        run, pen = begun.run, SegmentPen(self._journal, begun, keep=self.keep, keep_beside=self.keep_beside)
        context = RunContext(
            run=run,
            arguments=begun.arguments,
            state=begun.state,
            kept=begun.kept,
            pen=pen,
            clock=self._clock,
            fence=Fence(run=run.id, dispatch=begun.dispatch, token=begun.token),
            clean=self._clean,
        )
        try:
            with telemetry.span("quell.run", _attributes(begun), parent=telemetry.extract(begun.place)):
                outcome = await self._works[run.kind](context)
            assert isinstance(outcome, Done | Continue | WaitUntil), f"work of {run.kind} returned {outcome!r}"
            ripe_s = self._ripe_s(outcome)
            following = await self.keep(self._journal.end, begun, outcome, hold=hold)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.debug("run %s failed", run.id, exc_info=error)
            await self.keep(self._journal.fail, begun, error=self._clean(_told(error)))
            return None
        else:
            if following is None:
                await self._send_on(begun, outcome, ripe_s=ripe_s)
            return following
        finally:
            pen.close()

    def _ripe_s(self, outcome: Next) -> float:
        """Return when a wait is over by the loop's clock: read before others hear of it, as they may set the other one."""
        wait_s = (outcome.at - self._clock()).total_seconds() if isinstance(outcome, WaitUntil) else 0.0
        return asyncio.get_running_loop().time() + max(0.0, wait_s)

    async def _send_on(self, begun: Begun, outcome: Next, *, ripe_s: float) -> None:
        match outcome:
            case Continue():
                await self.enqueue(begun.run.id, kind=begun.run.kind, dispatch=begun.dispatch + 1)
            case WaitUntil():
                loop = asyncio.get_running_loop()
                if ripe_s < loop.time() + _WAKE_HORIZON_S:
                    loop.call_at(ripe_s, self._ripen, begun)
            case Done():
                pass

    def look(self, due: Due) -> None:
        """Look at once for a run that should be on its way."""
        lane = self._lanes.get(due.kind)
        if lane is None:
            self._sweep_now.set()
        elif not lane.knows(due.run):
            self._offer(due.run, kind=due.kind, dispatch=due.dispatch)

    def _ripen(self, begun: Begun) -> None:
        """A wait is over by a clock that nobody can set."""
        run = begun.run
        self._ripe.add(run.id)
        if self._lease is not None:
            self.look(Due(run=run.id, kind=run.kind, dispatch=begun.dispatch + 1))

    async def keep(self, write: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a write of a run until it succeeds; what was learned is not given up because a database blinks.

        Ends in cancellation when the run is not held any more, or, by the fence, when the database stays away.
        """
        return await self._keep(self._write, partial(write, *args, **kwargs))

    async def keep_beside(self, write: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Keep as `keep` does, in the flush of what is written next."""
        return await self._keep(self._write_beside, partial(write, *args, **kwargs))

    @staticmethod
    async def _keep(way: Call, write: Callable[[], T]) -> T:
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                return await way(write)
            except SupersededError as error:
                raise asyncio.CancelledError from error
            except JournalError as error:
                log.warning("%s; trying again in %.1f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _RETRY_MAX_S)

    # -- in the background --------------------------------------------------------------------------------------

    async def _renew_forever(self) -> None:
        """Keep the slot; stop executing in time when that is not possible, and begin anew when it was taken."""
        lease_s = self._settings.lease_s
        period_s = lease_s / _RENEWALS_PER_LEASE
        renewed_s = time.monotonic()
        while True:
            await asyncio.sleep(period_s)
            assert self._lease is not None
            asked_s = time.monotonic()
            renewal = asyncio.ensure_future(in_thread(self._leases.renew, self._lease))
            while not renewal.done():
                left_s = renewed_s + lease_s * _FENCE_SHARE - time.monotonic()
                if left_s <= 0:
                    await self._fence("the journal does not answer")
                await asyncio.wait({renewal}, timeout=max(left_s, period_s))
            try:
                is_ours = renewal.result()
            except Exception as error:  # noqa: BLE001 - whatever it is, the lease was not renewed
                log.warning("lease on %s not renewed: %s", self._lease.slot, error)
                if time.monotonic() > renewed_s + lease_s * _FENCE_SHARE:
                    await self._fence("the lease could not be renewed")
                continue
            if is_ours:
                renewed_s = asked_s
            else:
                await self._begin_anew()
                renewed_s = time.monotonic()

    async def _fence(self, why: str) -> None:
        for lane in self._lanes.values():
            lane.forget()
        if self._active:
            log.error("stopped executing %d runs: %s", len(self._active), why)
            await self._interrupt_all()

    async def _begin_anew(self) -> None:
        """Another process has taken this slot: stop everything, then come back under a new token."""
        self._lease = None
        await self._fence("another process has taken the executor slot")
        await whole(self._close_queues())
        while self._lease is None:
            try:
                await whole(self._take_slot())
            except (StateHeldError, JournalError) as error:
                log.warning("executes nothing at present: %s", error)
                await asyncio.sleep(self._settings.lease_s)

    async def _interrupt_all(self) -> None:
        for run in list(self._active):
            self.interrupt(run, why="fenced")
        tasks: set[asyncio.Task[None] | asyncio.Task[Begun | None]] = {one.task for one in self._active.values()}
        for chain in self._chains - tasks:
            chain.cancel()  # not begun yet
        tasks |= self._chains
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE_S)

    async def _watch(self) -> None:
        """Notice runs that another process cancelled or took over: each such change is told by an event."""
        last: int | None = None
        while True:
            await asyncio.sleep(_WATCH_S)
            if not self._active:
                last = None
                self._fresh.clear()
                continue
            # Those that are new here may have been told of before this process knew that it has them.
            asked, self._fresh = self._fresh, set()
            try:
                newest, told = await self._call(self._journal.runs_with_news, last)
                asked = (set(self._active) if last is None else asked.union(told)) & self._active.keys()
                held = {run: self._active[run].begun.token for run in asked}
                lost = await self._call(self._journal.no_longer_held, held) if held else {}
            except JournalError:
                last = None  # the renewal of the lease decides what that means
                continue
            last = newest
            for run, status in lost.items():
                self.interrupt(run, why="cancelled" if status is RunStatus.CANCELLED else "superseded")

    async def _sweep_forever(self) -> None:
        """Take over what dead processes left, and send on what nobody has sent."""
        period_s = min(self._settings.lease_s / _RENEWALS_PER_LEASE, _SWEEP_MAX_S)
        trouble = ""
        while True:
            if self._lease is not None:
                try:
                    await self._sweep()
                except Exception as error:  # noqa: BLE001 - the next round tries again; DBOS raises errors of many kinds
                    if str(error) != trouble:
                        log.warning("sweep failed: %s", error)
                    trouble = str(error)
                else:
                    trouble = ""
            with suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await self._sweep_now.wait()
            self._sweep_now.clear()

    async def _sweep(self) -> None:
        await self._call(self._leases.bury)
        ripe = sorted(self._ripe)
        if self._lanes:
            await self._sweep_lanes(ripe)
        if self._dispatcher is not None:
            await self._sweep_queues(self._dispatcher, ripe)
        self._ripe.difference_update(ripe)

    async def _sweep_lanes(self, ripe: list[str]) -> None:
        """Begin what was left, queued elsewhere or is due; one that a living process executes is left to it."""
        lease = self._lease
        if lease is None:
            return
        found = await self._call(self._journal.due, kinds=self._lanes, besides="", ripe=ripe, rows_max=_SWEEP_ROWS_MAX)
        held = await self._call(self._journal.held_by, lease.token)
        # Ours, and nobody here knows it. Seen twice before it counts: between begun and executed there is a moment.
        adrift = {one.run: one for one in held if one.kind in self._lanes and not self._lanes[one.kind].knows(one.run)}
        left = [adrift[run] for run in adrift.keys() & self._adrift]
        self._adrift = adrift.keys() - {one.run for one in left}
        found = [one for one in found if one.run not in self._lanes[one.kind].busy]
        for one in [*left, *(one for one in reversed(found) if one.has_begun)]:
            self._lanes[one.kind].wait(one.run, dispatch=one.dispatch, place="first")
        for one in found:
            self._lanes[one.kind].wait(one.run, dispatch=one.dispatch, place="last")
        for lane in self._lanes.values():
            self._pump(lane)

    async def _sweep_queues(self, dispatcher: Dispatcher, ripe: list[str]) -> None:
        # The order matters: a token is written before its holder executes anything, so one that was
        # seen executing and is then not among the slots has no holder any more.
        executors = await in_thread(dispatcher.executors)
        dead = await self._call(self._leases.without_holder, executors)
        if dead:
            log.warning("taking over runs of %s", ", ".join(dead))
            await in_thread(dispatcher.recover, dead)
        mine = "" if self._lease is None else self._lease.token
        due = await self._call(self._journal.due, kinds=self._queued, besides=mine, ripe=ripe, rows_max=_SWEEP_ROWS_MAX)
        if due:
            known = await in_thread(dispatcher.statuses, [f"{one.run}.{one.dispatch}" for one in due])
            for one in due:
                await self._see_to(one, known.get(f"{one.run}.{one.dispatch}"))

    async def _see_to(self, one: Due, known: Dispatched | None) -> None:
        """Give a run a workflow if it has none that will execute it."""
        this = (one.run, one.dispatch)
        if known is None:
            await self.enqueue(one.run, kind=one.kind, dispatch=one.dispatch)
            return
        is_ours = self._lease is not None and known.status == "PENDING" and known.executor == self._lease.token
        is_orphan = is_ours and one.run not in self._active
        if known.is_active and not (is_orphan and this in self._orphans):
            # Seen twice before it counts: between being handed out and being active there is a moment.
            (self._orphans.add if is_orphan else self._orphans.discard)(this)
            return
        self._orphans.discard(this)
        if await self._call(self._journal.redispatch, one.run, dispatch=one.dispatch):
            await self.enqueue(one.run, kind=one.kind, dispatch=one.dispatch + 1)


def _attributes(begun: Begun) -> dict[str, str | int]:
    return {
        "quell.run": begun.run.id,
        "quell.run.kind": begun.run.kind,
        "quell.run.segment": begun.segment,
        "quell.run.dispatch": begun.dispatch,
        "openinference.span.kind": "CHAIN",
    }


def _told(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
