"""Agent files: AURA's TOML, loaded unchanged, a file or a directory of them, every mistake at once.

What AURA passes over in silence is passed over too, and told as a warning with the key that was probably meant.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType

from quell.config._agent_rules import lint, rules
from quell.config._agent_settings import AgentSettings, LlmSettings
from quell.config._keys import tables
from quell.config._tables import read_tables
from quell.config._template import Missing, Toml
from quell.config._toml import TomlFile, read_toml
from quell.domain import ConfigError, Problem

_STRICT_TABLES = ("agent", "orchestration.timeouts", "quell")
"""Where AURA refuses what it does not know, and where we do."""
_WHOLE_NUMBERS = ("max_tokens", "context_window", "turn_depth", "nudge_turns_remaining")
_SWITCHES = ("hidden", "nudge_last_turn")
_FLAT = (
    "memory_dir",
    "memory_path",
    "result_artifact_threshold",
    "result_summary_length",
    "session_history_turns",
    "persistence_drain_timeout_ms",
    "tool_output_artifact_threshold",
    "tool_output_duration_threshold_ms",
    "show_tool_reasoning_in_continuation",
    "max_session_runs",
)
_EVERY_LLM = {"provider", "max_tokens", "context_window", "temperature", "additional_params"}
_OWN_LLM = {
    "constrained_calls",
    "first_token_timeout_s",
    "inactivity_timeout_s",
    "prompt_cache",
    "proxy",
    "requests_per_minute",
    "tokens_per_minute",
}
_LLM_KEYS: Mapping[str, set[str]] = {
    "openai": {"api_key", "model", "base_url", "reasoning_effort"},
    "anthropic": {"api_key", "model", "base_url"},
    "bedrock": {"model", "region", "profile"},
    "gemini": {"api_key", "model", "base_url"},
    "ollama": {"model", "base_url", "fallback_tool_parsing"},
    "openrouter": {"api_key", "model", "base_url"},
    "builtin": {"model"},
}
_LEGACY: Mapping[str, str] = {
    "orchestration.quality_threshold": "AURA has no quality score any more; take it out",
}
_REASONS: Mapping[str, str] = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "mapping_type": "must be a table",
    "dataclass_type": "must be a table",
    "missing": "required and not there",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFiles:
    """The agents that were read, in the order of their files, and what is odd about them."""

    agents: tuple[AgentSettings, ...]
    files: tuple[Path, ...]
    warnings: tuple[Problem, ...]


def load_agents(path: Path, *, env: Mapping[str, str]) -> AgentFiles:
    """Read one agent, or every `*.toml` of a directory in the order of names.

    Raises ConfigError with every mistake of all files, references to variables that are not set among them.
    """
    paths = _paths(path)
    agents: list[AgentSettings] = []
    problems: list[Problem] = []
    warnings: list[Problem] = []
    ids: dict[str, tuple[str, str]] = {}
    for each in paths:
        file = read_toml(each, env=env)
        agent, found, odd = read_agent(file)
        problems += [*file.problems, *found]
        warnings += odd
        if agent is not None:
            problems += _taken(agent, file, ids)
            agents.append(agent)
    if problems:
        count = "one mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise ConfigError(f"the agents have {count}", hint=_export_hint(problems), problems=tuple(problems))
    return AgentFiles(agents=tuple(agents), files=tuple(paths), warnings=tuple(warnings))


def read_agent(file: TomlFile) -> tuple[AgentSettings | None, list[Problem], list[Problem]]:
    """Return the agent of one file, its mistakes, and what is passed over in it."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    tree = dict(file.tree)
    if "llm" in tree:
        hint = "move it to [agent.llm]; each worker may have its own [orchestration.worker.NAME.llm]"
        problems.append(Problem(path="llm", reason="moved", hint=hint, source=file.source("llm")))
        del tree["llm"]
    tree = {key: value for key, value in tree.items() if key not in _quells_tables() or key in own_tables()}
    _gather_artifacts(tree)
    lenient = _lenient(tree, "")
    assert isinstance(lenient, dict), "a table stays a table"
    known = _Walk(file, problems, warnings).known(lenient, AgentSettings, "")
    assert isinstance(known, dict), "a table stays a table"
    holes: set[str] = set()
    agent, found = _checked(known, file, holes)
    problems += found
    if agent is not None:
        problems += [each for each in rules(agent, file) if each.path not in holes]
        warnings += lint(agent, file)
    return agent, problems, warnings


