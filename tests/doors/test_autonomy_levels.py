"""Levels are earned by verified outcomes and confirmed by people; they are lost at once and by themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from quell.domain import (
    AgentGrant,
    AutonomyScope,
    AutonomyStep,
    AutonomyView,
    Level,
    Principal,
    RefusedError,
    ReviewVerdict,
    Tally,
    ToolClass,
    Trial,
    TrialOutcome,
    TrialSource,
    UsageError,
    WorkflowGrant,
    on_behalf_of,
)
from quell.governance import Autonomy
from quell.runs import Connection, Database
from tests._postgres import fresh_database
from tests.conftest import FakeClock
from tests.doors._identity_bench import books

OK, FAILED, REVERTED = TrialOutcome.VERIFIED_OK, TrialOutcome.FAILED, TrialOutcome.REVERTED
LIVE, SHADOW, REPLAY = TrialSource.LIVE, TrialSource.SHADOW, TrialSource.REPLAY
SCOPE = AutonomyScope(workflow_digest="sha256:1", action_class=ToolClass.REVERSIBLE, environment="prod")
ANN = Principal(user="ann", roles=("approver",))
BEN = Principal(user="ben", roles=("approver",))
OWNER = Principal(user="olga", roles=("approver", "admin"))
OPERATOR = Principal(user="otto", roles=("operator",))
OWNERS = ("olga",)


@dataclass
class World:
    """One scope, and what happens in it."""

    database: Database
    clock: FakeClock
    scope: AutonomyScope = SCOPE
    count: int = 0

    def __post_init__(self) -> None:
        self.autonomy = Autonomy(self.database, clock=self.clock)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self.database.writing(durability="written") as connection:
            yield connection

    def trial(
        self,
        outcome: TrialOutcome = OK,
        *,
        source: TrialSource = LIVE,
        agreed_by: Principal | None = ANN,
        ref: str = "",
        severe: bool = False,
    ) -> AutonomyStep:
        self.count += 1
        trial = Trial(ref=ref or f"t{self.count}", outcome=outcome, source=source, is_severe=severe)
        by = agreed_by if outcome is OK else None
        with self.writing() as connection:
            return self.autonomy.record(connection, self.scope, trial, agreed_by=by)

    def trials(self, number: int, *, source: TrialSource = LIVE, agreed_by: Principal | None = ANN) -> None:
        with self.writing() as connection:
            for _ in range(number):
                self.count += 1
                trial = Trial(ref=f"t{self.count}", outcome=OK, source=source)
                self.autonomy.record(connection, self.scope, trial, agreed_by=agreed_by)

    def promote(self, to: Level, *, by: Principal = ANN, owners: tuple[str, ...] = OWNERS) -> AutonomyStep:
        with self.writing() as connection:
            return self.autonomy.promote(connection, self.scope, to=to, by=by, owners=owners, reason="earned")

    def demote(self, to: Level, *, by: Principal = OPERATOR) -> AutonomyStep:
        with self.writing() as connection:
            return self.autonomy.demote(connection, self.scope, to=to, by=by, reason="a holiday")

    def review(self, ref: str, verdict: ReviewVerdict, *, by: Principal | None = ANN) -> AutonomyStep:
        with self.writing() as connection:
            return self.autonomy.review(connection, self.scope, ref=ref, verdict=verdict, by=by)

    def level(self) -> Level:
        with self.database.reading() as connection:
            return self.autonomy.level(connection, self.scope)

    @property
    def view(self) -> AutonomyView:
        with self.database.reading() as connection:
            return self.autonomy.show(connection, self.scope)

    def raised(self) -> World:
        """Earn the first level that acts."""
        self.trials(43)
        self.promote(Level.REVERSIBLE)
        assert self.level() is Level.REVERSIBLE
        return self


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> Iterator[World]:
    with books(tmp_path) as database:
        yield World(database, clock)


def test_a_new_version_begins_where_people_approve_each_and_with_no_evidence(world: World) -> None:
    world.raised()
    elsewhere = [
        replace(SCOPE, workflow_digest="sha256:2"),
        replace(SCOPE, environment="staging"),
        replace(SCOPE, action_class=ToolClass.IRREVERSIBLE),
        replace(SCOPE, tenant="acme"),
    ]
    for scope in elsewhere:
        other = World(world.database, world.clock, scope=scope)
        assert other.level() is Level.APPROVE_EACH
        assert other.view.trials_needed == 43
        assert other.view.standing.live.successes == 0
    with world.database.reading() as connection:
        assert world.autonomy.scopes(connection, tenant="local") == (SCOPE,)


def test_the_first_level_that_acts_needs_43_agreed_successes_and_a_person(world: World) -> None:
    world.trials(42)
    assert world.view.trials_needed == 1
    with pytest.raises(RefusedError, match="1 more agreed"):
        world.promote(Level.REVERSIBLE)
    world.trials(1)
    assert world.level() is Level.APPROVE_EACH
    assert world.view.blockers == ()
    assert world.promote(Level.REVERSIBLE).after.level is Level.REVERSIBLE
    assert world.view.standing.why == "confirmed by ann: earned"


def test_the_higher_levels_need_more_trials_and_two_people(world: World) -> None:
    world.raised()
    assert (world.view.trials_needed, world.view.confirmations_needed) == (88 - 43, 2)
    world.trials(45)
    world.promote(Level.REVIEWED, by=ANN)
    world.promote(Level.REVIEWED, by=ANN)
    assert world.level() is Level.REVERSIBLE
    world.promote(Level.REVIEWED, by=OWNER)
    assert world.level() is Level.REVIEWED
    assert world.view.trials_needed == 449 - 88
    world.trials(361)
    for person in (ANN, BEN):
        world.promote(Level.CLOSED_LOOP, by=person)
    assert world.level() is Level.CLOSED_LOOP
    assert world.view.next_level is None
    assert world.view.blockers


def test_an_owner_alone_promotes_nothing(world: World) -> None:
    world.trials(43)
    co_owner = replace(OWNER, user="oleg")
    for person in (OWNER, co_owner):
        world.promote(Level.REVERSIBLE, by=person, owners=("olga", "oleg"))
    assert world.level() is Level.APPROVE_EACH
    world.promote(Level.REVERSIBLE, by=ANN, owners=("olga", "oleg"))
    assert world.level() is Level.REVERSIBLE


def test_one_person_in_two_spellings_is_one_and_an_owner_in_another_is_the_owner(world: World) -> None:
    world.trials(43)
    olga = replace(OWNER, user="OLGA")
    assert world.promote(Level.REVERSIBLE, by=olga).after.level is Level.APPROVE_EACH, "an owner alone promotes nothing"
    assert world.promote(Level.REVERSIBLE).after.level is Level.REVERSIBLE
    world.trials(88)
    for name in ("ann", "Ann", "ANN"):
        step = world.promote(Level.REVIEWED, by=replace(ANN, user=name))
        assert (step.after.level, len(step.after.pending)) == (Level.REVERSIBLE, 1)
    assert world.promote(Level.REVIEWED, by=BEN).after.level is Level.REVIEWED


def test_a_confirmation_lapses_after_three_days_and_with_every_failure(world: World) -> None:
    world.raised().trials(250)
    world.promote(Level.REVIEWED, by=ANN)
    world.clock.forward(seconds=72 * 3600 + 1)
    world.promote(Level.REVIEWED, by=BEN)
    assert world.level() is Level.REVERSIBLE
    world.trial(FAILED)
    assert world.view.standing.pending == ()
    world.promote(Level.REVIEWED, by=ANN)
    assert world.level() is Level.REVERSIBLE
    world.promote(Level.REVIEWED, by=BEN)
    assert world.level() is Level.REVIEWED


def test_levels_are_climbed_one_at_a_time(world: World) -> None:
    world.trials(500)
    for to in (Level.REVIEWED, Level.CLOSED_LOOP, Level.APPROVE_EACH, Level.OBSERVE):
        with pytest.raises(RefusedError, match="can be reached"):
            world.promote(to)


@pytest.mark.parametrize("source", [SHADOW, REPLAY])
def test_what_was_only_played_does_not_count_where_agents_act(world: World, source: TrialSource) -> None:
    world.trials(500, source=source)
    assert world.view.trials_needed == 43
    world.demote(Level.PROPOSE)
    assert world.view.trials_needed == 0
    world.promote(Level.APPROVE_EACH)
    assert world.level() is Level.APPROVE_EACH


def test_a_success_with_which_nobody_agreed_counts_for_nothing_until_somebody_does(world: World) -> None:
    world.trials(43, agreed_by=None)
    assert (world.view.trials_needed, world.view.standing.unagreed) == (43, 43)
    for number in range(1, 44):
        world.review(f"t{number}", "agree")
    assert (world.view.trials_needed, world.view.standing.unagreed) == (0, 0)


def test_a_review_confirms_or_lowers_and_never_raises(world: World) -> None:
    world.trial(FAILED, ref="bad")
    world.trial(ref="good")
    for ref in ("bad", "good"):
        with pytest.raises(RefusedError, match="confirms or lowers"):
            world.review(ref, "agree")
    world.review("good", "disagree")
    assert (world.view.standing.live.successes, world.view.standing.live.failures) == (0, 2)
    world.review("bad", "disagree")
    assert world.view.standing.live.failures == 2
    world.review("bad", "severe", by=None)
    assert world.level() is Level.PROPOSE
    with pytest.raises(RefusedError, match="confirms or lowers"):
        world.review("bad", "violation", by=None)
    with pytest.raises(RefusedError, match="only a person"):
        world.review("good", "agree", by=None)
    with pytest.raises(UsageError, match="no outcome"):
        world.review("other", "agree")


def test_a_trial_is_counted_once(world: World) -> None:
    first = world.trial(ref="same")
    again = world.trial(ref="same")
    assert again.record == first.record
    assert again.after == again.before
    with pytest.raises(RefusedError, match="has an outcome already"):
        world.trial(FAILED, ref="same")
    assert world.view.standing.live.successes == 1
    with pytest.raises(UsageError), world.writing() as connection:
        world.autonomy.record(connection, SCOPE, Trial(ref="", outcome=OK, source=LIVE))


@pytest.mark.parametrize("source", list(TrialSource))
def test_a_violation_demotes_at_once_whatever_was_earned(world: World, source: TrialSource) -> None:
    world.raised().trials(1000)
    step = world.trial(TrialOutcome.VIOLATION, source=source, ref="bad")
    assert (step.before.level, step.after.level) == (Level.REVERSIBLE, Level.PROPOSE)
    assert "broke a policy" in world.view.standing.why
    assert world.view.trials_needed == 20
    world.trials(20)
    world.promote(Level.APPROVE_EACH)
    assert world.view.trials_needed == 23
    world.trials(23)
    world.promote(Level.REVERSIBLE)
    assert world.level() is Level.REVERSIBLE


def test_an_incident_of_the_highest_severity_demotes_at_once_also_when_it_is_learned_later(world: World) -> None:
    world.raised()
    assert world.review("t7", "severe", by=None).after.level is Level.PROPOSE
    other = World(world.database, world.clock, scope=replace(SCOPE, environment="staging")).raised()
    assert other.trial(FAILED, severe=True).after.level is Level.PROPOSE


def test_two_reverts_in_the_last_ten_demote_and_spread_ones_do_not(world: World) -> None:
    world.raised().trials(400)
    for _ in range(4):
        world.trial(REVERTED)
        world.trials(9)
    assert world.level() is Level.REVERSIBLE
    world.trial(REVERTED)
    world.trials(8)
    assert world.trial(REVERTED).after.level is Level.APPROVE_EACH
    assert "2 of the last 10" in world.view.standing.why


def test_nobody_is_promoted_whose_last_outcomes_would_demote_them_again(world: World) -> None:
    world.trials(400)
    for _ in range(2):
        world.trial(REVERTED)
    assert world.view.trials_needed == 0
    with pytest.raises(RefusedError, match="were reverted"):
        world.promote(Level.REVERSIBLE)
    world.trials(9)
    assert world.promote(Level.REVERSIBLE).after.level is Level.REVERSIBLE


def test_failures_that_prove_a_share_below_the_floor_demote(world: World) -> None:
    world.raised()
    levels = [world.trial(FAILED).after.level for _ in range(3)]
    assert levels == [Level.REVERSIBLE, Level.APPROVE_EACH, Level.APPROVE_EACH]
    assert "below 0.90" in world.view.standing.why


def test_successes_that_wait_for_a_review_still_hold_the_floor(world: World) -> None:
    world.raised().trials(60, agreed_by=None)
    for _ in range(4):
        world.trial(FAILED)
    assert world.level() is Level.REVERSIBLE


def test_a_long_good_record_does_not_hide_what_goes_wrong_today(world: World) -> None:
    world.raised().trials(2150)
    failed = 0
    while world.level() is Level.REVERSIBLE and failed < 60:
        failed += 1
        world.trial(FAILED)
    assert failed < 60


def test_a_demotion_buys_no_second_chance_of_luck(world: World) -> None:
    for _ in range(10):
        world.trial(FAILED)
    world.trial(TrialOutcome.VIOLATION)
    world.trials(137, source=SHADOW)
    world.promote(Level.APPROVE_EACH)
    world.trials(43)
    assert world.view.standing.live_since == Tally(successes=43)
    with pytest.raises(RefusedError, match="not earned"):
        world.promote(Level.REVERSIBLE)


def test_what_is_said_of_an_old_trial_counts_as_old(world: World) -> None:
    world.trial(ref="old", agreed_by=None)
    world.trial(TrialOutcome.VIOLATION)
    world.review("old", "agree")
    assert world.view.standing.live == Tally(successes=1, failures=1)
    assert world.view.standing.live_since == world.view.standing.every_since == Tally()


def test_the_floor_watches_what_was_done_at_this_level(world: World) -> None:
    world.raised()
    for number in range(1, 11):
        world.review(f"t{number}", "disagree")
    assert world.level() is Level.REVERSIBLE
    assert world.view.standing.live == Tally(successes=33, failures=10)
    world.trials(2)
    world.review("t44", "disagree")
    assert world.view.standing.watched == Tally(successes=1, failures=1)


def test_reverts_that_were_only_played_demote_nobody(world: World) -> None:
    world.raised()
    for source in (SHADOW, REPLAY, SHADOW):
        world.trial(REVERTED, source=source)
    assert world.level() is Level.REVERSIBLE


def test_a_person_may_lower_a_level_at_any_time_and_the_evidence_stands(world: World) -> None:
    world.raised()
    assert world.demote(Level.OBSERVE).after.level is Level.OBSERVE
    for level in (Level.OBSERVE, Level.REVERSIBLE):
        with pytest.raises(RefusedError, match="not below"):
            world.demote(level)
    for to in (Level.PROPOSE, Level.APPROVE_EACH, Level.REVERSIBLE):
        world.promote(to)
    assert world.level() is Level.REVERSIBLE


AGENT = AgentGrant(name="sre", tools=("*",))
FLOW = WorkflowGrant(name="triage", digest="sha256:1", tools=("*",))
NOT_PEOPLE = [
    on_behalf_of(OWNER, agent=AGENT),
    on_behalf_of(OWNER, agent=AGENT, workflow=FLOW),
    replace(OWNER, agent_tools=("*",)),
    replace(OWNER, agent="sre"),
    replace(OWNER, workflow_digest="sha256:1"),
    replace(OWNER, workflow_tools=()),
]
NOT_ALLOWED = [
    replace(ANN, roles=("viewer",)),
    replace(ANN, roles=()),
    replace(ANN, tenant="acme"),
    replace(ANN, scopes=("verb:approval.*",)),
    replace(ANN, scopes=("tool:*",)),
]


@pytest.mark.parametrize("who", [*NOT_PEOPLE, *NOT_ALLOWED])
def test_no_agent_and_nobody_without_the_role_says_a_word_about_a_level(world: World, who: Principal) -> None:
    world.raised().trials(100)
    before = world.view
    tries: list[Callable[[], object]] = [
        lambda: world.promote(Level.REVIEWED, by=who),
        lambda: world.demote(Level.PROPOSE, by=who),
        lambda: world.trial(agreed_by=who),
        lambda: world.review("t1", "disagree", by=who),
        lambda: world.review("t1", "violation", by=who),
    ]
    for attempt in tries:
        with pytest.raises(RefusedError):
            attempt()
    assert world.view == before


def test_an_operator_reviews_and_lowers_but_does_not_promote(world: World) -> None:
    world.trials(43, agreed_by=OPERATOR)
    with pytest.raises(RefusedError, match="needs one of the roles"):
        world.promote(Level.REVERSIBLE, by=OPERATOR)
    world.demote(Level.PROPOSE, by=OPERATOR)
    with pytest.raises(RefusedError, match="a reason"), world.writing() as connection:
        world.autonomy.demote(connection, SCOPE, to=Level.OBSERVE, by=OPERATOR, reason=" ")


@pytest.mark.parametrize(
    "scope", [replace(SCOPE, workflow_digest=""), replace(SCOPE, environment=""), replace(SCOPE, tenant="")]
)
def test_a_scope_with_a_hole_is_none(world: World, scope: AutonomyScope) -> None:
    other = World(world.database, world.clock, scope=scope)
    with pytest.raises(UsageError, match="whole"):
        other.trial(agreed_by=None)


def test_what_is_rolled_back_was_never_said(world: World) -> None:
    world.trials(42)
    with world.writing() as connection:
        connection.run("SAVEPOINT before")
        world.autonomy.record(connection, SCOPE, Trial(ref="t43", outcome=OK, source=LIVE), agreed_by=ANN)
        connection.run("ROLLBACK TO before")
    assert world.view.trials_needed == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_trials_of_many_writers_are_all_counted_once(
    kind: str, postgres_url: str, tmp_path: Path, clock: FakeClock
) -> None:
    with fresh_database(postgres_url) as url, books(tmp_path, url=url if kind == "postgres" else "") as database:
        worlds = [World(database, clock) for _ in range(4)]
        wrong: list[Exception] = []

        def write(world: World, first: int) -> None:
            try:
                for number in range(first, first + 15):
                    world.trial(ref=f"r{number}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the test fails
                wrong.append(error)

        threads = [
            threading.Thread(target=write, args=(world, 10 * index)) for index, world in enumerate(worlds, start=1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert not wrong
        assert worlds[0].view.standing.live.successes == 45
        with database.reading() as connection:
            records = worlds[0].autonomy.records(connection, SCOPE)
        assert Autonomy.recompute(records) == worlds[0].view.standing
