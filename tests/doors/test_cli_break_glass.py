"""Emergencies at the command line: taken by who may, on record, reviewed by another, and in the way of promotion until then."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from quell.cli import ExitCode
from quell.domain import OutcomeKind, Parked, ToolOutcome
from quell.telemetry import EVENTS
from tests.doors._cli_bench import SECRET, Desk

pytestmark = pytest.mark.timeout(60)  # a real tool server starts, on machines that do other things too

OPEN = ("break-glass", "open", "--reason", "payments are down")
PROMOTE = ("autonomy", "promote", "w1", "--class", "reversible", "--to", "3", "--reason", "proved")
GLASS = """
@id("own.glass")
@break_glass
permit (principal in Quell::Role::"operator", action == Quell::Action::"restart", resource);
"""


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A state directory in which an agent worked; copy it before something is changed."""
    desk = Desk(at=tmp_path_factory.mktemp("worked"))
    desk.fill()
    return desk


@pytest.fixture
def desk(worked: Desk, tmp_path: Path) -> Desk:
    return worked.copied(tmp_path)


@pytest.fixture
def empty(tmp_path: Path) -> Desk:
    desk = Desk(at=tmp_path)
    (tmp_path / "quell.toml").write_text("[identity]\napi_keys = true\n")
    return desk


def bodies(desk: Desk, kind: str) -> list[dict[str, object]]:
    lines = desk.done("audit", "list", "--json", "--limit", "10000", "--kind", kind).splitlines()
    return [json.loads(line)["record"]["body"] for line in lines]


def opened(desk: Desk, *flags: str) -> str:
    return str(desk.quell(*OPEN, *flags, "--json").document["break_glass"]["id"])


def events(desk: Desk) -> list[tuple[str, dict[str, object]]]:
    """Return what the event log has of emergencies, with the stream that it stands in."""
    with sqlite3.connect(desk.at / ".quell" / "quell.db") as database:
        found = database.execute("SELECT run, body FROM quell_events WHERE name = 'break_glass.opened'").fetchall()
    database.close()
    return [(run, json.loads(body)) for run, body in found]


def make_late(desk: Desk) -> None:
    """Let the time of every review be past."""
    with sqlite3.connect(desk.at / ".quell" / "quell.db") as database:
        database.execute("UPDATE quell_break_glass SET review_due_at = opened_at")
    database.close()


def test_the_owner_takes_it_another_reviews_it_and_both_are_on_record(empty: Desk) -> None:
    assert "no break-glass that waits for review in" in empty.quell("break-glass", "list").err
    told = empty.quell(*OPEN)
    assert told.code == 0, told
    assert "what owner does directly" in told.out
    assert "somebody else has to review it before" in told.err
    id_ = told.out.split()[0]
    assert id_.startswith("brk_")
    (body,) = bodies(empty, "identity")
    assert (body["verb"], body["break_glass"], body["reason"]) == ("break-glass.open", id_, "payments are down")
    ((stream, event),) = events(empty)
    assert (stream, event["emergency"], event["by"]) == (id_, id_, "owner")
    assert "payments" not in json.dumps(event), "others read the events too"
    assert EVENTS["break_glass.opened"].level == "warning"

    own = empty.quell("break-glass", "review", id_, "--review", "fine")
    assert own.code == ExitCode.DENIED
    assert "nobody reviews their own" in own.err
    ivy, bob = empty.key("ivy", "auditor"), empty.key("bob", "approver")
    assert empty.quell("break-glass", "review", id_, "--review", "fine", env=bob).code == ExitCode.DENIED
    assert [body["verb"] for body in bodies(empty, "refusal")] == ["break-glass.review"] * 2
    for unknown in ("brk_", "brk_nothing", ""):
        assert empty.quell("break-glass", "review", unknown, "--review", "x", env=ivy).code == ExitCode.USAGE
    assert empty.quell("break-glass", "review", id_, "--review", " ", env=ivy).code == ExitCode.USAGE
    assert "is reviewed" in empty.done("break-glass", "review", id_[:-2], "--review", "it was needed", env=ivy)
    again = empty.quell("break-glass", "review", id_, "--review", "again", "--json", env=ivy)
    assert again.code == ExitCode.DENIED
    assert "reviewed by ivy already" in again.error["message"]
    body = bodies(empty, "identity")[-1]
    assert (body["verb"], body["opened_by"], body["review"]) == ("break-glass.review", "owner", "it was needed")

    assert json.loads(empty.done("break-glass", "list", "--json"))["break_glass"] == []
    assert "by ivy: it was needed" in empty.done("break-glass", "list", "--all")
    newer = opened(empty)
    cut = empty.quell("break-glass", "list", "--all", "--limit", "1", "--json").document
    assert ([each["id"] for each in cut["break_glass"]], cut["is_cut"]) == ([newer], True)
    assert "intact" in empty.done("audit", "verify")


