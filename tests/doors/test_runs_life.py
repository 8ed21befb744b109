"""The life of a run: started once, kept step by step, interrupted, resumed, waited for, forgotten."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from quell.domain import RefusedError, RunStatus, StepError, UsageError
from quell.runs import Done, Next, RunContext, WaitUntil, system_clock
from tests.doors._runs_bench import WAY, Story, Way, ended, journal, story

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True, params=["queue", "direct"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Both ways of executing a run tell the same stories."""
    chosen: Way = request.param
    token = WAY.set(chosen)
    yield chosen
    WAY.reset(token)


def test_a_run_goes_through_its_segments_and_keeps_its_result(way: Way, tmp_path: Path) -> None:
    async def tell() -> None:
        work = Story()
        async with journal(tmp_path, works={"story": work}) as runs:
            began_s = time.monotonic()
            run = await story(runs)
            begins = RunStatus.RUNNING if way == "direct" else RunStatus.QUEUED
            assert (run.status, run.kind, run.subject, run.version) == (begins, "story", "a test", "v1")
            async for event in runs.follow(run=run.id):
                if event.name == "run.started":
                    assert time.monotonic() - began_s < 1.5  # in practice 0.2 s; the machine may be busy
            run = ended(await runs.wait(run.id, timeout_s=5), "succeeded")
            assert run.result == '{"told":"ONE-TWO-THREE","outcome":"fine"}'
            assert (run.attempts, run.executor, run.error) == (1, "", "")
            steps = await runs.steps(run.id)
            assert [(step.index, step.name, step.status) for step in steps] == [
                (0, "one", "done"),
                (1, "two", "done"),
                (2, "three", "done"),
            ]
            assert work.done == {"one": 1, "two": 1, "three": 1}
            assert [event.name for event in await runs.events(run=run.id)] == [
                "run.queued",
                "run.started",
                "step.started",
                "step.finished",
                "run.waiting",
                "run.continued",
                "step.started",
                "step.finished",
                "step.started",
                "step.finished",
                "run.finished",
            ]

    asyncio.run(tell())


def test_a_key_starts_one_run_however_often_and_from_wherever_it_is_used(tmp_path: Path) -> None:
    async def tell() -> None:
        work = Story()
        async with journal(tmp_path, works={"story": work}) as runs:
            async with journal(tmp_path, works={"story": work}, launched=False) as others:
                started = await asyncio.gather(*(story(here, key="k") for here in [runs, others] * 5))
            assert len({run.id for run in started}) == 1
            ended(await runs.wait(started[0].id, timeout_s=5), "succeeded")
            assert (await story(runs, key="k")).id == started[0].id
            assert (await story(runs, key="another")).id != started[0].id
            assert work.done["one"] <= 2

    asyncio.run(tell())


def test_a_run_started_where_nothing_executes_is_picked_up_by_a_process_that_does(tmp_path: Path) -> None:
    async def tell() -> None:
        async with journal(tmp_path, works={"story": Story()}, launched=False) as elsewhere:
            run = await story(elsewhere)
        async with journal(tmp_path, works={"story": Story()}) as runs:
            ended(await runs.wait(run.id, timeout_s=8), "succeeded")

    asyncio.run(tell())


def test_a_run_is_found_by_any_prefix_that_only_it_has(tmp_path: Path) -> None:
    async def tell() -> None:
        async with journal(tmp_path, works={"story": Story()}, launched=False) as runs:
            first, second = await story(runs), await story(runs)
            assert (await runs.get(first.id)).id == first.id
            shared = 1 + next(i for i, (a, b) in enumerate(zip(first.id, second.id, strict=True)) if a != b)
            assert (await runs.get(second.id[:shared])).id == second.id
            for wrong in ("", "run_", "nothing", "%"):
                with pytest.raises(UsageError):
                    await runs.get(wrong)
            with pytest.raises(UsageError, match="no work of kind 'stories'") as unknown:
                await runs.start("stories", subject="", arguments={})
            assert unknown.value.hint == "known are: story"
            assert [run.id for run in await runs.list(limit=10)] == [second.id, first.id]
            assert await runs.list(limit=10, status=RunStatus.FAILED) == []
            assert len(await runs.list(limit=1, kind="story", status=RunStatus.QUEUED)) == 1

    asyncio.run(tell())


