"""Runs: the one per process through which everything durable goes."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from quell.config import JournalSettings
from quell.domain import Clock, Entropy, Event, Run, RunStatus, Step, UsageError, new_id
from quell.runs._bell import ENDINGS, EVERYTHING, Bells
from quell.runs._context import JsonObject, Work
from quell.runs._database import Database, Told, open_database
from quell.runs._journal import Journal
from quell.runs._lane import Lane
from quell.runs._lease import Leases
from quell.runs._place import with_place
from quell.runs._schema import create_tables
from quell.runs._scribe import Scribe

if TYPE_CHECKING:
    import sqlalchemy as sa

    from quell.runs._dispatch import Dispatcher
    from quell.runs._executor import Executor

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 4
_BATCH = 500
_ID_ENTROPY_BYTES = 10
_AT_ONCE_MAX = 2000


class Runs:
    """Durable runs of one process, over one journal.

    `open` is enough to look at runs, to start, cancel and resume them. `launch` makes this process execute them too:
    it takes an executor slot exclusively, and takes over the runs of processes that died.
    """

    def __init__(
        self,
        database: Database,
        *,
        settings: JournalSettings,
        clock: Clock,
        entropy: Entropy,
        version: str,
        clean: Callable[[str], str] = str,
    ) -> None:
        self._database = database
        self._engine: sa.Engine | None = None
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._version = version
        self._clean = clean
        self._journal = Journal(database, clock=clock)
        self._works: dict[str, Work] = {}
        self._lanes: dict[str, Lane] = {}
        self._bells = Bells(is_here=self._is_here, news=self._news)
        self._scribe = Scribe(database)
        self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="quell-journal")
        self._launching = asyncio.Lock()
        self._executor: Executor | None = None

    @classmethod
    async def open(
        cls,
        settings: JournalSettings,
        *,
        state_dir: Path,
        clock: Clock,
        entropy: Entropy,
        version: str,
        clean: Callable[[str], str] = str,
    ) -> Runs:
        """Open the journal and make its tables; take no slot yet.

        `clean` takes secrets out of the errors of works and steps before they are kept.

        Raises:
            ConfigError: the URL is none that can be used.
            JournalError: the database cannot be used; the hint says what to do.
        """
        database = open_database(settings.url, state_dir=state_dir)
        runs = cls(database, settings=settings, clock=clock, entropy=entropy, version=version, clean=clean)
        loop = asyncio.get_running_loop()

        def ring(told: Sequence[Told]) -> None:
            named = {run for run, _, _ in told}
            ended = {run for run, name, _ in told if name in ENDINGS}
            with suppress(RuntimeError):  # the loop is gone, and so is whoever listened
                loop.call_soon_threadsafe(partial(runs._bells.ring, *named, ended=ended))

        database.on_events = ring
        try:
            await runs._call(create_tables, database)
        except BaseException:
            await runs.close()
            raise
        return runs

    @property
    def database(self) -> Database:
        """The journal's own short transactions, for the rooms that decide together with it; it blocks."""
        return self._database

    @property
    def engine(self) -> sa.Engine:
        """Engine on the database of the journal, for the tables of the rooms above; it blocks, so use it off the loop."""
        if self._engine is None:
            # Loaded here: looking at runs needs no SQLAlchemy, and loading it takes longer than that.
            from quell.runs._engine import make_engine  # noqa: PLC0415

            self._engine = make_engine(self._database, url=self._settings.url)
        return self._engine

    def register(
        self, kind: str, work: Work, *, way: Literal["queue", "direct"] = "queue", at_once_max: int = _AT_ONCE_MAX
    ) -> None:
        """Name the work of a kind of run; before a `launch` that executes it.

        Args:
            kind: names it.
            work: executes one segment.
            way: by `queue`, few at once go through the durable runtime, some tenths of a second after they were started.
                The `direct` way begins a run in the process that starts it, at once.
            at_once_max: how many direct ones this process executes at once; the others begin as these end, in order.
        """
        executor = self._executor
        assert executor is None or (way == "queue" and not executor.has_queues), "register before launch"
        assert kind not in self._works, f"two works are called {kind!r}"
        assert at_once_max >= 1, "at least one at once"
        self._works[kind] = work
        if way == "direct":
            self._lanes[kind] = Lane(at_once_max=at_once_max)

    async def launch(self, *, way: Literal["queue", "direct"] = "queue") -> None:
        """Take a slot and execute runs of the registered kinds from now on, those of dead processes too.

        The `direct` way leaves those that go by queue to others, and costs a tenth: a command in which somebody waits
        for an answer begins so. By `queue` all kinds are executed; that may come later, too.

        Raises:
            StateHeldError: the configured slot is held by a live process.
            JournalError: the database cannot be used.
        """
        async with self._launching:
            if self._executor is None:
                await self._begin_executing(way=way)
            elif way == "queue" and self._has_queues and not self._executor.has_queues:
                await self._executor.open_queues(await self._dispatcher(self._executor))

    @property
    def _has_queues(self) -> bool:
        return bool(self._works.keys() - self._lanes.keys())

    async def _begin_executing(self, *, way: Literal["queue", "direct"]) -> None:
        # Loaded here: looking at runs needs nothing of what executing them does.
        from quell.runs._executor import Executor  # noqa: PLC0415

        executor = Executor(
            journal=self._journal,
            leases=Leases(self._database, lease_s=self._settings.lease_s, entropy=self._entropy),
            settings=self._settings,
            clock=self._clock,
            works=self._works,
            lanes=self._lanes,
            call=self._call,
            write=self._scribe.write,
            write_beside=self._scribe.write_beside,
            bells=self._bells,
            clean=self._clean,
        )
        dispatcher = await self._dispatcher(executor) if way == "queue" and self._has_queues else None
        await executor.launch(dispatcher)
        self._executor = executor

    async def _dispatcher(self, executor: Executor) -> Dispatcher:
        # Loaded here: what is executed directly needs neither dbos nor the half second that loading it takes. Off the
        # loop: runs may be executed already.
        await asyncio.to_thread(import_module, "quell.runs._dispatch")
        from quell.runs._dispatch import Dispatcher  # noqa: PLC0415

        loop = asyncio.get_running_loop()
        return Dispatcher(self.engine, where=self._database.where, execute=executor.execute, loop=loop)

    async def start(self, kind: str, *, subject: str, arguments: JsonObject, key: str | None = None) -> Run:
        """Start a run, or return the one that this key started before, whatever became of it."""
        if kind not in self._works:
            raise UsageError(f"there is no work of kind {kind!r}", hint=f"known are: {', '.join(sorted(self._works))}")
        id_ = new_id("run", at=self._clock(), entropy=self._entropy(_ID_ENTROPY_BYTES))
        executor = self._executor
        hold = None if executor is None else executor.reserve(kind)
        begun = None
        try:
            run, is_new, begun = await self._scribe.write(
                self._journal.add_run,
                run=id_,
                kind=kind,
                subject=subject,
                arguments=with_place(arguments, run=id_, kind=kind),
                key=key,
                version=self._version,
                hold=hold,
            )
        finally:
            if executor is not None and hold is not None:
                executor.take_place(kind, begun)
        if is_new and begun is None:
            await self._send(run, dispatch=0)
        return run

    async def wait(self, run_id: str, *, timeout_s: float) -> Run:
        """Wait until a run has ended, and return it; when the time is over, return it as it then stands."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        run = await self.get(run_id)
        with self._bells.ear(run.id, until="end") as ear:
            while True:
                ear.listen()
                run = await self.get(run.id)
                left_s = deadline_s - loop.time()
                if run.status.is_final or left_s <= 0:
                    return run
                with suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await ear.wait()

    async def get(self, run_id: str) -> Run:
        """Return a run by its id or a prefix that only it has. Raises UsageError otherwise."""
        return await self._call(self._journal.get_run, run_id)

    async def arguments(self, run_id: str) -> JsonObject:
        """Return what a run was started with. Raises UsageError when there is none such."""
        run = await self.get(run_id)
        return await self._call(self._journal.arguments, run.id)

    async def list(self, *, limit: int, kind: str | None = None, status: RunStatus | None = None) -> builtins.list[Run]:
        """Return the newest runs first."""
        return await self._call(self._journal.list_runs, rows_max=limit, kind=kind, status=status)

    async def steps(self, run_id: str) -> builtins.list[Step]:
        """Return the steps of a run that ended, in the order in which they did."""
        run = await self.get(run_id)
        return await self._call(self._journal.steps, run.id)

    async def events(self, *, run: str | None = None, after: int = 0, limit: int = 500) -> builtins.list[Event]:
        """Return events past a sequence number, in order; of one run or stream, or of all."""
        return await self._call(self._journal.events, run=run, after=after, rows_max=limit)

    async def last_seq(self, *, run: str | None = None) -> int:
        """Return the newest sequence number, 0 when there is none: where to begin to follow only what is to come."""
        return await self._call(self._journal.last_seq, run=run)

    async def follow(self, *, run: str | None = None, after: int = 0) -> AsyncGenerator[Event, None]:
        """Yield events past a sequence number as they come; of one run until it has ended, of all for ever."""
        with self._bells.ear(run or EVERYTHING) as ear:
            while True:
                ear.listen()
                has_ended, batch = await self._call(self._journal.news, run, after=after, rows_max=_BATCH)
                for event in batch:
                    after = event.seq
                    yield event
                if len(batch) == _BATCH:
                    continue
                if has_ended:
                    return
                await ear.wait()

    async def emit(self, run: str, name: str, *, key: str, body: JsonObject) -> Event:
        """Append to the event log of a run or of another stream, such as an incident; once per key."""
        await self._scribe.write(self._journal.emit, run, name, key=key, body=body)
        return await self._call(self._journal.event, run, key=key)

    async def write(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a blocking write to the journal's database together with what runs write at this moment, in one flush.

        It is kept when this returns. `work` opens its transaction with `database.writing`. Raises what it raises.
        """
        return await self._scribe.write(work, *args, **kwargs)

    async def write_beside(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Write as `write` does, in the flush of what is written next: for what nothing waits for just now."""
        return await self._scribe.write_beside(work, *args, **kwargs)

    async def cancel(self, run_id: str) -> Run:
        """Cancel a run, wherever it is executed; a step that runs is interrupted. Raises RefusedError when it has ended."""
        run = await self._call(self._journal.cancel, (await self.get(run_id)).id)
        if self._executor is not None:
            self._executor.interrupt(run.id, why="cancelled")
        return run

    async def resume(self, run_id: str) -> Run:
        """Go on with a failed or cancelled run: finished steps keep their results. Raises RefusedError otherwise."""
        run, dispatch = await self._call(self._journal.resume, (await self.get(run_id)).id)
        await self._send(run, dispatch=dispatch)
        return run

    async def wake(self, run_id: str) -> bool:
        """Let a run that waits go on at once, wherever it is executed; False when it has ended. For who brings news."""
        due = await self._call(self._journal.wake, run_id)
        if due is not None and self._executor is not None:
            self._executor.look(due)
        return due is not None

    async def retain(self) -> int:
        """Delete runs that ended longer ago than the configured retention; return how many."""
        before = self._clock() - timedelta(days=self._settings.retention_days)
        gone = 0
        while old := await self._call(self._journal.ended_before, before, rows_max=_BATCH):
            if self._executor is not None:
                await self._executor.forget(old)
            count = await self._call(self._journal.forget, [run for run, _ in old])
            gone += count
            if count == 0:
                break
        return gone

    async def close(self) -> None:
        """Stop executing, give the slot back and close the database. What was running goes on elsewhere, or later."""
        if self._executor is not None:
            await self._executor.close()
            self._executor = None
        await self._bells.close()
        self._scribe.close()
        self._pool.shutdown(wait=False)
        if self._engine is not None:
            from quell.runs._engine import retire  # noqa: PLC0415 - as above

            retire(self._engine)
        self._database.close()

    async def _send(self, run: Run, *, dispatch: int) -> None:
        """Queue a run at once if this process can; otherwise the next sweep of one that can does."""
        if self._executor is not None:
            await self._executor.enqueue(run.id, kind=run.kind, dispatch=dispatch)

    def _is_here(self, run: str) -> bool:
        return self._executor is not None and self._executor.is_here(run)

    def _news(self, after: int | None) -> Awaitable[tuple[int, builtins.list[str]]]:
        return self._call(self._journal.runs_with_news, after)

    async def _call(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function of the journal off the loop."""
        context = contextvars.copy_context()  # the place in the trace goes along
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: context.run(work, *args, **kwargs))
