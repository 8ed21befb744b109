"""A small real database with keys and levels, and an identity provider that signs what it is told to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from quell.config import Secret
from quell.domain import (
    Caller,
    Clock,
    Fetch,
    IdentityPlan,
    KeyRequest,
    LocalOwner,
    OidcIssuer,
    Principal,
    TrustedProxy,
    WorldError,
)
from quell.governance import Autonomy, Identities
from quell.runs import Database
from quell.runs._database import open_database

PEPPER = Secret("a secret of at least thirty-two letters")
ISSUER = "https://login.example.com"
OTHER_ISSUER = "https://login.elsewhere.example"
JWKS = "https://login.example.com/keys"
OTHER_JWKS = "https://login.elsewhere.example/keys"
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ADMIN = Principal(user="root@example.com", tenant="acme", roles=("admin",))

CORP = OidcIssuer(
    issuer=ISSUER,
    audience="quell",
    jwks_url=JWKS,
    user_prefix="corp:",
    tenant="acme",
    roles=(("sre", "operator"), ("lead", "approver")),
)
ELSEWHERE = replace(CORP, issuer=OTHER_ISSUER, jwks_url=OTHER_JWKS, user_prefix="else:", roles=())
PROXY = TrustedProxy(
    networks=("10.1.0.0/24", "fd00::/64"),
    roles_header="X-Forwarded-Groups",
    roles=(("sre", "operator"),),
    default_roles=("viewer",),
    tenant="acme",
    user_prefix="sso:",
)
PLAN = IdentityPlan(
    api_keys="accepted", issuers=(CORP, ELSEWHERE), proxies=(PROXY,), owner=LocalOwner(), tenants=("local", "acme")
)


@contextmanager
def books(state_dir: Path, *, url: str = "") -> Iterator[Database]:
    """Give a database with the tables of identities and autonomy."""
    database = open_database(Secret(url), state_dir=state_dir)
    try:
        with database.writing(durability="written") as connection:
            connection.make_tables((*Identities.TABLES, *Autonomy.TABLES))
        yield database
    finally:
        database.close()


class Provider:
    """An identity provider: keys that it may change, and a wire that may be cut."""

    def __init__(self, *, issuer: str = ISSUER, kid: str = "k1") -> None:
        self.issuer = issuer
        self.kid = kid
        self.asked = 0
        self.is_down = False
        self.keys: list[dict[str, object]] = [public_jwk("rsa", kid=kid)]

    def __call__(self, url: str) -> bytes:
        self.asked += 1
        if self.is_down:
            raise WorldError(f"{url} cannot be reached")
        return json.dumps({"keys": self.keys}).encode()

    def claims(self, *, at: datetime = NOON, **changed: Any) -> dict[str, object]:
        now = int(at.timestamp())
        claims: dict[str, object] = {
            "iss": self.issuer,
            "aud": "quell",
            "sub": "alice",
            "iat": now,
            "exp": now + 600,
            "roles": ["sre"],
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, at: datetime = NOON, headers: dict[str, object] | None = None, **changed: Any) -> str:
        return sign(self.claims(at=at, **changed), headers={"kid": self.kid, **(headers or {})})


def sign(
    claims: dict[str, object], *, key: str = "rsa", algorithm: str = "RS256", headers: dict[str, object] | None = None
) -> str:
    """Sign claims with a private key of the bench."""
    return jwt.encode(claims, private_key(key), algorithm=algorithm, headers=headers or {})


@cache
def private_key(name: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    """Make a key once: making one of RSA takes long."""
    if name.startswith("ec"):
        return ec.generate_private_key(ec.SECP256R1())
    if name.startswith("ed"):
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if name == "short" else 2048)


def public_jwk(name: str, *, kid: str, **changed: Any) -> dict[str, object]:
    """Write a public key as a provider does."""
    public = private_key(name).public_key()
    algorithm = "ES256" if name.startswith("ec") else "EdDSA" if name.startswith("ed") else "RS256"
    told = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    return {**told, "kid": kid, "use": "sig", **changed}


def nobody_answers(url: str) -> bytes:
    raise WorldError(f"{url} cannot be reached")


def identities(
    database: Database, *, clock: Clock, plan: IdentityPlan = PLAN, fetch: Fetch = nobody_answers
) -> Identities:
    return Identities(database, plan, clock=clock, entropy=os.urandom, pepper=PEPPER, fetch=fetch)


def caller(
    *headers: tuple[str, str], peer: str = "192.0.2.7", bearer: str = "", loopback: bool = False, tenant: str = ""
) -> Caller:
    """Knock from an address of the world, or from this machine."""
    shown = (("Authorization", f"Bearer {bearer}"),) if bearer else ()
    return Caller(
        peer="127.0.0.1" if loopback else peer, headers=(*headers, *shown), is_loopback=loopback, tenant=tenant
    )


def wanted(*, at: datetime = NOON, days: float = 30, **changed: Any) -> KeyRequest:
    """Ask for an ordinary key."""
    request = KeyRequest(
        name="ci", user="bob@example.com", tenant="acme", roles=("operator",), expires_at=at + timedelta(days=days)
    )
    return replace(request, **changed)
