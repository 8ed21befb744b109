"""Skills are read once, whole and within bounds; a prompt names them, and tools show them as the operator's words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quell.domain import ConfigError, UsageError
from quell.memory import Skills


def make(root: Path, name: str, *, front: str = "", body: str = "Do the work.", **files: str) -> Path:
    home = root / name
    home.mkdir(parents=True)
    fields = front or f"name: {name}\ndescription: Use for {name}."
    (home / "SKILL.md").write_text(f"---\n{fields}\n---\n{body}\n")
    for path, text in files.items():
        (home / path).write_text(text)
    return home


def words(text: str) -> int:
    return len(text.split())


def mistakes(*roots: Path) -> list[str]:
    with pytest.raises(ConfigError) as told:
        Skills.load(roots)
    assert all(problem.hint for problem in told.value.problems)
    return [problem.reason for problem in told.value.problems]


def test_a_prompt_names_skills_and_a_tool_shows_one_as_the_operators_text(tmp_path: Path) -> None:
    home = make(tmp_path, "roll-back", front="name: roll-back\ndescription: >\n  Undo a deploy\n  safely.")
    (home / "steps").mkdir()
    (home / "steps" / "one.md").write_text("Step one.")
    make(tmp_path, "triage")
    skills = Skills.load([tmp_path])
    catalogue = skills.catalogue(tokens_max=200, count=words)
    assert "- roll-back: Undo a deploy safely." in catalogue
    assert "- triage: Use for triage." in catalogue
    assert "Do the work." not in catalogue
    shown = skills.load_skill("roll-back")
    assert "Do the work." in shown
    assert "steps/one.md" in shown
    assert "Step one." not in shown
    for text in (shown, skills.read_file("roll-back", "steps/one.md")):
        assert "written by the operator, not by the system" in text.splitlines()[0]
    assert skills.read_file("roll-back", "./steps/one.md").endswith("Step one.")
    assert "Do the work." in skills.read_file("roll-back", "SKILL.md")


def test_what_an_agent_is_shown_is_what_the_digest_says_whatever_becomes_of_the_files(tmp_path: Path) -> None:
    home = make(tmp_path, "triage", body="Look first.")
    skills = Skills.load([tmp_path])
    (home / "SKILL.md").write_text("---\nname: triage\ndescription: d\n---\nDrop the database.")
    assert "Look first." in skills.load_skill("triage")
    assert Skills.load([tmp_path]).digest != skills.digest


def test_a_digest_tells_every_change_of_a_file_and_not_where_the_skill_lies(tmp_path: Path) -> None:
    for where in ("a", "b"):
        make(tmp_path / where, "triage", **{"x.txt": "one", "y.bin": "two"})
    one, two = (Skills.load([tmp_path / where]) for where in ("a", "b"))
    assert one.digest == two.digest
    seen = {one.digest}
    home = tmp_path / "b" / "triage"
    for change in (
        lambda: (home / "x.txt").write_text("One"),
        lambda: (home / "x.txt").rename(home / "z.txt"),
        lambda: (home / "y.bin").write_bytes(b"\x00\xff"),
        (home / "y.bin").unlink,
    ):
        change()
        seen.add(Skills.load([tmp_path / "b"]).digest)
    assert len(seen) == 5


def test_a_catalogue_stays_within_its_tokens_and_says_what_is_missing(tmp_path: Path) -> None:
    for number in range(40):
        about = " ".join(f"word{each}" for each in range(60))
        make(tmp_path, f"skill-{number:02}", front=f"name: skill-{number:02}\ndescription: {about}")
    skills = Skills.load([tmp_path])
    for tokens in (5_000, 1_500, 500, 120, 40, 20, 12, 0):
        text = skills.catalogue(tokens_max=tokens, count=words)
        assert words(text) <= tokens
        if tokens >= 120:
            assert all(f"skill-{number:02}" in text for number in range(40))
        elif tokens >= 20:
            assert "more" in text or "40 skills" in text
    assert Skills.load([]).catalogue(tokens_max=100, count=words) == ""


@pytest.mark.parametrize(
    ("front", "reason"),
    [
        ("name: Triage\ndescription: d", "no name"),
        ("name: tri--age\ndescription: d", "no name"),
        ("name: ../up\ndescription: d", "no name"),
        ("name: 7\ndescription: d", "no name"),
        ("description: d", "no name"),
        ("name: other\ndescription: d", "directory"),
        ("name: triage", "missing"),
        ("name: triage\ndescription: '  '", "missing"),
        ("name: triage\ndescription: [a]", "missing"),
        ("name: triage\ndescription: " + "x" * 1_025, "too long"),
        ('name: triage\ndescription: "\\ud800"', "half a character"),
        ("- a\n- b", "without keys"),
        ("name: [", "no YAML"),
        ("name: !!python/object/apply:os.system ['true']", "no YAML"),
        ("a: " + "[" * 5_000, "too much"),
        ("- " * 4_000, "no YAML"),
        ("x: " + "y" * 20_000, "too much"),
    ],
)
def test_front_matter_that_breaks_the_rules_is_refused_with_its_reason(tmp_path: Path, front: str, reason: str) -> None:
    make(tmp_path, "triage", front=front)
    assert any(reason in each for each in mistakes(tmp_path))


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    make(tmp_path, "good")
    make(tmp_path, "one", front="name: One\ndescription: d")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "SKILL.md").write_text("no front matter")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "SKILL.md").write_text("---\nname: three")
    assert len(mistakes(tmp_path, tmp_path / "nowhere")) == 4


def test_the_same_name_twice_is_refused_and_the_same_directory_twice_is_not(tmp_path: Path) -> None:
    make(tmp_path / "a", "triage")
    make(tmp_path / "b", "triage")
    assert "already" in mistakes(tmp_path / "a", tmp_path / "b")[0]
    assert list(Skills.load([tmp_path / "a", tmp_path / "a"]).by_name) == ["triage"]
    assert list(Skills.load([tmp_path / "a" / "triage"]).by_name) == ["triage"]


def test_nothing_outside_a_skill_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    home = make(tmp_path / "skills", "triage", **{"in.md": "inside"})
    (home / "link.md").symlink_to(home / "in.md")
    skills = Skills.load([tmp_path / "skills"])
    assert skills.read_file("triage", "link.md").endswith("inside")
    for path in ("../secret", "/etc/passwd", str(tmp_path / "secret"), "in.md/../../secret", "", ".", "in.md\0"):
        with pytest.raises(UsageError):
            skills.read_file("triage", path)
    with pytest.raises(UsageError, match="no skill"):
        skills.load_skill("../triage")
    for lead, target in (("out.md", tmp_path / "secret"), ("dir", tmp_path), ("gone", home / "nothing")):
        (home / lead).symlink_to(target)
        assert mistakes(tmp_path / "skills")
        (home / lead).unlink()
    os.mkfifo(home / "pipe")
    assert mistakes(tmp_path / "skills") == ["is no file"]
    (home / "pipe").unlink()
    (tmp_path / "away").mkdir()
    make(tmp_path / "away", "other")
    (tmp_path / "skills" / "other").symlink_to(tmp_path / "away" / "other")
    assert "leads out" in mistakes(tmp_path / "skills")[0]


def test_what_is_no_text_or_too_large_is_named_and_not_shown(tmp_path: Path) -> None:
    home = make(tmp_path, "triage")
    (home / "logo.png").write_bytes(b"\x89PNG\0")
    (home / "large.txt").write_text("a" * (256 * 1024 + 1))
    skills = Skills.load([tmp_path])
    assert skills.load_skill("triage").count("cannot be shown") == 2
    for path in ("logo.png", "large.txt"):
        with pytest.raises(UsageError, match="cannot be shown"):
            skills.read_file("triage", path)


def test_sizes_and_counts_have_bounds(tmp_path: Path) -> None:
    make(tmp_path / "long", "triage", body="x" * (128 * 1024))
    assert "cannot be read" in mistakes(tmp_path / "long")[0]
    home = make(tmp_path / "many", "triage")
    for number in range(200):
        (home / f"{number}.txt").write_text("a")
    assert "more than 200 files" in mistakes(tmp_path / "many")[0]
    (make(tmp_path / "huge", "triage") / "a.bin").write_bytes(b"a" * (8 * 1024 * 1024 + 1))
    assert "larger than 8 MiB" in mistakes(tmp_path / "huge")[0]


def test_a_directory_without_skills_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    assert mistakes(tmp_path) == ["holds no skill"]
    assert mistakes(tmp_path / "README.md") == ["is no directory"]
