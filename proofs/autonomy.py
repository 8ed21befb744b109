"""Autonomy cannot be gained by luck, authority cannot grow, and no false identity is believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.doors._identity_bench import (
    ADMIN,
    CORP,
    ISSUER,
    JWKS,
    NOON,
    OTHER_ISSUER,
    OTHER_JWKS,
    PLAN,
    Provider,
    books,
    caller,
    identities,
    private_key,
    public_jwk,
    sign,
    wanted,
)

from proofs._proof import Promise, Result, Scale
from quell.domain import (
    AgentGrant,
    AutonomyScope,
    Caller,
    Level,
    Principal,
    RefusedError,
    ReviewVerdict,
    Tally,
    ToolClass,
    Trial,
    TrialOutcome,
    TrialSource,
    WorkflowGrant,
    may_do,
    may_use,
    on_behalf_of,
)
from quell.governance import Autonomy, Identities
from quell.governance._evidence import proves
from quell.runs import Database

# -- promotion by luck -----------------------------------------------------------------------------------------------

CLAIMS = (0.80, 0.90, 0.95, 0.99)
AGENTS = 10_000
RUNS = 500
LUCKY_MAX = 0.05
_FIRST = 0.90
"""The claim of the first level that acts; the whole path is walked for it."""

Proved = Callable[[int, int, float], bool]


def by_evidence(successes: int, failures: int, claim: float) -> bool:
    """Judge as the product does."""
    return proves(Tally(successes=successes, failures=failures), claim=claim)


def promotion_by_luck(scale: Scale, seed: int, *, proved: Proved = by_evidence) -> Result:
    """Look after every run at agents that are exactly as good as the claim: at most one in twenty may be promoted."""
    dice = np.random.default_rng(seed)
    failures: list[str] = []
    shares = []
    violations = 0
    for claim in CLAIMS:
        failed = (dice.random((AGENTS, RUNS)) >= claim).cumsum(axis=1)
        lucky = int((failed <= _failures_allowed(proved, claim)).any(axis=1).sum())
        shares.append(f"{claim:.2f}: {lucky / AGENTS:.1%}")
        if lucky > LUCKY_MAX * AGENTS:
            violations += lucky - int(LUCKY_MAX * AGENTS)
            failures.append(f"claim {claim}: {lucky} of {AGENTS} agents at the threshold promoted (seed {seed})")
    walked = 100 if scale == "full" else 10
    strayed = _walked(proved, agents=walked, dice=dice)
    failures += strayed
    return Result(
        cases=AGENTS * len(CLAIMS) + walked,
        violations=violations + len(strayed),
        is_exhaustive=False,
        note=f"an agent at the threshold, looked at after each of {RUNS} runs; promoted: {', '.join(shares)}; "
        f"{walked} agents through the whole path",
        failures=tuple(failures[:5]),
    )


def _failures_allowed(proved: Proved, claim: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return for each number of runs how many of them may have failed; -1: not even none."""
    allowed, bound = [], -1
    for runs in range(1, RUNS + 1):
        while bound + 1 <= runs and proved(runs - bound - 1, bound + 1, claim):
            bound += 1
        allowed.append(bound)
    return np.array(allowed)


def _walked(proved: Proved, *, agents: int, dice: np.random.Generator) -> list[str]:
    """Ask for the promotion after every run, through the door: it is given at the very run that the table says."""
    allowed = _failures_allowed(proved, _FIRST)
    strayed = []
    ann = Principal(user="ann", roles=("approver",))
    with tempfile.TemporaryDirectory() as directory, books(Path(directory)) as database:
        autonomy = Autonomy(database, clock=lambda: NOON)
        for agent in range(agents):
            # Better agents than the threshold: most of these are promoted, so that there is something to compare.
            failed = dice.random(RUNS) >= 0.97
            expected = next((run for run in range(RUNS) if failed[: run + 1].sum() <= allowed[run]), None)
            scope = AutonomyScope(workflow_digest=f"w{agent}", action_class=ToolClass.REVERSIBLE, environment="prod")
            with database.writing(durability="written") as connection:
                promoted = None
                for run in range(RUNS if expected is None else expected + 1):
                    outcome = TrialOutcome.FAILED if failed[run] else TrialOutcome.VERIFIED_OK
                    trial = Trial(ref=f"r{run}", outcome=outcome, source=TrialSource.LIVE)
                    autonomy.record(connection, scope, trial, agreed_by=ann)
                    try:
                        autonomy.promote(
                            connection, scope, to=Level.REVERSIBLE, by=ann, owners=(), reason="it looks good"
                        )
                    except RefusedError:
                        continue
                    promoted = run
                    break
            if promoted != expected:
                strayed.append(f"agent {agent}: promoted after run {promoted}, the evidence says {expected}")
    return strayed


