"""The direct way: a run begins in the process that starts it, at once and beside a thousand others, and is no less safe."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path

import pytest

from quell.domain import JournalError, Run, RunStatus
from quell.runs import Continue, Done, Next, RunContext, Runs, WaitUntil
from tests._postgres import fresh_database
from tests.doors._runs_bench import WAY, Story, ended, journal, story

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty journal; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as database:
        yield database


@pytest.fixture(autouse=True)
def direct() -> Iterator[None]:
    token = WAY.set("direct")
    yield
    WAY.reset(token)


class Crowd:
    """Work of two segments that waits at a gate, and counts who is inside and who ever was."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.inside: set[str] = set()
        self.most = 0
        self.order: list[str] = []
        self.began: Counter[str] = Counter()
        self.where: dict[str, str] = {}

    async def __call__(self, context: RunContext) -> Next:
        name = context.run.subject
        assert name not in self.inside, "twice at the same time"
        self.inside.add(name)
        self.most = max(self.most, len(self.inside))
        if not context.state:
            self.order.append(name)
        self.began[name] += 1
        self.where[name] = context.run.executor
        try:
            return await self._segment(context)
        finally:
            self.inside.discard(name)

    async def _segment(self, context: RunContext) -> Next:
        async def wait() -> str:
            await self.gate.wait()
            return "waited"

        if not context.state:
            await context.step("one", wait, returns=str, timeout_s=30)
            return Continue(state={"one": True})
        await context.emit("sample.told", key="told")
        await context.step("two", wait, returns=str, timeout_s=30)
        return Done(result={"outcome": "fine"})

    async def start(self, runs: Runs, names: Iterator[int] | range) -> list[str]:
        """Start runs one after the other; return their ids."""
        return [(await runs.start("crowd", subject=str(name), arguments={})).id for name in names]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.02)


EVENTS = [
    "run.queued",
    "run.started",
    "step.started",
    "step.finished",
    "run.continued",
    "sample.told",
    "step.started",
    "step.finished",
    "run.finished",
]


def test_hundreds_run_side_by_side_and_each_follower_hears_the_whole_of_its_run(url: str, tmp_path: Path) -> None:
    async def tell() -> None:
        crowd, many = Crowd(), 300
        async with journal(tmp_path, url=url, works={"crowd": crowd}, lease_s=10) as runs:
            started = await asyncio.gather(*(runs.start("crowd", subject=str(n), arguments={}) for n in range(many)))
            assert {run.status for run in started} == {RunStatus.RUNNING}

            async def follow(run: str) -> list[tuple[int, str]]:
                return [(event.seq, event.name) async for event in runs.follow(run=run)]

            followers = [asyncio.create_task(follow(run.id)) for run in started]
            await until(lambda: len(crowd.inside) == many)
            crowd.gate.set()
            for told in await asyncio.gather(*followers):
                assert [name for _, name in told] == EVENTS
                assert told == sorted(told)
            assert (set(crowd.began.values()), len(crowd.began)) == ({2}, many)

    asyncio.run(tell())


def test_so_many_at_once_and_the_others_in_the_order_of_their_start(url: str, tmp_path: Path) -> None:
    async def tell() -> None:
        crowd = Crowd()
        async with journal(tmp_path, url=url, works={"crowd": crowd}, at_once_max=2) as runs:
            ids = await crowd.start(runs, range(7))
            await until(lambda: len(crowd.inside) == 2)
            assert [(await runs.get(run)).status for run in ids] == ["running"] * 2 + ["queued"] * 5
            await asyncio.sleep(1.2)  # a sweep comes by, and lets nobody pass
            assert crowd.order == ["0", "1"]
            await runs.cancel(ids[0])
            await until(lambda: len(crowd.order) == 3)
            crowd.gate.set()
            for run in ids[1:]:
                ended(await runs.wait(run, timeout_s=20), "succeeded")
            assert (crowd.order, crowd.most) == ([str(n) for n in range(7)], 2)
            assert crowd.began["0"] == 1

    asyncio.run(tell())


