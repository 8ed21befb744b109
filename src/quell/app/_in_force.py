"""What is in force, on record: by which policies, tools and settings this journal is governed, and since when."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from quell.app._office import login_name
from quell.config import version_of
from quell.domain import AuditKind

if TYPE_CHECKING:
    from quell.app._authority import Authority

VERB = "policy.in_force"


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """Names of what decides, by its content; secrets are no part of them."""

    policy: str
    """Digest of all policies, as every verdict names it."""
    tools: str
    """Digest of the names and pins of all tools."""
    settings: str
    """Version of the configuration."""


def in_force(authority: Authority) -> InForce:
    """Return what decides in this process now."""
    pins = sorted((tool.name, tool.pin) for tool in authority.registry.tools)
    return InForce(
        policy=authority.guard.policy.digest,
        tools="sha256:" + hashlib.sha256(json.dumps(pins, separators=(",", ":")).encode()).hexdigest(),
        settings=version_of(authority.settings),
    )


def record_in_force(authority: Authority, *, known: InForce | None) -> InForce:
    """Record what is in force now, with what was before, unless that is what is known or what the log told last.

    Raises JournalError when it cannot be recorded.
    """
    now = in_force(authority)
    if now == known:
        return now
    audit = authority.guard.audit
    before = known or _told_last(authority)
    if now != before:
        wanted = authority.settings.governance
        body = {
            "verb": VERB,
            "after": asdict(now),
            "before": asdict(before) if before else {},
            "pack": wanted.pack,
            "policies": list(wanted.policies),
            "watched": list(wanted.watched_policies),
            "process": os.getpid(),
            "login": login_name(),
        }
        entry = audit.entry(AuditKind.POLICY, run="", principal="", body=body)
        with authority.runs.database.writing() as connection:
            audit.append(connection, entry)
    return now


def _told_last(authority: Authority) -> InForce | None:
    for record in authority.guard.audit.newest(kinds=(AuditKind.POLICY,), items_max=10):
        told = json.loads(record.body)
        if told.get("verb") == VERB:
            return InForce(**told["after"])
    return None
