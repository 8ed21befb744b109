"""Tokens of identity providers: whose key, which claims, until when, and what happens when the provider is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quell.domain import Principal, Refusal
from quell.governance import Identities
from quell.runs import Database
from tests.conftest import FakeClock
from tests.doors._identity_bench import (
    CORP,
    PLAN,
    Provider,
    books,
    caller,
    identities,
    private_key,
    public_jwk,
    sign,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with books(tmp_path) as database:
        yield database


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def found(database: Database, clock: FakeClock, provider: Provider) -> Identities:
    return identities(database, clock=clock, fetch=provider)


def reason(found: Identities, token: str) -> str:
    refusal = found.identify(caller(bearer=token))
    assert isinstance(refusal, Refusal), refusal
    assert token not in refusal.reason
    return refusal.reason


def user(found: Identities, token: str) -> str:
    principal = found.identify(caller(bearer=token))
    assert isinstance(principal, Principal), principal
    return principal.user


def test_a_token_names_a_user_with_the_roles_that_its_groups_give(found: Identities, provider: Provider) -> None:
    token = provider.token(roles=["sre", "root", "admin"], agent="sre", scopes=["*"])
    assert found.authenticate(caller(bearer=token)) == Principal(user="corp:alice", tenant="acme", roles=("operator",))


@pytest.mark.parametrize(("key", "algorithm"), [("rsa", "RS256"), ("rsa", "PS256"), ("ec", "ES256"), ("ed", "EdDSA")])
def test_signatures_with_a_private_key_are_accepted_when_named(
    database: Database, clock: FakeClock, provider: Provider, key: str, algorithm: str
) -> None:
    provider.keys = [public_jwk(key, kid="k1")]
    token = sign(provider.claims(), key=key, algorithm=algorithm, headers={"kid": "k1"})
    for algorithms, is_believed in (((algorithm,), True), (("RS512",), False)):
        plan = replace(PLAN, issuers=(replace(CORP, algorithms=algorithms),))
        told = identities(database, clock=clock, plan=plan, fetch=provider).identify(caller(bearer=token))
        assert isinstance(told, Principal) is is_believed, told


def test_claims_are_read_by_name_or_by_path(database: Database, clock: FakeClock, provider: Provider) -> None:
    issuer = replace(
        CORP, user_claim="email", tenant_claim="https://example.com/tenant", roles_claim="/realm_access/roles"
    )
    found = identities(database, clock=clock, plan=replace(PLAN, issuers=(issuer,)), fetch=provider)
    tenant: dict[str, Any] = {"https://example.com/tenant": "local"}
    token = provider.token(email="alice@example.com", realm_access={"roles": "lead"}, **tenant)
    assert found.authenticate(caller(bearer=token)) == Principal(
        user="corp:alice@example.com", tenant="local", roles=("approver",)
    )
    assert "user and a tenant" in reason(found, provider.token(email="alice@example.com"))
    assert "not served" in reason(
        found, provider.token(email="a@b", **{**tenant, "https://example.com/tenant": "other"})
    )


def test_the_clock_that_was_handed_in_says_when_a_token_holds(
    found: Identities, provider: Provider, clock: FakeClock
) -> None:
    token = provider.token(at=clock.at, nbf=int(clock.at.timestamp()) + 100)
    assert "not come" in reason(found, token)
    clock.forward(seconds=40)
    assert user(found, token) == "corp:alice"
    clock.forward(seconds=600 + 60 - 40 - 1)
    assert user(found, token) == "corp:alice"
    clock.forward(seconds=1)
    assert "expired" in reason(found, token)


def test_a_token_from_the_future_or_of_long_ago_is_refused(
    found: Identities, provider: Provider, clock: FakeClock
) -> None:
    now = int(clock.at.timestamp())
    assert user(found, provider.token(iat=now + 60)) == "corp:alice"
    assert "future" in reason(found, provider.token(iat=now + 61))
    assert user(found, provider.token(iat=now - 86_460)) == "corp:alice"
    assert "too long ago" in reason(found, provider.token(iat=now - 86_461))


def test_claims_that_are_required_must_say_something(database: Database, clock: FakeClock, provider: Provider) -> None:
    plan = replace(PLAN, issuers=(replace(CORP, required=("amr", "email")),))
    found = identities(database, clock=clock, plan=plan, fetch=provider)
    assert user(found, provider.token(amr=["mfa"], email="a@example.com")) == "corp:alice"
    assert reason(found, provider.token(amr=[])).endswith("amr, email")


def test_keys_are_asked_for_once_while_they_are_fresh(found: Identities, provider: Provider, clock: FakeClock) -> None:
    for _ in range(20):
        user(found, provider.token(at=clock.at))
        clock.forward(seconds=15)
    assert provider.asked == 1
    clock.forward(seconds=15)
    user(found, provider.token(at=clock.at))
    assert provider.asked == 2


def test_a_new_key_is_found_at_once_and_unknown_ones_do_not_flood_the_provider(
    found: Identities, provider: Provider, clock: FakeClock
) -> None:
    user(found, provider.token())
    clock.forward(seconds=31)
    provider.keys = [public_jwk("rsa-new", kid="k2"), public_jwk("rsa", kid="k1")]
    token = sign(provider.claims(), key="rsa-new", headers={"kid": "k2"})
    assert user(found, token) == "corp:alice"
    assert provider.asked == 2
    for kid in range(50):
        reason(found, provider.token(headers={"kid": f"unknown-{kid}"}))
    assert provider.asked == 2
    clock.forward(seconds=30)
    for kid in range(50):
        reason(found, provider.token(at=clock.at, headers={"kid": f"unknown-{kid}"}))
    assert provider.asked == 3


def test_a_key_that_the_provider_dropped_ends_when_its_keys_are_no_longer_fresh(
    found: Identities, provider: Provider, clock: FakeClock
) -> None:
    user(found, provider.token())
    provider.keys = [public_jwk("rsa-new", kid="k2")]
    clock.forward(seconds=301)
    assert "no key" in reason(found, provider.token(at=clock.at))


@pytest.mark.parametrize("trouble", ["down", "nonsense", "recursion", "huge"])
def test_a_provider_that_is_away_is_believed_for_a_bounded_time(
    database: Database, clock: FakeClock, provider: Provider, trouble: str
) -> None:
    answers = {"nonsense": b"<html>", "recursion": b"[" * 100_000, "huge": b'{"keys": []}' + b" " * 1_000_000}

    def fetch(url: str) -> bytes:
        return provider(url) if trouble == "down" or not provider.is_down else answers[trouble]

    found = identities(database, clock=clock, fetch=fetch)
    user(found, provider.token())
    provider.is_down = True
    clock.forward(seconds=3_600)
    assert user(found, provider.token(at=clock.at)) == "corp:alice"
    clock.forward(seconds=1)
    assert "cannot be had" in reason(found, provider.token(at=clock.at))
    provider.is_down = False
    assert "cannot be had" in reason(found, provider.token(at=clock.at))
    clock.forward(seconds=30)
    assert user(found, provider.token(at=clock.at)) == "corp:alice"


def test_a_clock_that_is_set_back_makes_no_key_younger(found: Identities, provider: Provider, clock: FakeClock) -> None:
    user(found, provider.token())
    provider.is_down = True
    clock.forward(seconds=-3_601)
    assert "cannot be had" in reason(found, provider.token(at=clock.at))


def test_who_has_usable_keys_does_not_wait_for_a_slow_provider(
    database: Database, clock: FakeClock, provider: Provider
) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def fetch(url: str) -> bytes:
        if provider.asked:
            is_asked.set()
            assert may_answer.wait(4)
        return provider(url)

    found = identities(database, clock=clock, fetch=fetch)
    user(found, provider.token())
    clock.forward(seconds=31)
    told: list[str] = []
    unknown = provider.token(headers={"kid": "unknown"})
    slow = threading.Thread(target=lambda: told.append(reason(found, unknown)))
    slow.start()
    assert is_asked.wait(4)
    assert user(found, provider.token(at=clock.at)) == "corp:alice"
    assert not told
    may_answer.set()
    slow.join(4)
    assert told == ["no key of its issuer fits"]


def test_a_token_without_a_key_id_needs_a_provider_with_one_key(
    found: Identities, provider: Provider, clock: FakeClock
) -> None:
    token = sign(provider.claims())
    assert user(found, token) == "corp:alice"
    provider.keys.append(public_jwk("rsa-new", kid="k2"))
    clock.forward(seconds=301)
    assert "which key" in reason(found, token)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("short", {}),
        ("rsa", {"use": "enc"}),
        ("rsa", {"alg": "RS512"}),
        ("rsa", {"n": "AQAB!"}),
        ("rsa", {"n": 7}),
        ("rsa", {"d": "AQAB"}),
        ("ec", {}),
    ],
)
def test_a_key_that_does_not_fit_proves_nothing(
    found: Identities, provider: Provider, key: str, changed: dict[str, object]
) -> None:
    provider.keys = [public_jwk(key, kid="k1", **changed)]
    signer = key if key == "short" else "rsa"
    private_key(signer)
    with pytest.warns() if key == "short" else nullcontext():
        token = sign(provider.claims(), key=signer, headers={"kid": "k1"})
    assert "key" in reason(found, token)
