"""What goes directly may be executed first, and what goes by queue later, under the same slot."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quell.domain import RunStatus
from quell.runs import Runs
from tests._postgres import fresh_database
from tests.doors._runs_bench import Story, ended, journal

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty journal; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as database:
        yield database


async def both(runs: Runs, *, slow: Story) -> None:
    """Launch the direct way, and register what goes by queue after that, as a command does that needs it only then."""
    runs.register("quick", Story(), way="direct")
    await runs.launch(way="direct")
    runs.register("slow", slow)


def test_what_goes_by_queue_waits_for_its_launch_and_is_executed_then_what_others_left_too(
    url: str, tmp_path: Path
) -> None:
    async def tell() -> None:
        slow = Story()
        async with journal(tmp_path, url=url) as elsewhere:
            elsewhere.register("slow", slow)
            left = await elsewhere.start("slow", subject="left", arguments={})
        async with journal(tmp_path, url=url) as runs:
            await both(runs, slow=slow)
            mine = await runs.start("slow", subject="mine", arguments={})
            quick = await runs.start("quick", subject="", arguments={})
            ended(await runs.wait(quick.id, timeout_s=20), "succeeded")
            assert [(await runs.get(run.id)).status for run in (left, mine)] == [RunStatus.QUEUED] * 2
            assert await runs.wake(mine.id), "that nobody executes it does no harm"
            await asyncio.gather(runs.launch(), runs.launch(), runs.launch(way="direct"))
            for run in (left, mine):
                ended(await runs.wait(run.id, timeout_s=20), "succeeded")
            later = await runs.start("quick", subject="", arguments={})
            ended(await runs.wait(later.id, timeout_s=20), "succeeded")
            assert len({run.executor for run in (await runs.get(mine.id), await runs.get(later.id))}) == 1

    asyncio.run(tell())


def test_a_slot_that_is_lost_while_the_queue_comes_up_is_taken_anew_for_both_ways(url: str, tmp_path: Path) -> None:
    async def tell() -> None:
        slow = Story()
        async with journal(tmp_path, url=url, lease_s=1.0) as runs:
            await both(runs, slow=slow)

            def rob() -> None:
                with runs.database.writing() as connection:
                    connection.run("UPDATE quell_slots SET token = 'robber', pid = -1, pid_started = 'never'")

            await asyncio.gather(runs.launch(), asyncio.to_thread(rob))
            for kind in ("slow", "quick"):
                run = await runs.start(kind, subject="", arguments={})
                ended(await runs.wait(run.id, timeout_s=30), "succeeded")

    asyncio.run(tell())


def test_who_asks_loads_nothing_that_only_incidents_need(tmp_path: Path) -> None:
    code = """
import sys
from quell.cli import main
try:
    main(["ask", "hello"])
finally:
    print([name for name in ("dbos", "sqlalchemy", "numpy", "jinja2", "starlette", "rich") if name in sys.modules])
"""
    (tmp_path / "agent.toml").write_text(
        '[agent]\nname = "sre"\nsystem_prompt = "x"\n'
        '[agent.llm]\nprovider = "openai"\nmodel = "m"\napi_key = "none"\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    (tmp_path / "quell.toml").write_text('agents = "agent.toml"\n')
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "the model did not answer" in told.stderr
    assert told.stdout == "[]\n"
