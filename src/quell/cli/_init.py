"""`quell init`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from quell.cli._dotenv import NAME as DOTENV
from quell.cli._dotenv import read_dotenv, with_lines
from quell.cli._exit import ExitCode
from quell.cli._init_files import Planned, planned, text_of, write_all
from quell.cli._init_senses import KEYS, PROVIDERS, Provider, look_around, providers_here
from quell.cli._init_texts import Wanted, agent_text, agents_line, prometheus_text, store_text
from quell.cli._output import note, put_document, put_text
from quell.cli._person import API_KEY_VARIABLE
from quell.cli._root import QuellCommand
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.cli._chat_door import Card
    from quell.cli._init_remote import Client

_SHOWN_MAX = 20
_KEY_BYTES_MAX = 10_000
_FIRST_CHOICE: Mapping[str, tuple[str, ...]] = {
    "openai": ("gpt-5", "gpt-4.1", "gpt-4o"),
    "anthropic": ("claude-sonnet-5", "claude-sonnet-4-5", "claude-3-7-sonnet-latest"),
    "gemini": ("gemini-3-pro", "gemini-2.5-pro", "gemini-2.0-flash"),
    "openrouter": ("openai/gpt-5", "anthropic/claude-sonnet-4.5", "openai/gpt-4o"),
}
"""What is proposed where nobody says which: the first of these that the provider offers."""
_NONE = "none"
_OF_AN_AGENT = (
    "provider",
    "model",
    "base_url",
    "region",
    "name",
    "form",
    "context_window",
    "prometheus",
    "clickhouse",
)
"""Flags that mean nothing for a client of a server."""


@dataclass(slots=True, kw_only=True)
class _Asking:
    """The answers: from flags, from a person at a terminal, or the defaults."""

    session: Session
    is_asking: bool
    is_offline: bool
    env: dict[str, str]
    """The environment with what `.env` adds, and the key that was typed."""
    provider: str
    model: str
    base_url: str
    region: str
    name: str
    form: str
    context_window: int | None
    prometheus: str
    clickhouse: str
    key: str
    """A new key, for `.env`."""
    notes: list[str] = field(default_factory=list)


@click.command("init", cls=QuellCommand)
@click.option("--provider", type=click.Choice(PROVIDERS), help="Who runs the model; `builtin` needs no key.")
@click.option("--model", default="", metavar="NAME", help="The model at the provider.")
@click.option("--base-url", default="", metavar="URL", help="Address of anything that speaks the provider's protocol.")
@click.option("--region", default="", metavar="NAME", help="AWS region, of bedrock.")
@click.option(
    "--key-from",
    type=click.File("rb"),
    metavar="FILE",
    help="A new key for the provider; - for stdin. It goes to .env.",
)
@click.option("--name", default="", metavar="NAME", help="Name of the agent.  [default: SRE]")
@click.option("--form", type=click.Choice(["single", "team"]), help="One agent, or a coordinator with three workers.")
@click.option(
    "--context-window", type=click.IntRange(1_000), metavar="TOKENS", help="Of the model; puts large results aside."
)
@click.option("--prometheus", default="", metavar="URL", help="Read this Prometheus; `none` for no.")
@click.option("--clickhouse", default="", metavar="URL", help="Read this ClickHouse; `none` for the embedded store.")
@click.option("--file", "agent_file", default="agent.toml", show_default=True, metavar="FILE", help="The agent's file.")
@click.option("--server", default="", metavar="URL", help="Make no agent: be a client of a `quell serve`.")
@click.option("--agent", default="", metavar="ID", help="Of the server: who is asked.  [default: its default]")
@click.option("--offline", is_flag=True, help="Ask nobody for lists of models, and look for no telemetry.")
@click.option("--no-input", "--non-interactive", is_flag=True, help="Ask nothing: flags and defaults decide.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Write over an agent's file that is there, and add to a quell.toml.")
@click.pass_obj
def init_command(session: Session, /, *, agent_file: str, dry_run: bool, force: bool, **flags: object) -> int:
    """Make an agent: look for keys, models and telemetry, ask, show, and only then write.

    Without any key it begins with `builtin`, which answers from evidence and needs no model. Keys never go into a
    configuration: it refers to the environment, and a key that is typed here goes to `.env`.

    With --server nothing is made here: `.env` names the server, its agent and the key, and `quell ask` and `quell chat`
    talk to it from then on.
    """
    asking = _asking_of(session, flags)
    project = session.config or Path(session.env.get("QUELL_CONFIG") or "quell.toml")
    told: dict[str, Any]
    if url := str(flags["server"]):
        client = _client(asking, url, agent=str(flags["agent"]))
        files = [_dotenv(asking, project.parent, client.variables())]
        told, more = {"server": client.url, "agent": client.agent}, []
    else:
        wanted = _run(asking)
        files = _files(asking, wanted, agent=Path(agent_file), project=project)
        _check(files, env=asking.env)
        told, more = {"provider": wanted.provider, "model": wanted.model}, _extra(wanted)
    changes = [file for file in files if file.change != "same"]
    _refuse_overwriting(changes, force=force, is_dry=dry_run)
    if not session.is_json:
        _show(changes)
    is_written = bool(changes) and not dry_run
    if is_written and asking.is_asking and not _confirmed():
        note("nothing was written")
        return ExitCode.BAD
    if is_written:
        write_all(changes)
    return _end(session, files, told, notes=[*asking.notes, *more], is_written=is_written)


def _client(asking: _Asking, url: str, *, agent: str) -> Client:
    """Ask the server who is there, and have chosen who is to be asked."""
    from quell.cli._init_remote import Client, checked, listed

    session, key, where = asking.session, asking.key, url.rstrip("/").removesuffix("/v1")
    cards: tuple[Card, ...] = ()
    if asking.is_asking and not key and not asking.env.get(API_KEY_VARIABLE):
        typed: str = click.prompt(
            "Key of the server, if it wants one", hide_input=True, default="", show_default=False, err=True
        )
        key = asking.key = typed.strip()
    session.env.update(asking.env)
    if not asking.is_offline:
        where, cards = listed(session, url, key=key)
    agent = checked(agent, cards)
    if not agent and asking.is_asking and len(cards) > 1:
        rows = [f"{each.id}: {each.description or each.model}" for each in cards]
        agent = _choice("Who is asked?", [each.id for each in cards], rows=rows, default=cards[0].id)
    return Client(url=where, agent=agent, key=key, cards=cards)


def _asking_of(session: Session, flags: Mapping[str, object]) -> _Asking:
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    where = session.config.parent if session.config else Path()
    provider, window = str(flags["provider"] or ""), flags["context_window"]
    key = _read_key(flags["key_from"]) if flags["key_from"] is not None else ""
    _refuse_mixture(flags)
    if key and provider not in KEYS and not flags["server"]:
        raise click.UsageError("--key-from needs --provider with a key: " + ", ".join(KEYS))
    return _Asking(
        session=session,
        is_asking=is_terminal and not flags["no_input"] and not session.is_json,
        is_offline=bool(flags["offline"]),
        env={**read_dotenv(where), **session.env},
        provider=provider,
        model=str(flags["model"]),
        base_url=str(flags["base_url"]),
        region=str(flags["region"]),
        name=str(flags["name"]),
        form=str(flags["form"] or ""),
        context_window=window if isinstance(window, int) else None,
        prometheus=str(flags["prometheus"]),
        clickhouse=str(flags["clickhouse"]),
        key=key,
    )


def _refuse_mixture(flags: Mapping[str, object]) -> None:
    """Refuse flags of a client together with flags of an agent that is made here."""
    if not flags["server"]:
        if flags["agent"]:
            raise click.UsageError("--agent is for --server: an agent that is made here has a --name")
        return
    if made := [name for name in _OF_AN_AGENT if flags[name]]:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in made)
        raise click.UsageError(f"{told} makes an agent here, and --server makes none")


def _read_key(source: object) -> str:
    raw: bytes = source.read(_KEY_BYTES_MAX)  # type: ignore[attr-defined]  # click opened it
    key = raw.decode("utf-8", errors="replace").strip()
    if not key or not key.isprintable() or " " in key:
        raise click.UsageError("what --key-from names is no key: it must be one word")
    return key


# -- questions ------------------------------------------------------------------------------------------------------------


def _run(asking: _Asking) -> Wanted:
    """Look around, and have everything answered."""
    if asking.key:
        asking.env[KEYS[asking.provider][0]] = asking.key
    providers, prometheus, clickhouse = providers_here(asking.env), "", ""
    if not asking.is_offline:
        providers, prometheus, clickhouse = _looked(asking, providers)
    provider = _provider(asking, providers)
    provider = _with_key(asking, provider)
    model = _model(asking, provider)
    name = asking.name or _text(asking, "What is the agent called?", default="SRE")
    return Wanted(
        provider=provider.name,
        model=model,
        name=name,
        form=_form(asking, provider),
        variable=provider.variable,
        base_url=asking.base_url,
        region=_region(asking, provider),
        context_window=asking.context_window,
        prometheus=_source(asking, "Prometheus", asking.prometheus, found=prometheus),
        clickhouse=_source(asking, "ClickHouse", asking.clickhouse, found=clickhouse),
    )


def _looked(asking: _Asking, providers: Sequence[Provider]) -> tuple[tuple[Provider, ...], str, str]:
    from quell.cli._loop import run_until_done

    if asking.is_asking:
        note("looking for models and telemetry ...")
    seen: list[tuple[tuple[Provider, ...], str, str]] = []

    async def look() -> int:
        seen.append(
            await look_around(
                providers,
                env=asking.env,
                base_url=asking.base_url,
                region=asking.region,
                chosen=asking.provider,
            )
        )
        return 0

    run_until_done(look)
    return seen[0]


def _provider(asking: _Asking, providers: Sequence[Provider]) -> Provider:
    if asking.provider:
        return next(each for each in providers if each.name == asking.provider)
    here = [each for each in providers if each.reason]
    builtin = next(each for each in providers if each.name == "builtin")
    usable = [each for each in here if not each.failure]
    default = (usable or [builtin])[0]
    if not asking.is_asking:
        return default
    rows = [
        f"{each.name}: {each.reason or 'needs no key and no model' * (each is builtin) or 'no key here yet'}"
        + (f"; but {each.failure}" if each.failure else "")
        for each in providers
    ]
    chosen = _choice("Who runs the model?", [each.name for each in providers], rows=rows, default=default.name)
    return next(each for each in providers if each.name == chosen)


def _with_key(asking: _Asking, provider: Provider) -> Provider:
    """Return the provider when there is a key for it; a new one is typed unseen."""
    from quell.domain import UsageError

    if not provider.variable or asking.env.get(provider.variable):
        return provider
    if asking.is_asking:
        typed = click.prompt(f"Key of {provider.name}", hide_input=True, default="", show_default=False, err=True)
        if not typed.strip():
            raise UsageError("without a key there is no such model", hint="choose builtin: it needs none")
        asking.key = typed.strip()
        asking.env[provider.variable] = asking.key
        if asking.is_offline:
            return provider
        found = next(each for each in _looked(replace(asking, provider=provider.name), [provider])[0])
        return replace(found, variable=provider.variable)
    if not asking.is_offline:
        hint = f"export {provider.variable}=..., or give --key-from FILE, or --offline to write the reference only"
        raise UsageError(f"there is no key of {provider.name}", hint=hint)
    asking.notes.append(f"{provider.variable} is not set: export it before the agent is asked")
    asking.env[provider.variable] = "not-set-yet"
    return provider


def _model(asking: _Asking, provider: Provider) -> str:
    from quell.domain import UsageError

    if provider.name == "builtin":
        return "builtin"
    if provider.failure:
        note(f"no list of models: {provider.failure}")
    wanted, known = asking.model, provider.models
    if not wanted:
        first = _FIRST_CHOICE.get(provider.name, ())
        default = next((each for each in first if not known or each in known), known[0] if known else "")
        wanted = _text(asking, f"Which model?{_some(known)}", default=default)
    if not wanted:
        raise UsageError(f"no model of {provider.name} is named", hint="give --model NAME")
    if known and wanted not in known:
        import difflib

        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
        asking.notes.append(
            f"{provider.name} does not list {wanted!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return wanted


def _some(models: Sequence[str]) -> str:
    if not models:
        return ""
    from quell.domain import printable

    shown = "".join(f"\n  {printable(each)}" for each in models[:_SHOWN_MAX])
    more = f"\n  and {len(models) - _SHOWN_MAX} more" if len(models) > _SHOWN_MAX else ""
    return f" On offer:{shown}{more}\nModel"


def _form(asking: _Asking, provider: Provider) -> Literal["single", "team"]:
    form = asking.form
    if not form and asking.is_asking and provider.name != "builtin":
        rows = ["single: one agent does everything itself", "team: a coordinator with three workers; dearer and deeper"]
        form = _choice("One agent or a team?", ["single", "team"], rows=rows, default="single")
    return "team" if form == "team" else "single"


def _region(asking: _Asking, provider: Provider) -> str:
    if provider.name != "bedrock":
        return ""
    region = asking.region or asking.env.get("AWS_REGION", "") or asking.env.get("AWS_DEFAULT_REGION", "")
    return region or _text(asking, "Which AWS region?", default="us-east-1")


def _source(asking: _Asking, what: str, said: str, *, found: str) -> str:
    if said:
        return "" if said == _NONE else said
    if not found:
        return ""
    if asking.is_asking and not click.confirm(f"Read the {what} at {found}?", default=True, err=True):
        return ""
    return found


def _text(asking: _Asking, question: str, *, default: str) -> str:
    if not asking.is_asking:
        return default
    answer: str = click.prompt(question, default=default or None, err=True)
    return answer.strip()


def _choice(question: str, names: Sequence[str], *, rows: Sequence[str], default: str) -> str:
    """Ask for one of several, by number or by the beginning of its name."""
    from quell.domain import printable

    note(question)
    for number, row in enumerate(rows, start=1):
        note(f"  {number}. {printable(row)}")

    def read(text: str) -> str:
        text = text.strip().lower()
        if text.isdigit() and 0 < int(text) <= len(names):
            return names[int(text) - 1]
        found = [name for name in names if name.startswith(text)] if text else []
        if len(found) != 1:
            raise click.UsageError(f"{text!r} is none of them: type its number or its name")
        return found[0]

    chosen: str = click.prompt("Number or name", default=default, value_proc=read, err=True)
    return chosen


# -- files ----------------------------------------------------------------------------------------------------------------


def _files(asking: _Asking, wanted: Wanted, *, agent: Path, project: Path) -> list[Planned]:
    """Plan every file; what is in a quell.toml or a `.env` already stays, and only what is missing is added."""
    files = [planned(agent, agent_text(wanted))]
    text = text_of(project)
    try:
        named = agent.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        named = str(agent.resolve())
    files.append(planned(project, _project_text(asking, wanted, text, agent=named)))
    if asking.key and wanted.variable:
        files.append(_dotenv(asking, project.parent, {wanted.variable: asking.key}))
    return files


def _dotenv(asking: _Asking, directory: Path, variables: Mapping[str, str]) -> Planned:
    read_dotenv(directory)  # what is none is told before anything is added to it
    if asking.key and not _is_ignored(directory):
        asking.notes.append(f"{DOTENV} holds a key: put `{DOTENV}` into .gitignore before anything is committed")
    path = directory / DOTENV
    return planned(path, with_lines(text_of(path) or "", variables), is_secret=True)


def _project_text(asking: _Asking, wanted: Wanted, text: str | None, *, agent: str) -> str:
    import tomllib

    from quell.domain import UsageError

    try:
        tree = tomllib.loads(text or "")
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the quell.toml that is there is no TOML: {error}", hint="`quell config check`") from error
    after = text or "# Settings of Quell; `quell config show` tells them all, `quell config explain KEY` each.\n"
    if "agents" not in tree:
        # First in the file: below a table it would be a key of that table.
        after = agents_line(agent) + after if text else after + agents_line(agent)
    elif tree["agents"] != agent:
        asking.notes.append(f"agents = {tree['agents']!r} stays as it is: {agent} counts once it is named there")
    urls = [each.get("url") for each in tree.get("prometheus", []) if isinstance(each, dict)]
    if wanted.prometheus and wanted.prometheus not in urls:
        after += "\n" + prometheus_text(wanted.prometheus)
    store = tree.get("store", {})
    if wanted.clickhouse and not store:
        after += "\n" + store_text(wanted.clickhouse)
    elif wanted.clickhouse and store.get("url") != wanted.clickhouse:
        asking.notes.append(f"[store] is there already: set its url to {wanted.clickhouse} yourself")
    return after


def _is_ignored(directory: Path) -> bool:
    at = directory.resolve()
    for each in (at, *at.parents):
        if DOTENV.name in (text_of(each / ".gitignore") or "").split():
            return True
        if (each / ".git").exists():
            return False
    return True  # no repository, nothing to commit to


def _check(files: Sequence[Planned], *, env: Mapping[str, str]) -> None:
    """Read the agent's file as Quell will. Raises ConfigError with what would be wrong; nothing is written yet."""
    import tempfile

    from quell.config import load_agents

    agent = files[0]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / agent.path.name
        path.write_text(agent.after, encoding="utf-8")
        load_agents(path, env=env)


