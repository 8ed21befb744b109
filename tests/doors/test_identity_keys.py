"""API keys: shown once, kept as a seal, believed until they expire or are revoked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from quell.config import Secret
from quell.domain import AgentGrant, ConfigError, Principal, Refusal, RefusedError, UsageError, on_behalf_of
from quell.governance import Identities
from quell.runs import Database
from tests._postgres import fresh_database
from tests.conftest import FakeClock
from tests.doors._identity_bench import ADMIN, PEPPER, PLAN, books, caller, identities, nobody_answers, wanted


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with books(tmp_path) as database:
        yield database


def made(database: Database, found: Identities, *, by: Principal = ADMIN, **changed: Any) -> tuple[str, str]:
    with database.writing(durability="written") as connection:
        key, secret = found.new_key(connection, wanted(**changed), by=by)
    return key.id, secret.reveal()


def reason(found: Identities, bearer: str, *, tenant: str = "") -> str:
    refusal = found.identify(caller(bearer=bearer, tenant=tenant))
    assert isinstance(refusal, Refusal)
    return refusal.reason


def test_a_key_names_its_user_with_no_more_than_it_was_given(database: Database, clock: FakeClock) -> None:
    found = identities(database, clock=clock)
    _, secret = made(database, found, scopes=("tool:logs.*", "verb:run.start"))
    assert found.authenticate(caller(bearer=secret)) == Principal(
        user="bob@example.com", tenant="acme", roles=("operator",), scopes=("tool:logs.*", "verb:run.start")
    )


@pytest.mark.timeout(60)  # a server has to start
def test_a_key_works_on_postgres_until_it_is_revoked(postgres_url: str, tmp_path: Path, clock: FakeClock) -> None:
    with fresh_database(postgres_url) as url, books(tmp_path, url=url) as database:
        found = identities(database, clock=clock)
        identifier, secret = made(database, found)
        assert found.authenticate(caller(bearer=secret)).user == "bob@example.com"
        with database.writing() as connection:
            found.revoke_key(connection, identifier, by=ADMIN)
        assert "revoked" in reason(found, secret)


def test_the_secret_is_in_no_row_and_in_no_print(database: Database, clock: FakeClock, tmp_path: Path) -> None:
    found = identities(database, clock=clock)
    with database.writing(durability="written") as connection:
        key, secret = found.new_key(connection, wanted(), by=ADMIN)
    random = secret.reveal().rpartition("_")[2]
    with sqlite3.connect(tmp_path / "quell.db") as raw:
        rows = str(raw.execute("SELECT * FROM quell_api_key").fetchall())
    raw.close()
    assert key.id in rows
    assert random not in rows
    assert random not in f"{secret!r} {secret} {key!r}"


def test_every_reason_looks_the_same_from_outside(database: Database, clock: FakeClock) -> None:
    found = identities(database, clock=clock)
    identifier, secret = made(database, found)
    unknown = f"qk_{'0' * 26}_{'0' * 64}"
    wrong = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    told = set()
    for bearer in (unknown, wrong, "qk_", secret + "0", "abc"):
        with pytest.raises(RefusedError) as refused:
            found.authenticate(caller(bearer=bearer))
        told.add((str(refused.value), refused.value.hint))
    assert len(told) == 1
    assert len({reason(found, bearer) for bearer in (unknown, wrong, "qk_")}) == 3
    refusal = found.identify(caller(bearer=wrong))
    assert isinstance(refusal, Refusal)
    assert (refusal.way, refusal.credential) == ("key", identifier)
    assert secret not in repr(refusal)


def test_a_key_ends_when_it_expires_to_the_moment(database: Database, clock: FakeClock) -> None:
    found = identities(database, clock=clock)
    _, secret = made(database, found, days=1)
    clock.forward(seconds=86_399)
    assert found.authenticate(caller(bearer=secret))
    clock.forward(seconds=1)
    assert "expired" in reason(found, secret)


def test_a_revoked_key_ends_at_once_also_in_another_process(database: Database, clock: FakeClock) -> None:
    found, elsewhere = identities(database, clock=clock), identities(database, clock=clock)
    identifier, secret = made(database, found)
    assert elsewhere.authenticate(caller(bearer=secret))
    with database.writing() as connection:
        ended = found.revoke_key(connection, identifier, by=ADMIN)
    assert ended.revoked_by == ADMIN.user
    assert "revoked" in reason(elsewhere, secret)
    clock.forward(seconds=60)
    with database.writing() as connection:
        assert found.revoke_key(connection, identifier, by=ADMIN) == ended


def test_a_key_of_another_tenant_is_refused(database: Database, clock: FakeClock) -> None:
    found = identities(database, clock=clock)
    _, secret = made(database, found)
    assert found.authenticate(caller(bearer=secret, tenant="acme"))
    assert "another" in reason(found, secret, tenant="local")
    elsewhere = identities(database, clock=clock, plan=replace(PLAN, tenants=("local",)))
    assert "not served" in reason(elsewhere, secret)


@pytest.mark.parametrize(
    "change",
    [
        "roles = '[\"admin\"]'",
        "scopes = '[\"verb:*\"]'",
        "tenant = 'local'",
        "user_name = 'root@example.com'",
        "expires_at = '2999-01-01T00:00:00+00:00'",
        "created_by = 'somebody'",
        "id = 'key_' || substr(id, 5, 25) || CASE substr(id, 30, 1) WHEN 'z' THEN 'y' ELSE 'z' END",
    ],
)
def test_a_key_whose_row_was_edited_is_believed_no_more(database: Database, clock: FakeClock, change: str) -> None:
    found = identities(database, clock=clock)
    identifier, secret = made(database, found, scopes=("verb:run.start",))
    with database.writing(durability="written") as connection:
        assert connection.run(f"UPDATE quell_api_key SET {change}") == 1
    other = identifier[4:29] + ("y" if identifier[29] == "z" else "z")
    bearer = secret if "id =" not in change else f"qk_{other}_{secret[30:]}"
    assert "changed" in reason(found, bearer)


def test_keys_sealed_under_another_secret_are_not_believed(database: Database, clock: FakeClock) -> None:
    _, secret = made(database, identities(database, clock=clock))
    other = Identities(
        database,
        PLAN,
        clock=clock,
        entropy=bytes,
        pepper=Secret(PEPPER.reveal() + "!"),
        fetch=nobody_answers,
    )
    assert "wrong" in reason(other, secret)
    with pytest.raises(ConfigError, match="too short"):
        Identities(database, PLAN, clock=clock, entropy=bytes, pepper=Secret("short"), fetch=nobody_answers)


def test_the_last_use_is_noted_to_the_minute(database: Database, clock: FakeClock) -> None:
    found = identities(database, clock=clock)
    _, secret = made(database, found)

    def used() -> timedelta:
        found.authenticate(caller(bearer=secret))
        with database.reading() as connection:
            (key,) = found.keys(connection, by=ADMIN)
        assert key.used_at
        return clock.at - key.used_at

    assert used() == timedelta(0)
    clock.forward(seconds=59)
    assert used() == timedelta(seconds=59)
    clock.forward(seconds=1)
    assert used() == timedelta(0)


def test_people_see_and_end_their_own_keys_and_admins_those_of_their_tenant(
    database: Database, clock: FakeClock
) -> None:
    found = identities(database, clock=clock)
    bob = Principal(user="bob@example.com", tenant="acme", roles=("operator",))
    eve = replace(bob, user="eve@example.com")
    stranger = Principal(user="root@example.com", tenant="local", roles=("admin",))
    identifier, _ = made(database, found, by=bob)
    with database.writing(durability="written") as connection:
        assert [key.id for key in found.keys(connection, by=ADMIN)] == [identifier]
        assert [key.id for key in found.keys(connection, by=bob)] == [identifier]
        assert not found.keys(connection, by=eve)
        assert not found.keys(connection, by=stranger)
        with pytest.raises(RefusedError, match="somebody else"):
            found.revoke_key(connection, identifier, by=eve)
        with pytest.raises(UsageError, match="no key"):
            found.revoke_key(connection, identifier, by=stranger)
        assert found.revoke_key(connection, identifier, by=bob).revoked_at == clock.at


BOB = Principal(user="bob@example.com", tenant="acme", roles=("operator",))


@pytest.mark.parametrize(
    ("by", "changed"),
    [
        (BOB, {"user": "alice@example.com"}),
        (BOB, {"roles": ("operator", "admin")}),
        (replace(ADMIN, tenant="local"), {}),
        (replace(ADMIN, scopes=("verb:key.list",)), {"scopes": ("verb:key.list",)}),
        (replace(ADMIN, scopes=("verb:key.*",)), {}),
        (replace(ADMIN, scopes=("verb:key.*",)), {"scopes": ("verb:*",)}),
        (on_behalf_of(ADMIN, agent=AgentGrant(name="sre", tools=("*",))), {}),
        (replace(ADMIN, workflow="triage"), {}),
    ],
)
def test_nobody_gives_a_key_that_may_more_than_they(
    database: Database, clock: FakeClock, by: Principal, changed: dict[str, Any]
) -> None:
    found = identities(database, clock=clock)
    with pytest.raises(RefusedError), database.writing() as connection:
        found.new_key(connection, wanted(**changed), by=by)
    with database.reading() as connection:
        assert not found.keys(connection, by=ADMIN)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": " "},
        {"user": ""},
        {"user": "bob\n"},
        {"tenant": "acme", "roles": ()},
        {"days": 0},
        {"days": 400},
        {"scopes": ("logs",)},
        {"scopes": ("tool:lo?s",)},
        {"scopes": ("tool:" + "*a" * 5,)},
    ],
)
def test_a_key_that_is_not_wholly_described_is_not_made(
    database: Database, clock: FakeClock, changed: dict[str, Any]
) -> None:
    found = identities(database, clock=clock)
    with pytest.raises(UsageError, match="no key"), database.writing() as connection:
        found.new_key(connection, wanted(**changed), by=ADMIN)


def test_keys_are_refused_where_they_are_not_configured(database: Database, clock: FakeClock) -> None:
    _, secret = made(database, identities(database, clock=clock))
    closed = identities(database, clock=clock, plan=replace(PLAN, api_keys="refused"))
    assert "not accepted" in reason(closed, secret)
