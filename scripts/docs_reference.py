"""Generated reference pages: configuration, command line, events, metrics, errors. `scripts/docs.py` writes and checks them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator

import click

from quell.cli._exit import MEANINGS
from quell.cli._root import COMMANDS, root
from quell.cli._topics import ENVIRONMENT
from quell.config._keys import Key, Table, tables
from quell.domain import QuellError
from quell.telemetry import EVENTS
from quell.telemetry._metrics import METRICS

_WIDTH = 100


def configuration() -> str:
    """Describe every table and key of a quell.toml."""
    lines = [
        "# Configuration",
        "",
        "Generated from `quell.config` by `make docs`. `quell config explain KEY` says the same about one key, with its value and where that came from.",
        "",
        (
            "Sources, the strongest first: flags (`--set KEY=VALUE` and those of a command), environment (`QUELL_SECTION__KEY`), the project file"
            " (`./quell.toml` or `--config FILE`), the user's file (`~/.config/quell/quell.toml`), defaults. No file at all is a valid configuration."
        ),
        "",
        (
            "`{{ env.NAME }}` and `{{ env.NAME | default: 'x' }}` stand for the environment. Inside quotes the value is text; without quotes it may be"
            " a number or true/false. Whatever a variable holds, it stays one value. References in comments are not looked at."
        ),
        "",
        "Unknown keys are mistakes, and all mistakes are told at once: `quell config check`.",
        "",
    ]
    for table in tables():
        lines += _table(table)
    return "\n".join(lines)


def _table(table: Table) -> Iterator[str]:
    shown = table.path.replace("*", "NAME")
    yield f"## {'Top level' if not table.path else f'`[[{shown}]]`' if table.kind == 'list' else f'`[{shown}]`'}"
    yield ""
    yield f"{table.meaning}" + ("" if table.kind == "one" else " The table may be given many times.")
    yield ""
    for key in table.keys:
        yield f"### `{key.path.replace('*', 'NAME')}`"
        yield ""
        yield key.meaning
        yield ""
        yield _facts(key)
        yield ""


def _facts(key: Key) -> str:
    default = "required" if key.is_required else f"default `{_default(key.default)}`"
    facts = [key.type_name + (f" of {key.unit}" if key.unit else ""), default]
    facts += [str(key.range)] if key.range is not None else []
    facts += [f"`{key.variable}`"] if key.variable else []
    return "; ".join(facts) + "."


def _default(value: object) -> str:
    if isinstance(value, str | bool | int | float):
        return json.dumps(value)
    return "[]" if value == () else json.dumps(str(value)) if not repr(value).startswith("Secret") else '""'


def command_line() -> str:
    """Describe every command, as its own help does, and every exit code."""
    lines = [
        "# Command line",
        "",
        "Generated from `quell.cli` by `make docs`.",
        "",
        (
            'stdout is data, stderr is everything else. With `--json` stdout is one JSON document `{"kind": …, "ok": …}` (streams: one per line), and'
            ' an error is `{"ok": false, "error": {"kind", "message", "hint", "exit"}}` on stderr. Every id may be shortened to a beginning that only it has.'
        ),
        "",
        "## Exit codes",
        "",
        "| code | name | meaning |",
        "|--:|---|---|",
        *(f"| {int(code)} | {code.name.lower()} | {meaning} |" for code, meaning in MEANINGS.items()),
        "",
        "## Environment",
        "",
        "| variable | meaning |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in ENVIRONMENT.items()),
        "",
    ]
    at = click.Context(
        root, info_name="quell", help_option_names=["-h", "--help"], max_content_width=_WIDTH, terminal_width=_WIDTH
    )
    lines += ["## `quell`", "", "```text", root.get_help(at), "```", ""]
    for name, entry in COMMANDS.items():
        if not entry.module:
            lines += [f"## `quell {name}`", "", entry.text, ""]
            continue
        command = root.get_command(at, name)
        assert command is not None
        lines += _command(command, name, at, level=2)
    return "\n".join(lines)


def _command(command: click.Command, name: str, parent: click.Context, *, level: int) -> Iterator[str]:
    at = click.Context(command, info_name=name, parent=parent, max_content_width=_WIDTH, terminal_width=_WIDTH)
    yield f"{'#' * level} `{at.command_path}`"
    yield ""
    yield "```text"
    yield command.get_help(at)
    yield "```"
    yield ""
    if isinstance(command, click.Group):
        for verb in command.list_commands(at):
            below = command.get_command(at, verb)
            assert below is not None
            yield from _command(below, verb, at, level=level + 1)


def events() -> str:
    """List the event catalogue."""
    lines = [
        "# Events",
        "",
        (
            "Generated from `quell.telemetry.EVENTS` by `make docs`. The same names stand in the log (`STATE_DIR/logs/quell.log`, stderr of `quell serve`),"
            " in the event log of runs and incidents (`quell watch`, `/api/v1/events`) and as OpenTelemetry event names."
        ),
        "",
    ]
    for prefix in dict.fromkeys(name.partition(".")[0] for name in EVENTS):
        lines += [f"## {prefix}", "", "| event | level | meaning | fields |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {spec.level} | {spec.meaning} | {', '.join(f'`{each}`' for each in spec.fields)} |"
            for name, spec in EVENTS.items()
            if name.partition(".")[0] == prefix
        ]
        lines.append("")
    return "\n".join(lines)


def metrics() -> str:
    """List the metrics catalogue."""
    lines = [
        "# Metrics",
        "",
        (
            "Generated from `quell.telemetry` by `make docs`. They go into the own store and, over OTLP, to a collector ([how](../how-to/watch-the-agent.md))."
            " A `counter` only grows; a `level` goes up and down with what is under way; a `gauge` is what was seen last; a `histogram` has the buckets that the semantic conventions advise."
        ),
        "",
        "| metric | kind | unit | meaning | attributes |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {spec.kind} | `{spec.unit}` | {spec.meaning} | {', '.join(f'`{each}`' for each in spec.attributes)} |"
        for name, spec in METRICS.items()
    ]
    return "\n".join([*lines, ""])


def errors() -> str:
    """List the error tree with its exit codes."""
    lines = [
        "# Errors",
        "",
        "Generated from `quell.domain` by `make docs`. Every error that is raised on purpose is one of these; it says what happened and, in its hint, what to do.",
        "",
    ]
    for kind in _tree(QuellError):
        doc = inspect.getdoc(kind) or ""
        lines += [f"## {kind.__name__}", "", doc.partition("\n")[0], "", f"Exit code {kind.exit_code}."]
        parent = kind.__mro__[1]
        lines += [f"A kind of {parent.__name__}.", ""] if parent is not Exception else [""]
    return "\n".join(lines)


def _tree(kind: type[QuellError]) -> Iterator[type[QuellError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith("quell.domain"):
            yield from _tree(below)
