"""Skills from git: which commit of a repository a person accepted, the copy of it that is read, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quell.audit import Audit
from quell.config import AgentSettings, GitSkills, SkillSettings
from quell.domain import AuditKind, Clock, ConfigError, Principal, RefusedError, Signer, is_person
from quell.memory import Skills
from quell.runs import Connection, Database

if TYPE_CHECKING:
    from quell.tools import Git

TABLES = (
    (
        "CREATE TABLE IF NOT EXISTS quell_skill_pins (url TEXT NOT NULL, ref TEXT NOT NULL, path TEXT NOT NULL,"
        " commit_id TEXT NOT NULL, digest TEXT NOT NULL, pinned_by TEXT NOT NULL, pinned_at TEXT NOT NULL,"
        " signature TEXT NOT NULL, PRIMARY KEY (url, ref, path))"
    ),
)
_SKILL_FILE = "SKILL.md"
_MARK_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillPin:
    """What was accepted of a repository."""

    url: str
    ref: str
    path: str
    commit: str
    digest: str
    """Of the skills themselves: the copy that is read has to have it."""
    pinned_by: str
    pinned_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillState:
    """How a source of skills is, without asking its repository."""

    source: GitSkills
    state: Literal["pinned", "not pinned", "not fetched", "changed"]
    """`changed`: the copy is not what was pinned."""
    pin: SkillPin | None
    skills: Skills | None
    """What agents load."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillLook:
    """What a repository has now, fetched and not loaded by any agent."""

    source: GitSkills
    commit: str
    skills: Skills
    pin: SkillPin | None

    @property
    def is_pinned(self) -> bool:
        """Whether this is what agents load."""
        return self.pin is not None and (self.pin.commit, self.pin.digest) == (self.commit, self.skills.digest)

    @property
    def state(self) -> Literal["pinned", "changed", "not pinned"]:
        """Say it in a word."""
        return "pinned" if self.is_pinned else "changed" if self.pin else "not pinned"

    def told(self) -> dict[str, Any]:
        """Return what a person is shown of it."""
        pin, skills = self.pin, self.skills
        return {
            "commit": self.commit,
            "digest": skills.digest,
            "pinned_commit": pin.commit if pin else "",
            "pinned_digest": pin.digest if pin else "",
            "pinned_by": pin.pinned_by if pin else "",
            "skills": [
                {"name": each.name, "description": each.description, "digest": each.digest}
                for each in skills.by_name.values()
            ],
        }


