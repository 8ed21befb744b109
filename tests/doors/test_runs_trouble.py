"""Bad days of the journal: what cannot be used says so, with what to do, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from quell.domain import ConfigError, JournalError, StateHeldError
from quell.runs import Database, Done, Next, RunContext
from tests._postgres import fresh_database
from tests.doors._runs_bench import Story, ended, journal, story

pytestmark = pytest.mark.timeout(30)


def _open(state_dir: Path, *, url: str = "") -> None:
    async def tell() -> None:
        async with journal(state_dir, url=url) as runs:
            await runs.list(limit=1)

    asyncio.run(tell())


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "quell.db").write_bytes(b"this was never a database" * 100)
    with pytest.raises(JournalError, match=r"quell\.db: the file is damaged") as error:
        _open(tmp_path)
    assert "move it away" in error.value.hint


def test_a_file_damaged_in_the_middle_is_told_when_it_is_read(tmp_path: Path) -> None:
    _open(tmp_path)
    with sqlite3.connect(tmp_path / "quell.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    raw = bytearray((tmp_path / "quell.db").read_bytes())
    raw[4096:] = b"\xff" * (len(raw) - 4096)
    (tmp_path / "quell.db").write_bytes(raw)
    with pytest.raises(JournalError, match="damaged"):
        _open(tmp_path)


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot make the state directory") as error:
        _open(tmp_path / "file" / "state")
    assert "QUELL_STATE_DIR" in error.value.hint


_HOLD = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
os.kill(os.getpid(), signal.SIGSTOP)
connection.execute("ROLLBACK")
"""


def test_a_process_that_is_frozen_with_the_lock_is_named_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    """Eight writers of one process: each gives up in its own time, not after all the others."""

    async def tell() -> None:
        async with journal(tmp_path) as runs:
            runs.database.patience_s = 0.3
            with subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path / "quell.db")]) as frozen:
                os.waitid(os.P_PID, frozen.pid, os.WSTOPPED)
                try:
                    tries = [asyncio.to_thread(_write, runs.database) for _ in range(8)]
                    # The reader has the connection that was opened before, with the usual patience.
                    with runs.database.reading() as connection:
                        async with asyncio.timeout(20):
                            ends = await asyncio.gather(*tries, return_exceptions=True)
                        assert connection.one("SELECT COUNT(*) AS n FROM quell_runs").n == 0, "readers go on"
                finally:
                    frozen.send_signal(signal.SIGCONT)
                assert frozen.wait() == 0
            assert {type(end) for end in ends} == {JournalError}
            told = [end for end in ends if isinstance(end, JournalError)]
            assert all(f"process {frozen.pid}, stopped holds it for too long" in str(end) for end in told), told
            assert all(f"kill -CONT {frozen.pid}" in end.hint for end in told)
            _write(runs.database)

    asyncio.run(tell())


def _write(database: Database) -> None:
    with database.writing() as connection:
        connection.run("CREATE TABLE IF NOT EXISTS notes (note TEXT)")


def test_a_journal_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "quell.db").mkdir()
    with pytest.raises(JournalError, match="cannot be opened"):
        _open(tmp_path)


def test_a_journal_of_a_newer_quell_is_refused(tmp_path: Path) -> None:
    _open(tmp_path)
    with sqlite3.connect(tmp_path / "quell.db") as connection:
        connection.execute("UPDATE quell_meta SET value = '99' WHERE name = 'schema'")
    connection.close()
    with pytest.raises(JournalError, match="newer Quell"):
        _open(tmp_path)


def test_a_server_that_does_not_answer_is_told_soon_and_without_the_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began_s = time.monotonic()
    with pytest.raises(JournalError, match="cannot be used") as error:
        _open(tmp_path, url=f"postgresql://quell:hunter2@127.0.0.1:{port}/quell")
    assert time.monotonic() - began_s < 5
    assert "hunter2" not in str(error.value) + error.value.hint
    assert "journal.url" in error.value.hint


@pytest.mark.parametrize("url", ["mysql://me:hunter2@host/db", "just a word hunter2", "postgresql://[hunter2"])
def test_a_url_that_is_none_of_postgres_is_refused_without_the_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"journal\.url") as error:
        _open(tmp_path, url=url)
    assert "hunter2" not in str(error.value)


