"""People whom a proxy names, the one local owner, and what a server may listen to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quell.domain import Caller, ConfigError, IdentityPlan, LocalOwner, Principal, Refusal
from quell.governance import Identities
from quell.runs import Database
from tests.conftest import FakeClock
from tests.doors._identity_bench import CORP, ELSEWHERE, PLAN, PROXY, books, caller, identities

EMBEDDED = IdentityPlan(owner=LocalOwner())
ALICE = ("X-Forwarded-User", "alice")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with books(tmp_path) as database:
        yield database


@pytest.fixture
def found(database: Database, clock: FakeClock) -> Identities:
    return identities(database, clock=clock)


def reason(found: Identities, knock: Caller) -> str:
    refusal = found.identify(knock)
    assert isinstance(refusal, Refusal), refusal
    return refusal.reason


@pytest.mark.parametrize("peer", ["10.1.0.9", "::ffff:10.1.0.9", "fd00::9"])
def test_a_trusted_proxy_names_a_person_with_the_roles_of_their_groups(found: Identities, peer: str) -> None:
    knock = caller(ALICE, ("x-forwarded-groups", "sre, cooks"), ("Accept", "*/*"), peer=peer)
    assert found.authenticate(knock) == Principal(user="sso:alice", tenant="acme", roles=("operator", "viewer"))


@pytest.mark.parametrize(
    ("knock", "why"),
    [
        (caller(ALICE), "no trusted proxy"),
        (caller(ALICE, peer="10.1.1.0"), "no trusted proxy"),
        (caller(ALICE, peer=""), "no trusted proxy"),
        (caller(ALICE, peer="10.1.0.9 "), "no trusted proxy"),
        (caller(ALICE, loopback=True), "no trusted proxy"),
        (caller(("X_Forwarded_User", "alice")), "no trusted proxy"),
        (caller(("X-Forwarded-Groups", "sre")), "no trusted proxy"),
        (caller(("X_Forwarded_User", "root"), ALICE, peer="10.1.0.9"), "spelling"),
        (caller(("X_Forwarded_User", "root"), peer="10.1.0.9"), "spelling"),
        (caller(ALICE, ("x-forwarded-user", "root"), peer="10.1.0.9"), "twice"),
        (caller(ALICE, ("X-Forwarded-Groups", "sre"), ("X-Forwarded-Groups", "x"), peer="10.1.0.9"), "twice"),
        (caller(("X-Forwarded-User", "alice, root"), peer="10.1.0.9"), "several"),
        (caller(("X-Forwarded-User", ""), peer="10.1.0.9"), "no person"),
        (caller(("X-Forwarded-Groups", "sre"), peer="10.1.0.9"), "no person"),
        (caller(("X-Forwarded-User", "ali ce"), peer="10.1.0.9"), "malformed"),
        (caller(("X-Forwarded-User", "a" * 300), peer="10.1.0.9"), "malformed"),
        (caller(ALICE, peer="10.1.0.9", bearer="qk_x"), "more than one"),
        (caller(ALICE, peer="10.1.0.9", tenant="local"), "another one"),
        (caller(peer="10.1.0.9"), "not on this machine"),
    ],
)
def test_a_header_from_elsewhere_or_in_a_doubtful_form_is_refused(found: Identities, knock: Caller, why: str) -> None:
    assert why in reason(found, knock)


def test_an_embedded_quell_knows_one_owner_on_this_machine(database: Database, clock: FakeClock) -> None:
    found = identities(database, clock=clock, plan=EMBEDDED)
    owner = Principal(user="owner", roles=("viewer", "operator", "approver", "admin"))
    for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", ""):
        assert found.authenticate(Caller(peer=peer, headers=(("Host", "localhost"),), is_loopback=True)) == owner


@pytest.mark.parametrize(
    "knock",
    [
        caller(),
        Caller(peer="192.0.2.7", headers=(), is_loopback=True),
        Caller(peer="127.0.0.1", headers=(), is_loopback=False),
        Caller(peer="nonsense", headers=(), is_loopback=True),
        caller(("X-Forwarded-For", "192.0.2.7"), loopback=True),
        caller(("Forwarded", "for=192.0.2.7"), loopback=True),
        caller(("x_forwarded_proto", "https"), loopback=True),
        caller(("X-Real-IP", "192.0.2.7"), loopback=True),
        caller(("Via", "1.1 proxy"), loopback=True),
        caller(("Authorization", "Basic b3duZXI6"), loopback=True),
        caller(("Authorization", "Bearer "), loopback=True),
        caller(bearer="a.b.c", loopback=True),
        caller(("authorization", "Bearer x"), bearer="y", loopback=True),
        caller(loopback=True, tenant="acme"),
    ],
)
def test_the_owner_is_nobody_who_came_from_elsewhere_or_showed_something_else(
    database: Database, clock: FakeClock, knock: Caller
) -> None:
    assert isinstance(identities(database, clock=clock, plan=EMBEDDED).identify(knock), Refusal)


def test_where_nothing_is_asked_the_key_that_a_client_cannot_do_without_changes_nothing(
    database: Database, clock: FakeClock
) -> None:
    found = identities(database, clock=clock, plan=EMBEDDED)
    for bearer in ("any", "x", "sk-proj-123_4"):
        assert found.authenticate(caller(bearer=bearer, loopback=True)).user == "owner"
        assert isinstance(found.identify(caller(bearer=bearer, peer="192.0.2.7")), Refusal)
        assert isinstance(
            found.identify(caller(("X-Forwarded-For", "192.0.2.7"), bearer=bearer, loopback=True)), Refusal
        )
    # What stands for somebody may stand for less than the owner has; and where tokens are judged a wrong one is wrong.
    for bearer in ("qk_x", "a.b.c"):
        assert "not accepted" in reason(found, caller(bearer=bearer, loopback=True))
    for plan in (replace(EMBEDDED, api_keys="accepted"), replace(EMBEDDED, issuers=(CORP,)), IdentityPlan()):
        found = identities(database, clock=clock, plan=plan)
        assert isinstance(found.identify(caller(bearer="any", loopback=True)), Refusal)


def test_nobody_is_let_in_where_nothing_is_configured(database: Database, clock: FakeClock) -> None:
    found = identities(database, clock=clock, plan=IdentityPlan())
    assert reason(found, caller(loopback=True)) == "no identity was shown"


def test_a_person_of_a_proxy_cannot_bear_the_name_of_the_owner(database: Database, clock: FakeClock) -> None:
    plan = replace(EMBEDDED, proxies=(replace(PROXY, user_prefix="", tenant="local"),))
    found = identities(database, clock=clock, plan=plan)
    assert "name of the local owner" in reason(found, caller(("X-Forwarded-User", "owner"), peer="10.1.0.9"))
    assert found.authenticate(caller(ALICE, peer="10.1.0.9")).user == "alice"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "127.1.2.3"])
def test_a_server_may_always_listen_on_loopback(host: str) -> None:
    Identities.may_bind(host, IdentityPlan())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com", "localhost.example.com"])
def test_a_server_listens_elsewhere_only_with_identities(host: str) -> None:
    for plan in (IdentityPlan(), EMBEDDED):
        with pytest.raises(ConfigError, match="only loopback"):
            Identities.may_bind(host, plan)
    for plan in (
        IdentityPlan(api_keys="accepted"),
        IdentityPlan(issuers=(CORP,)),
        IdentityPlan(proxies=(PROXY,)),
    ):
        Identities.may_bind(host, plan)


@pytest.mark.parametrize(
    ("plan", "path"),
    [
        (IdentityPlan(issuers=(replace(CORP, algorithms=("RS256", "HS256")),)), "identity.issuers.0.algorithms"),
        (IdentityPlan(issuers=(replace(CORP, algorithms=("none",)),)), "identity.issuers.0.algorithms"),
        (IdentityPlan(issuers=(replace(CORP, algorithms=()),)), "identity.issuers.0.algorithms"),
        (IdentityPlan(issuers=(replace(CORP, audience=""),)), "identity.issuers.0.audience"),
        (IdentityPlan(issuers=(replace(CORP, jwks_url="http://login.example.com/"),)), "identity.issuers.0.jwks_url"),
        (IdentityPlan(issuers=(replace(CORP, jwks_url="https://a@b/"),)), "identity.issuers.0.jwks_url"),
        (IdentityPlan(issuers=(replace(CORP, jwks_url="file:///keys"),)), "identity.issuers.0.jwks_url"),
        (IdentityPlan(issuers=(replace(CORP, skew_s=-1),)), "identity.issuers.0.skew_s"),
        (IdentityPlan(issuers=(replace(CORP, age_max_s=float("inf")),)), "identity.issuers.0.skew_s"),
        (IdentityPlan(issuers=(replace(CORP, stale_max_s=1),)), "identity.issuers.0.fresh_s"),
        (IdentityPlan(issuers=(CORP, replace(CORP, user_prefix="x"))), "identity.issuers"),
        (IdentityPlan(issuers=(CORP, replace(ELSEWHERE, user_prefix=""))), "identity"),
        (IdentityPlan(issuers=(CORP,), proxies=(replace(PROXY, user_prefix="corp:x"),)), "identity"),
        (IdentityPlan(proxies=(replace(PROXY, networks=()),)), "identity.proxies.0.networks"),
        (IdentityPlan(proxies=(replace(PROXY, networks=("0.0.0.0/0",)),)), "identity.proxies.0.networks"),
        (IdentityPlan(proxies=(replace(PROXY, networks=("::/0",)),)), "identity.proxies.0.networks"),
        (IdentityPlan(proxies=(replace(PROXY, networks=("proxy.local",)),)), "identity.proxies.0.networks"),
        (IdentityPlan(proxies=(replace(PROXY, user_header="Authorization"),)), "identity.proxies.0.user_header"),
        (IdentityPlan(proxies=(replace(PROXY, roles_header="x y"),)), "identity.proxies.0.roles_header"),
        (IdentityPlan(tenants=()), "identity.tenants"),
        (IdentityPlan(tenants=("local", "[a]")), "identity.tenants"),
        (IdentityPlan(tenants=("local", "team*")), "identity.tenants"),
        (IdentityPlan(owner=LocalOwner(user="")), "identity.owner.user"),
    ],
)
def test_a_plan_that_would_let_strangers_in_is_no_plan(
    database: Database, clock: FakeClock, plan: IdentityPlan, path: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        identities(database, clock=clock, plan=plan)
    assert [problem.path for problem in refused.value.problems] == [path]


def test_all_mistakes_of_a_plan_are_told_at_once(database: Database, clock: FakeClock) -> None:
    plan = replace(PLAN, issuers=(replace(CORP, audience="", algorithms=("none",)),), tenants=())
    with pytest.raises(ConfigError) as refused:
        identities(database, clock=clock, plan=plan)
    assert len(refused.value.problems) == 3


def test_an_issuer_on_this_machine_may_speak_without_tls(database: Database, clock: FakeClock) -> None:
    plan = replace(PLAN, issuers=(replace(CORP, jwks_url="http://127.0.0.1:8080/keys"),))
    assert identities(database, clock=clock, plan=plan)
