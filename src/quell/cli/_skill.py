"""`quell skill`: list, show, fetch, pin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, put_document, put_table, put_text
from quell.cli._person import confirmed, person_of
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.domain import one_line

if TYPE_CHECKING:
    from quell.app import Office
    from quell.config import AgentSettings, GitSkills, SkillSettings
    from quell.memory import Skills

_COMMIT_DIGITS = 12
_DIGEST_CHARS = 19


@click.group("skill", cls=QuellGroup)
def skill_command() -> None:
    """List the skills of agents; fetch those of repositories and pin what they mean now."""


@skill_command.command("list", cls=QuellCommand)
@click.pass_obj
def list_skills(session: Session) -> int:
    """List where agents have skills from, what is pinned of it, and what they load. No repository is asked.

    Exit 1 when an agent cannot load its skills.
    """

    def use(office: Office) -> int:
        told = [_state(office, agent, source) for agent, source in _sources(session)]
        is_ok = all(each["state"] in {"local", "pinned"} for each in told)
        if session.is_json:
            put_document("skills", is_ok=is_ok, sources=told)
            return ExitCode.DONE if is_ok else ExitCode.BAD
        if not told:
            note("no agent has skills: [[agent.skills.local]] and [[agent.skills.git]] name them")
        else:
            rows = [
                (*(str(each[key]) for key in ("agent", "state")), _short(each["commit"]), each["source"], _names(each))
                for each in told
            ]
            put_table(("AGENT", "STATE", "COMMIT", "SOURCE", "SKILLS"), rows)
        for each in told:
            if each["reason"]:
                note(f"{each['agent']}: {each['reason']}")
        return ExitCode.DONE if is_ok else ExitCode.BAD

    return session.with_office(use)


@skill_command.command("show", cls=QuellCommand)
@click.argument("name")
@click.option("--agent", default="", metavar="ID", help="Only of this agent.")
@click.pass_obj
def show_skill(session: Session, name: str, *, agent: str) -> int:
    """Show a skill as agents are given it, and where it comes from."""

    def use(office: Office) -> int:
        from quell.domain import UsageError

        for whose, source in _sources(session):
            skills = _loaded(office, source)
            if skills is None or name not in skills.by_name or (agent and whose.partition("/")[0] != agent):
                continue
            found = skills.by_name[name]
            if session.is_json:
                put_document("skill", agent=whose, source=_named(source), skill=found)
                return ExitCode.DONE
            put_text(f"SKILL {name}\n  agent:  {whose}\n  source: {_named(source)}\n  digest: {found.digest}\n")
            put_text(office.approvals.visible(found.description) + "\n")
            put_text("\n".join(office.approvals.visible(line) for line in skills.load_skill(name).split("\n")))
            return ExitCode.DONE
        raise UsageError(f"no agent has a skill {name!r} that can be loaded", hint="`quell skill list` names them")

    return session.with_office(use)


@skill_command.command("fetch", cls=QuellCommand)
@click.argument("source", metavar="[URL]", default="")
@click.pass_obj
def fetch_skills(session: Session, source: str) -> int:
    """Ask repositories what they have now, and compare with what is pinned; agents go on with what is pinned.

    Exit 1 when something is not pinned as it is now, 3 when a repository does not answer.
    """

    def use(office: Office) -> int:
        from quell.domain import QuellError

        told = []
        for each in _chosen(session, source):
            try:
                told.append(_looked(office, each))
            except QuellError as error:
                reason = f"{error}" + (f" ({error.hint})" if error.hint else "")
                told.append(_told(each, state="failed") | {"reason": office.redactor.text(reason)})
        is_ok = all(each["state"] == "pinned" for each in told)
        if session.is_json:
            put_document("skills_fetched", is_ok=is_ok, sources=told)
        else:
            for found in told:
                put_text("\n".join(_lines(found)))
            if not told:
                note("no agent has skills from a repository ([[agent.skills.git]])")
        if any(each["state"] == "failed" for each in told):
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if is_ok else ExitCode.BAD

    return session.with_office(use)


@skill_command.command("pin", cls=QuellCommand)
@click.argument("source", metavar="[URL]", default="")
@click.option("--digest", default="", metavar="SHA256", help="Pin only what has this digest, as `fetch` showed it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def pin_skills(session: Session, source: str, *, digest: str, yes: bool) -> int:
    """Fetch what a repository has now, show it, and let agents load it from their next question on."""

    async def use(office: Office) -> int:
        import asyncio

        from quell.domain import AuditKind, RefusedError

        wanted, by, book = _one(session, source), person_of(session, office), office.skill_book()
        look = await asyncio.to_thread(book.look, wanted)
        told = _told(wanted, state=look.state) | look.told()
        if not session.is_json:
            put_text("\n".join(_lines(told)))
        if digest and not look.skills.digest.removeprefix("sha256:").startswith(digest.removeprefix("sha256:").lower()):
            error = RefusedError(
                f"what is there is not {digest}: it is {look.skills.digest}", hint="read it again", code="mismatch"
            )
            office.refused(by, verb="skill.pin", about=_named(wanted), error=error)
            raise error
        if not look.is_pinned:
            word = look.commit[:_COMMIT_DIGITS]
            if not yes and not await confirmed(session, f"Let agents load {word} of {wanted.url}?", word=word):
                raise RefusedError(
                    "nothing was pinned", hint=f"read what is shown above and type {word}, or give --yes"
                )
            with office.changing(by, verb="skill.pin", about=_named(wanted)) as connection:
                pin = book.accept(connection, look, by=by)
                body = book.account(pin, was=look.pin)
                office.record(connection, AuditKind.PIN, by=by, verb="skill.pin", body=body)
            note("agents of a server that runs load it at their next question; runs that go on keep theirs")
        if session.is_json:
            put_document("skill_pinned", change="none" if look.is_pinned else look.state, **look.told())
        else:
            put_text(f"\n{_named(wanted)} is pinned: {look.commit} {look.skills.digest}")
        return ExitCode.DONE

    return session.with_office(use)


def _sources(session: Session) -> Iterator[tuple[str, GitSkills | Path]]:
    """Yield whose skills come from where: agent, or agent/worker."""
    for agent in session.loaded().agents:
        for whose, table in _tables(agent):
            yield from ((whose, Path(each.source)) for each in table.local)
            yield from ((whose, each) for each in table.git)


def _tables(agent: AgentSettings) -> Iterator[tuple[str, SkillSettings]]:
    yield agent.id, agent.agent.skills
    for name, worker in agent.orchestration.worker.items():
        if worker.skills is not None:
            yield f"{agent.id}/{name}", worker.skills


def _chosen(session: Session, url: str) -> list[GitSkills]:
    """Return the repositories of agents, or those at one address, each once. Raises UsageError for one that no agent has."""
    from quell.domain import UsageError

    known = list(dict.fromkeys(source for _, source in _sources(session) if not isinstance(source, Path)))
    found = [source for source in known if url in {"", source.url, _named(source)}]
    if url and not found:
        names = ", ".join(map(_named, known)) or "none"
        raise UsageError(f"no agent has skills from {url!r}", hint=f"there are: {names}")
    return found


def _one(session: Session, url: str) -> GitSkills:
    from quell.domain import UsageError

    found = _chosen(session, url)
    if len(found) != 1:
        names = "; ".join(f"'{_named(each)}'" for each in found) or "none: see [[agent.skills.git]]"
        raise UsageError("say which skills are to be pinned", hint=f"there are: {names}")
    return found[0]


def _state(office: Office, whose: str, source: GitSkills | Path) -> dict[str, Any]:
    from quell.domain import ConfigError
    from quell.memory import Skills

    told: dict[str, Any] = {"agent": whose, **_told(source, state="local")}
    if not isinstance(source, Path):
        found = office.skill_book().state(source)
        told |= {
            "state": found.state,
            "reason": found.reason,
            "skills": list(found.skills.by_name) if found.skills else [],
        }
        if found.pin is not None:
            told |= {"commit": found.pin.commit, "digest": found.pin.digest, "pinned_by": found.pin.pinned_by}
        return told
    try:
        skills = Skills.load([source])
    except ConfigError as error:
        return told | {"state": "mistakes", "reason": "; ".join(map(str, error.problems))}
    return told | {"skills": list(skills.by_name), "digest": skills.digest}


def _loaded(office: Office, source: GitSkills | Path) -> Skills | None:
    from quell.memory import Skills

    return Skills.load([source]) if isinstance(source, Path) else office.skill_book().state(source).skills


def _looked(office: Office, source: GitSkills) -> dict[str, Any]:
    from quell.config import SkillSettings

    book = office.skill_book()
    look = book.look(source)
    if look.pin is None and look.commit == source.ref:
        # A commit in the file is accepted by whoever wrote it there.
        book.load(SkillSettings(git=(source,)))
        look = book.look(source)
    return _told(source, state=look.state) | look.told()


def _told(source: GitSkills | Path, *, state: str) -> dict[str, Any]:
    return {"source": _named(source), "state": state, "commit": "", "digest": "", "skills": [], "reason": ""}


def _lines(told: dict[str, Any]) -> Iterator[str]:
    yield f"{told['source']}  {told['state']}"
    if told["reason"]:
        yield f"  {told['reason']}"
        return
    if told["pinned_commit"]:
        yield f"  pinned: {told['pinned_commit']} {told['pinned_digest']} by {told['pinned_by']}"
    if told["state"] != "pinned":
        yield f"  now:    {told['commit']} {told['digest']}"
    for each in told["skills"]:
        yield f"  - {each['name']} ({each['digest'][:_DIGEST_CHARS]}): {one_line(each['description'], chars_max=200)}"


def _names(told: dict[str, Any]) -> str:
    names: Sequence[str] = told["skills"]
    return ", ".join(names) or "-"


def _short(commit: str) -> str:
    return commit[:_COMMIT_DIGITS] or "-"


def _named(source: GitSkills | Path) -> str:
    return str(source) if isinstance(source, Path) else source.named
