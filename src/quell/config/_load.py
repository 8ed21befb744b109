"""Lay the sources over each other: flags > environment > project file > user file > defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from quell.config._agent_settings import AgentSettings
from quell.config._agents import AgentFiles, load_agents, own_tables
from quell.config._keys import Key, keys, pattern_of, tables
from quell.config._rules import leaves
from quell.config._settings import Settings
from quell.config._template import Toml
from quell.config._toml import TomlFile, read_toml
from quell.domain import ConfigError, Problem

_PREFIX = "QUELL_"
_FILE = Path("quell.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Settings, and where each of them came from."""

    settings: Settings
    origins: Mapping[str, str]
    """`default`, `file:quell.toml:4`, `env QUELL_SERVER__PORT` or `flag`, by key."""
    files: tuple[Path, ...]
    """Files that were read, the weakest first."""
    agents: tuple[AgentSettings, ...] = ()
    """The agents of the agent files."""
    agent_files: tuple[Path, ...] = ()
    """Files that these were read from, in their order."""
    warnings: tuple[Problem, ...] = ()
    """What is odd about the agent files and no mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    tree: Mapping[str, Toml]
    origins: Mapping[str, str]
    """By key or table; what is not in here comes from `fallback`."""
    fallback: str
    file: TomlFile | None = None

    def origin(self, path: str) -> str:
        """Name the place of one value."""
        if self.file is not None:
            return f"file:{self.file.source(path)}"
        while path and path not in self.origins:
            path = path.rpartition(".")[0]
        return self.origins.get(path, self.fallback)


def load(path: Path | None, *, env: Mapping[str, str], overrides: Mapping[str, str] | None = None) -> Loaded:
    """Read every source and return frozen settings. Raises ConfigError with every mistake of all of them.

    `path` is the project file and must exist; without it `./quell.toml` is read if it is there. The user's file
    (`~/.config/quell/quell.toml`) lies below it. `env` gives variables such as `QUELL_SERVER__PORT`; `overrides` are
    flags, by key. No file at all is a valid configuration.
    """
    # pydantic costs 50 ms of CPU: the settings classes are free of it, and only reading a configuration pays.
    from quell.config._check import check_tree  # noqa: PLC0415

    if path is not None and path.is_dir():
        # AURA's way: the configuration is a directory of agents.
        path, overrides = None, {"agents": str(path), **(overrides or {})}
    written = [read_toml(file, env=env) for file in _files(path, env)]
    files = [_without_agent(file) for file in written]
    problems = [problem for file in files for problem in file.problems]
    layers = [_Layer(tree=file.tree, origins={}, fallback=f"file:{file.name}", file=file) for file in files]
    for layer, found in (_layer_of_env(env), _layer_of_flags(overrides or {})):
        layers.append(layer)
        problems.extend(found)
    merged: dict[str, Toml] = {}
    winners: dict[str, str] = {}
    for layer in layers:
        _lay_over(merged, layer.tree, layer, winners, prefix="")

    def where(key: str) -> str:
        return _origin_of(key, winners).removeprefix("file:")

    settings, found = check_tree(merged, where=where, is_whole=all(file.is_whole for file in files))
    problems.extend(found)
    problems.extend(_untold(written, agents="" if settings is None else settings.agents))
    if problems or settings is None:
        raise _refusal(problems, files)
    if settings.agents:
        settings = replace(settings, agents=str(_at_home(Path(settings.agents), env)))
    agents = _agents_of(settings, env=env)
    _check_default(settings.default_agent, agents, source=where("default_agent"))
    paths = [*keys(), *(leaf for leaf, _ in leaves(merged))]
    origins = {key: _origin_of(key, winners) for key in dict.fromkeys(paths) if not _is_pattern(key)}
    return Loaded(
        settings=replace(settings, state_dir=_at_home(settings.state_dir, env)),
        origins=MappingProxyType(origins),
        files=tuple(Path(file.name) for file in files),
        agents=agents.agents,
        agent_files=agents.files,
        warnings=agents.warnings,
    )


def _agents_of(settings: Settings, *, env: Mapping[str, str]) -> AgentFiles:
    """Read the agents that the settings name. Raises ConfigError with every mistake of theirs."""
    if not settings.agents:
        return AgentFiles(agents=(), files=(), warnings=())
    return load_agents(Path(settings.agents), env=env)


def _untold(files: list[TomlFile], *, agents: str) -> Iterator[Problem]:
    """Yield what is wrong with files that have an agent, and that nobody reads as the file of their agent."""
    shared = own_tables()
    for file in files:
        if "agent" in file.tree and file.name != agents:
            yield from (each for each in file.problems if each.path.partition(".")[0] not in shared)


def _check_default(wanted: str, files: AgentFiles, *, source: str) -> None:
    """Refuse a default agent that is none of the agents. Raises ConfigError."""
    ids = [agent.id for agent in files.agents]
    if wanted and ids and wanted not in ids:
        hint = f"one of: {', '.join(ids)}"
        problem = Problem(path="default_agent", reason=f"there is no agent {wanted!r}", hint=hint, source=source)
        raise ConfigError("the configuration has one mistake", hint=hint, problems=(problem,))


def _without_agent(file: TomlFile) -> TomlFile:
    """Return what a file says to Quell; one that has an agent is its agents' file as well, unless it names another."""
    if "agent" not in file.tree:
        return file
    shared = own_tables()
    tree = {key: value for key, value in file.tree.items() if key not in shared}
    return replace(file, tree={"agents": file.name, **tree}, problems=())


