"""Signed tokens of identity providers (OpenID Connect, RFC 7519, RFC 8725): whose key, which claims, until when."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import jwt

from quell.domain import Clock, Fetch, OidcIssuer, Principal, WorldError
from quell.governance._credential import SIGNATURES, UnprovenError

Claims: TypeAlias = Mapping[str, object]

_TOKEN_MAX = 16_384
_JWKS_MAX = 1_000_000
_KEYS_MAX = 100
_KID_MAX = 200
_RSA_MIN_BITS = 2048
_SECONDS_MAX = 10**11
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_HEADERS = frozenset({"alg", "kid", "typ"})
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "k"})
_SIGNATURE_ONLY = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}
"""Claims are checked here: the library would ask a clock of its own."""


class Issuers:
    """The identity providers that are believed."""

    def __init__(self, issuers: Sequence[OidcIssuer], *, clock: Clock, fetch: Fetch) -> None:
        self._clock = clock
        self._issuers = {issuer.issuer: (issuer, _KeySet(issuer, fetch=fetch)) for issuer in issuers}

    def prove(self, token: str) -> Principal:
        """Return whom a token names. Raises UnprovenError when anything about it is not as it must be."""
        if len(token) > _TOKEN_MAX or token.count(".") != 2 or not token.isascii():
            raise UnprovenError("oidc", "it is no signed token")
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise UnprovenError("oidc", f"the token cannot be read: {type(error).__name__}") from None
        algorithm, kid = _signature_of(header)
        issuer_name = claimed.get("iss")
        if not isinstance(issuer_name, str) or issuer_name not in self._issuers:
            raise UnprovenError("oidc", "its issuer is not one of ours", credential=kid)
        issuer, keys = self._issuers[issuer_name]
        if algorithm not in issuer.algorithms:
            raise UnprovenError("oidc", "its algorithm is not accepted", credential=kid)
        at = self._clock()
        key = keys.find(kid, algorithm=algorithm, at=at)
        try:
            claims = jwt.decode(token, key=key, algorithms=[algorithm], options=_SIGNATURE_ONLY)  # type: ignore[arg-type]  # a plain dict is one
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise UnprovenError("oidc", f"its signature is wrong: {type(error).__name__}", credential=kid) from None
        try:
            _check_claims(claims, issuer=issuer, at=at)
            return _principal_of(claims, issuer=issuer)
        except UnprovenError as error:
            raise UnprovenError("oidc", error.reason, credential=kid) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetched:
    keys: tuple[Mapping[str, object], ...]
    at: datetime


class _KeySet:
    """Public keys of one issuer, asked for seldom and trusted for a bounded time."""

    def __init__(self, issuer: OidcIssuer, *, fetch: Fetch) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._fetching = threading.Lock()
        self._asked_at: datetime | None = None
        self._held: _Fetched | None = None

    def find(self, kid: str, *, algorithm: str, at: datetime) -> jwt.PyJWK:
        held = self._usable(at)
        if held is None or not 0 <= (at - held.at).total_seconds() <= self._issuer.fresh_s or not _named(held, kid):
            # Who has usable keys does not wait for somebody else's question.
            self._refresh(at, is_waiting=held is None)
            held = self._usable(at)
        if held is None:
            raise UnprovenError("oidc", "the keys of its issuer cannot be had", credential=kid)
        fitting = [key for key in _named(held, kid) if _fits(key, algorithm)]
        if len(fitting) != 1:
            reason = "no key of its issuer fits" if not fitting else "it does not say which key signed it"
            raise UnprovenError("oidc", reason, credential=kid)
        return _public_key(fitting[0], algorithm=algorithm, kid=kid)

    def _usable(self, at: datetime) -> _Fetched | None:
        held = self._held
        # A clock that was set back makes nothing younger.
        if held is None or abs((at - held.at).total_seconds()) > self._issuer.stale_max_s:
            return None
        return held

    def _refresh(self, at: datetime, *, is_waiting: bool) -> None:
        if not self._fetching.acquire(blocking=is_waiting):
            return
        try:
            asked_at = self._asked_at
            if asked_at is not None and 0 <= (at - asked_at).total_seconds() < self._issuer.refetch_min_s:
                return
            self._asked_at = at
            keys = _read_keys(self._fetch(self._issuer.jwks_url))
            if keys is not None:
                self._held = _Fetched(keys=keys, at=at)
        except WorldError:
            # What is held goes on to be used until it is too old; then every token is refused, with this as reason.
            return
        finally:
            self._fetching.release()


def _read_keys(raw: bytes) -> tuple[Mapping[str, object], ...] | None:
    """Read a JWK set (RFC 7517); None when it is none."""
    if len(raw) > _JWKS_MAX:
        return None
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    keys = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(keys, list) or len(keys) > _KEYS_MAX:
        return None
    return tuple(key for key in keys if isinstance(key, dict))


def _named(held: _Fetched, kid: str) -> list[Mapping[str, object]]:
    return [key for key in held.keys if not kid or key.get("kid") == kid]


def _fits(key: Mapping[str, object], algorithm: str) -> bool:
    kind, curve = SIGNATURES[algorithm]
    return (
        key.get("kty") == kind
        and (not curve or key.get("crv") == curve)
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and not _PRIVATE & set(key)
    )


def _public_key(key: Mapping[str, object], *, algorithm: str, kid: str) -> jwt.PyJWK:
    try:
        public = jwt.PyJWK(dict(key), algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise UnprovenError("oidc", f"a key of its issuer is broken: {type(error).__name__}", credential=kid) from None
    if SIGNATURES[algorithm][0] == "RSA" and public.key.key_size < _RSA_MIN_BITS:
        raise UnprovenError("oidc", "a key of its issuer is too short", credential=kid)
    return public


def _signature_of(header: Claims) -> tuple[str, str]:
    """Return algorithm and key id; whatever else a header could ask of us is refused."""
    algorithm, kid, kind = header.get("alg"), header.get("kid", ""), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in SIGNATURES:
        raise UnprovenError("oidc", "its algorithm is not accepted")
    if not isinstance(kid, str) or len(kid) > _KID_MAX or not kid.isprintable() or ("kid" in header and not kid):
        raise UnprovenError("oidc", "its key id is malformed")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise UnprovenError("oidc", "it is another type of token", credential=kid)
    # Keys and addresses of keys that a token brings along (jwk, jku, x5u, x5c) prove nothing; `crit` may not be skipped.
    if foreign := sorted(set(header) - _HEADERS - {"x5t", "x5t#S256"}):
        raise UnprovenError("oidc", f"its header holds {foreign[0][:40]!r}", credential=kid)
    return algorithm, kid


def _check_claims(claims: Claims, *, issuer: OidcIssuer, at: datetime) -> None:
    if claims.get("iss") != issuer.issuer:
        raise UnprovenError("oidc", "its issuer is not one of ours")
    audience = claims.get("aud")
    if issuer.audience not in (audience if isinstance(audience, list) else [audience]):
        raise UnprovenError("oidc", "it was made for somebody else")
    if missing := [name for name in issuer.required if claims.get(name) in (None, "", [], {})]:
        raise UnprovenError("oidc", f"claims are missing: {', '.join(missing)}")
    now = at.timestamp()
    ends, begins, issued = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
    if ends is None or issued is None:
        raise UnprovenError("oidc", "it does not say when it was issued and when it ends")
    if now >= ends + issuer.skew_s:
        raise UnprovenError("oidc", "it has expired")
    if begins is not None and now < begins - issuer.skew_s:
        raise UnprovenError("oidc", "its time has not come")
    if now < issued - issuer.skew_s:
        raise UnprovenError("oidc", "it was issued in the future")
    if now - issued > issuer.age_max_s + issuer.skew_s:
        raise UnprovenError("oidc", "it was issued too long ago")


def _seconds(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _SECONDS_MAX:
        raise UnprovenError("oidc", f"{name} is no time")
    return float(value)


def _principal_of(claims: Claims, *, issuer: OidcIssuer) -> Principal:
    user = _find(claims, issuer.user_claim)
    tenant = _find(claims, issuer.tenant_claim) if issuer.tenant_claim else issuer.tenant
    if not isinstance(user, str) or not user or not isinstance(tenant, str):
        raise UnprovenError("oidc", "it does not name a user and a tenant")
    told = _find(claims, issuer.roles_claim)
    values = told if isinstance(told, list) else [told]
    roles = {role for value, role in issuer.roles if value in values}
    return Principal(user=issuer.user_prefix + user, tenant=tenant, roles=tuple(sorted(roles)))


def _find(claims: Claims, name: str) -> object:
    """Return a claim: by its name, or by a path such as `/realm_access/roles`."""
    if not name.startswith("/"):
        return claims.get(name)
    found: object = claims
    for part in name[1:].split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
