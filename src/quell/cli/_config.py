"""`quell config`: check, show, explain, schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import put_document, put_table, put_text
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.config import Loaded
    from quell.domain import Problem


@click.group("config", cls=QuellGroup)
def config_command() -> None:
    """Check, show and explain the configuration."""


@config_command.command("check", cls=QuellCommand)
@click.pass_obj
def check(session: Session) -> int:
    """Check settings and agent files, and print all findings at once. Exit 1 if there are mistakes; warnings are none."""
    from quell.config import version_of
    from quell.domain import ConfigError

    try:
        loaded = session.loaded()
    except ConfigError as error:
        problems = error.problems
        if session.is_json:
            put_document("config_check", is_ok=False, problems=problems)
            return ExitCode.BAD
        for problem in problems:
            put_text(_finding(problem))
        put_text(str(error) + "".join(f"\n{line}" for line in error.hint.split("; ") if line.startswith("export ")))
        return ExitCode.BAD
    version, files = version_of(loaded.settings), list(dict.fromkeys(map(str, (*loaded.files, *loaded.agent_files))))
    agents = [agent.id for agent in loaded.agents]
    warnings = [*loaded.warnings, *_renamed(loaded)]
    if session.is_json:
        put_document("config_check", problems=[], version=version, files=files, agents=agents, warnings=warnings)
        return ExitCode.DONE
    for problem in warnings:
        put_text(f"warning: {_finding(problem)}")
    told_agents = f"; agents: {', '.join(agents)}" if agents else ""
    put_text(
        f"no mistakes; version {version}; read: {', '.join(files) or 'no file, every key has its default'}{told_agents}"
    )
    return ExitCode.DONE


def _renamed(loaded: Loaded) -> Iterator[Problem]:
    """Yield the MCP servers that are called otherwise than their file says, as another has that name."""
    from quell.app import merged
    from quell.domain import Problem

    settings, names = merged(loaded.settings, loaded.agents)
    for agent, servers in names.items():
        for name, taken in servers.items():
            if name != taken and (given := settings.mcp.servers[taken].stands_for):
                yield Problem(
                    path=f"mcp.servers.{name}",
                    reason=f"another server has this name, so it is called {taken}",
                    hint=f"forbids and stops of {given} hold for it; a permit names {taken}",
                    source=f"agent {agent}",
                )


def _finding(problem: Problem) -> str:
    """Write a finding as one line, and its hint below it."""
    where = f"{problem.source}: {problem.path + ': ' if problem.path else ''}"
    return f"{where}{problem.reason}" + (f"\n  hint: {problem.hint}" if problem.hint else "")


@config_command.command("show", cls=QuellCommand)
@click.option("--changed", is_flag=True, help="Only what is not a default.")
@click.pass_obj
def show(session: Session, *, changed: bool) -> int:
    """Print every setting with its value and where it came from. Secrets show only whether they are set."""
    from quell.config import explain_all, version_of

    loaded = session.loaded()
    entries = [each for each in explain_all(loaded) if not changed or each.origin != "default"]
    if session.is_json:
        settings = [{"key": each.key, "value": each.value, "origin": each.origin} for each in entries]
        put_document("config", settings=settings, version=version_of(loaded.settings))
        return ExitCode.DONE
    put_table(("KEY", "VALUE", "FROM"), [(each.key, _toml(each.value), each.origin) for each in entries])
    return ExitCode.DONE


@config_command.command("explain", cls=QuellCommand)
@click.argument("key")
@click.pass_obj
def explain_key(session: Session, key: str) -> int:
    """Tell what KEY means, what it is now and where that came from."""
    from quell.config import explain

    told = explain(key, loaded=session.loaded())
    if session.is_json:
        put_document("config_key", **{name: getattr(told, name) for name in told.__slots__})
        return ExitCode.DONE
    rows = [
        ("value", _toml(told.value) if told.value is not None else "(one per table of the list)"),
        ("from", told.origin),
        ("default", _toml(told.default)),
        ("type", told.type),
        ("unit", told.unit),
        ("range", told.range),
        ("env", told.variable),
    ]
    put_text(f"{told.key}\n  {told.meaning}")
    put_text("\n".join(f"  {name + ':':9}{text}" for name, text in rows if text))
    return ExitCode.DONE


@config_command.command("schema", cls=QuellCommand)
@click.pass_obj
def schema(session: Session) -> int:
    """Print the JSON Schema of a quell.toml; with --json wrapped in a document like every other answer."""
    from quell.config import schema as schema_of_settings

    if session.is_json:
        put_document("config_schema", schema=schema_of_settings())
    else:
        click.echo(json.dumps(schema_of_settings(), indent=2, ensure_ascii=False))
    return ExitCode.DONE


def _toml(value: object) -> str:
    """Write a value as a quell.toml would; what stands in brackets of our own is no value."""
    if isinstance(value, str) and value in {"(set)", "(empty)", "(required)"}:
        return value
    return json.dumps(value, ensure_ascii=False)
