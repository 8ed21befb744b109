"""Budgets take before, settle after, and let nothing go free in between; on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.domain import (
    AMOUNT_MAX,
    BoundExceededError,
    BudgetKind,
    BudgetScope,
    Cap,
    Charge,
    ConfigError,
    Price,
    RefusedError,
    TokenUsage,
    UsageError,
)
from quell.governance import Budgets
from quell.runs import Database
from tests._postgres import fresh_database
from tests.doors._budget_bench import ANNA, NOON, Desk, MovedClock, cap, opened

pytestmark = pytest.mark.timeout(60)  # whoever comes first waits for PostgreSQL to be made

RUN, DAY, TENANT, AGENT, FEATURE = (
    BudgetScope.RUN,
    BudgetScope.DAY,
    BudgetScope.TENANT,
    BudgetScope.AGENT,
    BudgetScope.FEATURE,
)
MONEY, TOKENS, CALLS = BudgetKind.MONEY, BudgetKind.TOKENS, BudgetKind.CALLS


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        with opened(tmp_path) as database:
            yield database
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url, opened(tmp_path, url=url) as database:
        yield database


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


def desk(database: Database, clock: MovedClock, *caps: Cap) -> Desk:
    return Desk(database, Budgets(caps, clock=clock))


def accounts(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.one("SELECT count(*) AS rows FROM quell_budgets").rows)


def test_what_was_reserved_and_not_used_is_given_back(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 1000, RUN))
    taken = at.reserve(Charge(tokens=800), "one")
    assert at.books() == [(0, 800)]
    told = at.settle(taken, Charge(tokens=300))
    assert told.charged.tokens == 300
    assert told.flags == ()
    assert at.books() == [(300, 0)]
    at.reserve(Charge(tokens=700), "two")


def test_what_is_in_flight_counts(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 1000, TENANT))
    at.reserve(Charge(tokens=600), "one")
    with pytest.raises(BoundExceededError) as caught:
        at.reserve(Charge(tokens=600), "two", spender=replace(ANNA, run="run_b"))
    assert str(caught.value) == (
        "tokens of tenant acme: 0 spent, 600 in flight and 600 asked, of 1,000; the sum passed the limit of 1000"
    )
    assert "raise the cap" in caught.value.hint
    assert at.books() == [(0, 600)]


def test_a_charge_is_taken_from_all_accounts_or_from_none(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(CALLS, 5, RUN), cap(CALLS, 3, AGENT), cap(MONEY, 100, TENANT, DAY))
    for number in range(3):
        at.reserve(Charge(calls=1, money_micro_usd=10), f"call {number}")
    before = at.books()
    with (
        database.writing(durability="written") as connection,
        pytest.raises(BoundExceededError, match="calls of agent triage"),
    ):
        # The transaction goes on: the refusal is written into the audit log in it.
        at.budgets.reserve(connection, Charge(calls=1, money_micro_usd=10), spender=ANNA, key="call 3")
    assert at.books() == before
    with pytest.raises(BoundExceededError, match=r"money of tenant acme on 2026-11-20.*0\.000030 USD in flight"):
        at.reserve(Charge(money_micro_usd=71), "call 4")
    assert at.books() == before


def test_the_same_call_reserves_once_also_after_a_crash(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(CALLS, 1, RUN))
    first = at.reserve(Charge(calls=1), "call", fence=1)
    again = at.reserve(Charge(calls=1), "call", fence=2)
    assert first.is_new
    assert not again.is_new
    assert at.books() == [(0, 1)]
    with pytest.raises(RefusedError, match="newer owner"):
        at.reserve(Charge(calls=1), "call", fence=1)
    with pytest.raises(RefusedError, match="another charge"):
        at.reserve(Charge(calls=2), "call", fence=2)
    assert at.settle(again, Charge(calls=1)) == at.settle(again, Charge(calls=0))
    assert at.books() == [(1, 0)]
    late = at.reserve(Charge(calls=1), "call", fence=3)
    assert (late.is_new, late.is_open) == (False, False)
    assert at.books() == [(1, 0)]
    # Whoever spends again under that key all the same gives nothing back, and pays what is more.
    assert at.settle(late, Charge(calls=0)).charged.calls == 1
    assert at.settle(late, Charge(calls=3)).charged.calls == 3
    assert at.books() == [(3, 0)]


def test_an_owner_that_was_replaced_can_only_add(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 1000, RUN))
    old = at.reserve(Charge(tokens=100), "call", fence=1)
    new = at.reserve(Charge(tokens=100), "call", fence=2)
    assert "late" in at.settle(old, Charge(tokens=0)).flags[-1]
    assert at.books() == [(0, 100)]
    at.settle(old, Charge(tokens=130))
    assert at.books() == [(30, 100)]
    at.settle(new, Charge(tokens=80))
    assert at.books() == [(110, 0)]


def test_a_reservation_whose_owner_died_is_settled_at_what_it_reserved(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 1000, RUN), cap(TOKENS, 5000, TENANT))
    dead = at.reserve(Charge(tokens=400), "dead")
    other = replace(ANNA, run="run_b")
    at.reserve(Charge(tokens=50), "also dead", spender=other)
    assert at.expire() == ()
    clock.move(seconds=601)
    assert sorted(told.charged.tokens or 0 for told in at.expire()) == [50, 400]
    assert at.expire() == ()
    assert at.books() == [(400, 0), (450, 0)]
    # It was not dead after all: what it gives back now is too late, what it used beyond is not.
    assert at.settle(dead, Charge(tokens=10)).charged.tokens == 400
    assert at.settle(dead, Charge(tokens=420)).charged.tokens == 420
    assert at.settle(dead, Charge(tokens=420)).charged.tokens == 420
    assert at.books() == [(420, 0), (470, 0)]


@pytest.mark.parametrize(
    ("lie", "flag"),
    [
        (None, "unknown"),
        (-5, "no amount"),
        (AMOUNT_MAX + 1, "no amount"),
        (True, "no amount"),
        (0.5, "no amount"),
        ("12", "no amount"),
        (9, "below what was seen"),
    ],
)
def test_a_lie_is_charged_as_reserved(tmp_path: Path, clock: MovedClock, lie: int | None, flag: str) -> None:
    with opened(tmp_path) as database:
        at = desk(database, clock, cap(TOKENS, 1000, RUN))
        taken = at.reserve(Charge(tokens=100), "call")
        told = at.settle(taken, Charge(tokens=lie), seen=Charge(tokens=10))
        assert told.charged.tokens == 100
        assert told.flags == (f"tokens: {flag}, charged as reserved",)
        assert at.books() == [(100, 0)]


def test_no_report_at_all_is_charged_as_reserved(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 1000, RUN), cap(MONEY, 1000, RUN))
    told = at.settle(at.reserve(Charge(tokens=100, money_micro_usd=7), "call"), None)
    assert (told.charged.tokens, told.charged.money_micro_usd) == (100, 7)
    assert len(told.flags) == len(BudgetKind)


def test_more_than_reserved_is_charged_whole_and_flagged(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 1000, RUN))
    told = at.settle(at.reserve(Charge(tokens=100), "call"), Charge(tokens=5000))
    assert told.flags == ("tokens: more than reserved, charged whole",)
    assert at.books() == [(5000, 0)]
    with pytest.raises(BoundExceededError):
        at.reserve(Charge(tokens=1), "next")
    at.reserve(Charge(calls=1), "what spends no tokens goes on")


def test_a_new_day_has_a_new_account_and_an_old_reservation_stays_on_its_own(
    database: Database, clock: MovedClock
) -> None:
    at = desk(database, clock, cap(CALLS, 2, DAY))
    clock.at = NOON.replace(hour=23, minute=59, second=59, microsecond=999_999)
    late = at.reserve(Charge(calls=2), "late")
    with pytest.raises(BoundExceededError, match="on 2026-11-20"):
        at.reserve(Charge(calls=1), "too late")
    clock.move(microseconds=1)
    at.reserve(Charge(calls=2), "early")
    at.settle(late, Charge(calls=1))
    assert at.books() == [(0, 2)]
    clock.move(microseconds=-1)
    assert at.books() == [(1, 0)]


def test_a_day_is_a_day_in_utc_whatever_zone_the_clock_speaks(tmp_path: Path) -> None:
    from datetime import timezone  # noqa: PLC0415 - of this test alone

    clock = MovedClock(NOON.replace(hour=23).astimezone(timezone(timedelta(hours=5))))
    with opened(tmp_path) as database:
        at = desk(database, clock, cap(CALLS, 1, DAY))
        at.reserve(Charge(calls=1), "one")
        with pytest.raises(BoundExceededError, match="on 2026-11-20"):
            at.reserve(Charge(calls=1), "two")


def test_a_cap_may_hold_for_some_spenders_only_and_an_empty_name_is_no_way_out(
    database: Database, clock: MovedClock
) -> None:
    at = desk(database, clock, cap(CALLS, 1, AGENT, agent="tri*"), cap(CALLS, 2, FEATURE))
    other = replace(ANNA, agent="scribe", feature="")
    at.reserve(Charge(calls=1), "one")
    at.reserve(Charge(calls=1), "one", spender=replace(other, run="run_b"))
    at.reserve(Charge(calls=1), "two", spender=replace(other, run="run_b"))
    with pytest.raises(BoundExceededError, match=r"calls of feature \(none\)"):
        at.reserve(Charge(calls=1), "three", spender=replace(other, run="run_c"))
    with pytest.raises(BoundExceededError, match="calls of agent triage"):
        at.reserve(Charge(calls=1), "two")


def test_names_that_look_like_other_accounts_are_their_own(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(CALLS, 1, TENANT, FEATURE))
    for tenant, feature in [('a","b', "c"), ("a", 'b","c'), ("null", ""), ("", "null"), ("ä", "%")]:
        spender = replace(ANNA, tenant=tenant, feature=feature)
        at.reserve(Charge(calls=1), f"{tenant}|{feature}", spender=spender)
        with pytest.raises(BoundExceededError):
            at.reserve(Charge(calls=1), f"{tenant}|{feature}|2", spender=spender)


def test_a_near_cap_is_told_with_the_reservation(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 100, RUN), cap(TOKENS, None, TENANT))
    assert at.reserve(Charge(tokens=79), "one").near == ()
    (near,) = at.reserve(Charge(tokens=1), "two").near
    assert (near.account, near.spent, near.in_flight) == ("run run_a", 0, 80)
    assert at.reserve(Charge(calls=1), "three").near == ()


def test_an_unknown_price_is_refused_under_a_money_cap_and_counted_as_unknown_without_one(
    database: Database, clock: MovedClock
) -> None:
    capped = desk(database, clock, cap(MONEY, 1000, RUN, agent="triage"))
    with pytest.raises(RefusedError, match="price of this call is unknown") as caught:
        capped.reserve(Charge(money_micro_usd=None, tokens=1), "call")
    assert "pessimistic" in caught.value.hint
    free = desk(database, clock, cap(MONEY, None, RUN), cap(TOKENS, 10, RUN))
    told = free.settle(
        free.reserve(Charge(money_micro_usd=None, tokens=1), "call"), Charge(tokens=1, money_micro_usd=None)
    )
    assert told.flags == ("money: unknown, charged as reserved",)


def test_a_pessimistic_price_stands_in_for_an_unknown_one(clock: MovedClock) -> None:
    dear = Price(
        provider="*",
        models="*",
        input=((0, 100_000_000),),
        output=((0, 200_000_000),),
        source="operator",
        as_of="2026-11-20",
    )
    usage = TokenUsage(input_tokens=10, output_tokens=1)
    assert Budgets((), clock=clock).price_of("nobody", "nothing", usage) is None
    assert Budgets((), clock=clock, pessimistic=dear).price_of("nobody", "nothing", usage) == 1200


@pytest.mark.parametrize("charge", [Charge(tokens=-1), Charge(calls=None), Charge(steps=AMOUNT_MAX + 1)])
def test_a_charge_that_is_none_is_refused(tmp_path: Path, clock: MovedClock, charge: Charge) -> None:
    with opened(tmp_path) as database:
        at = desk(database, clock, cap(TOKENS, 1000, RUN))
        with pytest.raises(RefusedError, match="is no charge"):
            at.reserve(charge, "call")
        assert at.books() == [(0, 0)]


def test_a_reservation_of_nobody_cannot_be_settled(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(TOKENS, 1000, RUN))
    taken = at.reserve(Charge(tokens=1), "call")
    with pytest.raises(UsageError, match="no reservation"):
        at.settle(replace(taken, key="another"), Charge(tokens=1))


def test_without_caps_nothing_is_written_and_nothing_is_refused(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock)
    taken = at.reserve(Charge(money_micro_usd=None, tokens=5), "call")
    assert at.settle(taken, Charge(tokens=4, money_micro_usd=3)).charged.tokens == 4
    with database.reading() as connection:
        assert connection.one("SELECT count(*) AS rows FROM quell_reservations").rows == 0


def test_caps_that_make_no_sense_are_told_all_at_once(clock: MovedClock) -> None:
    with pytest.raises(ConfigError) as caught:
        Budgets(
            [cap(TOKENS, -1, RUN), replace(cap(TOKENS, 1, RUN), near_percent=0), cap(TOKENS, 1, RUN, day="2026*")],
            clock=clock,
        )
    assert [problem.path for problem in caught.value.problems] == [
        "budgets.caps.0.limit",
        "budgets.caps.1.near_percent",
        "budgets.caps.2.only",
    ]


def test_old_days_and_ended_runs_are_deleted_and_nothing_else(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(CALLS, 9, DAY), cap(CALLS, 9, RUN), cap(CALLS, 9, TENANT))
    at.settle(at.reserve(Charge(calls=1), "one"), Charge(calls=1))
    open_one = at.reserve(Charge(calls=1), "open")
    clock.move(days=40)
    with database.writing(durability="written") as connection:
        # The settled reservation goes; the account of that day has something in flight, and stays.
        assert at.budgets.retain(connection, before=clock.at - timedelta(days=30)) == 1
        at.budgets.forget(connection, ["run_b", "run", "run_a"])
    assert accounts(database) == 3
    assert at.books() == [(0, 0), (1, 1), (1, 1)]
    at.settle(open_one, Charge(calls=1))
    with database.writing(durability="written") as connection:
        assert at.budgets.retain(connection, before=clock.at - timedelta(days=30)) == 2
        at.budgets.forget(connection, ["run_b", "run"])
    assert at.books() == [(0, 0), (2, 0), (2, 0)]
    with database.writing(durability="written") as connection:
        at.budgets.forget(connection, ["run_a"])
    assert at.books() == [(0, 0), (0, 0), (2, 0)]
    assert accounts(database) == 1


def test_racing_calls_cannot_pass_a_cap_together(database: Database, clock: MovedClock) -> None:
    at = desk(database, clock, cap(CALLS, 20, TENANT), cap(CALLS, 6, RUN), cap(CALLS, 15, DAY, FEATURE))
    won: list[str] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        for call in range(6):
            try:
                at.reserve(Charge(calls=1), f"{number}.{call}", spender=replace(ANNA, run=f"run_{number % 4}"))
            except BoundExceededError:
                continue
            won.append(f"run_{number % 4}")

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 15
    assert max(won.count(run) for run in won) <= 6