def _refuse_overwriting(changes: Sequence[Planned], *, force: bool, is_dry: bool) -> None:
    from quell.domain import UsageError

    there = [
        str(file.path)
        for file in changes
        if file.change == "replaced" or (file.change == "changed" and not file.is_secret)
    ]
    if there and not force and not is_dry:
        raise UsageError(
            f"{' and '.join(there)} would change: nothing was written",
            hint="--dry-run shows how, --force does it; --file FILE makes an agent beside",
        )


def _show(changes: Sequence[Planned]) -> None:
    for file in changes:
        note("")
        note(f"--- {file.path} ({file.change})")
        for line in file.lines():
            note(line)
    note("")


def _confirmed() -> bool:
    return click.confirm("Write this?", default=True, err=True)


def _end(
    session: Session,
    files: Sequence[Planned],
    told: Mapping[str, Any],
    *,
    notes: Sequence[str],
    is_written: bool,
) -> int:
    if session.is_json:
        left = [{"path": str(file.path), "change": file.change} for file in files]
        put_document("init", **told, files=left, is_written=is_written, notes=list(notes))
    elif is_written:
        for file in files:
            if file.change != "same":
                put_text(f"{file.change:8} {file.path}")
    for each in notes:
        note(each)
    if is_written:
        looks = "" if "server" in told else ", `quell doctor`"
        note(f'next: `quell ask "is anything wrong?"`, `quell chat`{looks}')
    return ExitCode.DONE


def _extra(wanted: Wanted) -> list[str]:
    from importlib.util import find_spec

    module = {"anthropic": "anthropic", "bedrock": "boto3", "gemini": "google.genai"}.get(wanted.provider, "")
    try:
        is_there = not module or find_spec(module) is not None
    except ModuleNotFoundError:
        is_there = False
    return [] if is_there else [f"{wanted.provider} needs an extra: pip install 'quell[{wanted.provider}]'"]