def test_two_of_one_executor_name_do_not_execute_side_by_side(tmp_path: Path) -> None:
    async def tell() -> None:
        async with journal(tmp_path, works={"story": Story()}, executor="serve"):
            with pytest.raises(StateHeldError, match="'serve' is held by process"):
                async with journal(tmp_path, works={"story": Story()}, executor="serve"):
                    pass
            with pytest.raises(JournalError, match="already launched"):
                async with journal(tmp_path, works={"story": Story()}):
                    pass

    asyncio.run(tell())


def test_a_journal_locked_for_a_while_loses_no_result(tmp_path: Path) -> None:
    """What a step returned is kept when it can be; meanwhile it is not done again."""

    async def tell() -> None:
        work = Story()
        work.hang_in = "two"
        async with journal(tmp_path, works={"story": work}, lease_s=20) as runs:
            run = await story(runs)
            await asyncio.wait_for(work.reached.wait(), 8)
            await runs.cancel(run.id)
            work.hang_in = ""
            blocker = sqlite3.connect(tmp_path / "quell.db", isolation_level=None, check_same_thread=False)
            await runs.resume(run.id)
            blocker.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(1.0)
            blocker.execute("ROLLBACK")
            blocker.close()
            ended(await runs.wait(run.id, timeout_s=10), "succeeded")
            assert work.done == {"one": 1, "two": 1, "three": 1}

    asyncio.run(tell())


@pytest.mark.timeout(60)
def test_a_server_that_goes_away_for_a_while_loses_no_result(postgres_url: str, tmp_path: Path) -> None:
    calls: list[str] = []

    async def tell(database: str) -> None:
        name = sa.make_url(database).database
        server = sa.create_engine(
            sa.make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )

        def allow(word: str) -> None:
            with server.connect() as connection:
                connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {word}")
                connection.execute(
                    sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                    {"name": name},
                )

        async def segment(context: RunContext) -> Next:
            async def around() -> str:
                calls.append("around")
                await asyncio.to_thread(allow, "false")
                return "learned while it was away"

            return Done(result={"is": await context.step("around", around, returns=str, timeout_s=20)})

        async with journal(tmp_path, url=database, works={"away": segment}, lease_s=20) as runs:
            run = await runs.start("away", subject="", arguments={})
            async with asyncio.timeout(15):
                while not calls:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1.5)
            with pytest.raises(JournalError, match="cannot be used"):
                await runs.get(run.id)
            await asyncio.to_thread(allow, "true")
            async with asyncio.timeout(20):
                while True:
                    try:
                        run = await runs.wait(run.id, timeout_s=20)
                    except JournalError:
                        await asyncio.sleep(0.1)  # a connection that was cut just now
                    else:
                        break
            assert ended(run, "succeeded").result == '{"is":"learned while it was away"}'
        server.dispose()

    with fresh_database(postgres_url) as database:
        asyncio.run(tell(database))
    assert calls == ["around"]


FULL = """
import asyncio, json, os, resource, signal, sys
from pathlib import Path
from quell.config import JournalSettings
from quell.runs import Database, Done, Runs, system_clock

directory = Path(sys.argv[1])
calls = []

async def work(context):
    async def big():
        calls.append("big")
        if len(calls) == 1:
            # From now on no file may grow: what a full disk does, without one.
            size = max(path.stat().st_size for path in directory.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return "x" * 300_000
    text = await context.step("big", big, returns=str, timeout_s=20)
    return Done(result={"length": len(text)})

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    runs = await Runs.open(JournalSettings(lease_s=20.0), state_dir=directory, clock=system_clock, entropy=os.urandom, version="")
    runs.register("full", work)
    await runs.launch()
    run = await runs.start("full", subject="", arguments={})
    waiting = await runs.wait(run.id, timeout_s=2.0)
    try:
        await runs.start("full", subject="y" * 300_000, arguments={})
        told = ["nothing"]
    except Exception as error:
        told = [type(error).__name__, str(error), error.hint]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ended = await runs.wait(run.id, timeout_s=15)
    print(json.dumps({"while": waiting.status, "told": told, "then": ended.status, "result": ended.result, "calls": len(calls)}))
    await runs.close()

asyncio.run(main())
"""