def test_what_a_living_process_executes_no_other_touches_and_what_it_leaves_another_goes_on_with(
    url: str, tmp_path: Path
) -> None:
    async def tell() -> None:
        first, second = Crowd(), Crowd()
        async with AsyncExitStack() as stack:
            heir = await stack.enter_async_context(journal(tmp_path, url=url, works={"crowd": second}, lease_s=2))
            async with journal(tmp_path, url=url, works={"crowd": first}, lease_s=2, executor="first") as runs:
                ids = await crowd_of(first, runs)
                await asyncio.sleep(2.5)  # longer than a lease, and several sweeps
                assert (len(first.inside), second.began) == (20, Counter())
                assert {(await heir.get(run)).executor for run in ids} == {"first"}
            assert not first.inside
            second.gate.set()
            for run in ids:
                assert ended(await heir.wait(run, timeout_s=20), "succeeded").attempts == 2
            assert set(second.began.values()) == {2}
            names = [event.name for event in await heir.events(run=ids[0])]
            assert sorted(names) == sorted([*EVENTS, "run.taken_over"])

    async def crowd_of(crowd: Crowd, runs: Runs) -> list[str]:
        ids = await crowd.start(runs, range(20))
        await until(lambda: len(crowd.inside) == 20)
        return ids

    asyncio.run(tell())


def test_a_run_that_one_process_takes_from_a_queue_and_another_directly_is_executed_once(
    url: str, tmp_path: Path
) -> None:
    """Two generations of a program may stand side by side while one is replaced by the other."""

    async def tell() -> None:
        by_queue, directly = Crowd(), Crowd()
        async with (
            journal(tmp_path, url=url, works={"crowd": by_queue}, way="queue") as old,
            journal(tmp_path, url=url, works={"crowd": directly}, way="direct") as new,
        ):
            ids = await directly.start(new, range(3))
            await asyncio.sleep(2.5)
            assert by_queue.began == Counter()
            directly.gate.set()
            by_queue.gate.set()
            for run in [*ids, *await by_queue.start(old, range(3, 6))]:
                assert ended(await old.wait(run, timeout_s=20), "succeeded").attempts == 1
            assert set((by_queue.began + directly.began).values()) == {2}

    asyncio.run(tell())


def test_a_process_without_work_cancels_resumes_wakes_and_follows_what_another_executes(
    url: str, tmp_path: Path
) -> None:
    async def tell() -> None:
        work = Story()
        work.wait_s, work.hang_in = 3600, "two"
        async with (
            journal(tmp_path, url=url, works={"story": work}) as runs,
            journal(tmp_path, url=url, works={"story": work}, launched=False) as elsewhere,
        ):
            run = await story(runs)
            told: list[str] = []
            async for event in elsewhere.follow(run=run.id):
                told.append(event.name)
                if event.name == "run.waiting":
                    assert await elsewhere.wake(run.id)
                    await asyncio.wait_for(work.reached.wait(), 10)
                    ended(await elsewhere.cancel(run.id), "cancelled")
            assert told[-1] == "run.cancelled"
            await until(lambda: work.interrupted["two"] == 1)
            work.hang_in = ""
            await elsewhere.resume(run.id)
            ended(await elsewhere.wait(run.id, timeout_s=10), "succeeded")
            assert work.done == {"one": 1, "two": 1, "three": 1}

    asyncio.run(tell())


def test_a_wait_here_is_over_at_its_time_and_at_once_when_somebody_brings_news(tmp_path: Path) -> None:
    async def tell() -> None:
        async def sleeper(context: RunContext) -> Next:
            if context.state:
                return Done(result={"outcome": "woken"})
            wait_s = float(str(context.arguments["wait_s"]))
            return WaitUntil(at=await context.now() + timedelta(seconds=wait_s), state={"slept": True})

        async with journal(tmp_path, works={"sleeper": sleeper}) as runs:
            for wait_s in (0.0, 0.3, 3600.0):
                run = await runs.start("sleeper", subject="", arguments={"wait_s": wait_s})
                async for event in runs.follow(run=run.id):
                    if event.name == "run.waiting" and wait_s == 3600:
                        assert await runs.wake(run.id)
                assert ended(await runs.get(run.id), "succeeded").attempts == 1

    asyncio.run(tell())


