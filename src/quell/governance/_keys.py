"""API keys: made once, kept only as a seal, believed until they expire or are revoked.

A key is `qk_<id>_<secret>`, and the secret is 256 random bits. Nobody can guess that from a hash, so a slow hash would
buy nothing and let strangers burn our CPU. What is kept is a BLAKE2b under a key that lies outside the database, and it
covers what the key may as well: who can only write rows can neither add a key nor give one another role.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from quell.config import Secret
from quell.domain import (
    ApiKey,
    Clock,
    ConfigError,
    Entropy,
    JournalError,
    KeyRequest,
    Principal,
    RefusedError,
    UsageError,
    is_person,
    is_within,
    may_do,
    new_id,
    scope_mistakes,
)
from quell.governance._credential import UnprovenError, is_name
from quell.runs import Connection, Database

TABLES = (
    """CREATE TABLE IF NOT EXISTS quell_api_key (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, user_name TEXT NOT NULL, tenant TEXT NOT NULL, roles TEXT NOT NULL,
        scopes TEXT NOT NULL, seal TEXT NOT NULL, created_at TEXT NOT NULL, created_by TEXT NOT NULL,
        expires_at TEXT NOT NULL, revoked_at TEXT NOT NULL, revoked_by TEXT NOT NULL, used_at TEXT NOT NULL)""",
)

PREFIX = "qk_"
_KEY = re.compile(r"qk_([0-9a-z]{26})_([0-9a-f]{64})")
_SECRET_BYTES = 32
_PEPPER_MIN = 32
_LASTS_MAX = timedelta(days=366)
_NOTED_EVERY = timedelta(minutes=1)
_NAME_MAX = 200


class ApiKeys:
    """The keys of one database."""

    def __init__(self, database: Database, *, clock: Clock, entropy: Entropy, pepper: Secret) -> None:
        if len(pepper.reveal()) < _PEPPER_MIN:
            raise ConfigError(
                "the secret that seals API keys is too short", hint=f"give at least {_PEPPER_MIN} random characters"
            )
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._pepper = hashlib.sha256(pepper.reveal().encode()).digest()

    def new(self, connection: Connection, request: KeyRequest, *, by: Principal) -> tuple[ApiKey, Secret]:
        """Make a key; its text is returned here and never again. Raises RefusedError when `by` may not give it."""
        at = self._clock()
        _check_request(request, at=at)
        _check_giver(request, by=by)
        key = ApiKey(
            id=new_id("key", at=at, entropy=self._entropy(10)),
            name=request.name.strip(),
            user=request.user,
            tenant=request.tenant,
            roles=request.roles,
            scopes=request.scopes,
            created_at=at,
            created_by=by.user,
            expires_at=request.expires_at.astimezone(UTC),
        )
        secret = self._entropy(_SECRET_BYTES).hex()
        connection.run(
            "INSERT INTO quell_api_key (id, name, user_name, tenant, roles, scopes, seal, created_at, created_by,"
            " expires_at, revoked_at, revoked_by, used_at) VALUES (:id, :name, :user_name, :tenant, :roles, :scopes,"
            " :seal, :created_at, :created_by, :expires_at, '', '', '')",
            id=key.id,
            name=key.name,
            user_name=key.user,
            tenant=key.tenant,
            roles=json.dumps(key.roles),
            scopes=json.dumps(key.scopes),
            seal=self._seal(key, secret),
            created_at=key.created_at.isoformat(),
            created_by=key.created_by,
            expires_at=key.expires_at.isoformat(),
        )
        return key, Secret(f"{PREFIX}{key.id.removeprefix('key_')}_{secret}")

    def revoke(self, connection: Connection, identifier: str, *, by: Principal) -> ApiKey:
        """End a key at once; one that has ended already stays as it is.

        Raises:
            UsageError: there is no such key in the tenant of `by`.
            RefusedError: `by` may not revoke it.
        """
        _check_person(by, "key.revoke")
        row = connection.first(
            "SELECT * FROM quell_api_key WHERE id = :id AND tenant = :tenant", id=identifier, tenant=by.tenant
        )
        if row is None:
            raise UsageError(f"there is no key {identifier!r}", hint="list the keys of this tenant")
        if row.user_name != by.user and "admin" not in by.roles:
            raise RefusedError("this key belongs to somebody else", hint="ask somebody with the role admin")
        connection.run(
            "UPDATE quell_api_key SET revoked_at = :at, revoked_by = :by WHERE id = :id AND revoked_at = ''",
            at=self._clock().isoformat(),
            by=by.user,
            id=identifier,
        )
        return _key_of(connection.one("SELECT * FROM quell_api_key WHERE id = :id", id=identifier))

    def listed(self, connection: Connection, *, by: Principal) -> tuple[ApiKey, ...]:
        """Return the keys of a tenant, oldest first; of `by` alone unless it has the role admin."""
        _check_person(by, "key.list")
        rows = connection.all("SELECT * FROM quell_api_key WHERE tenant = :tenant ORDER BY id", tenant=by.tenant)
        return tuple(_key_of(row) for row in rows if "admin" in by.roles or row.user_name == by.user)

    def prove(self, token: str) -> Principal:
        """Return whose key it is. Raises UnprovenError when it is nobody's, has expired or was revoked."""
        told = _KEY.fullmatch(token)
        if told is None:
            raise UnprovenError("key", "the key is malformed")
        identifier, secret = f"key_{told[1]}", told[2]
        with self._database.reading() as connection:
            row = connection.first("SELECT * FROM quell_api_key WHERE id = :id", id=identifier)
        # An id that is not there costs the same seal as one that is.
        key = _key_of(row) if row else _NOBODY
        is_sealed = hmac.compare_digest(self._seal(key, secret), row.seal if row else "0" * 64)
        if row is None or not is_sealed:
            reason = "the secret is wrong, or what the key may was changed" if row else "there is no such key"
            raise UnprovenError("key", reason, credential=identifier)
        at = self._clock()
        if key.revoked_at is not None:
            raise UnprovenError("key", f"it was revoked at {key.revoked_at.isoformat()}", credential=identifier)
        if at >= key.expires_at:
            raise UnprovenError("key", f"it expired at {key.expires_at.isoformat()}", credential=identifier)
        self._note_use(key, at=at)
        return Principal(user=key.user, tenant=key.tenant, roles=key.roles, scopes=key.scopes)

    def _note_use(self, key: ApiKey, *, at: datetime) -> None:
        if key.used_at is not None and timedelta(0) <= at - key.used_at < _NOTED_EVERY:
            return
        # When it was used is worth knowing, and no reason to keep its owner out while the disk is full.
        with suppress(JournalError), self._database.writing(durability="written") as connection:
            connection.run("UPDATE quell_api_key SET used_at = :at WHERE id = :id", at=at.isoformat(), id=key.id)

    def _seal(self, key: ApiKey, secret: str) -> str:
        covered = [
            "quell key 1",
            key.id,
            secret,
            key.user,
            key.tenant,
            list(key.roles),
            list(key.scopes),
            key.created_at.isoformat(),
            key.created_by,
            key.expires_at.isoformat(),
        ]
        return hashlib.blake2b(json.dumps(covered).encode(), key=self._pepper, digest_size=32).hexdigest()


