"""The page about approvals is true: its example runs, and an approval outlives what asked for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quell.domain import ApprovalStatus
from tests import _authority as a
from tests.conftest import FakeClock

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "approvals.md"


@pytest.mark.timeout(30)
def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    assert '"replicas": 6' in capsys.readouterr().out


def test_an_approval_outlives_who_asked_and_who_approved(tmp_path: Path, clock: FakeClock) -> None:
    with a.desk(tmp_path, clock=clock) as first:
        approval = first.ask()
    with a.desk(tmp_path, clock=clock) as second:
        assert second.say(approval, a.BO) == "settled"
    with a.desk(tmp_path, clock=clock) as third:
        assert third.use(a.presented()) == 0
        assert third.get(approval).status is ApprovalStatus.CONSUMED
