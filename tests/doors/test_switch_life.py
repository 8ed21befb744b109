"""The kill switch and freezes: what they cover, who may set and lift them, and that no start slips past."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.domain import FrozenCall, Killed, Principal, RefusedError, Switch, UsageError
from quell.governance import Switches
from quell.runs import Connection, Database
from tests import _authority as a
from tests._postgres import fresh_database
from tests.conftest import FakeClock


class Bench:
    """Switches over one database, and effects in flight that a test decides."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.database = database
        self.clock = clock
        self.now_s = 0.0
        self.flying: list[str] = []
        self.switches = self.another()

    def another(self) -> Switches:
        return Switches(
            self.database,
            clock=self.clock,
            monotonic=lambda: self.now_s,
            entropy=os.urandom,
            in_flight=lambda connection, switch: self.flying,
        )

    def stopped(
        self, call: FrozenCall | None = None, *, principal: Principal = a.RUN, by: Switches | None = None
    ) -> list[str]:
        with self.database.writing(durability="written") as connection:
            state = (by or self.switches).state(connection, lock="share")
        return [switch.kind for switch in state.stops(call or a.frozen(), principal=principal)]

    def kill(self, by: Principal = a.ADA, **scope: str) -> Switch:
        with self.database.writing(durability="written") as connection:
            return self.switches.kill(connection, by=by, reason="it runs away", **scope).switch

    def lift(self, switch: Switch, by: Principal = a.ADA) -> None:
        with self.database.writing(durability="written") as connection:
            self.switches.lift(connection, switch.id, by=by, reason="it is mended")