def _files(path: Path | None, env: Mapping[str, str]) -> Iterator[Path]:
    home = env.get("HOME", "")
    base = env.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    if base and _is_there(user := Path(base) / "quell" / "quell.toml"):
        yield user
    if path is not None:
        yield path
    elif _is_there(_FILE):
        yield _FILE


def _is_there(path: Path) -> bool:
    """Tell whether there is a file to read; one that exists and cannot be read is there, and reported as such."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _lay_over(
    under: dict[str, Toml], over: Mapping[str, Toml], layer: _Layer, winners: dict[str, str], *, prefix: str
) -> None:
    for key, value in over.items():
        path = f"{prefix}{key}"
        below = under.get(key)
        if isinstance(value, dict):
            if not isinstance(below, dict):
                below = under[key] = {}
            winners.setdefault(path, layer.origin(path))
            _lay_over(below, value, layer, winners, prefix=f"{path}.")
        else:
            under[key] = value
            for stale in [old for old in winners if old.startswith(f"{path}.")]:
                del winners[stale]
            winners[path] = layer.origin(path)
            _name_items(value, layer, winners, path)


def _name_items(value: Toml, layer: _Layer, winners: dict[str, str], path: str) -> None:
    if not isinstance(value, list):
        return
    for index, item in enumerate(value):
        winners[f"{path}.{index}"] = layer.origin(f"{path}.{index}")
        if isinstance(item, dict):
            for name in item:
                winners[f"{path}.{index}.{name}"] = layer.origin(f"{path}.{index}.{name}")


def _origin_of(path: str, winners: Mapping[str, str]) -> str:
    if path in winners:
        return winners[path]
    parent = path.rpartition(".")[0]
    # Below a list or an inline value the place of the whole is the place of the part; a plain table names no origin.
    if parent and parent in winners and path not in keys():
        return winners[parent]
    return _origin_of(parent, winners) if parent and path not in keys() else "default"


def _is_pattern(path: str) -> bool:
    """Tell whether a key is one of a table that may be given many times: it has no value of its own."""
    return path in keys() and keys()[path].is_repeated


def _at_home(path: Path, env: Mapping[str, str]) -> Path:
    text = str(path)
    home = env.get("HOME", "")
    return Path(home + text[1:]) if home and (text == "~" or text.startswith("~/")) else path


# environment and flags: every value is text


_AURAS: Mapping[str, str] = {
    "AURA_CUSTOM_EVENTS": "server.aura.custom_events",
    "AURA_EMIT_REASONING": "server.aura.emit_reasoning",
    "AURA_EMIT_SCRATCHPAD_TOOL_EVENTS": "server.aura.emit_scratchpad_tool_events",
    "TOOL_RESULT_MODE": "server.aura.tool_result_mode",
    "TOOL_RESULT_MAX_LENGTH": "server.aura.tool_result_max_length",
    "FIRST_CHUNK_TIMEOUT_SECS": "server.aura.first_chunk_timeout_s",
    "STREAMING_TIMEOUT_SECS": "server.aura.streaming_timeout_s",
    "STREAM_INACTIVITY_TIMEOUT_SECS": "server.aura.stream_inactivity_timeout_s",
    "SHUTDOWN_TIMEOUT_SECS": "server.aura.shutdown_timeout_s",
    "AURA_ENABLE_A2A": "server.a2a",
    "AURA_SERVER_URL": "server.a2a_url",
    "AURA_LOG_FILE": "telemetry.log_file",
}
"""Variables that AURA's server and client read, and the keys that they set here; our own variables of these keys win."""
_AURAS_PLACE = "CONFIG_PATH"
_WITH_PLACE: Mapping[str, str] = {
    "HOST": "server.host",
    "PORT": "server.port",
    "DEFAULT_AGENT": "default_agent",
}
"""Those whose names others use too, such as shells: they count where AURA's own place of the configuration is named."""
_YES, _NO = frozenset({"1", "true", "t", "yes", "y", "on"}), frozenset({"0", "false", "f", "no", "n", "off"})