def test_who_waits_for_the_end_of_a_run_is_not_woken_by_each_of_its_steps(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell() -> None:
        async def talker(context: RunContext) -> Next:
            for number in range(30):
                await context.emit("talk.word", key=str(number), word=number)
            return Done(result={"outcome": "said"})

        async with journal(tmp_path, url=url, works={"talker": talker}) as runs:
            looks: list[str] = []
            real = runs.get

            async def look(run_id: str) -> Run:
                looks.append(run_id)
                return await real(run_id)

            monkeypatch.setattr(runs, "get", look)
            run = await runs.start("talker", subject="", arguments={})
            ended(await runs.wait(run.id, timeout_s=20), "succeeded")
            assert len(looks) < 8, "once before it ended, once after, and what the first look at all adds"
            assert len([event async for event in runs.follow(run=run.id)]) > 30

    asyncio.run(tell())


def test_a_write_beside_the_runs_is_kept_with_them_or_not_at_all_and_raises_what_it_raised(
    url: str, tmp_path: Path
) -> None:
    async def tell() -> None:
        async with journal(tmp_path, url=url, works={}) as runs:

            def note(word: str) -> str:
                with runs.database.writing() as connection:
                    connection.run("INSERT INTO notes (word) VALUES (:word)", word=word)
                    if word.startswith("bad"):
                        raise ValueError(word)
                return word

            def made() -> None:
                with runs.database.writing() as connection:
                    connection.run("CREATE TABLE notes (word TEXT NOT NULL)")

            await runs.write(made)
            words = [f"{'bad' if number % 3 == 0 else 'good'}{number}" for number in range(30)]
            found = await asyncio.gather(*(runs.write(note, word) for word in words), return_exceptions=True)
            assert [str(each) for each in found] == words
            assert all(
                isinstance(each, ValueError) == word.startswith("bad") for each, word in zip(found, words, strict=True)
            )
            with runs.database.reading() as connection:
                kept = {row.word for row in connection.all("SELECT word FROM notes")}
            assert kept == {word for word in words if word.startswith("good")}

    asyncio.run(tell())


def test_a_start_whose_caller_has_gone_is_executed_all_the_same(url: str, tmp_path: Path) -> None:
    """It was begun under this process's lease, and nobody here knew of it."""

    async def tell() -> None:
        crowd = Crowd()
        crowd.gate.set()
        async with journal(tmp_path, url=url, works={"crowd": crowd}) as runs:
            for number in range(5):
                start = asyncio.create_task(runs.start("crowd", subject=str(number), arguments={}))
                await asyncio.sleep(0)  # it is written, and the answer is on its way
                start.cancel()
                await asyncio.gather(start, return_exceptions=True)
            await until(lambda: len(crowd.order) == 5)
            for run in await runs.list(limit=9):
                ended(await runs.wait(run.id, timeout_s=20), "succeeded")

    asyncio.run(tell())


def test_a_process_whose_slot_was_taken_stops_and_comes_back_under_another_token(url: str, tmp_path: Path) -> None:
    async def tell() -> None:
        crowd = Crowd()
        async with journal(tmp_path, url=url, works={"crowd": crowd}, lease_s=1) as runs:
            ids = await crowd.start(runs, range(3))
            await until(lambda: len(crowd.inside) == 3)
            with runs.database.writing() as connection:
                connection.run("UPDATE quell_slots SET token = 'another'")
            # They may be back under another token before anybody looks.
            await until(lambda: not crowd.inside or all(crowd.began[str(name)] > 1 for name in range(3)))
            with runs.database.writing() as connection:
                connection.run("DELETE FROM quell_slots WHERE token = 'another'")
            crowd.gate.set()
            for run in ids:
                assert ended(await runs.wait(run, timeout_s=20), "succeeded").attempts == 2
            one_more = await runs.start("crowd", subject="more", arguments={})
            ended(await runs.wait(one_more.id, timeout_s=10), "succeeded")

    asyncio.run(tell())


@pytest.mark.parametrize("way", ["queue", "direct"])
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.4, 1.0])
def test_a_process_that_lost_its_slot_closes_whenever_it_is_asked_to(
    way: str, after_s: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the middle of stopping what stands behind the queues, or of starting it anew."""

    async def tell() -> None:
        crowd = Crowd()
        async with journal(
            tmp_path, works={"crowd": crowd}, lease_s=0.4, way="queue" if way == "queue" else "direct"
        ) as runs:
            await crowd.start(runs, range(2))
            await until(lambda: len(crowd.inside) == 2)
            with runs.database.writing() as connection:
                connection.run("DELETE FROM quell_slots")
            await until(lambda: "taken the executor slot" in caplog.text)
            await asyncio.sleep(after_s)
        crowd.gate.set()
        async with journal(tmp_path, works={"crowd": crowd}, way="queue" if way == "queue" else "direct") as runs:
            for run in await runs.list(limit=5):
                ended(await runs.wait(run.id, timeout_s=20), "succeeded")

    asyncio.run(tell())


def test_what_was_running_when_a_process_closed_goes_on_in_the_next(url: str, tmp_path: Path) -> None:
    async def tell() -> None:
        crowd = Crowd()
        async with journal(tmp_path, url=url, works={"crowd": crowd}, at_once_max=2) as runs:
            ids = await crowd.start(runs, range(4))
            await until(lambda: len(crowd.inside) == 2)
        assert not crowd.inside
        crowd.gate.set()
        async with journal(tmp_path, url=url, works={"crowd": crowd}, at_once_max=2) as runs:
            for run in ids:
                ended(await runs.wait(run, timeout_s=20), "succeeded")
            assert crowd.order == ["0", "1", "0", "1", "2", "3"], "what had begun comes first"

    asyncio.run(tell())


def test_of_writes_that_share_a_transaction_one_that_fails_takes_no_other_with_it(url: str, tmp_path: Path) -> None:
    """Some cannot be written down, one is refused by PostgreSQL when all are at their end, and the rest is kept."""

    async def tell() -> None:
        async with journal(tmp_path, url=url) as runs:

            async def emit(number: int) -> None:
                body = {"odd": object()} if number % 10 == 3 else {"n": number}
                key = f"cut\x00off{number}" if number % 10 == 7 and url else str(number)
                await runs.emit("inc_1", "incident.updated", key=key, body=body)

            ends = await asyncio.gather(*(emit(number) for number in range(60)), return_exceptions=True)
            for number, end in enumerate(ends):
                expected = TypeError if number % 10 == 3 else JournalError if number % 10 == 7 and url else type(None)
                assert type(end) is expected, (number, end)
            kept = [event.key for event in await runs.events(run="inc_1")]
            assert kept == [str(number) for number, end in enumerate(ends) if end is None]

    asyncio.run(tell())


def test_a_run_sees_nothing_of_the_request_that_started_it_nor_of_the_run_that_made_room(tmp_path: Path) -> None:
    asked: ContextVar[str] = ContextVar("asked", default="")
    seen: list[str] = []

    async def look(context: RunContext) -> Next:
        seen.append(asked.get())
        asked.set(context.run.subject)
        return Done(result={})

    async def tell() -> None:
        async with journal(tmp_path, works={"look": look}, at_once_max=1) as runs:
            asked.set("a request")
            started = [await runs.start("look", subject=name, arguments={}) for name in ("a", "b", "c")]
            for run in started:
                ended(await runs.wait(run.id, timeout_s=10), "succeeded")

    asyncio.run(tell())
    assert seen == ["", "", ""]


def test_direct_runs_alone_need_neither_dbos_nor_sqlalchemy(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from quell.config import JournalSettings
from quell.runs import Done, Runs, system_clock
async def work(context):
    return Done(result={{}})
async def main():
    runs = await Runs.open(JournalSettings(), state_dir=Path({str(tmp_path)!r}), clock=system_clock, entropy=os.urandom, version="")
    runs.register("quick", work, way="direct")
    await runs.launch()
    run = await runs.start("quick", subject="", arguments={{}})
    print((await runs.wait(run.id, timeout_s=8)).status, [name for name in ("dbos", "sqlalchemy") if name in sys.modules])
    await runs.close()
asyncio.run(main())
"""
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == ("succeeded []\n", "")