# -- levels by agents ------------------------------------------------------------------------------------------------


def level_by_agent(scale: Scale, seed: int) -> Result:
    """Let agents of every kind, on behalf of the most powerful person, say every word about a level."""
    del scale, seed
    agent = AgentGrant(name="sre", tools=("*",))
    flow = WorkflowGrant(name="triage", digest="w", tools=("*",), level=Level.CLOSED_LOOP)
    person = Principal(user="root", roles=("viewer", "operator", "approver", "admin"))
    ann = Principal(user="ann", roles=("approver",))
    agents = [
        on_behalf_of(person, agent=agent),
        on_behalf_of(person, agent=agent, workflow=flow),
        on_behalf_of(on_behalf_of(person, agent=agent, workflow=flow), agent=replace(agent, name="worker")),
        replace(person, agent="sre"),
        replace(person, agent_tools=()),
        replace(person, workflow="triage"),
        replace(person, workflow_digest="w"),
        replace(person, workflow_tools=("*",)),
    ]
    verdicts: tuple[ReviewVerdict, ...] = ("agree", "disagree", "violation", "severe")
    cases, moved = 0, []
    with tempfile.TemporaryDirectory() as directory, books(Path(directory)) as database:
        autonomy = Autonomy(database, clock=lambda: NOON)
        scope = AutonomyScope(workflow_digest="w", action_class=ToolClass.REVERSIBLE, environment="prod")
        with database.writing(durability="written") as connection:
            for run in range(500):
                trial = Trial(ref=f"r{run}", outcome=TrialOutcome.VERIFIED_OK, source=TrialSource.LIVE)
                autonomy.record(connection, scope, trial, agreed_by=ann if run else None)
            before = autonomy.show(connection, scope)
            fresh = Trial(ref="new", outcome=TrialOutcome.VERIFIED_OK, source=TrialSource.LIVE)
            words: dict[str, Callable[[Principal], object]] = {
                **{
                    f"promote {to}": lambda by, to=to: autonomy.promote(  # type: ignore[misc]  # bound here
                        connection, scope, to=to, by=by, owners=(), reason="trust me"
                    )
                    for to in Level
                },
                **{
                    f"demote {to}": lambda by, to=to: autonomy.demote(  # type: ignore[misc]  # bound here
                        connection, scope, to=to, by=by, reason="trust me"
                    )
                    for to in Level
                },
                **{
                    verdict: lambda by, verdict=verdict: autonomy.review(  # type: ignore[misc]  # bound here
                        connection, scope, ref="r0", verdict=verdict, by=by
                    )
                    for verdict in verdicts
                },
                "agree with a new one": lambda by: autonomy.record(connection, scope, fresh, agreed_by=by),
            }
            for number, by in enumerate(agents):
                for word, say in words.items():
                    cases += 1
                    with suppress(RefusedError):
                        say(by)
                    if autonomy.show(connection, scope) != before:
                        moved.append(f"agent {number} said {word}")
                        before = autonomy.show(connection, scope)
    return Result(
        cases=cases,
        violations=len(moved),
        is_exhaustive=True,
        note="a word about a level (every verb, level and verdict) by an agent of one of the kinds in this file",
        failures=tuple(moved[:5]),
    )


# -- authority shrinks -----------------------------------------------------------------------------------------------