def _auras(env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what AURA's variables say, with its words for true and false as ours."""
    named: dict[str, tuple[str, str]] = {}
    read = {**_AURAS, **(_WITH_PLACE if env.get(_AURAS_PLACE) else {})}
    for name, path in read.items():
        text = env.get(name, "").strip()
        if not text:
            continue
        if keys()[path].type_name == "true or false":
            text = "true" if text.lower() in _YES else "false" if text.lower() in _NO else text
        named[path] = (f"env {name}", text)
    return named


def _layer_of_env(env: Mapping[str, str]) -> tuple[_Layer, list[Problem]]:
    named = _auras(env) | {
        name.removeprefix(_PREFIX).lower().replace("__", "."): (f"env {name}", text)
        for name, text in sorted(env.items())
        if name.startswith(_PREFIX)
    }
    # Names without a section that are no key belong to somebody else, such as QUELL_CONFIG to the command line.
    named = {path: given for path, given in named.items() if "." in path or path in keys() or path in _lists()}
    return _layer_of_texts(named, fallback="env")


def _layer_of_flags(overrides: Mapping[str, str]) -> tuple[_Layer, list[Problem]]:
    return _layer_of_texts({path: ("flag", text) for path, text in overrides.items()}, fallback="flag")


def _layer_of_texts(named: Mapping[str, tuple[str, str]], *, fallback: str) -> tuple[_Layer, list[Problem]]:
    from quell.config._check import did_you_mean  # noqa: PLC0415 - see load

    tree: dict[str, Toml] = {}
    problems: list[Problem] = []
    for path, (source, text) in named.items():
        key = keys().get(pattern_of(path))
        if key is None and path not in _lists():
            problems.append(Problem(path=path, reason="unknown key", hint=did_you_mean(path), source=source))
            continue
        if key is not None and key.is_repeated:
            table = path.partition(".")[0]
            hint = (
                f'set the whole list: {_PREFIX}{table.upper()}=[{{name = "…", url = "…"}}]'
                if table in _lists()
                else f"write it in quell.toml, under [{path.rpartition('.')[0]}]"
            )
            problems.append(Problem(path=path, reason="of a table that is given many times", hint=hint, source=source))
            continue
        _put(tree, path, _value_of_text(text, key=key))
    origins = {path: source for path, (source, _) in named.items()}
    return _Layer(tree=tree, origins=origins, fallback=fallback), problems


def _value_of_text(text: str, *, key: Key | None) -> Toml:
    """Read a text as the type of its key; what does not fit stays text and is refused by the check."""
    if key is not None and (key.choices or key.type_name in {"text", "path", "secret"}):
        return text
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        read = {}
    if set(read) == {"value"}:
        return read["value"]
    if key is not None and key.type_name == "list of text":
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _put(tree: dict[str, Toml], path: str, value: Toml) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        assert isinstance(below, dict), "keys are at most one table deep"
        tree = below
    tree[name] = value


def _lists() -> set[str]:
    return {table.path for table in tables() if table.kind == "list"}


def _refusal(problems: list[Problem], files: list[TomlFile]) -> ConfigError:
    names = [file.name for file in files]

    def order(problem: Problem) -> tuple[int, int, str]:
        """Files as they are read, line by line; then the environment and the flags."""
        name, *numbers = problem.source.split(":") if problem.source not in names else [problem.source]
        rank = names.index(name) if name in names else len(names)
        return rank, int(numbers[0]) if numbers and numbers[0].isdigit() else 0, problem.source

    unique = tuple(sorted(dict.fromkeys(problems), key=order))
    count = "one mistake" if len(unique) == 1 else f"{len(unique)} mistakes"
    return ConfigError(
        f"the configuration has {count}", hint="`quell config explain KEY` tells what a key means", problems=unique
    )
