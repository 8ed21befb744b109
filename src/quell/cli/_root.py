"""The command group: commands are named here and loaded when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import click

from quell.cli._session import Session

_PLUGINS = "quell.commands"


class ReaderGoneError(Exception):
    """Who read our stdout has closed it."""


class Entry(NamedTuple):
    """One command of the table: where it lives and what it does. A NamedTuple, because dataclasses cost 2 ms to load."""

    module: str
    """Empty for a command that another package brings, by its entry point."""
    text: str
    section: Literal["Ask", "Look", "Decide", "Operate", "Try"]


COMMANDS: Mapping[str, Entry] = {
    "ask": Entry(module="quell.cli._ask", section="Ask", text="Ask an agent one question; stdout is the answer."),
    "chat": Entry(module="quell.cli._chat", section="Ask", text="Talk to an agent; /commands, approvals, resume."),
    "investigate": Entry(
        module="quell.cli._investigate", section="Ask", text="Find out why something is wrong; print the case file."
    ),
    "brief": Entry(
        module="quell.cli._brief", section="Ask", text="Print what changed, ranked and cited, within a token budget."
    ),
    "watch": Entry(module="quell.cli._watch", section="Look", text="Print events as they happen, one per line."),
    "incident": Entry(module="quell.cli._incident", section="Look", text="List, show and close incidents."),
    "run": Entry(module="quell.cli._run", section="Look", text="List, show, trace, resume and cancel durable runs."),
    "approval": Entry(
        module="quell.cli._approval",
        section="Decide",
        text="List, show, approve, reject and edit what waits for people.",
    ),
    "switch": Entry(
        module="quell.cli._switch", section="Decide", text="Stop what acts: kill, freeze, lift, and what is in force."
    ),
    "break-glass": Entry(
        module="quell.cli._break_glass",
        section="Decide",
        text="Take authority in an emergency; review what others took.",
    ),
    "effect": Entry(
        module="quell.cli._effect", section="Decide", text="List effects; settle those whose end nobody saw."
    ),
    "autonomy": Entry(
        module="quell.cli._autonomy", section="Decide", text="Show, promote and demote what acts by itself."
    ),
    "policy": Entry(
        module="quell.cli._policy", section="Decide", text="Check, show, test, simulate and explain policies."
    ),
    "tool": Entry(
        module="quell.cli._tool", section="Decide", text="List, check and call tools; pin what servers offer."
    ),
    "memory": Entry(
        module="quell.cli._memory", section="Decide", text="Take in documents, list, search and forget them."
    ),
    "skill": Entry(
        module="quell.cli._skill", section="Decide", text="List the skills of agents; pin those of repositories."
    ),
    "key": Entry(module="quell.cli._key", section="Decide", text="Make, list and revoke API keys."),
    "budget": Entry(module="quell.cli._budget", section="Look", text="Show what a run has spent, and its caps."),
    "audit": Entry(module="quell.cli._audit", section="Look", text="List, verify, sign and export the audit log."),
    "init": Entry(
        module="quell.cli._init", section="Operate", text="Make an agent: sense keys, models, telemetry; ask; write."
    ),
    "serve": Entry(
        module="quell.cli._serve", section="Operate", text="Receive telemetry and alerts, detect, investigate."
    ),
    "mcp": Entry(
        module="quell.cli._mcp", section="Operate", text="Speak MCP over stdin and stdout, for programs that start it."
    ),
    "doctor": Entry(
        module="quell.cli._doctor", section="Operate", text="Check everything Quell needs, and say what to do."
    ),
    "config": Entry(module="quell.cli._config", section="Operate", text="Check, show and explain the configuration."),
    "completion": Entry(
        module="quell.cli._completion", section="Operate", text="Print the completion script of a shell."
    ),
    "help": Entry(module="quell.cli._topics", section="Operate", text="Show help for a command or a topic."),
    "demo": Entry(module="", section="Try", text="Break a little shop and watch Quell find out why (quell[lab])."),
    "lab": Entry(module="", section="Try", text="Run the little shop: up, status, break, heal, down (quell[lab])."),
}
TOPICS: Mapping[str, str] = {
    "exit-codes": "what every exit code means",
    "environment": "the environment variables that are read",
}


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        _session(context).is_json = True


def _set_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        _session(context).is_debug = True


def _set_json_logs(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        _session(context).overrides["telemetry.log_format"] = "json"


def _set_config(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        from pathlib import Path

        _session(context).config = Path(value)


def _set_state_dir(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        _session(context).overrides["state_dir"] = value


def _set_colour(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value == "always":
        _session(context).use_colour("always")
    elif value == "never":
        _session(context).use_colour("never")


def _set_setting(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    for pair in value:
        key, equals, text = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", ctx=context, param=parameter)
        _session(context).overrides[key.strip()] = text


def _session(context: click.Context) -> Session:
    found = context.find_object(Session)
    assert found is not None, "main() hands a session in"
    return found


def shared_options() -> list[click.Parameter]:
    """Build the options that every command takes, before or after its name."""
    return [
        click.Option(
            ["--config"],
            type=click.Path(),
            metavar="FILE",
            envvar="QUELL_CONFIG",
            callback=_set_config,
            expose_value=False,
            help="Project file instead of ./quell.toml.",
        ),
        click.Option(
            ["--state-dir"],
            metavar="DIR",
            callback=_set_state_dir,
            expose_value=False,
            help="Directory of journal, store and logs.",
        ),
        click.Option(
            ["--set"],
            multiple=True,
            metavar="KEY=VALUE",
            callback=_set_setting,
            expose_value=False,
            help="Any setting, such as server.port=0.",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            callback=_set_json,
            expose_value=False,
            help="JSON on stdout, and errors as JSON on stderr.",
        ),
        click.Option(
            ["--json-logs"],
            is_flag=True,
            callback=_set_json_logs,
            expose_value=False,
            help="Log lines on stderr as JSON.",
        ),
        click.Option(
            ["--color"],
            type=click.Choice(["auto", "always", "never"]),
            callback=_set_colour,
            expose_value=False,
            help="Colour on terminals (auto), always or never.",
        ),
        click.Option(
            ["--debug"], is_flag=True, callback=_set_debug, expose_value=False, help="Show the traceback of an error."
        ),
    ]


class QuellCommand(click.Command):
    """A command that takes the shared options and shows them on one line of its help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = len(self.params)
        self.params.extend(shared_options())

    def invoke(self, ctx: click.Context) -> object:
        """Run it; a closed stdout leaves as an error that click does not take for itself."""
        _session(ctx).command = ctx.command_path.removeprefix("quell ")
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List this command's own options, and name the shared ones."""
        own = self.params[: self._own]
        records = [record for each in own if (record := each.get_help_record(ctx)) is not None]
        if records:
            with formatter.section("Options"):
                formatter.write_dl(records)
        with formatter.section("Shared options"):
            formatter.write_text(
                "--config --state-dir --set --json --json-logs --color --debug --help (see `quell --help`)"
            )