TOOLS = ("logs.read", "logs.tail", "k8s.get", "k8s.get_pod", "k8s.delete", "db.read", "db.write", "http.get")
VERBS = ("run.start", "run.cancel", "approval.list", "approval.decide", "key.new", "autonomy.promote")
ROLES = ("viewer", "operator", "approver", "admin")
GLOBS = ("*", "logs.*", "k8s.*", "k8s.get*", "*.read", "*.get", "db.*", "*e*", "db.write", "*.*.*", "l*d", "k8s*d*")
VERB_GLOBS = ("*", "run.*", "approval.*", "*.list", "key.new", "*a*")

HandOn = Callable[[Principal, AgentGrant, WorkflowGrant | None], Principal]


def as_the_product(principal: Principal, agent: AgentGrant, workflow: WorkflowGrant | None) -> Principal:
    """Hand on as the product does."""
    return on_behalf_of(principal, agent=agent, workflow=workflow)


def authority_shrinks(scale: Scale, seed: int, *, hand_on: HandOn = as_the_product) -> Result:
    """Hand authority on along random chains: nobody may more than whom they act for, or than their own grant says."""
    dice = random.Random(seed)
    chains = 20_000 if scale == "full" else 1_500
    widened = []
    steps = 0
    for chain in range(chains):
        held = Principal(
            user=dice.choice("abc"),
            tenant=dice.choice(("local", "acme")),
            roles=_some(dice, ROLES),
            scopes=_scopes(dice),
            is_tainted=dice.random() < 0.2,
        )
        for _ in range(dice.randint(1, 4)):
            steps += 1
            agent = AgentGrant(
                name=dice.choice("xyz"), tools=_some(dice, GLOBS), roles=_roles(dice), scopes=_scopes(dice)
            )
            workflow = _workflow(dice, digest=held.workflow_digest) if dice.random() < 0.6 else None
            got = hand_on(held, agent, workflow)
            if wider := _wider(held, agent, workflow, got):
                widened.append(f"chain {chain} (seed {seed}): {wider}: {held} by {agent} and {workflow} became {got}")
                break
            held = got
    return Result(
        cases=steps,
        violations=len(widened),
        is_exhaustive=False,
        note=f"one step of {chains:,} random chains of agents and workflow versions, all tools, verbs and roles asked",
        failures=tuple(widened[:3]),
    )


def _wider(held: Principal, agent: AgentGrant, workflow: WorkflowGrant | None, got: Principal) -> str:
    """Say what somebody may who may not; the grants are read by an oracle of its own."""
    grants: list[AgentGrant | WorkflowGrant] = [agent, *([workflow] if workflow else [])]
    scopes = [held.scopes, *(grant.scopes for grant in grants)]
    for tool in TOOLS:
        is_granted = all(_matches(grant.tools, tool) for grant in grants) and may_use(held, tool)
        if may_use(got, tool) and not (is_granted and all(_by_scopes(each, f"tool:{tool}") for each in scopes)):
            return f"tool {tool}"
    for verb in VERBS:
        if may_do(got, verb) and not all(_by_scopes(each, f"verb:{verb}") for each in scopes):
            return f"verb {verb}"
    allowed = [held.roles, *(grant.roles for grant in grants if grant.roles is not None)]
    order = ("shadow", "canary", "stable")
    above: list[Principal | WorkflowGrant] = [
        *([held] if held.workflow_digest else []),
        *([workflow] if workflow else []),
    ]
    wrong = {
        "a role": not all(role in roles for role in got.roles for roles in allowed),
        "another person": (got.user, got.tenant) != (held.user, held.tenant),
        "clean again": held.is_tainted and not got.is_tainted,
        "it passes for a person": not got.agent or got.agent_tools is None,
        "the level": any(got.level > other.level for other in above),
        "the stage": any(order.index(got.stage) > order.index(other.stage) for other in above),
    }
    return ", ".join(what for what, is_wrong in wrong.items() if is_wrong)


def _matches(globs: tuple[str, ...], name: str) -> bool:
    return any(re.fullmatch(".*".join(map(re.escape, glob.split("*"))), name) for glob in globs)


def _by_scopes(scopes: tuple[str, ...], asked: str) -> bool:
    return not scopes or _matches(scopes, asked)


def _some(dice: random.Random, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dice.sample(words, dice.randint(0, min(4, len(words)))))


