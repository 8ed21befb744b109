"""Who is there: every way of showing an identity that was named is tried, one at a time, and all others are refused."""

from __future__ import annotations

import ipaddress
import re
from itertools import pairwise

from quell.config import Secret
from quell.domain import (
    ApiKey,
    Caller,
    Clock,
    ConfigError,
    Entropy,
    Fetch,
    IdentityPlan,
    KeyRequest,
    OidcIssuer,
    Principal,
    Problem,
    Refusal,
    RefusedError,
    TrustedProxy,
    Way,
)
from quell.governance import _keys
from quell.governance._credential import SIGNATURES, UnprovenError, is_name
from quell.governance._proxy import Proxies, address_of
from quell.runs import Connection, Database

_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_URL = re.compile(r"(https?)://(\[[0-9a-fA-F:]+\]|[^/:?#@\s]+)(:[0-9]+)?(/[^\s]*)?")
_TAKEN_HEADERS = frozenset({"authorization", "host", "cookie", "forwarded", "x-forwarded-for"})
_FORWARDED = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "x-original-host"})
_DOTS_OF_TOKENS = 2
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


class Identities:
    """The door to who somebody is. Raises ConfigError, with every mistake, when the plan cannot be accepted."""

    TABLES = _keys.TABLES

    def __init__(
        self,
        database: Database,
        plan: IdentityPlan,
        *,
        clock: Clock,
        entropy: Entropy,
        pepper: Secret,
        fetch: Fetch,
    ) -> None:
        if problems := tuple(_problems(plan)):
            raise ConfigError("the identities cannot be used", hint="; ".join(map(str, problems)), problems=problems)
        self._plan = plan
        self._clock = clock
        self._fetch = fetch
        self._api_keys = _keys.ApiKeys(database, clock=clock, entropy=entropy, pepper=pepper)
        self._proxies = Proxies(plan.proxies)
        if plan.issuers:
            # A Quell without an issuer does not pay for loading the cryptography of tokens.
            from quell.governance._oidc import Issuers  # noqa: PLC0415

            self._issuers = Issuers(plan.issuers, clock=clock, fetch=fetch)

    def authenticate(self, caller: Caller) -> Principal:
        """Return who calls. Raises RefusedError, the same for every reason, when nobody can be believed.

        It opens short transactions of its own, and may fetch keys: call it before one is open, in a thread.
        """
        found = self.identify(caller)
        if isinstance(found, Refusal):
            raise RefusedError("you could not be identified", hint="show a valid API key, token or session")
        return found

    def identify(self, caller: Caller) -> Principal | Refusal:
        """Return who calls, or why nobody was believed: for the audit, never for the caller."""
        try:
            way, principal = self._proven(caller)
            self._check(principal, caller, way=way)
        except UnprovenError as error:
            return Refusal(way=error.way, reason=error.reason, credential=error.credential)
        return principal

    def new_key(self, connection: Connection, request: KeyRequest, *, by: Principal) -> tuple[ApiKey, Secret]:
        """Make an API key; its text is returned here and never again.

        Raises:
            RefusedError: `by` is an agent, or may not give that much.
            UsageError: the request is not whole.
        """
        return self._api_keys.new(connection, request, by=by)

    def revoke_key(self, connection: Connection, identifier: str, *, by: Principal) -> ApiKey:
        """End an API key at once. Raises UsageError when there is none, RefusedError when `by` may not."""
        return self._api_keys.revoke(connection, identifier, by=by)

    def keys(self, connection: Connection, *, by: Principal) -> tuple[ApiKey, ...]:
        """Return the API keys that `by` may see, without their secrets, oldest first."""
        return self._api_keys.listed(connection, by=by)

    @staticmethod
    def may_bind(host: str, plan: IdentityPlan) -> None:
        """Raise ConfigError when a server would listen beyond this machine and nobody could be told from anybody."""
        if _is_local(host) or plan.api_keys == "accepted" or plan.issuers or plan.proxies:
            return
        raise ConfigError(
            f"server.host is {host!r}, and without identities only loopback is accepted",
            hint="use 127.0.0.1 or ::1, or configure API keys, an OIDC issuer or a trusted proxy",
        )

    @staticmethod
    def forwarded_by(caller: Caller) -> str:
        """Return a header that says that somebody else's request is passed on; empty when none does."""
        names = {name.lower().replace("_", "-") for name, _ in caller.headers}
        return min((name for name in names if name in _FORWARDED or name.startswith("x-forwarded-")), default="")

    def _proven(self, caller: Caller) -> tuple[Way, Principal]:
        authorizations = [value for name, value in caller.headers if name.lower() == "authorization"]
        is_named = bool(self._proxies.shown(caller))
        if len(authorizations) + is_named > 1:
            raise UnprovenError("none", "more than one identity was shown")
        if is_named:
            return "proxy", self._proxies.prove(caller)
        if authorizations and not self._means_nothing(authorizations[0]):
            return self._bearer(authorizations[0])
        return "owner", self._owner(caller)

    def _means_nothing(self, authorization: str) -> bool:
        """Tell whether this is a key for nobody: clients of models cannot do without one, and nothing here takes any.

        A key of ours or a token of an issuer is never taken so: it stands for somebody who may have less than the owner.
        """
        is_taken = self._plan.api_keys == "accepted" or self._plan.issuers or self._plan.proxies
        if is_taken or self._plan.owner is None:
            return False
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        stands_for_somebody = token.startswith(_keys.PREFIX) or token.count(".") == _DOTS_OF_TOKENS
        return scheme.lower() == "bearer" and bool(token) and not stands_for_somebody

    def _bearer(self, authorization: str) -> tuple[Way, Principal]:
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise UnprovenError("none", "Authorization holds no bearer token")
        if token.startswith(_keys.PREFIX):
            if self._plan.api_keys != "accepted":
                raise UnprovenError("key", "API keys are not accepted here")
            return "key", self._api_keys.prove(token)
        if not self._plan.issuers:
            raise UnprovenError("oidc", "tokens are not accepted here")
        return "oidc", self._issuers.prove(token)

    def _owner(self, caller: Caller) -> Principal:
        owner = self._plan.owner
        if owner is None:
            raise UnprovenError("none", "no identity was shown")
        peer = address_of(caller.peer)
        if not caller.is_loopback or (caller.peer and (peer is None or not peer.is_loopback)):
            raise UnprovenError("owner", f"{caller.peer or 'the caller'} is not on this machine")
        if forwarded := self.forwarded_by(caller):
            # It came through a proxy on this machine, from anywhere.
            raise UnprovenError("owner", f"{forwarded} says that it was forwarded")
        return Principal(user=owner.user, tenant=owner.tenant, roles=owner.roles)

    def _check(self, principal: Principal, caller: Caller, *, way: Way) -> None:
        owner = self._plan.owner
        if not is_name(principal.user):
            raise UnprovenError(way, "the name of the user is malformed")
        is_foreign = way in {"oidc", "proxy"}
        if owner is not None and is_foreign and (principal.user, principal.tenant) == (owner.user, owner.tenant):
            raise UnprovenError(way, "somebody else bears the name of the local owner")
        if principal.tenant not in self._plan.tenants:
            raise UnprovenError(way, f"tenant {principal.tenant[:64]!r} is not served here")
        if caller.tenant not in {"", principal.tenant}:
            raise UnprovenError(way, f"it belongs to tenant {principal.tenant!r}, and another one was asked for")


