"""A git repository keeps checkpoints where whoever rewrites the log cannot reach."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from quell.domain import Tampering, WorldError
from quell.tools._git_anchor import GitAnchor
from tests.conftest import FakeClock
from tests.doors._audit_bench import audited, fill


def _remote(path: Path) -> str:
    subprocess.run(["git", "init", "--quiet", "--bare", str(path)], check=True)
    return str(path)


def test_checkpoints_are_commits_in_order_on_the_remote(tmp_path: Path, clock: FakeClock) -> None:
    remote = _remote(tmp_path / "remote")
    anchor = GitAnchor(tmp_path / "own", remote=remote)
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
        assert GitAnchor(tmp_path / "another", remote=remote).published() == notes
    with audited(tmp_path / "new", clock=clock, anchors=(anchor,), seed=9) as (audit, database):
        fill(audit, database, count=9)
        assert Tampering.FORKED in {finding.what for finding in audit.verify().findings}


def test_a_repository_without_a_remote_keeps_them_too(tmp_path: Path) -> None:
    anchor = GitAnchor(tmp_path / "own")
    anchor.publish("one\n1\n\n\u2014 a b\n")
    anchor.publish("two\n2\n\n\u2014 a b\n")
    assert anchor.published() == ["one\n1\n\n\u2014 a b\n", "two\n2\n\n\u2014 a b\n"]


def test_a_remote_that_is_away_is_told_and_never_taken_for_empty(tmp_path: Path) -> None:
    anchor = GitAnchor(tmp_path / "own", remote=str(tmp_path / "away"))
    with pytest.raises(WorldError, match="git"):
        anchor.published()
    with pytest.raises(WorldError):
        anchor.publish("one\n")