def test_who_has_not_the_role_or_no_reason_takes_nothing(empty: Desk) -> None:
    denied = empty.quell(*OPEN, "--json", env=empty.key("ann", "operator", "approver", "admin"))
    assert (denied.code, denied.out) == (ExitCode.DENIED, "")
    assert "has not the role break-glass" in denied.error["message"]
    assert empty.quell("break-glass", "open").code == ExitCode.USAGE
    assert empty.quell("break-glass", "open", "--reason", " ").code == ExitCode.USAGE
    assert empty.quell(*OPEN, "--run", "run_none").code == ExitCode.USAGE
    assert [body["verb"] for body in bodies(empty, "refusal")] == ["break-glass.open"] * 2
    bare = ("--set", 'identity.owner_roles=["viewer","operator","approver","admin"]')
    assert empty.quell(*OPEN, *bare).code == ExitCode.DENIED, "the owner's roles are a setting"
    assert json.loads(empty.done("break-glass", "list", "--all", "--json"))["break_glass"] == []


def test_another_tenant_sees_and_reviews_nothing_of_it(empty: Desk) -> None:
    id_ = opened(empty)
    served = ("--set", 'identity.tenants=["local","acme"]', "--tenant", "acme")
    assert json.loads(empty.done("break-glass", "list", "--all", "--json", *served))["break_glass"] == []
    assert empty.quell("break-glass", "review", id_, "--review", "x", *served).code == ExitCode.USAGE


def test_what_cannot_be_recorded_is_not_taken(empty: Desk) -> None:
    empty.done("break-glass", "list")
    opened(empty)
    with sqlite3.connect(empty.at / ".quell" / "quell.db") as database:
        database.execute("UPDATE quell_audit_head SET frontier = 'junk'")
    database.close()
    told = empty.quell(*OPEN)
    assert (told.code, told.out) == (ExitCode.UNREACHABLE, "")
    assert len(json.loads(empty.done("break-glass", "list", "--json"))["break_glass"]) == 1
    assert len(events(empty)) == 1, "nobody is warned of what was not kept"


def test_while_a_review_is_late_nothing_is_promoted_and_doctor_warns(desk: Desk) -> None:
    id_ = opened(desk)
    (well,) = [each for each in desk.quell("doctor", "--json").document["checks"] if each["name"] == "break-glass"]
    assert (well["status"], well["detail"]) == (
        "ok",
        "1 wait for review, none past its time; `quell break-glass list` shows them",
    )
    make_late(desk)
    (late,) = [each for each in desk.quell("doctor", "--json").document["checks"] if each["name"] == "break-glass"]
    assert late["status"] == "warn"
    assert f"{id_} (owner, tenant local)" in late["detail"]
    assert "late: was due" in desk.done("break-glass", "list")
    refused = desk.quell(*PROMOTE, "--json")
    assert refused.code == ExitCode.DENIED
    assert id_ in refused.error["message"]
    assert "quell break-glass review" in refused.error["hint"]
    assert bodies(desk, "refusal")[-1]["verb"] == "autonomy.promote"
    assert "level 2" in desk.done("autonomy", "show")
    demote = ("autonomy", "demote", "w1", "--class", "reversible", "--to", "1", "--reason", "careful")
    assert "level 1" in desk.done(*demote), "less is always possible"


def test_a_review_opens_the_way_to_promotion_again(desk: Desk) -> None:
    id_ = opened(desk)
    make_late(desk)
    assert desk.quell(*PROMOTE).code == ExitCode.DENIED
    desk.done("break-glass", "review", id_, "--review", "it was needed", env=desk.key("ivy", "auditor"))
    opened(desk)  # one that still has its time is in nobody's way
    assert "level 3" in desk.done(*PROMOTE)


def test_in_a_freeze_an_agent_acts_only_in_the_run_that_its_person_named(desk: Desk) -> None:
    (desk.at / "glass.cedar").write_text(GLASS)
    text = (desk.at / "quell.toml").read_text()
    (desk.at / "quell.toml").write_text(text.replace("[governance]\n", '[governance]\npolicies = ["glass.cedar"]\n'))
    ann = desk.key("ann", "operator", "break-glass")
    desk.done("switch", "freeze", "--to", "+1h", "--reason", "release")

    def restart(name: str) -> ToolOutcome | Parked:
        return desk.call(name, "restart", service="web")

    def is_denied(name: str) -> bool:
        ended = restart(name)
        return isinstance(ended, ToolOutcome) and ended.kind is OutcomeKind.DENIED

    assert is_denied("g1")
    opened(desk, "--run", desk.ids["run"])
    assert is_denied("g2"), "the owner's emergency is not ann's"
    desk.done(*OPEN, env=ann)
    assert is_denied("g3"), "what ann does herself is not what her agent does"
    assert f"run {desk.ids['run']} for ann" in desk.done(*OPEN, "--run", desk.ids["run"][:-3], env=ann)
    ended = restart("g4")
    assert isinstance(ended, ToolOutcome)
    assert ended.kind is OutcomeKind.OK, ended
    assert [stream for stream, event in events(desk) if event["by"] == "ann"][-1] == desk.ids["run"]


def test_a_secret_in_a_reason_is_kept_nowhere(desk: Desk) -> None:
    desk.done("break-glass", "open", "--reason", f"the password {SECRET} leaked")
    assert "the password" in desk.done("break-glass", "list")
    with sqlite3.connect(desk.at / ".quell" / "quell.db") as database:
        ((reason,),) = database.execute("SELECT reason FROM quell_break_glass").fetchall()
    database.close()
    assert reason.startswith("the password ")
    assert SECRET not in reason
    assert SECRET not in desk.done("audit", "list", "--json")