def test_cancelling_interrupts_the_step_within_a_second_and_resuming_does_not_repeat_what_is_done(
    tmp_path: Path,
) -> None:
    async def tell() -> None:
        work = Story()
        async with (
            journal(tmp_path, works={"story": work}) as runs,
            journal(tmp_path, works={"story": work}, launched=False) as elsewhere,
        ):
            for canceller in (runs, elsewhere):
                work.hang_in, work.reached = "two", asyncio.Event()
                before = work.done.copy()
                run = await story(runs)
                await asyncio.wait_for(work.reached.wait(), 5)
                began_s = time.monotonic()
                ended(await canceller.cancel(run.id), "cancelled")
                while not work.interrupted["two"]:
                    await asyncio.sleep(0.01)
                assert time.monotonic() - began_s < 1
                work.interrupted.clear()
                assert ended(await canceller.cancel(run.id), "cancelled").executor == ""
                work.hang_in = ""
                assert (await canceller.resume(run.id)).status is RunStatus.QUEUED
                run = ended(await runs.wait(run.id, timeout_s=8), "succeeded")
                assert run.result == '{"told":"ONE-TWO-THREE","outcome":"fine"}'
                assert work.done - before == {"one": 1, "two": 1, "three": 1}
                with pytest.raises(RefusedError, match="succeeded"):
                    await canceller.cancel(run.id)
                with pytest.raises(RefusedError, match="cannot become queued") as refused:
                    await canceller.resume(run.id)
                assert refused.value.hint == "only a failed or cancelled run can be resumed"

    asyncio.run(tell())


def test_a_failed_step_fails_the_run_with_its_reason_and_is_tried_again_on_resume(tmp_path: Path) -> None:
    async def tell() -> None:
        work = Story()
        work.fail_in = "three"
        async with journal(tmp_path, works={"story": work}) as runs:
            run = ended(await runs.wait((await story(runs)).id, timeout_s=8), "failed")
            assert run.error == "StepError: step three: ConnectionError: no route"
            assert [(step.name, step.status) for step in await runs.steps(run.id)] == [
                ("one", "done"),
                ("two", "done"),
                ("three", "failed"),
            ]
            await runs.resume(run.id)
            ended(await runs.wait(run.id, timeout_s=8), "failed")
            work.fail_in = ""
            await runs.resume(run.id)
            run = ended(await runs.wait(run.id, timeout_s=8), "succeeded")
            assert (work.done, work.began["three"], run.attempts) == ({"one": 1, "two": 1, "three": 1}, 3, 3)
            names = [event.name for event in await runs.events(run=run.id)]
            assert (names.count("step.failed"), names.count("run.failed"), names.count("run.resumed")) == (2, 2, 2)

    asyncio.run(tell())


def _once(work: Callable[[RunContext], Awaitable[object]], tmp_path: Path) -> str:
    """Run a work of one segment to its end; return the result, or the error."""

    async def tell() -> str:
        async def segment(context: RunContext) -> Next:
            return Done(result={"is": await work(context)})

        async with journal(tmp_path, works={"once": segment}) as runs:
            run = await runs.start("once", subject="", arguments={"n": 7})
            run = await runs.wait(run.id, timeout_s=10)
            return run.result or run.error

    return asyncio.run(tell())


def test_a_step_is_interrupted_at_its_deadline(tmp_path: Path) -> None:
    interrupted: list[float] = []

    async def work(context: RunContext) -> object:
        async def slow() -> str:
            began_s = time.monotonic()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                interrupted.append(time.monotonic() - began_s)
                raise
            return "never"

        try:
            await context.step("slow", slow, returns=str, timeout_s=0.2)
        except StepError as error:
            return [error.reason, str(error)]
        return None

    assert _once(work, tmp_path) == '{"is":["timeout","step slow: no answer within 0.2 s"]}'
    assert len(interrupted) == 1
    assert 0.15 < interrupted[0] < 3


def test_a_step_is_tried_as_often_as_it_may_be_and_no_more(tmp_path: Path) -> None:
    tries = itertools.count(1)

    async def work(context: RunContext) -> object:
        async def third_time() -> int:
            if (attempt := next(tries)) < 3:
                raise OSError(f"attempt {attempt}")
            return attempt

        return await context.step("flaky", third_time, returns=int, timeout_s=5, attempts=3)

    assert _once(work, tmp_path) == '{"is":3}'