def test_a_full_disk_is_told_and_the_run_goes_on_by_itself_when_there_is_room(tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    told = json.loads(out.stdout)
    assert told["while"] == "running"
    assert told["told"][0] == "JournalError"
    assert "space" in told["told"][2]
    assert (told["then"], told["result"]) == ("succeeded", '{"length":300000}')
    assert told["calls"] == 1


def test_the_runtime_is_silent_on_a_good_day(tmp_path: Path) -> None:
    """Neither banner nor hint nor log line of what stands behind the journal reaches the terminal."""
    code = f"""
import asyncio, os
from pathlib import Path
from quell.config import JournalSettings
from quell.runs import Database, Done, Runs, system_clock
async def work(context):
    return Done(result={{}})
async def main():
    runs = await Runs.open(JournalSettings(), state_dir=Path({str(tmp_path)!r}), clock=system_clock, entropy=os.urandom, version="")
    runs.register("quiet", work)
    await runs.launch()
    run = await runs.start("quiet", subject="", arguments={{}})
    print((await runs.wait(run.id, timeout_s=8)).status)
    await runs.close()
asyncio.run(main())
"""
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == ("succeeded\n", "")


@pytest.mark.skipif(sqlite3.sqlite_version_info >= (3, 42), reason="this SQLite knows unixepoch('subsec')")
def test_a_new_python_on_an_old_sqlite_executes_runs(tmp_path: Path) -> None:
    """From Python 3.12 on, DBOS asks SQLite for what only 3.42 has; Debian 12 has 3.40."""
    code = f"""
import asyncio, os, sys
from pathlib import Path
from quell.config import JournalSettings
from quell.runs import Database, Done, Runs, system_clock
import dbos
async def work(context):
    return Done(result={{}})
async def main():
    runs = await Runs.open(JournalSettings(), state_dir=Path({str(tmp_path)!r}), clock=system_clock, entropy=os.urandom, version="")
    runs.register("old", work)
    sys.version_info = (3, 12, 1, "final", 0)  # what DBOS decides by
    await runs.launch()
    run = await runs.start("old", subject="", arguments={{}})
    print((await runs.wait(run.id, timeout_s=15)).status)
    await runs.close()
asyncio.run(main())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "succeeded\n", out.stderr


def test_work_that_returns_nothing_fails_its_run_with_a_reason(tmp_path: Path) -> None:
    async def forgetful(context: RunContext) -> Next:
        return None  # type: ignore[return-value] # the mistake that is tested

    async def unkept(context: RunContext) -> Next:
        return Done(result={"odd": object()})

    async def tell() -> None:
        async with journal(tmp_path, works={"forgetful": forgetful, "unkept": unkept}) as runs:
            for kind, said in (("forgetful", "work of forgetful returned None"), ("unkept", "TypeError")):
                run = await runs.start(kind, subject="", arguments={})
                assert said in ended(await runs.wait(run.id, timeout_s=8), "failed").error

    asyncio.run(tell())


@pytest.mark.parametrize("said", ["cut \x00 off", "half a letter \udcff"])
def test_a_run_that_fails_with_words_that_no_database_takes_ends_all_the_same(
    said: str, postgres_url: str, tmp_path: Path
) -> None:
    async def fails(_: RunContext) -> Next:
        raise ValueError(said)

    async def tell(url: str) -> None:
        async with journal(tmp_path, works={"story": fails}, url=url) as runs:
            started = await runs.start("story", subject="s", arguments={})
            run = ended(await runs.wait(started.id, timeout_s=15), "failed")
            assert run.error.startswith(f"ValueError: {said[:4]}")

    with fresh_database(postgres_url) as url:
        asyncio.run(tell(url))


def test_nobody_who_freezes_in_the_middle_of_a_transaction_holds_its_locks_for_ever(
    postgres_url: str, tmp_path: Path
) -> None:
    async def tell(url: str) -> None:
        async with journal(tmp_path, url=url) as runs:
            with runs.engine.connect() as connection:
                limit = connection.scalar(sa.text("SHOW idle_in_transaction_session_timeout"))
            assert limit == "10s"

    with fresh_database(postgres_url) as url:
        asyncio.run(tell(url))


@pytest.mark.timeout(60)
def test_a_connection_that_a_thread_still_holds_when_the_runs_close_is_closed_when_it_comes_back(
    postgres_url: str, tmp_path: Path
) -> None:
    async def tell(url: str) -> None:
        async with journal(tmp_path, works={"story": Story()}, url=url) as runs:
            engine = runs.engine
            held = engine.connect()
            held.execute(sa.text("SELECT 1"))
            driver = held.connection.driver_connection
        assert driver is not None
        assert not driver.closed
        held.close()
        assert driver.closed
        with engine.connect() as late:  # somebody who comes after the end leaves nothing open either
            driver = late.connection.driver_connection
        assert driver is not None
        assert driver.closed

    with fresh_database(postgres_url) as url:
        asyncio.run(tell(url))
