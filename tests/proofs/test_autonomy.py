"""The proofs of autonomy and identity hold, and each would notice if one check were left out."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from math import comb
from types import SimpleNamespace

import pytest
from proofs.autonomy import (
    PROMISES,
    HandOn,
    as_the_product,
    authority_shrinks,
    by_evidence,
    identity_refusals,
    level_by_agent,
    promotion_by_luck,
)

from quell.domain import AgentGrant, ApiKey, Principal, WorkflowGrant
from quell.governance import _autonomy, _identity, _keys, _oidc, _proxy

SEED = 20261120
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
def test_the_promise_holds(promise) -> None:  # type: ignore[no-untyped-def]
    result = promise.try_it("ci", SEED)
    print(f"seed {SEED}: {result.note}")
    assert result.violations == 0, result.failures
    assert result.cases > 50


def fixed_size(successes: int, failures: int, claim: float) -> bool:
    """Judge by the bound of Clopper and Pearson, which holds for one look only."""
    trials = successes + failures
    chance = sum(comb(trials, k) * (1 - claim) ** k * claim ** (trials - k) for k in range(failures + 1))
    return chance <= 0.05


def test_a_bound_for_one_look_is_caught_when_one_looks_after_every_run() -> None:
    result = promotion_by_luck("ci", SEED, proved=fixed_size)
    print(result.note)
    # At least 20 % of the agents at one claim, of which 5 % would be allowed.
    assert result.violations > 1500


def test_a_door_that_is_easier_than_its_statistics_is_caught() -> None:
    result = promotion_by_luck("ci", SEED, proved=lambda s, f, claim: by_evidence(s - 1, f, claim) if s else False)
    assert any("the evidence says" in failure for failure in result.failures)


def test_an_agent_that_passes_for_a_person_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_autonomy, "is_person", lambda principal: not principal.workflow)
    assert any("promote" in failure for failure in level_by_agent("ci", SEED).failures)


def with_all_tools(held: Principal, agent: AgentGrant, workflow: WorkflowGrant | None) -> Principal:
    got = as_the_product(held, agent, workflow)
    return replace(got, agent_tools=(*(held.agent_tools or ()), *agent.tools))


def with_own_roles(held: Principal, agent: AgentGrant, workflow: WorkflowGrant | None) -> Principal:
    return replace(as_the_product(held, agent, workflow), roles=agent.roles or held.roles)


def with_empty_scopes(held: Principal, agent: AgentGrant, workflow: WorkflowGrant | None) -> Principal:
    got = as_the_product(held, agent, workflow)
    return replace(got, scopes=() if got.scopes == ("none",) else got.scopes)


def with_a_new_level(held: Principal, agent: AgentGrant, workflow: WorkflowGrant | None) -> Principal:
    got = as_the_product(held, agent, workflow)
    return replace(got, level=workflow.level) if workflow else got


def as_a_person(held: Principal, agent: AgentGrant, workflow: WorkflowGrant | None) -> Principal:
    return replace(as_the_product(held, agent, workflow), agent="")


def cleaned(held: Principal, agent: AgentGrant, workflow: WorkflowGrant | None) -> Principal:
    return replace(as_the_product(held, agent, workflow), is_tainted=False)


@pytest.mark.parametrize(
    "mutant", [with_all_tools, with_own_roles, with_empty_scopes, with_a_new_level, as_a_person, cleaned]
)
def test_authority_that_grows_is_caught(mutant: HandOn) -> None:
    assert authority_shrinks("ci", SEED, hand_on=mutant).violations


BELIEVED = Principal(user="alice", tenant="acme")


def always(*_: object, **__: object) -> bool:
    return True


def nothing(*_: object, **__: object) -> None:
    return None


def unrevoked(row: SimpleNamespace, *, read: Callable[[SimpleNamespace], ApiKey] = _keys._key_of) -> ApiKey:
    return replace(read(row), revoked_at=None)


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no signature": lambda patch: patch.setitem(_oidc._SIGNATURE_ONLY, "verify_signature", False),
    "no claims": lambda patch: patch.setattr(_oidc, "_check_claims", nothing),
    "keys by id alone": lambda patch: patch.setattr(_oidc, "_fits", always),
    "any key": lambda patch: patch.setattr(_oidc, "_named", lambda held, kid: held.keys[:1]),
    "headers unread": lambda patch: patch.setattr(_oidc, "_HEADERS", {*_oidc._HEADERS, "jwk", "jku", "x5u", "cty"}),
    "types unread": lambda patch: patch.setattr(_oidc, "_TYPES", {*_oidc._TYPES, "logout+jwt"}),
    "names unread": lambda patch: patch.setattr(_identity, "is_name", always),
    "tenants unread": lambda patch: patch.setattr(
        _identity.Identities, "_check", lambda self, principal, caller, *, way: None
    ),
    "revoked keys": lambda patch: patch.setattr(_keys, "_key_of", unrevoked),
    "keys unsealed": lambda patch: patch.setattr(hmac, "compare_digest", always),
    "proxies everywhere": lambda patch: patch.setattr(_proxy.Proxies, "prove", lambda self, caller: BELIEVED),
    "spellings unread": lambda patch: patch.setattr(_proxy.Proxies, "shown", lambda self, caller: {}),
    "forwarded owner": lambda patch: patch.setattr(_identity, "_FORWARDED", frozenset()),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_check_of_identity_that_is_left_out_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[mutant](monkeypatch)
    result = identity_refusals("ci", SEED)
    assert any(failure.startswith("believed") for failure in result.failures), result.failures