class SkillBook:
    """Pins of skills in one journal, and their copies in its state directory; it blocks."""

    CONFIGURATION = "quell:configuration"
    """In whose name a commit is pinned that a person wrote into an agent's file."""

    def __init__(
        self, database: Database, *, state_dir: Path, signer: Signer, audit: Audit, clock: Clock, env: Mapping[str, str]
    ) -> None:
        """Keep copies below the state directory, and seal pins with a key that does not lie in the database."""
        self._database = database
        self._directory = state_dir / "skills"
        self._signer = signer
        self._audit = audit
        self._clock = clock
        self._env = env
        with database.writing() as connection:
            connection.make_tables(TABLES)

    def load(self, settings: SkillSettings) -> Skills:
        """Read the skills of an agent or worker: directories, and of repositories the commits that are pinned.

        A pinned commit that is not here is fetched; one that is here needs no network.

        Raises:
            ConfigError: a mistake in the skills; something that nobody pinned, or that is not what was pinned.
            WorldError: a repository that has to be fetched from does not answer.
        """
        directories = [Path(each.source) for each in settings.local]
        return Skills.load([*directories, *map(self._directory_of, settings.git)])

    def pins_of(self, agent: AgentSettings) -> tuple[str, ...]:
        """Return what names the pins that an agent loads now; nothing is read for one without repositories."""
        sources = git_sources(agent)
        if not sources:
            return ()
        with self._database.reading() as connection:
            return tuple(str(self._found(connection, source)) for source in sources)

    def state(self, source: GitSkills) -> SkillState:
        """Tell how a source is; no repository is asked."""
        pin = self.find(source)
        if pin is None:
            is_exact = _git_of(source, env=self._env).is_commit(source.ref)
            return SkillState(source=source, state="not fetched" if is_exact else "not pinned", pin=None, skills=None)
        if not (copy := self._copy(source, pin.commit)).exists():
            return SkillState(source=source, state="not fetched", pin=pin, skills=None)
        try:
            skills = Skills.load([copy])
            _require(pin, skills, copy)
        except ConfigError as error:
            return SkillState(source=source, state="changed", pin=pin, skills=None, reason=str(error))
        return SkillState(source=source, state="pinned", pin=pin, skills=skills)

    def look(self, source: GitSkills) -> SkillLook:
        """Fetch what a source means now, beside what is pinned. Raises WorldError, RefusedError, UsageError, ConfigError."""
        git = _git_of(source, env=self._env)
        commit = git.commit_of(source.ref)
        skills = self._fetched(source, commit)
        return SkillLook(source=source, commit=commit, skills=skills, pin=self.find(source))

    def find(self, source: GitSkills) -> SkillPin | None:
        """Return the pin of a source, if it is what was accepted."""
        with self._database.reading() as connection:
            return self._found(connection, source)

    def accept(self, connection: Connection, look: SkillLook, *, by: Principal) -> SkillPin:
        """Pin what was looked at in a person's name. Raises RefusedError for anybody else."""
        if not is_person(by) or not {"operator", "admin"} & set(by.roles):
            raise RefusedError("only a person with the role operator or admin pins skills", hint="do it yourself")
        return self._keep(connection, look.source, look.commit, look.skills.digest, by=by.user)

    @staticmethod
    def account(pin: SkillPin, *, was: SkillPin | None) -> dict[str, object]:
        """Return what is on record of a pin."""
        told = {"url": pin.url, "ref": pin.ref, "path": pin.path, "commit": pin.commit, "digest": pin.digest}
        return {**told, "was_commit": was.commit if was else "", "was_digest": was.digest if was else ""}

    def _directory_of(self, source: GitSkills) -> Path:
        """Return the copy that agents load, whole. Raises ConfigError and WorldError."""
        pin = self.find(source)
        if pin is None:
            if not _git_of(source, env=self._env).is_commit(source.ref):
                raise ConfigError(
                    f"nobody pinned the skills of {source.named}: a name can come to mean another commit",
                    hint="`quell skill fetch` shows what it means now, `quell skill pin` pins it",
                )
            pin = self._first(source)
        _require(pin, self._fetched(source, pin.commit), self._copy(source, pin.commit))
        return self._copy(source, pin.commit)

    def _first(self, source: GitSkills) -> SkillPin:
        """Pin a commit that a person wrote into the file, on the record."""
        skills = self._fetched(source, source.ref)
        with self._database.writing() as connection:
            if (known := self._found(connection, source)) is not None:
                return known
            pin = self._keep(connection, source, source.ref, skills.digest, by=self.CONFIGURATION)
            body = {"verb": "skill.pin", "way": "commit in the agent's file", **self.account(pin, was=None)}
            self._audit.append(connection, self._audit.entry(AuditKind.PIN, run="", principal=pin.pinned_by, body=body))
        return pin

    def _fetched(self, source: GitSkills, commit: str) -> Skills:
        """Return the skills of a commit, from the copy where there is one. Raises as `load` does."""
        copy = self._copy(source, commit)
        if not copy.exists():
            try:
                _git_of(source, env=self._env).fetch(commit, path=source.path, chosen=_SKILL_FILE, into=copy)
            except RefusedError as error:
                raise ConfigError(f"the skills of {source.named}: {error}", hint=error.hint) from error
        return Skills.load([copy])

    def _copy(self, source: GitSkills, commit: str) -> Path:
        mark = hashlib.sha256(f"{source.url}\0{source.path}".encode()).hexdigest()[:_MARK_DIGITS]
        return self._directory / f"{mark}-{commit}"

    def _keep(self, connection: Connection, source: GitSkills, commit: str, digest: str, *, by: str) -> SkillPin:
        pin = SkillPin(
            url=source.url,
            ref=source.ref,
            path=source.path,
            commit=commit,
            digest=digest,
            pinned_by=by,
            pinned_at=self._clock(),
        )
        connection.run(
            "INSERT INTO quell_skill_pins (url, ref, path, commit_id, digest, pinned_by, pinned_at, signature) VALUES"
            " (:url, :ref, :path, :commit_id, :digest, :pinned_by, :pinned_at, :signature)"
            " ON CONFLICT (url, ref, path) DO UPDATE SET commit_id = excluded.commit_id, digest = excluded.digest,"
            " pinned_by = excluded.pinned_by, pinned_at = excluded.pinned_at, signature = excluded.signature",
            url=pin.url,
            ref=pin.ref,
            path=pin.path,
            commit_id=pin.commit,
            digest=pin.digest,
            pinned_by=pin.pinned_by,
            pinned_at=pin.pinned_at.isoformat(),
            signature=self._signer.sign(_sealed(pin)),
        )
        return pin

    def _found(self, connection: Connection, source: GitSkills) -> SkillPin | None:
        row = connection.first(
            "SELECT * FROM quell_skill_pins WHERE url = :url AND ref = :ref AND path = :path", **asdict(source)
        )
        if row is None:
            return None
        pin = SkillPin(
            url=row.url,
            ref=row.ref,
            path=row.path,
            commit=row.commit_id,
            digest=row.digest,
            pinned_by=row.pinned_by,
            pinned_at=datetime.fromisoformat(row.pinned_at),
        )
        # Who writes the database writes rows, and not the seal of what a person accepted.
        return pin if self._signer.verify(_sealed(pin), signature=row.signature) else None


def git_sources(agent: AgentSettings) -> tuple[GitSkills, ...]:
    """Return every repository that an agent and its workers have skills from, each once."""
    workers = (worker.skills for worker in agent.orchestration.worker.values())
    tables: Sequence[SkillSettings] = [agent.agent.skills, *(each for each in workers if each is not None)]
    return tuple(dict.fromkeys(source for table in tables for source in table.git))


def _git_of(source: GitSkills, *, env: Mapping[str, str]) -> Git:
    # Loaded when it is needed: most agents have no skills from git.
    from quell.tools import Git  # noqa: PLC0415

    return Git(source.url, env=env)


def _require(pin: SkillPin, skills: Skills, copy: Path) -> None:
    if skills.digest != pin.digest:
        raise ConfigError(
            f"the copy of {pin.url} {pin.commit[:12]} is not what was pinned: it is {skills.digest}, and not {pin.digest}",
            hint=f"find out who changed {copy}, take it away, and `quell skill fetch`",
        )


def _sealed(pin: SkillPin) -> bytes:
    whole = {**asdict(pin), "pinned_at": pin.pinned_at.isoformat()}
    return b"quell skill pin 1\n" + json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