def _paths(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.glob("*.toml") if each.is_file())
    if not found:
        raise ConfigError(f"there is no agent in {path}", hint="an agent is a file NAME.toml in it; see `quell init`")
    return found


def _taken(agent: AgentSettings, file: TomlFile, ids: dict[str, tuple[str, str]]) -> Iterator[Problem]:
    """Refuse an id that another file has: clients choose by it."""
    by, key = ("alias", "agent.alias") if agent.agent.alias else ("name", "agent.name")
    other = ids.setdefault(agent.id, (by, file.name))
    if other[1] != file.name:
        hint = "give it an alias of its own" if by == "name" else "aliases are the ids of agents: make them distinct"
        reason = f"the {by} {agent.id!r} is the {other[0]} of {other[1]} already"
        yield Problem(path=key, reason=reason, hint=hint, source=file.source(key))


def _export_hint(problems: Sequence[Problem]) -> str:
    """Return a line to copy for all variables that are not set."""
    marker, end = "the environment variable ", " is not set"
    names = [
        problem.reason.removeprefix(marker).removesuffix(end)
        for problem in problems
        if problem.reason.startswith(marker)
    ]
    return "; ".join(f"export {name}=..." for name in dict.fromkeys(names))


def _gather_artifacts(tree: dict[str, Toml]) -> None:
    """Move the keys that older files have directly under [orchestration] to where they belong; they win."""
    table = tree.get("orchestration")
    if not isinstance(table, dict):
        return
    table = dict(table)
    flat = {key: table.pop(key) for key in _FLAT if key in table}
    below = table.get("artifacts")
    artifacts = {**(below if isinstance(below, dict) else {}), **flat}
    if "memory_path" in artifacts:
        artifacts.setdefault("memory_dir", artifacts["memory_path"])
        del artifacts["memory_path"]
    if artifacts and (below is None or isinstance(below, dict)):
        table["artifacts"] = artifacts
    tree["orchestration"] = table


def _lenient(value: Toml, path: str) -> Toml:
    """Take whole floats for numbers and quoted words for switches, where AURA does: other tools write them so."""
    if isinstance(value, dict):
        return {key: _lenient(item, f"{path}.{key}" if path else key) for key, item in value.items()}
    name = path.rpartition(".")[2]
    is_workers_own = path.startswith("orchestration.worker.") and name == "turn_depth"
    if name in _WHOLE_NUMBERS and not is_workers_own and isinstance(value, float) and value.is_integer():
        return int(value)
    if name in _SWITCHES and path.startswith("agent.") and value in {"true", "false"}:
        return value == "true"
    return value


@dataclass(frozen=True, slots=True)
class _Walk:
    """Goes through a file beside the classes of its tables, and takes out what nobody knows."""

    file: TomlFile
    problems: list[Problem]
    warnings: list[Problem]

    def known(self, value: Toml, owner: type, path: str) -> Toml:
        """Return a table without what nobody knows; that is refused or told, as AURA refuses it or passes over it."""
        if not isinstance(value, dict):
            return value
        kept: dict[str, Toml] = {}
        allowed = _allowed(owner, value)
        for key, item in value.items():
            at = f"{path}.{key}" if path else key
            if key not in allowed:
                self._odd(at, key, allowed=allowed, owner=owner)
                continue
            below, kind = allowed[key]
            if below is None:
                kept[key] = item
            elif kind == "one":
                kept[key] = self.known(item, below, at)
            elif kind == "named" and isinstance(item, dict):
                kept[key] = {name: self.known(each, below, f"{at}.{name}") for name, each in item.items()}
            elif kind == "list" and isinstance(item, list):
                kept[key] = [self.known(each, below, f"{at}.{index}") for index, each in enumerate(item)]
            else:
                kept[key] = item
        return kept

    def _odd(self, at: str, key: str, *, allowed: Mapping[str, object], owner: type) -> None:
        near = difflib.get_close_matches(key, list(allowed), n=1, cutoff=0.6)
        hint = _LEGACY.get(at) or (f"did you mean `{near[0]}`?" if near else "")
        table, source = at.rpartition(".")[0], self.file.source(at)
        if owner is LlmSettings and key in _fields_of(owner):
            self.problems.append(Problem(path=at, reason="not for this provider", hint=hint, source=source))
        elif owner is LlmSettings or table in _STRICT_TABLES or table.startswith("quell."):
            self.problems.append(Problem(path=at, reason="unknown key", hint=hint, source=source))
        else:
            self.warnings.append(Problem(path=at, reason="unknown key, passed over", hint=hint, source=source))


