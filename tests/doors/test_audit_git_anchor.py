"""A git repository keeps checkpoints where whoever rewrites the log cannot reach."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from quell.app import Office
from quell.config import GovernanceSettings, JournalSettings, Settings, load
from quell.domain import ConfigError, Tampering, WorldError
from quell.runs import Runs, system_clock
from quell.tools import Git
from tests._quell import NOWHERE
from tests.conftest import FakeClock
from tests.doors._audit_bench import audited, fill
from tests.doors._cli_bench import Desk


def _remote(path: Path) -> str:
    subprocess.run(["git", "init", "--quiet", "--bare", str(path)], check=True)
    return str(path)


def test_checkpoints_are_commits_in_order_on_the_remote(tmp_path: Path, clock: FakeClock) -> None:
    remote = _remote(tmp_path / "remote")
    anchor = Git.Anchor(tmp_path / "own", remote=remote)
    assert anchor.published() == []
    with audited(tmp_path, clock=clock, anchors=(anchor,)) as (audit, database):
        notes = []
        for _ in range(3):
            fill(audit, database, count=2)
            notes.append(audit.anchor().note)
        audit.anchor()
        assert anchor.published() == notes
        report = audit.verify()
        assert (report.is_intact, report.anchored) == (True, 8)
        assert Git.Anchor(tmp_path / "another", remote=remote).published() == notes
    with audited(tmp_path / "new", clock=clock, anchors=(anchor,), seed=9) as (audit, database):
        fill(audit, database, count=9)
        assert Tampering.FORKED in {finding.what for finding in audit.verify().findings}


def test_a_repository_without_a_remote_keeps_them_too(tmp_path: Path) -> None:
    anchor = Git.Anchor(tmp_path / "own")
    anchor.publish("one\n1\n\n\u2014 a b\n")
    anchor.publish("two\n2\n\n\u2014 a b\n")
    assert anchor.published() == ["one\n1\n\n\u2014 a b\n", "two\n2\n\n\u2014 a b\n"]


def test_a_remote_that_is_away_is_told_and_never_taken_for_empty(tmp_path: Path) -> None:
    anchor = Git.Anchor(tmp_path / "own", remote=str(tmp_path / "away"))
    with pytest.raises(WorldError, match="git"):
        anchor.published()
    with pytest.raises(WorldError):
        anchor.publish("one\n")


@pytest.mark.parametrize("way", ["cut", "deleted", "emptied"])
def test_a_remote_whose_branch_was_rewritten_by_force_is_told_and_what_stood_there_counts(
    tmp_path: Path, clock: FakeClock, way: str
) -> None:
    remote = _remote(tmp_path / "remote")
    anchor = Git.Anchor(tmp_path / "own", remote=remote)
    git = ["git", "--git-dir", remote]
    with audited(tmp_path, clock=clock, anchors=(anchor,)) as (audit, database):
        notes = []
        for _ in range(3):
            fill(audit, database, count=2)
            notes.append(audit.anchor().note)
        if way == "cut":
            subprocess.run([*git, "update-ref", "refs/heads/quell-audit", "refs/heads/quell-audit~2"], check=True)
        else:
            subprocess.run([*git, "update-ref", "-d", "refs/heads/quell-audit"], check=True)
        if way == "emptied":
            Git.Anchor(tmp_path / "a-strangers", remote=remote).publish("something else\n")
        assert set(notes) <= set(anchor.published())
        assert audit.verify().anchored == 8
        fill(audit, database, count=1)
        for _ in range(2):
            with pytest.raises(WorldError, match=r"was not anchored.*rewritten or deleted"):
                audit.anchor()
        moved = Git.Anchor(tmp_path / "own", remote=_remote(tmp_path / "another"))
        moved.publish(notes[0])
        assert moved.published() == notes[:1], "another address is another place"


def _in_office(state_dir: Path, governance: GovernanceSettings, work: Callable[[Office], None]) -> None:
    """Do something with the guard's organs as the settings build them."""

    async def open_and_work() -> None:
        settings = Settings(state_dir=state_dir, governance=governance)
        runs = await Runs.open(
            JournalSettings(), state_dir=state_dir, clock=system_clock, entropy=os.urandom, version="v1"
        )
        try:
            office = await Office.open(runs, settings, clock=system_clock, entropy=os.urandom, env={})
            await asyncio.to_thread(work, office)
            await office.close()
        finally:
            await runs.close()

    asyncio.run(open_and_work())