def _roles(dice: random.Random) -> tuple[str, ...] | None:
    return None if dice.random() < 0.3 else _some(dice, ROLES)


def _scopes(dice: random.Random) -> tuple[str, ...]:
    if dice.random() < 0.3:
        return ()
    chosen = [f"tool:{glob}" for glob in _some(dice, GLOBS)] + [f"verb:{glob}" for glob in _some(dice, VERB_GLOBS)]
    return tuple(chosen) or ("none",)


def _workflow(dice: random.Random, *, digest: str) -> WorkflowGrant:
    return WorkflowGrant(
        name="triage",
        digest=digest or "sha256:1",
        tools=_some(dice, GLOBS),
        roles=_roles(dice),
        scopes=_scopes(dice),
        stage=dice.choice(("shadow", "canary", "stable")),
        level=Level(dice.randint(0, 5)),
    )


# -- false identities ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A deployment with two issuers, keys, a proxy and an owner, and what an attacker has in hand."""

    database: Database
    known: Identities
    provider: Provider
    key: str
    """A good key of our tenant; the attacker holds it only where the case says so."""
    other_key: str
    revoked_key: str
    expired_key: str
    local_key: str
    """A good key of another tenant."""


def identity_refusals(scale: Scale, seed: int) -> Result:
    """Show every hostile credential of the table, and every honest one beside it."""
    del scale, seed
    with _stage() as stage:
        believed = [name for name, knock in hostile(stage) if isinstance(stage.known.identify(knock), Principal)]
        refused = [name for name, knock in honest(stage) if not isinstance(stage.known.identify(knock), Principal)]
        cases = sum(1 for _ in hostile(stage)) + sum(1 for _ in honest(stage))
    return Result(
        cases=cases,
        violations=len(believed) + len(refused),
        is_exhaustive=True,
        note="a hostile credential of the table in this file, and the honest ones that they are made from",
        failures=tuple([f"believed: {name}" for name in believed] + [f"refused: {name}" for name in refused])[:5],
    )


@contextmanager
def _stage() -> Iterator[Stage]:
    clock = [NOON]
    provider = Provider()
    provider.keys = [
        public_jwk("rsa", kid="k1"),
        public_jwk("ec", kid="k2"),
        public_jwk("rsa-weak", kid="enc", use="enc"),
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
    ]
    other = Provider(issuer=OTHER_ISSUER)
    other.keys = [public_jwk("rsa-other", kid="k1"), public_jwk("rsa-other", kid="k9")]
    wires = {JWKS: provider, OTHER_JWKS: other}
    plan = replace(PLAN, issuers=(replace(CORP, tenant_claim="tenant"), *PLAN.issuers[1:]), tenants=("acme", "local"))
    with tempfile.TemporaryDirectory() as directory, books(Path(directory)) as database:
        known = identities(database, clock=lambda: clock[0], plan=plan, fetch=lambda url: wires[url](url))

        def key(by: Principal = ADMIN, **changed: Any) -> tuple[str, str]:
            with database.writing(durability="written") as connection:
                made, text = known.new_key(connection, wanted(at=clock[0], **changed), by=by)
            return made.id, text.reveal()

        clock[0] = NOON - timedelta(days=2)
        _, expired = key(days=1)
        clock[0] = NOON
        revoked_id, revoked = key()
        with database.writing(durability="written") as connection:
            known.revoke_key(connection, revoked_id, by=ADMIN)
        stage = Stage(
            database=database,
            known=known,
            provider=provider,
            key=key()[1],
            other_key=key(user="eve@example.com")[1],
            revoked_key=revoked,
            expired_key=expired,
            local_key=key(by=replace(ADMIN, tenant="local"), tenant="local")[1],
        )
        yield stage


def honest(stage: Stage) -> Iterator[tuple[str, Caller]]:
    """Name what must be believed: the table is worth nothing where nobody gets in."""
    token = stage.provider.token(tenant="acme")
    yield "token", caller(bearer=token)
    yield "token of an elliptic key", caller(bearer=_by_ec(stage))
    yield "key", caller(bearer=stage.key)
    yield "key of another tenant, for that tenant", caller(bearer=stage.local_key, tenant="local")
    yield "proxy", caller(("X-Forwarded-User", "alice"), peer="10.1.0.5")
    yield "owner", caller(loopback=True)


