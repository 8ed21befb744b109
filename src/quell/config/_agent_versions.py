"""Agents as they were: kept without their secrets, and read again with those of today."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import cast

from quell.config._agent_settings import AgentSettings
from quell.config._settings import Secret
from quell.config._tables import read_tables
from quell.config._template import Toml
from quell.domain import ConfigError

_MARK = "\0secret:"
_PLACE = re.compile(r"\([0-9a-f]{12}\)")
_WHITHER = ("provider", "base_url", "url", "command")
"""Fields that say who is shown the secrets beside them: one of another place is another secret."""


def kept_agent(settings: AgentSettings) -> str:
    """Write an agent down as JSON; where a secret stands, only that it does."""
    return json.dumps(_plain(settings, ""), sort_keys=True)


def agent_kept(text: str, *, now: AgentSettings | None) -> AgentSettings:
    """Read an agent that was written down, with the secrets that its file has now.

    Raises ConfigError when a secret that it had is not there any more, or when this version of Quell cannot read it.
    """
    secrets = {} if now is None else dict(_secrets(now, ""))
    missing: list[str] = []
    tree = _filled(json.loads(text), secrets, missing)
    if missing:
        raise ConfigError(
            f"the agent of this run had secrets that its file has no more, or has for another place: {', '.join(missing)}",
            hint="put them back until the run has ended, or cancel it",
        )
    agent, _ = read_tables(AgentSettings, cast("dict[str, Toml]", tree))
    if agent is None:
        raise ConfigError(
            "the agent of this run was written down by another version of Quell", hint="cancel the run and ask again"
        )
    return agent


def _plain(value: object, path: str) -> object:
    if isinstance(value, Secret):
        return f"{_MARK}{path}" if value.reveal() else ""
    if is_dataclass(value) and not isinstance(value, type):
        path = _placed(value, path)
        return {each.name: _plain(getattr(value, each.name), f"{path}.{each.name}") for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, f"{path}.{place}") for place, item in enumerate(value)]
    return value


def _secrets(value: object, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Secret):
        return [(path, value.reveal())]
    if is_dataclass(value) and not isinstance(value, type):
        path = _placed(value, path)
        pairs = [(each.name, getattr(value, each.name)) for each in fields(value)]
    elif isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, tuple | list):
        pairs = [(str(place), item) for place, item in enumerate(value)]
    else:
        return []
    return [found for name, item in pairs for found in _secrets(item, f"{path}.{name}")]


def _placed(value: object, path: str) -> str:
    """Return a path with the place that the secrets below it are for."""
    whither = [str(found) for name in _WHITHER if (found := getattr(value, name, None))]
    return f"{path}({hashlib.sha256(' '.join(whither).encode()).hexdigest()[:12]})" if whither else path


def _filled(value: object, secrets: Mapping[str, str], missing: list[str]) -> object:
    if isinstance(value, str) and value.startswith(_MARK):
        path = value.removeprefix(_MARK)
        if not secrets.get(path):
            missing.append(_PLACE.sub("", path).removeprefix("."))
        return secrets.get(path, "")
    if isinstance(value, dict):
        return {key: _filled(item, secrets, missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, secrets, missing) for item in value]
    return value