@pytest.fixture(params=["sqlite", "postgres"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Bench]:
    if request.param == "sqlite":
        with a.database(tmp_path) as database:
            yield Bench(database, clock)
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url, a.database(tmp_path, url=url) as database:
        yield Bench(database, clock)


@pytest.fixture
def small(tmp_path: Path, clock: FakeClock) -> Iterator[Bench]:
    with a.database(tmp_path) as database:
        yield Bench(database, clock)


@pytest.mark.timeout(60)
def test_a_kill_stops_until_it_is_lifted_in_every_process(bench: Bench) -> None:
    other = bench.another()
    assert bench.stopped(by=other) == []
    switch = bench.kill()
    assert bench.stopped() == bench.stopped(by=other) == ["kill"]
    bench.clock.forward(seconds=86_400 * 365)
    assert bench.stopped(by=other) == ["kill"]
    bench.lift(switch)
    assert bench.stopped() == bench.stopped(by=other) == []
    with pytest.raises(RefusedError, match="was lifted by ada"):
        bench.lift(switch)


@pytest.mark.parametrize(
    ("scope", "covers"),
    [
        ({}, True),
        ({"tool": "sc*"}, True),
        ({"tool": "restart"}, False),
        ({"environment": "prod"}, True),
        ({"environment": "stage"}, False),
        ({"agent": "sre-?ot"}, True),
        ({"agent": "other"}, False),
        ({"agent": "sre-bot", "tool": "restart"}, False),
        ({"tenant": "*"}, True),
        ({"tenant": "other"}, False),
    ],
)
def test_a_kill_covers_what_all_its_globs_cover(small: Bench, scope: dict[str, str], *, covers: bool) -> None:
    small.kill(a.ADA, **scope)
    assert small.stopped() == (["kill"] if covers else [])


def test_a_kill_covers_a_tool_under_each_name_that_it_goes_by(small: Bench) -> None:
    small.kill(a.ADA, tool="restart")
    state = small.switches.glance()
    assert not state.stops(a.frozen(), principal=a.RUN)
    assert not state.stops(a.frozen(), principal=a.RUN, also=("k8s__scale",))
    assert state.stops(a.frozen(), principal=a.RUN, also=("k8s__restart", "restart"))


def test_a_kill_of_ones_own_tenant_leaves_the_others(small: Bench) -> None:
    small.kill(by=a.BO)
    assert small.stopped() == ["kill"]
    assert small.stopped(principal=replace(a.RUN, tenant="other")) == []


def test_who_may_stop_and_who_may_lift(small: Bench) -> None:
    for by in (a.DEE, replace(a.ADA, agent="bot"), replace(a.ADA, user="")):
        with pytest.raises(RefusedError):
            small.kill(by=by)
    with pytest.raises(RefusedError, match="may stop what is of tenant acme"):
        small.kill(by=a.BO, tenant="*")
    with pytest.raises(UsageError, match="covers nothing"):
        small.kill(tool="")
    with pytest.raises(UsageError, match="reason"), small.database.writing(durability="written") as connection:
        small.switches.kill(connection, by=a.ADA, reason=" ")
    assert small.stopped() == []
    switch = small.kill()
    for by, code in ((a.BO, "forbidden"), (a.EVE, "unknown"), (replace(a.ADA, agent="bot"), "forbidden")):
        with pytest.raises(RefusedError) as refused:
            small.lift(switch, by=by)
        assert refused.value.code == code
    assert small.stopped() == ["kill"]


def test_a_freeze_holds_in_its_window(small: Bench) -> None:
    start = small.clock.at + timedelta(hours=1)
    with small.database.writing(durability="written") as connection:
        small.switches.freeze(
            connection,
            by=a.ADA,
            reason="payday",
            starts_at=start,
            ends_at=start + timedelta(hours=2),
            environment="prod",
        )
    for seconds, wanted in ((3600 - 1e-6, []), (3600, ["freeze"]), (3 * 3600 - 1e-6, ["freeze"]), (3 * 3600, [])):
        small.clock.at = start - timedelta(hours=1) + timedelta(seconds=seconds)
        assert small.stopped() == wanted
    small.clock.at = start
    stage = a.frozen()
    stage = replace(stage, resource=replace(stage.resource, environment="stage"))
    assert small.stopped(stage) == []
    for ends_at in (start, start - timedelta(hours=1), (start + timedelta(hours=1)).replace(tzinfo=None)):
        with pytest.raises(UsageError), small.database.writing(durability="written") as connection:
            small.switches.freeze(connection, by=a.ADA, reason="payday", starts_at=start, ends_at=ends_at)


def test_a_kill_that_was_undone_with_its_transaction_leaves_nothing_behind(small: Bench) -> None:
    with pytest.raises(ConnectionError):
        kill_and_fail(small)
    assert small.stopped() == []
    small.kill(tool="restart")
    assert small.stopped() == []
    small.kill()
    assert small.stopped() == ["kill"]


def kill_and_fail(small: Bench) -> None:
    with small.database.writing(durability="written") as connection:
        small.switches.kill(connection, by=a.ADA, reason="it runs away")
        assert small.switches.state(connection, lock="share").switches
        raise ConnectionError("the audit log is out of reach")


def test_a_kill_in_a_hurry_stops_this_process_before_its_turn_comes(small: Bench) -> None:
    seen: list[object] = []
    with small.database.writing(durability="written") as connection:
        killer = threading.Thread(
            target=lambda: small.switches.kill_now(
                by=a.ADA, reason="it runs away", tool="sc*", and_then=lambda _, killed: seen.append(killed.switch.tool)
            )
        )
        killer.start()
        for _ in range(20_000):
            state = small.switches.state(connection, lock="share")
            if state.switches:
                break
        assert seen == []
        assert state.stops(a.frozen(), principal=a.RUN)
        assert small.switches.glance().stops(a.frozen(), principal=a.RUN)
        assert not state.stops(a.frozen(tool="restart"), principal=a.RUN)
        assert connection.all("SELECT id FROM quell_switches") == []
    killer.join()
    assert seen == ["sc*"]
    assert small.stopped() == ["kill"]
    assert [switch.tool for switch in small.switches.glance().switches] == ["sc*"]


def test_a_kill_in_a_hurry_that_fails_leaves_nothing_stopped(small: Bench) -> None:
    def fail(connection: Connection, killed: Killed) -> None:
        raise ConnectionError("the audit log is out of reach")

    with pytest.raises(ConnectionError):
        small.switches.kill_now(by=a.ADA, reason="it runs away", and_then=fail)
    for by, reason in ((a.DEE, "no"), (a.ADA, "")):
        with pytest.raises((RefusedError, UsageError)):
            small.switches.kill_now(by=by, reason=reason)
    assert small.stopped() == []
    assert small.switches.glance().switches == ()


def test_a_glance_is_no_older_than_it_says(small: Bench) -> None:
    assert small.switches.glance().switches == ()
    small.kill()
    small.now_s = 0.999
    assert small.switches.glance().switches == ()
    assert small.switches.glance().stale_max_s == 1.0
    small.now_s = 1.0
    assert [switch.kind for switch in small.switches.glance().switches] == ["kill"]


def test_a_kill_tells_what_it_came_too_late_for_and_waits_for_it(small: Bench) -> None:
    small.flying = ["run_1/call_1", "run_1/call_2"]
    with small.database.writing(durability="written") as connection:
        killed = small.switches.kill(connection, by=a.ADA, reason="it runs away")
    assert killed.in_flight == ("run_1/call_1", "run_1/call_2")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            small.flying = ["run_9/later"]

    assert asyncio.run(small.switches.drain(killed, timeout_s=60, sleep=sleep)) == ()
    assert len(slept) == 3
    small.flying = ["run_1/call_2"]
    assert asyncio.run(small.switches.drain(killed, timeout_s=1, sleep=sleep)) == ("run_1/call_2",)
    assert len(slept) == 3 + 5


@pytest.mark.timeout(60)
def test_a_kill_waits_for_the_starts_under_way_and_those_after_it_wait_for_the_kill(
    tmp_path: Path, clock: FakeClock, postgres_url: str
) -> None:
    with fresh_database(postgres_url) as url, a.database(tmp_path, url=url) as database:
        bench = Bench(database, clock)
        seen: dict[str, object] = {}
        killer = threading.Thread(target=lambda: seen.update(killed=bench.kill()))
        late = threading.Thread(target=lambda: seen.update(late=bench.stopped()))
        with database.writing(durability="written") as connection:
            assert bench.switches.state(connection, lock="share").switches == ()
            killer.start()
            wait_until_waiting(connection, 1)
            late.start()
            wait_until_waiting(connection, 2)
            assert seen == {}
            assert bench.switches.state(connection, lock="share").switches == ()
        killer.join()
        late.join()
        assert seen["late"] == ["kill"]


def wait_until_waiting(connection: Connection, number: int) -> None:
    """Wait until that many transactions wait for an advisory lock."""
    for _ in range(20_000):
        row = connection.one("SELECT COUNT(*) AS number FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        if row.number == number:
            return
    raise AssertionError(f"not {number} waiting")
