"""Generated documents are new; decisions are dated."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from quell.cli._root import root

ROOT = Path(__file__).parents[2]


def test_generated_documents_are_what_the_code_says() -> None:
    told = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr


def test_every_decision_record_has_a_date_and_says_why() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert records
    for record in records:
        assert re.match(r"\d{4}-\d{2}-\d{2}-[a-z0-9-]+\.md$", record.name), record.name
        assert len(record.read_text().split()) > 40, f"{record.name} says too little"


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)


PAGES = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "decisions")]


def test_every_command_that_a_document_names_exists() -> None:
    at = click.Context(root, info_name="quell")
    wrong = []
    for page in PAGES:
        for line in re.findall(r"`(?:\.venv/bin/)?quell ([a-z][^`]*)`", page.read_text()):
            noun, *words = line.split()
            command = root.get_command(at, noun)
            verbs = re.split(r"\|", words[0]) if isinstance(command, click.Group) and words else []
            if command is None or any(command.get_command(at, verb) is None for verb in verbs):  # type: ignore[attr-defined]  # a group, by its verbs
                wrong.append(f"{page.relative_to(ROOT)}: quell {line}")
    assert not wrong, "\n".join(wrong)


def test_every_target_of_make_and_option_of_pytest_that_a_document_names_exists(request: pytest.FixtureRequest) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"`make ([a-z]+)", text)) <= targets, page
        for option in re.findall(r"`--([a-z-]+)=N` repeats", text):
            assert request.config.getoption(option.replace("-", "_")) is not None
    assert "`--randomly-seed=N` repeats" in (ROOT / "CONTRIBUTING.md").read_text()