def test_steps_may_run_at_the_same_time(tmp_path: Path) -> None:
    async def work(context: RunContext) -> object:
        both = asyncio.Barrier(2)

        async def meet(value: int) -> int:
            async with both:
                return value + int(str(context.arguments["n"]))

        return await asyncio.gather(
            context.step("a", lambda: meet(1), returns=int, timeout_s=5),
            context.step("b", lambda: meet(2), returns=int, timeout_s=5),
        )

    assert _once(work, tmp_path) == '{"is":[8,9]}'


@pytest.mark.parametrize(
    ("value", "returns", "said"),
    [
        (object(), object, "TypeError"),
        ("text", int, "ValidationError"),
        ("x" * 5_000_000, str, "passed the limit of 4e\\+06"),
    ],
)
def test_a_result_that_cannot_be_kept_fails_the_step(
    value: object, returns: type[object], said: str, tmp_path: Path
) -> None:
    async def work(context: RunContext) -> object:
        async def give() -> object:
            return value

        with pytest.raises(StepError, match=said):
            await context.step("odd", give, returns=returns, timeout_s=5)
        return "told"

    assert _once(work, tmp_path) == '{"is":"told"}'


def test_an_error_of_the_work_itself_fails_the_run(tmp_path: Path) -> None:
    async def work(context: RunContext) -> object:
        raise LookupError("our own bug")

    assert _once(work, tmp_path) == "LookupError: our own bug"


def test_what_was_caught_before_a_restart_is_caught_again_after_it(tmp_path: Path) -> None:
    """A recovered run takes the way that it took: a kept failure is raised again, a kept time is the same."""
    seen: list[tuple[str, datetime]] = []
    calls: list[str] = []
    hang, reached = [True], asyncio.Event()

    async def segment(context: RunContext) -> Next:
        async def broken() -> str:
            calls.append("broken")
            raise OSError("gone")

        async def last() -> str:
            if hang[0]:
                reached.set()
                await asyncio.sleep(60)
            return "end"

        at = await context.now()
        try:
            await context.step("broken", broken, returns=str, timeout_s=5)
        except StepError as error:
            seen.append((str(error), at))
        await context.emit("sample.told", key="told", once=True)
        await context.step("last", last, returns=str, timeout_s=60)
        return Done(result={})

    async def tell() -> None:
        async with journal(tmp_path, works={"story": segment}) as runs:
            run = await story(runs)
            await asyncio.wait_for(reached.wait(), 5)
        hang[0] = False
        async with journal(tmp_path, works={"story": segment}) as runs:
            run = ended(await runs.wait(run.id, timeout_s=8), "succeeded")
            assert run.attempts == 2
            names = [event.name for event in await runs.events(run=run.id)]
            assert names.count("sample.told") == names.count("step.failed") == names.count("run.recovered") == 1

    asyncio.run(tell())
    assert calls == ["broken"]
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_wait_outlives_the_process(tmp_path: Path) -> None:
    async def tell() -> None:
        work = Story()
        work.wait_s = 1.0
        async with journal(tmp_path, works={"story": work}) as runs:
            run = await story(runs)
            async for event in runs.follow(run=run.id):
                if event.name == "run.waiting":
                    break
            waiting = await runs.get(run.id)
            assert (waiting.status, waiting.executor) == (RunStatus.WAITING, "")
        work.wait_s = 0.0
        async with journal(tmp_path, works={"story": work}) as runs:
            run = ended(await runs.wait(run.id, timeout_s=8), "succeeded")
            assert run.updated_at >= waiting.updated_at + timedelta(seconds=0.9)
            assert (work.done["one"], run.attempts) == (1, 1)

    asyncio.run(tell())


@pytest.mark.parametrize("when", ["while it waits", "before it waits"])
def test_who_brings_news_wakes_a_run_that_waits_and_one_that_is_about_to(tmp_path: Path, when: str) -> None:
    async def tell() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def work(context: RunContext) -> Next:
            if context.state:
                return Done(result={"outcome": "woken"})
            reached.set()
            await go_on.wait()
            return WaitUntil(at=await context.now() + timedelta(hours=1), state={"waited": True})

        async with journal(tmp_path, works={"sleeper": work}) as runs:
            run = await runs.start("sleeper", subject="x", arguments={})
            await reached.wait()
            if when == "before it waits":
                assert await runs.wake(run.id)
                go_on.set()
            else:
                go_on.set()
                async for event in runs.follow(run=run.id):
                    if event.name == "run.waiting":
                        break
                assert await runs.wake(run.id)
            ended(await runs.wait(run.id, timeout_s=15), "succeeded")
            assert not await runs.wake(run.id)

    asyncio.run(tell())