def hostile(stage: Stage) -> Iterator[tuple[str, Caller]]:
    """Name what must be refused."""
    for name, token in (*_false_claims(stage), *_false_signatures(stage), *_false_headers(stage)):
        yield f"token: {name}", caller(bearer=token)
    for name, text in _false_keys(stage):
        yield f"key: {name}", caller(bearer=text)
    yield "key: of another tenant", caller(bearer=stage.local_key, tenant="acme")
    yield "token: of another tenant", caller(bearer=stage.provider.token(tenant="acme"), tenant="local")
    yield (
        "two: key and token",
        caller(("authorization", f"Bearer {stage.key}"), bearer=stage.provider.token(tenant="acme")),
    )
    yield "two: token and proxy", caller(("X-Forwarded-User", "alice"), peer="10.1.0.5", bearer=stage.key)
    yield "key: as basic", caller(("Authorization", f"Basic {stage.key}"))
    yield from _false_peers()


def _false_claims(stage: Stage) -> Iterator[tuple[str, str]]:
    now = int(NOON.timestamp())
    changes: dict[str, dict[str, Any]] = {
        "expired": {"exp": now - 61},
        "expired as a list": {"exp": [now + 600]},
        "never ends": {"exp": None},
        "ends as text": {"exp": str(now + 600)},
        "ends as truth": {"exp": True},
        "ends never by infinity": {"exp": float("inf")},
        "ends as no number": {"exp": float("nan")},
        "ends beyond all years": {"exp": 10**400},
        "not yet": {"nbf": now + 61},
        "not yet as text": {"nbf": "0"},
        "not yet as truth": {"nbf": True},
        "issued tomorrow": {"iat": now + 86_400},
        "issued never": {"iat": None},
        "issued long ago": {"iat": now - 100_000},
        "other audience": {"aud": "billing"},
        "no audience": {"aud": None},
        "audience among others, without us": {"aud": ["billing", "quell2"]},
        "audience in part": {"aud": "quel"},
        "audience as an object": {"aud": {"quell": 1}},
        "other issuer": {"iss": "https://evil.example"},
        "issuer with a slash": {"iss": ISSUER + "/"},
        "issuer in capitals": {"iss": ISSUER.upper()},
        "no issuer": {"iss": None},
        "issuer as a list": {"iss": [ISSUER]},
        "another issuer that we know": {"iss": OTHER_ISSUER},
        "unknown tenant": {"tenant": "globex"},
        "no tenant": {"tenant": None},
        "tenant as a list": {"tenant": ["acme"]},
        "nobody": {"sub": None},
        "empty name": {"sub": ""},
        "name with a line break": {"sub": "alice\nroot"},
        "name with a direction mark": {"sub": "alice\u202etoor"},
        "name in another spelling": {"sub": "e\u0301ve"},
        "name as an object": {"sub": {"name": "alice"}},
        "endless name": {"sub": "a" * 5000},
    }
    for name, changed in changes.items():
        claims = {**stage.provider.claims(tenant="acme"), **changed}
        told = {claim: value for claim, value in claims.items() if value is not None}
        yield name, _token(told, header={"alg": "RS256", "kid": "k1"})


