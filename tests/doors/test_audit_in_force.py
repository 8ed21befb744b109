"""Which policies, tools and settings were in force from when is told by the audit log alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quell.app import App, open_app
from quell.config import GovernanceSettings, Settings
from quell.domain import AuditKind
from quell.governance import PolicySet
from tests.conftest import FakeClock
from tests.doors._authority_house import settings_of

pytestmark = pytest.mark.timeout(30)


def _in_force(settings: Settings, *, work: Callable[[App], Awaitable[None]] | None = None) -> list[dict[str, object]]:
    """Open who decides, let `work` go on, close it; return what the log says was in force, oldest first."""

    async def tell() -> list[dict[str, object]]:
        entropy = random.Random(7).randbytes
        async with open_app(settings, role="command", clock=FakeClock(), entropy=entropy, env={}) as app:
            authority = await app.open_authority()
            if work is not None:
                await work(app)
            return [json.loads(record.body) for record in authority.guard.audit.records(kinds=[AuditKind.POLICY])]

    return asyncio.run(tell())


def test_each_change_of_what_is_in_force_is_on_record_once_with_what_was_before(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "state")
    (first,) = _in_force(settings)
    assert (first["verb"], first["before"], first["pack"]) == ("policy.in_force", {}, "copilot")
    assert set(_of(first, "after")) == {"policy", "tools", "settings"}
    assert len(_in_force(settings)) == 1, "nothing changed"

    own = tmp_path / "own.cedar"
    own.write_text('@id("mine") forbid (principal, action, resource);', encoding="utf-8")
    changed = replace(settings, governance=GovernanceSettings(policies=(str(own),)))
    _, second = _in_force(changed)
    assert second["before"] == first["after"]
    assert _changed(second) == {"policy", "settings"}
    assert second["policies"] == [str(own)]

    own.write_text('@id("other") forbid (principal, action, resource);', encoding="utf-8")
    third = _in_force(changed)[-1]
    assert third["before"] == second["after"]
    assert _changed(third) == {"policy"}, "the same name, another text"


def test_what_comes_into_force_while_a_process_runs_is_on_record_and_names_the_verdicts_digest(tmp_path: Path) -> None:
    digests: list[str] = []

    async def change(app: App) -> None:
        authority = await app.open_authority()
        authority.guard.policy = PolicySet.load([PolicySet.pack("dark-factory")], tools=authority.registry.tools)
        digests.append(authority.guard.policy.digest)
        await app.warden.tend()
        await app.warden.tend()

    first, second = _in_force(settings_of(tmp_path / "state"), work=change)
    assert second["before"] == first["after"]
    assert [_of(second, "after")["policy"]] == digests


def _of(body: dict[str, object], side: str) -> dict[str, str]:
    told = body[side]
    assert isinstance(told, dict)
    return told


def _changed(body: dict[str, object]) -> set[str]:
    before, after = _of(body, "before"), _of(body, "after")
    return {name for name in after if before[name] != after[name]}