def test_a_run_that_never_ends_is_failed_after_so_many_attempts(tmp_path: Path) -> None:
    async def tell() -> None:
        work = Story()
        work.hang_in = "one"
        run = None
        for _ in range(3):
            work.reached = asyncio.Event()
            async with journal(tmp_path, works={"story": work}, attempts_max=3) as runs:
                run = run or await story(runs)
                await asyncio.wait_for(work.reached.wait(), 8)
        assert run is not None
        async with journal(tmp_path, works={"story": work}, attempts_max=3) as runs:
            run = ended(await runs.wait(run.id, timeout_s=8), "failed")
            assert run.error == "started or recovered 3 times without ending"
            work.hang_in = ""
            await runs.resume(run.id)
            ended(await runs.wait(run.id, timeout_s=8), "succeeded")

    asyncio.run(tell())


def test_a_clock_that_goes_back_changes_no_order_and_delays_no_wait(tmp_path: Path) -> None:
    behind = [timedelta(0)]

    def clock() -> datetime:
        return system_clock() - behind[0]

    async def tell() -> None:
        work = Story()
        work.wait_s = 0.3
        async with journal(tmp_path, works={"story": work}, clock=clock) as runs:
            first = await story(runs)
            async for event in runs.follow(run=first.id):
                if event.name == "run.waiting":
                    behind[0] = timedelta(hours=1)
            first = ended(await runs.get(first.id), "succeeded")
            second = ended(await runs.wait((await story(runs)).id, timeout_s=8), "succeeded")
            assert second.created_at < first.created_at
            assert [run.id for run in await runs.list(limit=9)] == [second.id, first.id]
            assert all(step.started_at <= step.ended_at for step in await runs.steps(first.id))
            names = [event.name for event in await runs.events(run=first.id)]
            assert (names[0], names[-1]) == ("run.queued", "run.finished")
            events = await runs.events()
            assert [event.seq for event in events] == sorted(event.seq for event in events)
            assert [event.at for event in events] != sorted(event.at for event in events)

    asyncio.run(tell())


def test_runs_past_their_retention_are_deleted_with_all_that_is_theirs(way: Way, tmp_path: Path) -> None:
    offset = [timedelta(0)]

    def clock() -> datetime:
        return system_clock() + offset[0]

    async def tell() -> None:
        work = Story()
        async with journal(tmp_path, works={"story": work}, clock=clock) as runs:
            old = ended(await runs.wait((await story(runs)).id, timeout_s=8), "succeeded")
            assert await runs.retain() == 0
            offset[0] = timedelta(days=31)
            young = ended(await runs.wait((await story(runs)).id, timeout_s=8), "succeeded")
            assert await runs.retain() == 1
            assert [run.id for run in await runs.list(limit=9)] == [young.id]
            assert await runs.events(run=old.id) == []
            with runs.engine.connect() as connection:
                tables = [("quell_segments", "run"), ("quell_steps", "run"), ("workflow_status", "workflow_uuid")]
                for table, column in tables if way == "queue" else tables[:2]:
                    left = connection.execute(sa.text(f"SELECT {column} FROM {table}")).scalars().all()
                    assert left
                    assert all(name.startswith(young.id) for name in left)

    asyncio.run(tell())


def test_looking_at_runs_loads_neither_dbos_nor_sqlalchemy(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from quell.config import JournalSettings
from quell.runs import Runs, system_clock
async def main():
    runs = await Runs.open(JournalSettings(), state_dir=Path({str(tmp_path)!r}), clock=system_clock, entropy=os.urandom, version="")
    print(await runs.list(limit=5), [name for name in ("dbos", "sqlalchemy", "psycopg") if name in sys.modules])
    await runs.close()
asyncio.run(main())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (out.stdout.strip(), out.stderr) == ("[] []", "")
