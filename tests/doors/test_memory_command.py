"""`quell memory` on a real state directory: what it takes in, shows and forgets, for whom, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doors._cli_bench import Desk

pytestmark = pytest.mark.timeout(60)  # each command opens and closes a journal


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "quell.toml").write_text("[identity]\napi_keys = true\n")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "restart.md").write_text("# Restart\n\nDrain the turbine first.")
    (docs / "logo.png").write_bytes(b"\x89PNG")
    return Desk(at=tmp_path)


def test_documents_are_taken_in_listed_searched_and_forgotten(desk: Desk) -> None:
    told = desk.quell("memory", "ingest", "docs")
    assert told.code == 0, told
    assert "added    restart.md  1 piece" in told.out
    assert "1 added, 1 skipped" in told.err
    assert "not a kind of text" in told.out
    assert "restart.md" not in desk.done("memory", "ingest", "docs")
    listed = desk.done("memory", "list")
    assert str(desk.at / "docs" / "restart.md") in listed
    assert "everybody" in listed
    found = desk.done("memory", "search", "drain", "turbine")
    assert f"{desk.at / 'docs' / 'restart.md'}:3" in found
    assert "Drain the turbine first." in found
    assert desk.quell("memory", "search", "zeppelin").code == 1
    assert "restart.md" in desk.done("memory", "forget", "docs")
    assert desk.done("memory", "list") == ""
    assert desk.quell("memory", "forget", "docs").code == 2


def test_every_verb_speaks_json(desk: Desk) -> None:
    ingested = desk.quell(
        "memory", "ingest", "docs", "--store", "kb", "--roles", "operator, auditor", "--json"
    ).document
    assert ingested["ok"] is True
    assert ingested["counts"] == {"added": 1, "skipped": 1}
    (source,) = desk.quell("memory", "list", "--json").document["sources"]
    assert (source["store"], source["roles"], source["pieces"]) == ("kb", ["auditor", "operator"], 1)
    (passage,) = desk.quell("memory", "search", "turbine", "--store", "kb", "--json").document["passages"]
    assert passage["text"] == "Drain the turbine first."
    assert passage["heading"] == "Restart"
    assert desk.quell("memory", "search", "turbine", "--json").document["passages"] == []
    assert desk.quell("memory", "forget", "docs/restart.md", "--json").document["sources"] == [
        str(desk.at / "docs" / "restart.md")
    ]


def test_who_may_not_see_a_document_is_not_told_of_it_and_who_may_not_teach_is_refused(desk: Desk) -> None:
    desk.done("memory", "ingest", "docs", "--roles", "operator")
    viewer = desk.key("vic", "viewer")
    assert desk.quell("memory", "list", env=viewer).out == ""
    assert desk.quell("memory", "search", "turbine", env=viewer).code == 1
    assert "turbine" in desk.done("memory", "search", "turbine", env=desk.key("olga", "operator"))
    for words in (("ingest", "docs"), ("forget", "docs")):
        assert desk.quell("memory", *words, env=viewer).code == 4
    audit = desk.done("audit", "list", "--json")
    assert "memory.ingest" in audit
    assert len(json.loads(desk.done("memory", "list", "--json"))["sources"]) == 1


def test_a_command_that_cannot_do_its_work_says_so_by_its_exit_code(desk: Desk) -> None:
    assert desk.quell("memory", "ingest", "nowhere").code == 2
    assert desk.quell("memory", "ingest", "docs", "--store", "a b").code == 2
    (desk.at / "docs" / "loop.md").symlink_to("loop.md")
    told = desk.quell("memory", "ingest", "docs", "--json")
    assert told.code == 1
    assert told.document["ok"] is False
    assert told.document["counts"]["failed"] == 1
