"""`quell help`: commands and topics."""

from __future__ import annotations

import click

from quell.cli._exit import MEANINGS
from quell.cli._output import put_document, put_text
from quell.cli._root import TOPICS, QuellCommand, root
from quell.cli._session import Session

ENVIRONMENT: dict[str, str] = {
    "QUELL_CONFIG": "project file instead of ./quell.toml; --config wins",
    "CONFIG_PATH": "AURA's name for it: a file or a directory of agents; with it HOST, PORT and DEFAULT_AGENT count too",
    "QUELL_SECTION__KEY": "any setting, such as QUELL_SERVER__PORT=0; QUELL_STATE_DIR; above files, below flags; also in ./.env",
    "QUELL_API_KEY": "who decides at the command line; without it the owner of the state directory",
    "OPENAI_API_KEY": "key of a provider, for `init` and `--model`; likewise ANTHROPIC_, GEMINI_ and OPENROUTER_API_KEY",
    "AURA_API_URL": "the server that `ask` and `chat` talk to without --server; --model, --run and --server '' win",
    "AURA_API_KEY": "key for a server where QUELL_API_KEY is not set",
    "AURA_MODEL": "the agent of new conversations without --agent; in this process QUELL_DEFAULT_AGENT wins",
    "AURA_EXTRA_HEADERS": "headers for a server, NAME:VALUE,NAME:VALUE",
    "AURA_LOG_FILE": "file that keeps the log (telemetry.log_file); logs/quell.log in the state directory without it",
    "XDG_CONFIG_HOME": "where the user's quell/quell.toml lies; ~/.config without it",
    "NO_COLOR": "no colour when set to anything",
    "FORCE_COLOR": "colour even when the output is no terminal",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "also send Quell's own traces, metrics and logs there (OTLP); _TRACES_ENDPOINT, … one of them",
    "OTEL_EXPORTER_OTLP_HEADERS": "headers for it, key=value,key=value; _TRACES_HEADERS, … for one of them",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf, or grpc where its exporter is installed",
    "OTEL_SERVICE_NAME": "how a collector knows this service",
    "OTEL_RECORD_CONTENT": "true: what people, models and tools say stands in spans; OTEL_CONTENT_MAX_LENGTH: of each text",
    "PHOENIX_PROJECT_NAME": "project that Phoenix keeps the traces in",
    "OTEL_RESOURCE_ATTRIBUTES": "attributes for Quell's own telemetry, key=value,key=value",
}


@click.command("help", cls=QuellCommand)
@click.argument("words", nargs=-1, metavar="[COMMAND | TOPIC]")
@click.pass_context
def help_command(context: click.Context, words: tuple[str, ...]) -> int:
    """Show help for a command or a topic."""
    session = context.find_object(Session)
    assert session is not None
    if len(words) == 1 and words[0] in TOPICS:
        _put_topic(words[0], session)
        return 0
    command: click.Command = root
    at = click.Context(root, info_name="quell", obj=session)
    for word in words:
        found = command.get_command(at, word) if isinstance(command, click.Group) else None
        if found is None:
            known = [*command.list_commands(at), *TOPICS] if isinstance(command, click.Group) else [*TOPICS]
            raise click.exceptions.NoSuchCommand(word, f"there is no help for {word!r}", possibilities=known, ctx=at)
        command, at = found, click.Context(found, info_name=word, parent=at)
    if session.is_json:
        put_document("help", topic=" ".join(words), text=command.get_help(at))
    else:
        put_text(command.get_help(at))
    return 0


def _put_topic(topic: str, session: Session) -> None:
    if topic == "exit-codes":
        entries = {str(int(code)): f"{code.name.lower()}: {meaning}" for code, meaning in MEANINGS.items()}
    else:
        entries = ENVIRONMENT
    if session.is_json:
        put_document("help", topic=topic, entries=entries)
        return
    width = max(map(len, entries))
    put_text(
        "\n".join(
            f"{name.rjust(width) if topic == 'exit-codes' else name.ljust(width)}  {text}"
            for name, text in entries.items()
        )
    )