def test_a_rewrite_of_the_whole_log_is_found_through_the_remote_of_the_settings(tmp_path: Path) -> None:
    remote, state_dir = _remote(tmp_path / "remote"), tmp_path / "state"
    own = tmp_path / "own"
    governance = GovernanceSettings(anchor_git=str(own), anchor_git_remote=remote, anchor_git_branch="log/one")

    def keep(office: Office) -> None:
        fill(office.audit, office.runs.database, count=3)
        office.audit.anchor()
        report = office.audit.verify()
        assert (report.is_intact, report.anchored) == (True, 3)

    def rewrite(office: Office) -> None:
        """Make another history, with the same keys and longer than the old one, and sign it."""
        fill(office.audit, office.runs.database, count=9)
        office.audit.checkpoint()
        assert office.audit.verify().is_intact, "nothing at this machine tells"

    def find(office: Office) -> None:
        assert Tampering.FORKED in {finding.what for finding in office.audit.verify().findings}

    _in_office(state_dir, governance, keep)
    told = subprocess.run(["git", "--git-dir", remote, "branch", "--list"], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["log/one"]
    for path in state_dir.iterdir():
        if path.name != "audit":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (state_dir / "audit").iterdir():
        if path.suffix != ".key":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Whoever rewrites the log rewrites the repository beside it too.
    shutil.rmtree(own)
    _in_office(state_dir, GovernanceSettings(), rewrite)
    _in_office(state_dir, governance, find)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('anchor_git_remote = "/there"', "has no repository to push from"),
        ('anchor_git = "own"\nanchor_git_remote = "https://me:word@host/a.git"', "must not carry a password"),
        ('anchor_git = "own"\nanchor_git_remote = "https://token@host/a.git"', "must not carry a password"),
        ('anchor_git_branch = "../main"', "must be the name of a branch"),
        ('anchor_git_branch = "-f"', "must be the name of a branch"),
        ('anchor_git_branch = "a.lock"', "must be the name of a branch"),
    ],
)
def test_a_setting_that_cannot_anchor_is_told(settings: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "quell.toml"
    path.write_text(f"[governance]\n{settings}\n")
    with pytest.raises(ConfigError) as error:
        load(path, env={})
    told = "".join(f"{problem.reason} {problem.hint}" for problem in error.value.problems)
    assert says in told
    assert "word" not in told.replace("password", "")


def test_remotes_that_git_knows_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "quell.toml"
    for remote in ("ssh://git@host/a.git", "git@host:a.git", "/mnt/a.git", "https://host/a.git", "file:///mnt/a.git"):
        path.write_text(f'[governance]\nanchor_git = "own"\nanchor_git_remote = "{remote}"\n')
        assert load(path, env={}).settings.governance.anchor_git_remote == remote


def test_the_doctor_says_whether_an_anchor_is_there(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)

    def anchors(*settings: str) -> dict[str, tuple[str, str]]:
        sets = [part for each in (f"store.url={NOWHERE}", *settings) for part in ("--set", each)]
        checks = desk.quell("doctor", "--json", *sets).document["checks"]
        return {
            each["name"]: (each["status"], each["detail"] + each["hint"]) for each in checks if "anchor" in each["name"]
        }

    own = "governance.anchor_git=own"
    (none,) = anchors().values()
    assert (none[0], "governance.anchor_git" in none[1]) == ("warn", True)
    alone = anchors(own)["anchor in git"]
    assert (alone[0], "set governance.anchor_git_remote" in alone[1]) == ("warn", True)
    away = f"governance.anchor_git_remote={tmp_path / 'away'}"
    assert anchors(own, away)["anchor in git"][0] == "bad"
    there = f"governance.anchor_git_remote={_remote(tmp_path / 'remote')}"
    told = desk.quell("audit", "checkpoint", "--set", own, "--set", there)
    assert (told.code, f"anchored in git {tmp_path / 'remote'}" in told.err) == (0, True)
    both = anchors(own, there, "governance.anchor_file=beside")
    assert set(both) == {"anchor", "anchor in git"}
    assert (both["anchor in git"][0], "holds 1 checkpoints" in both["anchor in git"][1]) == ("ok", True)
