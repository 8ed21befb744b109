"""The composition root: what opens, what stays shut, what fails alone, and that everything is closed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, cast

import msgspec
import pytest

from quell.app import App, Vault, open_app
from quell.config import DetectionSettings, InvestigationSettings, PrometheusSettings, Settings, StoreSettings
from quell.domain import Alert, JournalError, Outcome, RunStatus, StoreError
from quell.incidents import Request
from quell.runs import system_clock
from quell.signals import Detector
from tests._story import alert

pytestmark = pytest.mark.timeout(30)

NOWHERE = "http://127.0.0.1:9"


def settings_for(state_dir: Path) -> Settings:
    """Return settings whose store cannot be reached, so that nothing is spawned."""
    bounds = InvestigationSettings(settle_s=0.0, read_timeout_s=0.5)
    store = StoreSettings(url=NOWHERE, query_timeout_s=0.5)
    return Settings(
        state_dir=state_dir, store=store, investigation=bounds, detection=DetectionSettings(interval_s=0.05)
    )


def with_app(
    work: Callable[[App], Awaitable[None]],
    settings: Settings,
    *,
    role: Literal["serve", "command"],
    clock: Callable[[], datetime] = system_clock,
) -> None:
    async def run() -> None:
        async with open_app(settings, role=role, clock=clock, entropy=os.urandom, env={}) as app:
            await work(app)

    asyncio.run(run())


def test_a_second_server_on_one_state_directory_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)

    code = f"""
import asyncio, os
from pathlib import Path
from quell.app import open_app
from quell.config import Settings
from quell.domain import StateHeldError
from quell.runs import system_clock
async def main():
    settings = Settings(state_dir=Path({str(tmp_path)!r}))
    try:
        async with open_app(settings, role="serve", clock=system_clock, entropy=os.urandom, env={{}}):
            print("opened")
    except StateHeldError as error:
        print(error, error.hint)
