"""The words of identity: who knocks, what may prove it, and how authority is handed on without ever growing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, TypeAlias

from quell.domain._errors import ConfigError
from quell.domain._guard import Level, Principal

Way: TypeAlias = Literal["key", "oidc", "proxy", "owner", "none"]
"""How an identity was shown; `none` when nothing was."""

Fetch: TypeAlias = Callable[[str], bytes]
"""Gets the bytes at an address, or raises WorldError; it bounds time and size."""

NO_SCOPE = "none"
"""The scope that permits nothing. An empty tuple of scopes means all, so that nothing needs a word of its own."""

_GLOB = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
_STARS_MAX = 4
_MEET_MAX = 64
"""More globs than this are dropped from an intersection: that only takes authority away."""
_STAGES: tuple[Literal["shadow", "canary", "stable"], ...] = ("shadow", "canary", "stable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What reached the server: from where, with which headers, and for whose sake."""

    peer: str
    """Address of the other end of the connection; empty when it has none."""
    headers: tuple[tuple[str, str], ...]
    """Every header as it came, in order; what was sent twice stands here twice."""
    is_loopback: bool
    """Whether the connection never left this machine."""
    tenant: str = ""
    """Tenant whose things are asked for; empty when the request names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcIssuer:
    """An identity provider whose signed tokens are believed, and how its claims are read."""

    issuer: str
    """Exactly what `iss` must say."""
    audience: str
    """Must be `aud`, or one of it."""
    jwks_url: str
    """Where its public keys are."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """Signatures that are accepted; only those made with a private key may stand here."""
    user_claim: str = "sub"
    user_prefix: str = ""
    """Stands before every user of this issuer, so that two issuers never name the same person."""
    tenant_claim: str = ""
    """Claim that names the tenant; empty: every user belongs to `tenant`."""
    tenant: str = "local"
    roles_claim: str = "roles"
    roles: tuple[tuple[str, str], ...] = ()
    """Pairs of a value of the claim and the role that it gives; other values give none."""
    required: tuple[str, ...] = ()
    """Further claims that must be there."""
    skew_s: float = 60.0
    """How far the clocks of the two sides may differ."""
    age_max_s: float = 86_400.0
    """A token that was issued longer ago is refused, whatever it says of its end."""
    fresh_s: float = 300.0
    """Keys younger than this are used without asking again."""
    stale_max_s: float = 3_600.0
    """Keys older than this are not used, even when the issuer cannot be reached."""
    refetch_min_s: float = 30.0
    """The keys are not asked for more often than this, whatever tokens arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedProxy:
    """A proxy that authenticates people and names them in a header."""

    networks: tuple[str, ...]
    """Addresses that it may come from, as CIDR."""
    user_header: str = "X-Forwarded-User"
    roles_header: str = ""
    """Header with the groups of the user, separated by commas; empty: none is read."""
    roles: tuple[tuple[str, str], ...] = ()
    """Pairs of a group and the role that it gives; other groups give none."""
    default_roles: tuple[str, ...] = ()
    """Roles of everybody whom the proxy lets through."""
    tenant: str = "local"
    user_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOwner:
    """The one owner of an embedded Quell: whoever sits at this machine, over loopback only."""

    user: str = "owner"
    tenant: str = "local"
    roles: tuple[str, ...] = ("viewer", "operator", "approver", "admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityPlan:
    """Which ways of showing an identity are accepted; what is not named here is refused."""

    api_keys: Literal["accepted", "refused"] = "refused"
    issuers: tuple[OidcIssuer, ...] = ()
    proxies: tuple[TrustedProxy, ...] = ()
    owner: LocalOwner | None = None
    tenants: tuple[str, ...] = ("local",)
    """Tenants that this deployment serves; a credential of another one is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an identity was not believed. It is for the audit: the caller learns nothing of it."""

    way: Way
    reason: str
    """One sentence without any secret."""
    credential: str = ""
    """Id of the key or of the token's key, when one was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """An API key that is wanted."""

    name: str
    """What it is for, in a few words."""
    user: str
    tenant: str = "local"
    roles: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    """Entries such as `tool:logs.*` and `verb:approval.list`; empty: all that the roles may."""
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as it is kept: everything but its secret."""

    id: str
    name: str
    user: str
    tenant: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None = None
    revoked_by: str = ""
    used_at: datetime | None = None
    """When it was last used, to the minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentGrant:
    """What an agent may: never more than whom it acts for."""

    name: str
    tools: tuple[str, ...]
    """Globs of the tools, `*` being the only wildcard."""
    roles: tuple[str, ...] | None = None
    """Roles that it may use of those of the person; None: all."""
    scopes: tuple[str, ...] = ()
    """Scopes that it may use; empty: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowGrant:
    """What a version of a workflow may, and how far it goes by itself."""

    name: str
    digest: str
    tools: tuple[str, ...]
    roles: tuple[str, ...] | None = None
    scopes: tuple[str, ...] = ()
    stage: Literal["shadow", "canary", "stable"] = "stable"
    level: Level = Level.APPROVE_EACH


def is_person(principal: Principal) -> bool:
    """Tell whether somebody acts directly, with no agent and no workflow between."""
    return (
        not principal.agent
        and principal.agent_tools is None
        and not principal.workflow
        and not principal.workflow_digest
        and principal.workflow_tools is None
    )


def may_use(principal: Principal, tool: str) -> bool:
    """Tell whether the credential, the agent and the workflow all name the tool; policy decides afterwards."""
    granted = (principal.agent_tools, principal.workflow_tools, _scoped(principal.scopes, kind="tool"))
    return all(globs is None or any(fnmatchcase(tool, glob) for glob in globs) for globs in granted)


def may_do(principal: Principal, verb: str) -> bool:
    """Tell whether the credential covers a verb such as `autonomy.promote`; roles and policy decide afterwards."""
    globs = _scoped(principal.scopes, kind="verb")
    return globs is None or any(fnmatchcase(verb, glob) for glob in globs)


def on_behalf_of(principal: Principal, *, agent: AgentGrant, workflow: WorkflowGrant | None = None) -> Principal:
    """Return who acts when an agent does it for a principal: the intersection of all of them, never more.

    An agent that hands on to another one is named with it, as `outer>inner`.

    Raises:
        ConfigError: a grant is empty of a name, or a glob is none; or a run would change its workflow version.
    """
    problems = [f"agent {agent.name!r}: {what}" for what in _mistakes(agent.name, agent.tools, agent.scopes)]
    if workflow is not None:
        told = _mistakes(workflow.name, workflow.tools, workflow.scopes)
        problems += [f"workflow {workflow.name!r}: {what}" for what in told]
        if principal.workflow_digest not in {"", workflow.digest} or not workflow.digest:
            problems.append(f"workflow {workflow.name!r}: a run keeps the workflow version that it began with")
    if problems:
        raise ConfigError("; ".join(problems), hint="give names, and globs of letters, digits, `_`, `-`, `.` and `*`")
    acting = replace(
        principal,
        agent=f"{principal.agent}>{agent.name}" if principal.agent else agent.name,
        agent_tools=meet_globs(principal.agent_tools, agent.tools),
        roles=_meet_roles(principal.roles, agent.roles),
        scopes=_meet_scopes(principal.scopes, agent.scopes),
    )
    if workflow is None:
        return acting
    is_first = not principal.workflow_digest
    return replace(
        acting,
        workflow=workflow.name if is_first else principal.workflow,
        workflow_digest=workflow.digest,
        workflow_tools=meet_globs(principal.workflow_tools, workflow.tools),
        roles=_meet_roles(acting.roles, workflow.roles),
        scopes=_meet_scopes(acting.scopes, workflow.scopes),
        stage=workflow.stage if is_first else min(principal.stage, workflow.stage, key=_STAGES.index),
        level=workflow.level if is_first else min(principal.level, workflow.level),
    )


def scope_mistakes(scopes: Iterable[str]) -> list[str]:
    """Say what is wrong with scopes; nothing when they can be used."""
    wrong = []
    for scope in scopes:
        kind, colon, glob = scope.partition(":")
        if scope != NO_SCOPE and (not colon or kind not in {"tool", "verb"} or not _is_glob(glob)):
            wrong.append(f"scope {scope!r} is neither `tool:GLOB` nor `verb:GLOB`")
    return wrong


def is_within(wanted: tuple[str, ...], held: tuple[str, ...]) -> bool:
    """Tell whether scopes permit nothing that others do not; empty ones permit all."""
    if not held:
        return True
    return bool(wanted) and set(_meet_scopes(held, wanted)) == set(_meet_scopes(wanted, wanted))


def meet_globs(one: tuple[str, ...] | None, other: tuple[str, ...]) -> tuple[str, ...]:
    """Return globs that match exactly what both sides match; None matches everything.

    Where an intersection would need more than a bounded number of globs, some are left out.
    """
    if one is None:
        return _pruned(other)
    found: set[str] = set()
    for left in one:
        for right in other:
            found |= _meet(_plain(left), _plain(right))
    return _pruned(found)


def _mistakes(name: str, tools: tuple[str, ...], scopes: tuple[str, ...]) -> list[str]:
    wrong = [] if name and ">" not in name else ["a name is needed, without `>`"]
    wrong += [f"{glob!r} is no glob of tools" for glob in tools if not _is_glob(glob)]
    return wrong + scope_mistakes(scopes)


def _is_glob(text: str) -> bool:
    return _GLOB.fullmatch(text) is not None and _plain(text).count("*") <= _STARS_MAX


def _plain(glob: str) -> str:
    return re.sub(r"\*+", "*", glob)


def _scoped(scopes: tuple[str, ...], *, kind: str) -> tuple[str, ...] | None:
    """Return the globs of one kind; None when nothing is scoped."""
    if not scopes:
        return None
    return tuple(glob for held, _, glob in (scope.partition(":") for scope in scopes) if held == kind and glob)


def _meet_roles(held: tuple[str, ...], allowed: tuple[str, ...] | None) -> tuple[str, ...]:
    return held if allowed is None else tuple(role for role in held if role in allowed)


def _meet_scopes(held: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    if not held or not allowed:
        return held or allowed
    met = [
        f"{kind}:{glob}"
        for kind in ("tool", "verb")
        for glob in meet_globs(_scoped(held, kind=kind) or (), _scoped(allowed, kind=kind) or ())
    ]
    return tuple(met) or (NO_SCOPE,)


def _covers(wide: str, narrow: str) -> bool:
    """Tell whether a glob matches all that another one does: only a star of its own can swallow the other's star."""
    return fnmatchcase(narrow, wide)


def _pruned(globs: Iterable[str]) -> tuple[str, ...]:
    """Return the globs without those that another one covers, in a fixed order."""
    kept: list[str] = []
    for glob in sorted({_plain(glob) for glob in globs}, key=lambda text: (-text.count("*"), len(text), text)):
        if not any(_covers(wide, glob) for wide in kept):
            kept = [narrow for narrow in kept if not _covers(glob, narrow)] + [glob]
    return tuple(sorted(kept)[:_MEET_MAX])


def _meet(one: str, other: str) -> frozenset[str]:
    """Intersect two globs: match them letter against letter from the left, a star against everything."""
    if _covers(one, other):
        return frozenset({other})
    if _covers(other, one):
        return frozenset({one})

    @cache
    def rest(i: int, j: int) -> frozenset[str]:
        left, right = one[i : i + 1], other[j : j + 1]
        if not left or not right:
            return frozenset({""}) if not (one[i:] + other[j:]).strip("*") else frozenset()
        if left == right == "*":
            return _after("*", rest(i + 1, j) | rest(i, j + 1))
        if left == "*":
            return _few(rest(i + 1, j) | _after(right, rest(i, j + 1)))
        if right == "*":
            return _few(rest(i, j + 1) | _after(left, rest(i + 1, j)))
        return _after(left, rest(i + 1, j + 1)) if left == right else frozenset()

    return rest(0, 0)


def _after(head: str, tails: frozenset[str]) -> frozenset[str]:
    return _few(frozenset(_plain(head + tail) for tail in tails))


def _few(globs: frozenset[str]) -> frozenset[str]:
    return globs if len(globs) <= _MEET_MAX else frozenset(_pruned(globs))
