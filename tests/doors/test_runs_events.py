"""The event log: one order, resumable anywhere, nothing twice, nothing missed; and the table of statuses behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quell.domain import RUN_NEXT, Event, RefusedError, RunStatus, StepError
from quell.runs import Continue, Done, Next, RunContext, Runs, WaitUntil
from quell.telemetry import EVENTS
from tests._postgres import fresh_database
from tests.doors._runs_bench import Story, ended, journal, story

pytestmark = pytest.mark.timeout(30)
T = TypeVar("T")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty journal; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as database:
        yield database


def test_following_resumes_after_any_event_without_a_gap_or_a_repeat(url: str, tmp_path: Path) -> None:
    async def tell() -> None:
        async with journal(tmp_path, url=url, works={"story": Story()}) as runs:
            run = await story(runs)
            whole = [event async for event in runs.follow(run=run.id)]
            assert whole[-1].name == "run.finished"
            assert len({event.key for event in whole}) == len(whole)
            for event in whole:
                rest = [later async for later in runs.follow(run=run.id, after=event.seq)]
                assert rest == [later for later in whole if later.seq > event.seq]
            assert await runs.events(run=run.id, limit=3) == whole[:3]
            assert await runs.events(after=whole[-2].seq) == whole[-1:]
            assert await runs.last_seq() == await runs.last_seq(run=run.id) == whole[-1].seq
            assert await runs.last_seq(run="inc_none") == 0

    asyncio.run(tell())


def test_a_reader_who_follows_many_writers_misses_nothing_and_sees_one_order(url: str, tmp_path: Path) -> None:
    """Numbers become visible in their order: a reader who has seen one has seen all before it."""
    writers, each = 4, 25

    async def tell() -> None:
        async with AsyncExitStack() as stack:
            runs = [await stack.enter_async_context(journal(tmp_path, url=url)) for _ in range(writers + 1)]
            seen: list[Event] = []

            async def read() -> None:
                async for event in runs[-1].follow():
                    seen.append(event)
                    if len(seen) == writers * each:
                        return

            async def write(number: int) -> None:
                for index in range(each):
                    await runs[number].emit(f"inc_{number}", "incident.updated", key=str(index), body={"index": index})

            async with asyncio.timeout(20):
                await asyncio.gather(read(), *(write(number) for number in range(writers)))
            assert [event.seq for event in seen] == sorted({event.seq for event in seen})
            for number in range(writers):
                keys = [event.key for event in seen if event.run == f"inc_{number}"]
                assert keys == [str(index) for index in range(each)]

    asyncio.run(tell())


def test_an_event_of_the_same_key_is_told_once_and_keeps_its_first_body(tmp_path: Path) -> None:
    async def tell() -> None:
        async with journal(tmp_path) as runs:
            first = await runs.emit("inc_1", "incident.opened", key="opened", body={"n": 1})
            again = await runs.emit("inc_1", "incident.opened", key="opened", body={"n": 2})
            other = await runs.emit("inc_2", "incident.opened", key="opened", body={"n": 3})
            assert again == first
            assert first.body == '{"n":1}'
            assert await runs.events() == [first, other]
            assert await runs.events(run="inc_2") == [other]

    asyncio.run(tell())


def test_every_event_of_a_run_is_in_the_catalogue_with_the_fields_it_says(tmp_path: Path) -> None:
    async def tell() -> None:
        work = Story()
        work.fail_in = "three"
        async with journal(tmp_path, works={"story": work}) as runs:
            run = ended(await runs.wait((await story(runs)).id, timeout_s=8), "failed")
            work.fail_in = ""
            await runs.resume(run.id)
            ended(await runs.wait(run.id, timeout_s=8), "succeeded")
            for event in await runs.events():
                assert set(json.loads(event.body)) <= set(EVENTS[event.name].fields), event

    asyncio.run(tell())


class Errand:
    """Work that ends as the test says, and waits where it says."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ends = "well"

    async def __call__(self, context: RunContext) -> Next:
        async def work() -> str:
            await self.go.wait()
            if self.ends == "badly":
                raise OSError("as told")
            return "done"

        if self.ends == "later" and not context.state:
            return WaitUntil(at=await context.now(), state={"waited": True})
        if self.ends == "on" and not context.state:
            return Continue(state={"went": "on"})
        return Done(result={"it": await context.step("it", work, returns=str, timeout_s=20)})


class Loop:
    """An event loop in a thread, with launched runs on it, for examples that come one by one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def errands(tmp_path: Path) -> Iterator[tuple[Loop, Runs, Errand]]:
    loop, stack = Loop(), AsyncExitStack()

    async def enter() -> tuple[Runs, Errand]:
        errand = Errand()
        return await stack.enter_async_context(journal(tmp_path, works={"errand": errand})), errand

    try:
        runs, errand = loop.run(enter())
        try:
            yield loop, runs, errand
        finally:
            loop.run(stack.aclose())
    finally:
        loop.close()


MOVES = {
    "run.queued": RunStatus.QUEUED,
    "run.resumed": RunStatus.QUEUED,
    "run.started": RunStatus.RUNNING,
    "run.waiting": RunStatus.WAITING,
    "run.finished": RunStatus.SUCCEEDED,
    "run.failed": RunStatus.FAILED,
    "run.cancelled": RunStatus.CANCELLED,
}
ACTIONS = st.lists(st.sampled_from(["cancel", "resume", "let go", "wait a little"]), min_size=1, max_size=6)


@pytest.mark.timeout(240)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS, ends=st.sampled_from(["well", "badly", "later", "on"]))
def test_whatever_is_done_to_a_run_it_never_leaves_the_table_of_its_statuses(
    actions: list[str], ends: str, errands: tuple[Loop, Runs, Errand]
) -> None:
    loop, runs, errand = errands

    async def example() -> None:
        errand.go, errand.ends = asyncio.Event(), ends
        run = await runs.start("errand", subject="", arguments={})
        for action in actions:
            if action == "let go":
                errand.go.set()
            elif action == "wait a little":
                await asyncio.sleep(0.1)
            else:
                await attempt(run.id, action)
        errand.go.set()
        run = await runs.wait(run.id, timeout_s=40)
        path = [MOVES[event.name] for event in await runs.events(run=run.id) if event.name in MOVES]
        assert path[-1] is run.status
        assert not RUN_NEXT[run.status] - {RunStatus.QUEUED}, f"did not end: {run} {path}"
        for now, then in pairwise(path):
            # That a wait is over is told by what follows it.
            through = {RunStatus.RUNNING} if now is RunStatus.WAITING else {now}
            assert any(then in RUN_NEXT[status] for status in through | {now}), path

    async def attempt(run: str, action: str) -> None:
        before = (await runs.get(run)).status
        then = RunStatus.CANCELLED if action == "cancel" else RunStatus.QUEUED
        try:
            after = await (runs.cancel(run) if action == "cancel" else runs.resume(run))
        except RefusedError:
            # It may have moved on by itself between the two looks, and then be refused; where it stands still, it is law.
            assert (await runs.get(run)).status is not before or then not in RUN_NEXT[before]
        else:
            assert after.status is then

    loop.run(example())


def test_a_step_error_says_which_step_and_why() -> None:
    error = StepError("step read: no answer within 2 s", reason="timeout", hint="ask less")
    assert (str(error), error.reason, error.hint, error.exit_code) == (
        "step read: no answer within 2 s",
        "timeout",
        "ask less",
        3,
    )