class QuellGroup(click.Group):
    """A noun with verbs below it."""

    command_class = QuellCommand

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared_options())


class _Root(QuellGroup):
    """`quell` itself: knows its commands by name only."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name every command, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Load one command, or find it among the entry points of other packages."""
        entry = COMMANDS.get(cmd_name)
        if entry is not None and entry.module:
            command = getattr(importlib.import_module(entry.module), f"{cmd_name.replace('-', '_')}_command")
            assert isinstance(command, click.Command)
            return command
        return _plugin(cmd_name, is_known=entry is not None)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List commands by section without loading any."""
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, each.text) for name, each in COMMANDS.items() if each.section == section])
        with formatter.section("Topics (quell help TOPIC)"):
            formatter.write_dl(list(TOPICS.items()))


def _plugin(name: str, *, is_known: bool) -> click.Command | None:
    from importlib.metadata import entry_points

    from quell.domain import UsageError

    hint = "pip install 'quell[lab]'" if is_known else f"the package that brings `{name}` is broken; reinstall it"
    for point in entry_points(group=_PLUGINS, name=name):
        try:
            command = point.load()
        except ImportError as error:
            raise UsageError(f"`quell {name}` needs packages that are not installed", hint=hint) from error
        assert isinstance(command, click.Command), f"the entry point {point.value} is no command"
        return command
    if is_known:
        raise UsageError(f"`quell {name}` is not installed", hint=hint)
    return None


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value and not context.resilient_parsing:
        from quell import __version__

        click.echo(f"quell {__version__}")
        context.exit()


root = _Root(
    name="quell",
    help="Quell watches production and says what broke, with evidence for every claim.",
    epilog="`quell doctor` checks a set-up. Every command takes --json. stdout is data, stderr is everything else.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Print the version.",
        )
    ],
)