def _allowed(owner: type, value: Mapping[str, Toml]) -> Mapping[str, tuple[type | None, str]]:
    known = _fields_of(owner)
    if owner is not LlmSettings:
        return known
    provider = value.get("provider")
    names = _LLM_KEYS.get(provider) if isinstance(provider, str) else None
    return known if names is None else {key: known[key] for key in known if key in names | _EVERY_LLM | _OWN_LLM}


@cache
def _fields_of(owner: type) -> Mapping[str, tuple[type | None, str]]:
    """Return the keys of a table: for each the class of the table below, if there is one, and how often it stands."""
    hints = typing.get_type_hints(owner)
    return {each.name: _below(hints[each.name]) for each in fields(owner)}


def _below(hint: object) -> tuple[type | None, str]:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType or origin is typing.Union:
        return _below(next(each for each in inside if each is not NoneType))
    if origin is tuple and is_dataclass(inside[0]):
        return typing.cast("type", inside[0]), "list"
    if origin is not None and len(inside) == 2 and is_dataclass(inside[1]):
        return typing.cast("type", inside[1]), "named"
    return (typing.cast("type", hint), "one") if is_dataclass(hint) else (None, "one")


@cache
def own_tables() -> frozenset[str]:
    """Return what an agent's file has at its top."""
    return frozenset(_fields_of(AgentSettings))


@cache
def _quells_tables() -> frozenset[str]:
    """Return what a quell.toml has at its top: an agent may stand in the same file."""
    return frozenset(path for table in tables() for path in [table.path.partition(".")[0]] if path) | {
        key.path for table in tables() if not table.path for key in table.keys
    }


def _checked(tree: Mapping[str, Toml], file: TomlFile, holes: set[str]) -> tuple[AgentSettings | None, list[Problem]]:
    """Return the agent or its mistakes; `holes` gets the keys whose variables are not set."""
    agent, mistakes = read_tables(AgentSettings, typing.cast("dict[str, Toml]", _filled(dict(tree), "", holes)))
    return agent, [
        _problem(each.kind, each.message, each.path, file)
        for each in mistakes
        if each.path not in holes and (each.kind != "missing" or file.is_whole)
    ]


def _problem(kind: str, message: str, path: str, file: TomlFile) -> Problem:
    reason = _REASONS.get(kind, message[:1].lower() + message[1:])
    name = path.rpartition(".")[2]
    hint = f"add `{name} = …`" if kind == "missing" else ""
    if kind == "literal_error":
        reason = "must be " + message.removeprefix("Input should be ").replace("'", '"')
    return Problem(path=path, reason=reason, hint=hint, source=file.source(path))


def _filled(value: Toml, path: str, holes: set[str]) -> Toml:
    """Put nothing where a variable is not set: that was reported, and its place is remembered."""
    if isinstance(value, dict):
        pairs = {key: _filled(item, f"{path}.{key}" if path else key, holes) for key, item in value.items()}
        return {key: item for key, item in pairs.items() if not isinstance(item, Missing)}
    if isinstance(value, list):
        items = [_filled(item, f"{path}.{index}", holes) for index, item in enumerate(value)]
        return [item for item in items if not isinstance(item, Missing)]
    if isinstance(value, Missing):
        holes.add(path)
    return value
