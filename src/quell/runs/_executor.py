"""The part of a process that executes runs: it holds a slot, keeps it, and takes over what others left behind."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from quell import telemetry
from quell.config import JournalSettings
from quell.domain import Clock, Fence, JournalError, RunStatus, StateHeldError
from quell.runs._bell import Bell
from quell.runs._context import Continue, Done, JsonObject, Next, RunContext, StepRecord, WaitUntil, Work
from quell.runs._journal import Begun, Due, Journal, SupersededError
from quell.runs._lease import Lease, Leases

if TYPE_CHECKING:
    from quell.runs._dispatch import Dispatched, Dispatcher

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("quell.runs")

_RENEWALS_PER_LEASE = 4
_FENCE_SHARE = 0.7
_SWEEP_MAX_S = 1.0
_WATCH_S = 0.2
_ANNOUNCE_AFTER_S = 0.002
_GRACE_S = 2.0
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 2.0
_ENQUEUE_TIMEOUT_S = 10.0
_SWEEP_ROWS_MAX = 500
_WAKE_HORIZON_S = 3600.0


class Call(Protocol):
    """Runs a blocking function of the journal off the loop."""

    def __call__(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Return what the function returns."""


@dataclass(slots=True, kw_only=True)
class _Active:
    """A segment that is being executed here."""

    begun: Begun
    task: asyncio.Task[None]
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
        call: Call,
        bell: Bell,
        dispatcher: Dispatcher,
        clean: Callable[[str], str],
    ) -> None:
        self._journal = journal
        self._leases = leases
        self._settings = settings
        self._clock = clock
        self._works = works
        self._call = call
        self._bell = bell
        self._dispatcher = dispatcher
        self._clean = clean
        self._lease: Lease | None = None
        self._active: dict[str, _Active] = {}
        self._orphans: set[tuple[str, int]] = set()
        self._ripe: set[str] = set()
        self._sweep_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def launch(self) -> None:
        """Take a slot, bring DBOS up under it, and begin to recover. Raises StateHeldError when the slot is held."""
        self._lease = await self._call(self._leases.take, self._settings.executor)
        try:
            await in_thread(self._dispatcher.launch, token=self._lease.token, kinds=sorted(self._works))
        except BaseException:
            with suppress(JournalError):
                await self._call(self._leases.release, self._lease)
            raise
        self._tasks = [asyncio.create_task(loop()) for loop in (self._renew_forever, self._sweep_forever, self._watch)]

    async def close(self) -> None:
        """Interrupt what runs here, stop DBOS and give the slot back; others may go on with it at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        lease, self._lease = self._lease, None  # from here on nothing begins
        await self._interrupt_all()
        await in_thread(self._dispatcher.close)
        if lease is not None:
            with suppress(JournalError):
                await self._call(self._leases.release, lease)

    async def enqueue(self, run: str, *, kind: str, dispatch: int) -> None:
        """Send a run on its way; when that fails, the next sweep does it."""
        if self._lease is None:
            return
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
        workflows = [f"{run}.{dispatch}" for run, last in ended for dispatch in range(last + 1)]
        await in_thread(self._dispatcher.forget, workflows)

    # -- one segment --------------------------------------------------------------------------------------------

    async def execute(self, run: str, dispatch: int) -> None:
        """Execute one dispatch of a run. Cancelled, and so left to be recovered, when this process may not go on."""
        lease = self._lease
        if lease is None or not await self._is_free(run):
            raise asyncio.CancelledError
        try:
            begun = await self._call(
                self._journal.begin,
                run,
                dispatch=dispatch,
                slot=lease.slot,
                token=lease.token,
                attempts_max=self._settings.attempts_max,
            )
        except (SupersededError, JournalError) as error:
            log.warning("run %s cannot begin here: %s", run, error or "the slot is lost")
            raise asyncio.CancelledError from error
        self._bell.ring()
        if begun is None:
            return
        active = _Active(begun=begun, task=asyncio.create_task(self._perform(begun)))
        self._active[run] = active
        try:
            await asyncio.wait({active.task})
        finally:
            if not active.task.done():
                active.task.cancel()
                await asyncio.wait({active.task}, timeout=_GRACE_S)
            self._active.pop(run, None)
            self._bell.ring()
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

    async def _perform(self, begun: Begun) -> None:
        run, pen = begun.run, _Pen(self, begun)
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
            await self.keep(self._journal.end, begun, outcome)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.debug("run %s failed", run.id, exc_info=error)
            await self.keep(self._journal.fail, begun, error=self._clean(_told(error)))
        else:
            await self._send_on(begun, outcome)
        finally:
            pen.close()

    async def _send_on(self, begun: Begun, outcome: Next) -> None:
        match outcome:
            case Continue():
                await self.enqueue(begun.run.id, kind=begun.run.kind, dispatch=begun.dispatch + 1)
            case WaitUntil(at=at):
                wait_s = max(0.0, (at - self._clock()).total_seconds())
                if wait_s < _WAKE_HORIZON_S:
                    asyncio.get_running_loop().call_later(wait_s, self._ripen, begun.run.id)
            case Done():
                pass

    def look(self) -> None:
        """Look at once for runs that should be on their way."""
        self._sweep_now.set()

    def _ripen(self, run: str) -> None:
        """A wait is over by a clock that nobody can set."""
        self._ripe.add(run)
        self._sweep_now.set()

    async def keep(self, write: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a write of a run until it succeeds; what was learned is not given up because a database blinks.

        Ends in cancellation when the run is not held any more, or, by the fence, when the database stays away.
        """
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                done = await self._call(write, *args, **kwargs)
            except SupersededError as error:
                raise asyncio.CancelledError from error
            except JournalError as error:
                log.warning("%s; trying again in %.1f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _RETRY_MAX_S)
            else:
                self._bell.ring()
                return done

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
        if self._active:
            log.error("stopped executing %d runs: %s", len(self._active), why)
            await self._interrupt_all()

    async def _begin_anew(self) -> None:
        """Another process has taken this slot: stop everything, then come back under a new token."""
        await self._fence("another process has taken the executor slot")
        self._lease = None
        await in_thread(self._dispatcher.close)
        while True:
            try:
                lease = await self._call(self._leases.take, self._settings.executor)
                await in_thread(self._dispatcher.launch, token=lease.token, kinds=sorted(self._works))
            except (StateHeldError, JournalError) as error:
                log.warning("executes nothing at present: %s", error)
                await asyncio.sleep(self._settings.lease_s)
            else:
                self._lease = lease
                return

    async def _interrupt_all(self) -> None:
        for run in list(self._active):
            self.interrupt(run, why="fenced")
        tasks = [active.task for active in self._active.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE_S)

    async def _watch(self) -> None:
        """Notice runs that another process cancelled or took over."""
        while True:
            await asyncio.sleep(_WATCH_S)
            held = {run: active.begun.token for run, active in self._active.items()}
            if not held:
                continue
            try:
                lost = await self._call(self._journal.no_longer_held, held)
            except JournalError:
                continue  # the renewal of the lease decides what that means
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
        # The order matters: a token is written before its holder executes anything, so one that was
        # seen executing and is then not among the slots has no holder any more.
        executors = await in_thread(self._dispatcher.executors)
        dead = await self._call(self._leases.without_holder, executors)
        if dead:
            log.warning("taking over runs of %s", ", ".join(dead))
            await in_thread(self._dispatcher.recover, dead)
        ripe = sorted(self._ripe)
        found = await self._call(self._journal.due, ripe=ripe, rows_max=_SWEEP_ROWS_MAX)
        due = [one for one in found if one.kind in self._works]
        if due:
            known = await in_thread(self._dispatcher.statuses, [f"{one.run}.{one.dispatch}" for one in due])
            for one in due:
                await self._see_to(one, known.get(f"{one.run}.{one.dispatch}"))
        self._ripe.difference_update(ripe)

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


class _Pen:
    """Writes for one segment that is executed here."""

    def __init__(self, executor: Executor, begun: Begun) -> None:
        self._executor = executor
        self._journal = executor._journal  # noqa: SLF001 - one thing in two classes
        self._begun = begun

        self._announcements: dict[str, asyncio.Task[None]] = {}
        self._announced: set[str] = set()

    def step_started(self, name: str) -> None:
        self._announcements[name] = asyncio.create_task(self._announce(name))

    async def _announce(self, name: str) -> None:
        # A step that is over by then is told in one transaction with its end.
        await asyncio.sleep(_ANNOUNCE_AFTER_S)
        await self._announce_now(name)

    async def _announce_now(self, name: str) -> None:
        self._announced.add(name)
        await self._executor.keep(self._journal.step_started, self._begun, name)

    async def step_retried(self, name: str, *, attempt: int, error: str) -> None:
        await self._settle(name)
        if name not in self._announced:
            await self._announce_now(name)
        await self._executor.keep(self._journal.step_retried, self._begun, name, attempt=attempt, error=error)

    async def step_ended(self, record: StepRecord, *, error: str | None) -> None:
        await self._settle(record.name)
        await self._executor.keep(self._journal.step_ended, self._begun, record, error=error)

    async def _settle(self, name: str) -> None:
        """Let an announcement that is under way be written, and drop one that is not."""
        announcement = self._announcements.pop(name, None)
        if announcement is None:
            return
        if name in self._announced:
            await announcement
        else:
            announcement.cancel()

    def close(self) -> None:
        """Drop what was not announced; the segment is over."""
        for announcement in self._announcements.values():
            announcement.cancel()

    async def emit(self, name: str, *, key: str, body: JsonObject) -> None:
        await self._executor.keep(self._journal.emit, self._begun.run.id, name, key=key, body=body)


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what may block for long in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type] # without an error there is a value

    def body() -> None:
        value, failed = None, None
        try:
            value = work(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the loop
            failed = error
        with suppress(RuntimeError):  # the loop is gone, and so is whoever waited
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=body, name="quell-runs", daemon=True).start()
    return await future


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
