"""Who may show an identity, and how, as the settings say."""

from __future__ import annotations

from pathlib import Path

from quell.app._key_file import key_of
from quell.config import IdentitySettings, OidcSettings, ProxySettings, Secret
from quell.domain import Clock, Entropy, IdentityPlan, LocalOwner, OidcIssuer, TrustedProxy
from quell.governance import Identities
from quell.runs import Database
from quell.tools import fetch_keys


def open_identities(
    database: Database, settings: IdentitySettings, *, state_dir: Path, clock: Clock, entropy: Entropy
) -> Identities:
    """Return who tells callers apart; blocks. Tables and the key that seals API keys are made where they are missing.

    Raises:
        ConfigError: the settings cannot be accepted, or the key cannot be used.
        JournalError: the database cannot be used.
    """
    # The key lies where a copy of the database does not take it along: who can only write rows can make no API key.
    path = state_dir / "audit" / "api-keys.key"
    pepper = Secret(key_of(path, entropy=entropy, use="API keys are sealed with it").hex())
    identities = Identities(database, plan_of(settings), clock=clock, entropy=entropy, pepper=pepper, fetch=fetch_keys)
    with database.writing() as connection:
        connection.make_tables(Identities.TABLES)
    return identities


def plan_of(settings: IdentitySettings) -> IdentityPlan:
    """Return which ways of showing an identity the settings accept."""
    is_asked = settings.api_keys or settings.oidc or settings.proxy
    has_owner = settings.local_owner == "kept" or (settings.local_owner == "auto" and not is_asked)
    tenants = settings.tenants or ("local",)
    return IdentityPlan(
        api_keys="accepted" if settings.api_keys else "refused",
        issuers=tuple(map(_issuer, settings.oidc)),
        proxies=tuple(map(_proxy, settings.proxy)),
        owner=LocalOwner(tenant=tenants[0], roles=settings.owner_roles) if has_owner else None,
        tenants=settings.tenants,
    )


def _issuer(settings: OidcSettings) -> OidcIssuer:
    return OidcIssuer(
        issuer=settings.issuer,
        audience=settings.audience,
        jwks_url=settings.jwks_url,
        user_claim=settings.user_claim,
        user_prefix=settings.user_prefix,
        tenant=settings.tenant,
        roles_claim=settings.roles_claim,
        roles=tuple(settings.roles.items()),
        skew_s=settings.skew_s,
    )


def _proxy(settings: ProxySettings) -> TrustedProxy:
    return TrustedProxy(
        networks=settings.networks,
        user_header=settings.user_header,
        user_prefix=settings.user_prefix,
        roles_header=settings.roles_header,
        roles=tuple(settings.roles.items()),
        default_roles=settings.default_roles,
        tenant=settings.tenant,
    )