def _false_signatures(stage: Stage) -> Iterator[tuple[str, str]]:
    claims = stage.provider.claims(tenant="acme")
    good = stage.provider.token(tenant="acme")
    head, body, signature = good.split(".")
    pem = private_key("rsa").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    jwk = json.dumps(stage.provider.keys[0]).encode()
    for algorithm in ("none", "None", "NONE", "nOnE", "", "HS256", "RS1", "ES256K", "RSA-OAEP"):
        yield f"algorithm {algorithm!r} unsigned", _token(claims, header={"alg": algorithm, "kid": "k1"}, signed="")
    for algorithm in ("HS256", "HS384", "HS512", "RS256"):
        for what, key in (("public key", pem), ("public key stripped", pem.strip()), ("JWK", jwk), ("nothing", b"")):
            yield f"{algorithm} by HMAC with the {what}", _mac(claims, algorithm=algorithm, key=key)
    yield "HMAC with the shared key of the set", _mac(claims, algorithm="HS256", key=b"secret" * 4, kid="oct")
    yield "no signature", f"{head}.{body}."
    yield "no signature and no dot", f"{head}.{body}"
    yield "truncated signature", good[:-8]
    yield "truncated body", f"{head}.{body[:-8]}.{signature}"
    yield "signature of another token", f"{good.rpartition('.')[0]}.{stage.provider.token(sub='x').split('.')[2]}"
    yield "body of another token", f"{head}.{_text({**claims, 'sub': 'root'})}.{signature}"
    yield "zeros as elliptic signature", _token(claims, header={"alg": "ES256", "kid": "k2"}, signed=_b64(bytes(64)))
    yield "empty elliptic signature", _token(claims, header={"alg": "ES256", "kid": "k2"}, signed="")
    yield "other padding than the header says", _token(claims, header={"alg": "PS256", "kid": "k1"}, signed=signature)
    yield "an algorithm that is not accepted", sign(claims, algorithm="RS512", headers={"kid": "k1"})
    yield "a stranger's key", sign(claims, key="rsa-evil", headers={"kid": "k1"})
    yield "another issuer's key under the same id", sign(claims, key="rsa-other", headers={"kid": "k1"})
    yield "another issuer's key under its own id", sign(claims, key="rsa-other", headers={"kid": "k9"})
    yield "our key for another issuer", sign({**claims, "iss": OTHER_ISSUER}, headers={"kid": "k1"})
    yield "a key for encryption", sign(claims, key="rsa-weak", headers={"kid": "enc"})
    yield "five parts", f"{good}.{body}.{signature}"
    yield "nothing", "."
    yield "dots", ".."
    yield "a space within", good[:40] + " " + good[40:]
    yield "ten thousand brackets", f"{head}.{_b64(b'[' * 10_000)}.{signature}"
    yield "a header of brackets", f"{_b64(b'[' * 10_000)}.{body}.{signature}"
    yield "a body that is a list", f"{head}.{_b64(b'[]')}.{signature}"
    yield "too long", sign({**claims, "pad": "x" * 20_000}, headers={"kid": "k1"})


def _false_headers(stage: Stage) -> Iterator[tuple[str, str]]:
    claims = stage.provider.claims(tenant="acme")
    evil = public_jwk("rsa-evil", kid="evil")
    for name, kid in {
        "unknown": "k7",
        "a path": "../../../../dev/null",
        "a query": "k1' OR '1'='1",
        "a zero": "k1\x00",
        "endless": "k" * 5000,
        "empty, among several keys": "",
    }.items():
        yield f"key id {name}", _token(claims, header={"alg": "RS256", "kid": kid})
    for shape in (["k1"], {"k": 1}, 1, None, True):
        yield f"key id as {type(shape).__name__}", _token(claims, header={"alg": "RS256", "kid": shape})
    brought: dict[str, object] = {
        "jwk": evil,
        "jku": "https://evil.example/keys",
        "x5u": "https://evil.example/cert",
        "x5c": ["MIIB"],
        "crit": ["exp"],
        "b64": False,
        "zip": "DEF",
        "enc": "A128GCM",
        "cty": "JWT",
    }
    for name, value in brought.items():
        header = {"alg": "RS256", "kid": "k1", name: value}
        yield f"header {name}", _token(claims, header=header)
        yield f"header {name}, by a stranger", _token(claims, header=header, key="rsa-evil")
    for kind in ("dpop+jwt", "logout+jwt", "JWE", 7):
        yield f"type {kind}", _token(claims, header={"alg": "RS256", "kid": "k1", "typ": kind})