_NOBODY = ApiKey(
    id="key_" + "0" * 26,
    name="nobody's",
    user="nobody",
    tenant="none",
    roles=("viewer",),
    scopes=(),
    created_at=datetime(2000, 1, 1, tzinfo=UTC),
    created_by="nobody",
    expires_at=datetime(2000, 1, 1, tzinfo=UTC),
)


def _key_of(row: SimpleNamespace) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        user=row.user_name,
        tenant=row.tenant,
        roles=tuple(json.loads(row.roles)),
        scopes=tuple(json.loads(row.scopes)),
        created_at=datetime.fromisoformat(row.created_at),
        created_by=row.created_by,
        expires_at=datetime.fromisoformat(row.expires_at),
        revoked_at=datetime.fromisoformat(row.revoked_at) if row.revoked_at else None,
        revoked_by=row.revoked_by,
        used_at=datetime.fromisoformat(row.used_at) if row.used_at else None,
    )


def _check_request(request: KeyRequest, *, at: datetime) -> None:
    wrong = scope_mistakes(request.scopes)
    if not 0 < len(request.name.strip()) <= _NAME_MAX:
        wrong.append("a key has a name")
    if not is_name(request.user) or not is_name(request.tenant) or not all(map(is_name, request.roles)):
        wrong.append("user, tenant and roles are visible texts without spaces")
    if not request.roles:
        wrong.append("a key without a role may nothing")
    if request.expires_at.tzinfo is None or not at < request.expires_at <= at + _LASTS_MAX:
        wrong.append(f"a key ends within {_LASTS_MAX.days} days")
    if wrong:
        raise UsageError(f"no key: {'; '.join(wrong)}", hint="say for whom it is, what it may, and until when")


def _check_giver(request: KeyRequest, *, by: Principal) -> None:
    _check_person(by, "key.new")
    if request.tenant != by.tenant:
        raise RefusedError("keys are given within one tenant only", hint="use an identity of that tenant")
    is_own = request.user == by.user and set(request.roles) <= set(by.roles)
    if not is_own and "admin" not in by.roles:
        raise RefusedError("this key would be more than yours to give", hint="ask somebody with the role admin")
    if not is_within(request.scopes, by.scopes):
        raise RefusedError("a key cannot reach beyond the scopes of the one that gives it", hint="name fewer scopes")


def _check_person(by: Principal, verb: str) -> None:
    if not is_person(by):
        raise RefusedError(f"an agent may not use {verb}", hint="keys are for people to give and to take")
    if not may_do(by, verb):
        raise RefusedError(f"this credential does not cover {verb}", hint="use one whose scopes name it")