asyncio.run(main())
"""

    async def story(_: App) -> None:
        told = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert f"pid {os.getpid()}" in told.stdout
        assert "state_dir" in told.stdout

    with_app(story, settings, role="serve")


def test_a_command_looks_at_runs_without_a_store_and_without_loading_the_executor(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from quell.app import open_app
from quell.config import Settings
from quell.runs import system_clock
async def main():
    settings = Settings(state_dir=Path({str(tmp_path)!r}))
    async with open_app(settings, role="command", clock=system_clock, entropy=os.urandom, env={{}}) as app:
        assert await app.runs.list(limit=5) == []
        assert await app.desk.incidents() == []
        assert app.store is None
asyncio.run(main())
print("dbos" in sys.modules, "chdb" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "serve.lock").exists()


def test_a_server_without_its_store_starts_and_says_what_is_missing(tmp_path: Path) -> None:
    async def story(app: App) -> None:
        assert app.store is None
        assert app.receiver is None
        with pytest.raises(StoreError):
            await app.open_store()
        (incident,) = await app.desk.handle([alert(at=system_clock())])
        await app.runs.wait(incident.run or "", timeout_s=15)
        case = await app.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.finding.outcome is Outcome.INCONCLUSIVE
        assert case.gaps
        assert all(gap.source == "store" and gap.reason == "failed" for gap in case.gaps)

    with_app(story, settings_for(tmp_path), role="serve")


def test_a_command_takes_an_executor_only_when_it_investigates(tmp_path: Path) -> None:
    async def story(app: App) -> None:
        run = await app.desk.investigate(Request(text="is anything wrong?"))
        ended = await app.runs.wait(run.id, timeout_s=15)
        assert ended.status.value == "succeeded"

    with_app(story, settings_for(tmp_path), role="command")


class _Told(msgspec.Struct):
    name: str
    run: str


def test_what_a_command_did_can_be_asked_of_its_own_store_afterwards(tmp_path: Path) -> None:
    bounds = InvestigationSettings(settle_s=0.0, read_timeout_s=5)
    settings = Settings(state_dir=tmp_path, store=StoreSettings(), investigation=bounds)
    runs = []

    async def investigate(app: App) -> None:
        run = await app.desk.investigate(Request(text="is anything wrong?"))
        await app.runs.wait(run.id, timeout_s=20)
        runs.append(run.id)

    async def look(app: App) -> None:
        store = await app.open_store()
        spans = await store.client.rows(
            "SELECT SpanName AS name, SpanAttributes['quell.run'] AS run FROM otel_traces WHERE ServiceName = 'quell'",
            row=_Told,
            timeout_s=10,
        )
        logs = await store.client.rows(
            "SELECT EventName AS name, LogAttributes['quell.run'] AS run FROM otel_logs WHERE ServiceName = 'quell'",
            row=_Told,
            timeout_s=10,
        )
        assert {"quell.read", "quell.step"} <= {span.name for span in spans}, spans
        assert ("run.finished", runs[0]) in {(log.name, log.run) for log in logs}, logs

    with_app(investigate, settings, role="command")
    with_app(look, settings, role="command")


def test_what_fails_to_close_does_not_keep_the_rest_from_closing(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)

    async def story(app: App) -> None:
        async def broken() -> None:
            raise RuntimeError("will not close")

        app.vault.close = broken  # type: ignore[method-assign]  # stands for an organ that fails at the end

    async def again(app: App) -> None:
        assert await app.runs.list(limit=1) == []

    with_app(story, settings, role="serve")
    with_app(again, settings, role="serve")


class Sometimes:
    """A detector that fails, then sees an alert, then fails again."""

    def __init__(self) -> None:
        self.looks: list[datetime] = []

    async def look(self, at: datetime) -> list[Alert]:
        self.looks.append(at)
        if len(self.looks) % 2:
            raise StoreError("the store is being restarted")
        return [alert(at=at)] if len(self.looks) == 2 else []


def test_a_look_that_fails_and_a_clock_that_goes_back_do_not_blind_the_server(tmp_path: Path) -> None:
    detector = Sometimes()
    offset_s = iter([*range(0, 400, 40), *range(400, -4000, -200)])
    last: list[datetime] = []

    def clock() -> datetime:
        last.append(system_clock() + timedelta(seconds=next(offset_s, -4000)))
        return last[-1]

    async def story(app: App) -> None:
        app.vault.detector = cast("Detector", detector)
        watching = asyncio.create_task(app.watch_forever())
        async with asyncio.timeout(15):
            while len(detector.looks) < 8 or not await app.desk.incidents():
                await asyncio.sleep(0.05)
        assert not watching.done()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    with_app(story, settings_for(tmp_path), role="serve", clock=clock)


def test_detection_can_be_switched_off(tmp_path: Path) -> None:
    detector = Sometimes()

    async def story(app: App) -> None:
        app.vault.detector = cast("Detector", detector)
        watching = asyncio.create_task(app.watch_forever())
        await asyncio.sleep(0.3)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert detector.looks == []

    settings = replace(settings_for(tmp_path), detection=DetectionSettings(enabled=False, interval_s=0.05))
    with_app(story, settings, role="serve")


class Once:
    """A detector that sees one alert once, as the real one does."""

    def __init__(self) -> None:
        self.looks = 0

    async def look(self, at: datetime) -> list[Alert]:
        self.looks += 1
        return [alert(at=at)] if self.looks == 1 else []


def test_an_alert_that_fires_while_the_journal_is_away_is_taken_when_it_is_back(tmp_path: Path) -> None:
    detector = Once()

    def rename(before: str, after: str) -> None:
        with sqlite3.connect(tmp_path / "quell.db") as raw:
            raw.execute(f"ALTER TABLE {before} RENAME TO {after}")
        raw.close()

    async def story(app: App) -> None:
        rename("incident_alerts", "away")
        app.vault.detector = cast("Detector", detector)
        watching = asyncio.create_task(app.watch_forever())
        async with asyncio.timeout(20):
            while detector.looks < 3:
                await asyncio.sleep(0.05)
            rename("away", "incident_alerts")
            while not await app.desk.incidents():
                await asyncio.sleep(0.05)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    with_app(story, settings_for(tmp_path), role="serve")


def test_a_server_that_is_stopped_keeps_no_answer_that_its_own_stopping_cut_off(tmp_path: Path) -> None:
    """The sources close after the runs that ask them, so that the next process asks again."""
    runs: list[str] = []

    async def stopped() -> None:
        asked = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        source = PrometheusSettings(name="slow", url=url, timeout_s=20)
        bounds = InvestigationSettings(settle_s=0.0, read_timeout_s=20)
        store = StoreSettings()  # a real one, as its closing takes a moment
        settings = replace(settings_for(tmp_path), store=store, prometheus=(source,), investigation=bounds)
        async with open_app(settings, role="serve", clock=system_clock, entropy=os.urandom, env={}) as app:
            (incident,) = await app.desk.handle([alert(at=system_clock())])
            runs.append(incident.run or "")
            async with asyncio.timeout(15):
                await asked.wait()
            await asyncio.sleep(0.2)
        server.close()

    async def look(app: App) -> None:
        kept = {step.name for step in await app.runs.steps(runs[0])}
        assert "read:slow:metric_shifts" not in kept
        assert (await app.runs.get(runs[0])).status is RunStatus.RUNNING

    asyncio.run(stopped())
    with_app(look, settings_for(tmp_path), role="command")


def test_a_store_whose_opening_failed_half_way_is_opened_whole_the_next_time(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, store=StoreSettings())
    tries: list[int] = []

    async def firing() -> list[Alert]:
        tries.append(len(tries))
        if len(tries) == 1:
            raise JournalError("the journal is away")
        return []

    async def story() -> None:
        vault = Vault(settings, role="serve", clock=system_clock, entropy=os.urandom)
        vault.firing = firing
        try:
            with pytest.raises(JournalError):
                await vault.open()
            assert vault.store is None
            assert vault.receiver is None
            await asyncio.sleep(3)
            await vault.open()
            assert vault.detector is not None
        finally:
            await vault.close()

    asyncio.run(story())