def _is_local(host: str) -> bool:
    bare = host.strip("[]").lower()
    address = address_of(bare)
    return bare in _LOCAL_NAMES or (address is not None and address.is_loopback)


def _problems(plan: IdentityPlan) -> list[Problem]:
    found: list[Problem] = []

    def wrong(path: str, reason: str, hint: str) -> None:
        found.append(Problem(path=path, reason=reason, hint=hint, source="identity"))

    for index, issuer in enumerate(plan.issuers):
        for key, reason, hint in _issuer_mistakes(issuer):
            wrong(f"identity.issuers.{index}.{key}", reason, hint)
    for index, proxy in enumerate(plan.proxies):
        for key, reason, hint in _proxy_mistakes(proxy):
            wrong(f"identity.proxies.{index}.{key}", reason, hint)
    if len({issuer.issuer for issuer in plan.issuers}) < len(plan.issuers):
        wrong("identity.issuers", "an issuer is there twice", "leave one of them")
    sources: tuple[OidcIssuer | TrustedProxy, ...] = (*plan.issuers, *plan.proxies)
    prefixes = sorted(source.user_prefix for source in sources)
    if any(later.startswith(earlier) for earlier, later in pairwise(prefixes)):
        wrong("identity", "two sources of users could name the same person", "give each a user_prefix of its own")
    for reason, hint in _tenant_mistakes(plan.tenants):
        wrong("identity.tenants", reason, hint)
    if plan.owner is not None and not is_name(plan.owner.user):
        wrong("identity.owner.user", "the owner has no name", "name one, without spaces")
    return found


def _tenant_mistakes(tenants: tuple[str, ...]) -> list[tuple[str, str]]:
    if not tenants or not all(map(is_name, tenants)):
        return [("no tenant is served", "name at least one")]
    # Stops and caps name tenants by globs: a kill of `[a]` would cover nothing of it.
    odd = [tenant for tenant in tenants if set(tenant) & set("*?[]")]
    return [(f"{name!r} reads as a glob", "name it without * ? [ ]") for name in odd]


def _issuer_mistakes(issuer: OidcIssuer) -> list[tuple[str, str, str]]:
    found = [
        (key, "it is empty", "say what the token must hold")
        for key in ("issuer", "audience", "jwks_url", "user_claim")
        if not getattr(issuer, key)
    ]
    if foreign := sorted(set(issuer.algorithms) - set(SIGNATURES)) or (not issuer.algorithms and ["none"]):
        found.append(("algorithms", f"{foreign[0]!r} is not made with a private key", "use RS256, ES256 or EdDSA"))
    url = _URL.fullmatch(issuer.jwks_url)
    if url is None or (url[1] != "https" and not _is_local(url[2])):
        found.append(("jwks_url", "keys that come unprotected prove nothing", "use https"))
    times = (issuer.skew_s, issuer.age_max_s, issuer.fresh_s, issuer.refetch_min_s)
    if not all(0 <= value < float("inf") for value in (*times, issuer.stale_max_s)):
        found.append(("skew_s", "a time is negative or endless", "give seconds"))
    elif issuer.stale_max_s < issuer.fresh_s or issuer.refetch_min_s > issuer.fresh_s:
        found.append(("fresh_s", "it must lie between refetch_min_s and stale_max_s", "put them in that order"))
    return found


def _proxy_mistakes(proxy: TrustedProxy) -> list[tuple[str, str, str]]:
    found = []
    for text in proxy.networks or ("",):
        try:
            network = ipaddress.ip_network(text)
        except ValueError:
            found.append(("networks", f"{text!r} is no network", "write it as 10.0.0.0/24"))
            continue
        if network.prefixlen == 0:
            found.append(("networks", f"{text} is everybody", "name the addresses of the proxy"))
    for key in ("user_header", "roles_header"):
        name = getattr(proxy, key)
        if (name or key == "user_header") and (not _HEADER.fullmatch(name) or name.lower() in _TAKEN_HEADERS):
            found.append((key, f"{name!r} cannot name a person", "use a header of its own, such as X-Forwarded-User"))
    return found
