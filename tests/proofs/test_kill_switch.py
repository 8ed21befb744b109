"""The proof of the kill switch holds, and sees a switch that is read too early, too late or not at all."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Literal

import pytest
from proofs._kill_steps import stopped_at_every_step
from proofs.kill_switch import PROMISES, interleaved, raced

from quell.domain import Killed, SwitchState
from quell.governance import Guard, Switches
from quell.runs import Connection
from tests._postgres import ENVIRONMENT, fresh_database

SEED = random.randrange(1_000_000)


@pytest.mark.timeout(120)
def test_nothing_starts_after_a_kill_and_nothing_goes_untold(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, postgres_url)
    print(f"seed {SEED}")
    result = PROMISES[0].try_it("ci", SEED)
    assert result.violations == 0, result.failures
    assert result.cases > 1_500
    assert "PostgreSQL" in result.note


class ReadsFromMemory(Switches):
    reads = 0

    def state(self, connection: Connection, *, lock: Literal["share", "none"]) -> SwitchState:
        if self.reads % 5 == 0:
            self._glanced = (0.0, super().state(connection, lock=lock))
        self.reads += 1
        assert self._glanced is not None
        return self._glanced[1]


class LetsChangesPass(Switches):
    """Changes the rows and tells nobody: every process goes on with what it knows."""

    def state(self, connection: Connection, *, lock: Literal["share", "none"]) -> SwitchState:
        if self._known is None:
            self._known = ("", ())
        return super().state(connection, lock=lock)

    def _hold(self, connection: Connection) -> None:
        pass


class HoldsNothing(Switches):
    def state(self, connection: Connection, *, lock: Literal["share", "none"]) -> SwitchState:
        return super().state(connection, lock="none")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [ReadsFromMemory, LetsChangesPass])
def test_a_switch_that_is_read_from_memory_is_seen(kind: type[Switches]) -> None:
    _, failures = interleaved("ci", SEED, kind=kind)
    assert any("started after the kill" in failure for failure in failures)


@pytest.mark.timeout(60)
def test_a_protocol_that_asks_only_at_the_intent_is_seen() -> None:
    _, failures = interleaved("ci", SEED, is_checked_at_start=False)
    assert any("started after the kill" in failure for failure in failures)


@pytest.mark.timeout(60)
def test_a_start_that_holds_nothing_while_it_commits_is_seen(postgres_url: str) -> None:
    with fresh_database(postgres_url) as url:
        _, failures = raced(url, rounds=15, seed=SEED, kind=HoldsNothing)
    assert any("started and untold ['" in failure for failure in failures)


@pytest.mark.timeout(60)
def test_a_path_that_asks_only_before_the_start_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "on_start", lambda *_all: None)
    _, failures = stopped_at_every_step("ci", SEED)
    assert any("let go under a kill" in failure for failure in failures)


@pytest.mark.timeout(60)
def test_a_kill_that_does_not_tell_what_is_under_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kill = Switches.kill

    def silent(*all_: Any, **named: Any) -> Killed:
        return replace(kill(*all_, **named), in_flight=())

    monkeypatch.setattr(Switches, "kill", silent)
    _, failures = stopped_at_every_step("ci", SEED)
    assert any("untold" in failure for failure in failures)