def _false_keys(stage: Stage) -> Iterator[tuple[str, str]]:
    identifier, secret = stage.key[:29], stage.key[30:]
    yield "expired", stage.expired_key
    yield "revoked", stage.revoked_key
    yield "truncated", stage.key[:-1]
    yield "truncated to its id", identifier
    yield "longer", stage.key + "0"
    yield "another secret", f"{identifier}_{secrets.token_hex(32)}"
    yield "zeros", f"{identifier}_{'0' * 64}"
    yield "no such id", f"qk_{'z' * 26}_{secret}"
    yield "the secret of another key", f"{identifier}_{stage.other_key[30:]}"
    yield "in capitals", f"{identifier}_{secret.upper()}"
    yield "a wildcard", f"qk_{'%' * 26}_{secret}"
    yield "a line break within", f"{identifier}\n_{secret}"
    yield "digits of another script", f"{identifier}_{secret[:-1]}\u0661"
    with stage.database.reading() as connection:
        seal = str(connection.one("SELECT seal FROM quell_api_key WHERE id = :id", id=f"key_{identifier[3:]}").seal)
    yield "the seal that is kept", f"{identifier}_{seal}"


def _false_peers() -> Iterator[tuple[str, Caller]]:
    user = ("X-Forwarded-User", "alice")
    yield "proxy: from outside", caller(user)
    yield "proxy: from beside", caller(user, peer="10.1.1.5")
    yield "proxy: from nowhere", caller(user, peer="")
    yield "proxy: from this machine", caller(user, loopback=True)
    yield "proxy: as IPv6 of another", caller(user, peer="::ffff:10.1.1.5")
    yield "proxy: twice", caller(user, ("x-forwarded-user", "root"), peer="10.1.0.5")
    yield "proxy: in another spelling too", caller(user, ("X_Forwarded_User", "root"), peer="10.1.0.5")
    yield "proxy: two names", caller(("X-Forwarded-User", "alice,root"), peer="10.1.0.5")
    yield "proxy: no name", caller(("X-Forwarded-User", ""), peer="10.1.0.5")
    yield "proxy: groups only", caller(("X-Forwarded-Groups", "sre"), peer="10.1.0.5")
    yield "proxy: another tenant", caller(user, peer="10.1.0.5", tenant="local")
    yield "owner: from outside", caller()
    yield "owner: an address of this machine, from outside", Caller(peer="127.0.0.1", headers=(), is_loopback=False)
    yield "owner: another address", Caller(peer="192.0.2.7", headers=(), is_loopback=True)
    yield "owner: through a proxy", caller(("X-Forwarded-For", "192.0.2.7"), loopback=True)
    yield "owner: through another proxy", caller(("Forwarded", "for=192.0.2.7"), loopback=True)
    yield "owner: another tenant", caller(loopback=True, tenant="acme")


def _token(claims: object, *, header: dict[str, object], key: str = "rsa", signed: str | None = None) -> str:
    """Write a token whatever its header says, signed with a key unless a signature is given."""
    text = f"{_text({'typ': 'JWT', **header})}.{_text(claims)}"
    if signed is None:
        private = private_key(key)
        assert isinstance(private, rsa.RSAPrivateKey)
        signed = _b64(private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))
    return f"{text}.{signed}"


def _mac(claims: object, *, algorithm: str, key: bytes, kid: str = "k1") -> str:
    text = f"{_text({'alg': algorithm, 'typ': 'JWT', 'kid': kid})}.{_text(claims)}"
    digest = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}.get(algorithm, hashlib.sha256)
    return f"{text}.{_b64(hmac.new(key, text.encode(), digest).digest())}"


def _by_ec(stage: Stage) -> str:
    return sign(stage.provider.claims(tenant="acme"), key="ec", algorithm="ES256", headers={"kid": "k2"})


def _text(value: object) -> str:
    return _b64(json.dumps(value).encode())


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


PROMISES: tuple[Promise, ...] = (
    Promise(
        name="promotion-by-luck",
        promise="An agent that is only as good as a level asks for is promoted with a chance of at most 5 %, however often one looks.",
        try_it=promotion_by_luck,
    ),
    Promise(
        name="level-by-agent",
        promise="No agent can say a word about a level, whoever it acts for.",
        try_it=level_by_agent,
    ),
    Promise(
        name="authority-shrinks",
        promise="Whoever acts for somebody may nothing that this person, the agent or the workflow version may not.",
        try_it=authority_shrinks,
    ),
    Promise(
        name="identity-refusals",
        promise="No expired, revoked, foreign, forged or truncated credential is believed.",
        try_it=identity_refusals,
    ),
)
