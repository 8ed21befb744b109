"""The lab's parts that need no running shop."""

from __future__ import annotations

import ast
import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from quell.domain import Category
from quell_lab import DISTURBANCES, FAULTS, Truth, blames, claim, verdict_on
from quell_lab._plan import SERVICES, edges
from quell_lab.cli import demo, lab
from quell_lab.host import Repository
from quell_lab.kit._certificate import not_after
from quell_lab.kit._pool import Pool
from quell_lab.kit._tokens import issue, rejection
from quell_lab.shop import EDITS, SETTINGS, Edit, first_release

CERTIFICATES = Path(__file__).parents[2] / "src" / "quell_lab" / "certs"


def truth_of(category: str, kind: str, subject: str) -> Truth:
    return Truth(
        name="x",
        category=category,
        kind=kind,
        subject=subject,
        since=datetime(2026, 1, 1, tzinfo=UTC),
        seed=1,
        detail="",
    )


def case_of(*claims: tuple[str, str, str], outcome: str = "cause_found") -> dict[str, object]:
    hypotheses = [{"category": c, "subject": {"kind": k, "name": n}} for c, k, n in claims]
    return {"finding": {"outcome": outcome, **(hypotheses[0] if hypotheses else {})}, "hypotheses": hypotheses}


def test_the_catalogue_has_every_known_category_and_at_least_three_healthy_disturbances() -> None:
    known = {category.value for category in Category} - {"novel"}
    assert {fault.category for fault in FAULTS.values()} == known
    assert len(FAULTS) >= 14
    assert len(DISTURBANCES) >= 3


def test_some_services_lie_two_hops_behind_the_door_for_users() -> None:
    assert len(SERVICES) >= 6
    names = {edge.name for edge in edges()}
    assert {"users->gateway", "gateway->orders", "orders->payments", "payments->postgres"} <= names
    assert "gateway->payments" not in names


def test_a_verdict_needs_category_and_object() -> None:
    truth = truth_of("bad_flag", "flag", "bundle_prices")
    right = ("bad_flag", "flag", "bundle_prices")
    wrong = ("bad_flag", "service", "cart")
    assert verdict_on(case_of(right, wrong), truth) == "first"
    assert verdict_on(case_of(wrong, ("bad_release", "flag", "bundle_prices"), right), truth) == "top 3"
    assert verdict_on(case_of(wrong, wrong, wrong, right), truth) == "not"
    assert verdict_on({}, truth) == "not"


def test_a_right_first_hypothesis_that_the_finding_does_not_claim_is_not_first() -> None:
    truth = truth_of("bad_flag", "flag", "bundle_prices")
    case = case_of(("bad_flag", "flag", "bundle_prices"), outcome="inconclusive")
    assert verdict_on(case, truth) == "top 3"
    assert not blames(case)
    assert blames(case_of(("bad_flag", "flag", "x")))
    assert claim(None) == "nothing"


def test_a_token_is_rejected_when_a_clock_is_off() -> None:
    token = issue("user-1", secret="s", now_s=1000)
    assert rejection(token, secret="s", now_s=1003) == ""
    assert rejection(token, secret="s", now_s=1000 + 240) == "expired 180 s ago"
    assert rejection(token, secret="s", now_s=1000 - 150) == "issued 150 s in the future"
    assert rejection(token, secret="other", now_s=1000) == "signature does not match"


def test_the_end_of_a_certificate_is_read_from_it() -> None:
    assert not_after(str(CERTIFICATES / "expired.pem")) == datetime(2020, 4, 1, tzinfo=UTC)
    assert not_after(str(CERTIFICATES / "valid.pem")) == datetime(2099, 12, 31, tzinfo=UTC)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: f"{edit.service}-{edit.quality}")
def test_an_edit_applies_once_and_leaves_valid_code(edit: Edit) -> None:
    source = first_release(edit.service)
    assert source.count(edit.old) == 1
    ast.parse(source.replace(edit.old, edit.new, 1))


def test_releases_are_tagged_commits_that_can_be_checked_out(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    assert repository.main == "v1"
    edit = next(edit for edit in EDITS if edit.quality == "errors")
    bad = repository.edit(edit)
    setting = repository.set("orders", "shipments_waiting_max", 3)
    assert (bad.tag, setting.tag) == ("v2", "v3")
    first, settings = repository.check_out(edit.service, "v1", tmp_path / "first")
    second, _ = repository.check_out(edit.service, "v2", tmp_path / "second")
    assert first.read_text() == first_release(edit.service)
    assert settings == SETTINGS[edit.service]
    assert edit.new in second.read_text()
    assert repository.check_out("orders", "v3", tmp_path / "third")[1]["shipments_waiting_max"] == 3
    restored = repository.restore(edit.service)
    assert restored is not None
    assert repository.check_out(edit.service, restored.tag, tmp_path / "last")[0].read_text() == first_release(
        edit.service
    )


def test_no_word_of_the_shop_tells_that_something_is_done_on_purpose() -> None:
    source = "\n".join(first_release(name) for name in SERVICES)
    source += "\n".join(edit.new + edit.message for edit in EDITS)
    root = Path(__file__).parents[2] / "src" / "quell_lab"
    source += "\n".join(path.read_text() for path in sorted((root / "kit").glob("*.py")))
    text = source.lower().replace("default", "")
    assert [word for word in ("fault", "chaos", "inject(", "sabot", "quell lab") if word in text] == ["inject("]
    assert text.count("inject(") == text.count("propagator.inject(")


def test_an_unknown_fault_is_a_mistake_of_usage_with_a_hint(tmp_path: Path) -> None:
    answer = CliRunner().invoke(lab, ["break", "bad_flagg", "--dir", str(tmp_path)])
    assert answer.exit_code == 2
    assert "did you mean bad_flag?" in answer.output
    answer = CliRunner().invoke(demo, ["--fault", "crash_lop", "--out", str(tmp_path)])
    assert answer.exit_code == 2
    assert "did you mean crash_loop?" in answer.output


def test_without_a_running_lab_the_commands_say_so(tmp_path: Path) -> None:
    for arguments in (["status"], ["heal"], ["break", "bad_flag"]):
        answer = CliRunner().invoke(lab, [*arguments, "--dir", str(tmp_path)])
        assert answer.exit_code == 3
        assert "no lab runs" in answer.output
    down = CliRunner().invoke(lab, ["down", "--dir", str(tmp_path), "--json"])
    assert json.loads(down.output) == {"ok": True, "kind": "lab_down", "was_up": False}


def test_a_demo_leaves_a_directory_alone_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "precious").write_text("x")
    answer = CliRunner().invoke(demo, ["--fault", "bad_flag", "--seed", "1", "--out", str(tmp_path)])
    assert answer.exit_code == 3
    assert "was not made by a demo" in answer.output
    assert (tmp_path / "work" / "precious").read_text() == "x"


def test_a_call_under_way_while_its_leak_is_healed_gives_its_connection_back(postgres_url: str) -> None:
    async def story() -> None:
        leaks = [True]
        pool = Pool(postgres_url, size=1, observe_wait=lambda _s: None)
        async with pool.connection(keeps=lambda: leaks[0]):
            leaks[0] = False
            await pool.recover()
        assert pool.used == 0, "what decides is how things are at the end of the call"
        leaks[0] = True
        async with pool.connection(keeps=lambda: leaks[0]):
            pass
        assert pool.used == 1
        await pool.recover()
        assert (pool.used, pool.idle) == (0, 1)
        await pool.close()

    asyncio.run(story())
