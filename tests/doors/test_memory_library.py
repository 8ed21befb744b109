"""Documents are taken in, searched and forgotten; who may not see one does not see it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quell.domain import SourceError, UsageError
from quell.memory import Audience, Library, Passage, Step
from tests.conftest import FakeClock

EVERYBODY = Audience()
RUNBOOK = """---
title: Checkout
---
# Checkout

Takes orders.

## Rollback

Run the rollback pipeline of the storefront.

```sh
# not a heading
deploy --undo
```

## Capacity

The pool holds forty connections.
"""


@pytest.fixture
def library(tmp_path: Path, clock: FakeClock) -> Library:
    return Library(tmp_path / "state", clock=clock)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    made = tmp_path / "docs"
    made.mkdir()
    (made / "checkout.md").write_text(RUNBOOK)
    return made


def kinds(steps: tuple[Step, ...]) -> dict[str, str]:
    return {step.path: step.kind for step in steps}


def asked(
    library: Library, question: str, *, audience: Audience = EVERYBODY, store: str = "documents"
) -> list[Passage]:
    return list(library.search(question, store=store, audience=audience))


def test_a_passage_tells_its_source_heading_line_version_and_age(library: Library, docs: Path) -> None:
    os.utime(docs / "checkout.md", (1_700_000_000, 1_700_000_000))
    steps = library.ingest(docs, store="documents")
    assert kinds(steps) == {"checkout.md": "added"}
    found = asked(library, "how do I undo a deploy?")[0]
    assert found.source == str(docs / "checkout.md")
    assert found.heading == "Checkout > Rollback"
    assert found.line == 10
    assert "# not a heading" in found.text
    assert found.version.startswith("sha256:")
    assert found.modified_at is not None
    assert found.modified_at.timestamp() == 1_700_000_000
    assert found.score > 0
    assert "forty" not in found.text


def test_the_second_ingest_writes_what_changed_and_removes_what_vanished(library: Library, docs: Path) -> None:
    (docs / "old.txt").write_text("The ancient carousel spins.")
    library.ingest(docs, store="documents")
    before = asked(library, "rollback")[0].version
    (docs / "old.txt").unlink()
    (docs / "checkout.md").write_text(RUNBOOK.replace("pipeline", "conveyor"))
    (docs / "new.md").write_text("# Fresh\n\nA brand new lighthouse.")
    assert kinds(library.ingest(docs, store="documents")) == {
        "checkout.md": "changed",
        "new.md": "added",
        "old.txt": "removed",
    }
    assert asked(library, "carousel") == []
    assert asked(library, "pipeline") == []
    assert asked(library, "conveyor")[0].version != before
    assert set(kinds(library.ingest(docs, store="documents")).values()) == {"same"}


def test_who_lacks_the_role_or_the_tenant_never_finds_it(library: Library, tmp_path: Path) -> None:
    for name, roles, tenant in (("open", (), "local"), ("secret", ("sre", "admin"), "local"), ("other", (), "acme")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(f"# {name}\n\nThe vault code is {name}-words.")
        library.ingest(tmp_path / name, store="documents", roles=roles, tenant=tenant)

    def seen(audience: Audience) -> set[str]:
        return {passage.heading for passage in asked(library, "vault code", audience=audience)}

    assert seen(EVERYBODY) == {"open"}
    assert seen(Audience(roles=("viewer",))) == {"open"}
    assert seen(Audience(roles=("viewer", "sre"))) == {"open", "secret"}
    assert seen(Audience(tenant="acme", roles=("sre",))) == {"other"}
    assert asked(library, "vault", store="elsewhere", audience=Audience(roles=("sre",))) == []


def test_the_same_text_is_kept_once_and_each_file_keeps_its_own_permission(library: Library, tmp_path: Path) -> None:
    for name, roles in (("a", ("sre",)), ("b", ())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.md").write_text("# Shared\n\nThe turbine hums.")
        library.ingest(tmp_path / name, store="documents", roles=roles)
    both = asked(library, "turbine", audience=Audience(roles=("sre",)))
    assert [(passage.source, passage.also_in) for passage in both] == [(str(tmp_path / "a" / "same.md"), 1)]
    only = asked(library, "turbine")
    assert [(passage.source, passage.also_in) for passage in only] == [(str(tmp_path / "b" / "same.md"), 0)]
    library.forget(tmp_path / "b")
    assert asked(library, "turbine") == []
    assert len(asked(library, "turbine", audience=Audience(roles=("sre",)))) == 1


def test_a_permission_that_changes_counts_from_the_next_ingest_on(library: Library, docs: Path) -> None:
    library.ingest(docs, store="documents")
    assert asked(library, "rollback")
    assert kinds(library.ingest(docs, store="documents", roles=("sre",))) == {"checkout.md": "changed"}
    assert asked(library, "rollback") == []
    assert asked(library, "rollback", audience=Audience(roles=("sre",)))
    assert library.sources()[0].roles == ("sre",)
    assert library.sources(audience=EVERYBODY) == ()
    assert len(library.sources(audience=Audience(roles=("sre",)))) == 1


@pytest.mark.timeout(60)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=st.one_of(
        st.text(max_size=200),
        st.sampled_from(
            [
                '"',
                "NEAR(",
                "a NEAR/2 b",
                "heading:x",
                "*",
                "-a",
                "^a",
                "a AND",
                "(",
                "NOT",
                "_",
                "'; DROP TABLE piece",
                "{heading text}:x",
                "\0",
                "a" * 10_000,
                "w " * 5_000,
                "\ud800",
                "🙂",
                "a+b",
                'col : "x',
            ]
        ),
    )
)
def test_no_question_is_a_mistake(tmp_path_factory: pytest.TempPathFactory, question: str) -> None:
    library = shared_library(tmp_path_factory)
    for passage in library.search(question, store="documents", audience=EVERYBODY):
        assert passage.text


_SHARED: list[Library] = []


def shared_library(factory: pytest.TempPathFactory) -> Library:
    if not _SHARED:
        at = factory.mktemp("library")
        (at / "docs").mkdir()
        (at / "docs" / "a.md").write_text(RUNBOOK)
        made = Library(at / "state", clock=FakeClock())
        made.ingest(at / "docs", store="documents")
        _SHARED.append(made)
    return _SHARED[0]


def test_words_of_the_query_language_are_searched_as_words(library: Library, docs: Path) -> None:
    (docs / "near.txt").write_text("The lighthouse is near the harbour.")
    library.ingest(docs, store="documents")
    assert [Path(each.source).name for each in asked(library, 'NEAR("harbour" x)')] == ["near.txt"]


def test_a_page_is_read_without_its_tags_scripts_and_comments(library: Library, docs: Path) -> None:
    (docs / "page.html").write_text(
        "<html><head><title>t</title></head><body><h1>Payments</h1><script>alert('evilscript')</script>"
        "<h2>Re&amp;tries</h2><p>Wait <b>nine</b> seconds.<!-- hiddenword --></p><style>.a{color:red}</style></body></html>"
    )
    library.ingest(docs, store="documents")
    found = asked(library, "wait nine seconds")[0]
    assert found.heading == "Payments > Re&tries"
    assert found.text == "Wait nine seconds."
    assert asked(library, "evilscript") == asked(library, "hiddenword") == asked(library, "color") == []


BEGINNINGS = (
    "<",
    "<a ",
    "<!--",
    "<!",
    "<?",
    "&#",
    "</",
    "<script>",
    "<SVG>",
    "<a b='",
    '<a b="',
    "<p>",
    "<h1>x",
    "<pre>",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", BEGINNINGS)
def test_a_broken_page_is_read_in_one_pass_and_nothing_after_it_is_lost(
    library: Library, docs: Path, unit: str
) -> None:
    (docs / "broken.html").write_text("<p>lighthouse</p>" + unit * (200_000 // len(unit)) + "<p>and the harbour</p>")
    (docs / "open.html").write_text("<html><head><title>T</title><body><SCRIPT>no</Script ><p a='>'>pier &lt; quay")
    library.ingest(docs, store="documents")
    assert asked(library, "lighthouse")
    assert asked(library, "harbour")
    assert asked(library, "pier")[0].text == "pier < quay"


def test_a_long_section_is_cut_into_pieces_that_overlap_and_lose_nothing(library: Library, docs: Path) -> None:
    lines = [f"Line number {number} tells about widget{number}." for number in range(400)]
    (docs / "long.md").write_text("# Widgets\n\n" + "\n".join(lines) + "\n\n" + "x" * 9_000)
    steps = {step.path: step for step in library.ingest(docs, store="documents")}
    assert steps["long.md"].pieces > 10
    for number in range(0, 400, 7):
        found = asked(library, f"widget{number}")
        assert found, number
        assert all(len(passage.text) <= 2_000 for passage in found)
        assert f"widget{number}." in found[0].text
    held = [passage for number in range(0, 400, 3) for passage in asked(library, f"widget{number}")]
    assert len({passage.line for passage in held}) > 10
    assert any(len(asked(library, f"widget{number}")) > 1 for number in range(400)), "pieces overlap"


def test_what_is_no_document_is_left_out_and_named(library: Library, docs: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.md").write_text("# Outside\n\nThe smuggled word.")
    (docs / "out.md").symlink_to(tmp_path / "outside.md")
    (docs / "loop.md").symlink_to(docs / "loop.md")
    (docs / "in.md").symlink_to(docs / "checkout.md")
    (docs / "up").symlink_to(tmp_path)
    (docs / "latin.txt").write_bytes("größe".encode("latin-1"))
    (docs / "nul.txt").write_bytes(b"a\0b")
    (docs / "big.txt").write_bytes(b"a" * (4 * 1024 * 1024 + 1))
    (docs / "picture.png").write_bytes(b"\x89PNG")
    (docs / ".hidden.md").write_text("hidden")
    os.mkfifo(docs / "pipe.md")
    steps = kinds(library.ingest(docs, store="documents"))
    assert {path for path, kind in steps.items() if kind == "added"} == {"checkout.md", "in.md"}
    assert {path for path, kind in steps.items() if kind == "skipped"} == {
        "out.md", "latin.txt", "nul.txt", "big.txt", "picture.png",
    }  # fmt: skip
    assert {path for path, kind in steps.items() if kind == "failed"} == {"loop.md", "pipe.md"}
    assert asked(library, "smuggled") == []


def test_what_cannot_be_read_now_stays_and_a_directory_that_is_gone_empties_nothing(
    library: Library, docs: Path
) -> None:
    library.ingest(docs, store="documents")
    (docs / "checkout.md").unlink()
    (docs / "checkout.md").symlink_to(docs / "checkout.md")
    assert kinds(library.ingest(docs, store="documents")) == {"checkout.md": "failed"}
    assert asked(library, "rollback")
    docs.rename(docs.with_name("moved"))
    with pytest.raises(UsageError, match="no directory"):
        library.ingest(docs, store="documents")
    assert asked(library, "rollback")


def test_forgetting_names_what_is_gone_and_touches_nothing_else(library: Library, docs: Path) -> None:
    (docs / "sub").mkdir()
    (docs / "sub" / "b.md").write_text("# B\n\nThe zeppelin.")
    library.ingest(docs, store="documents")
    assert library.forget(docs / "sub") == (str(docs / "sub" / "b.md"),)
    assert asked(library, "zeppelin") == []
    assert asked(library, "rollback")
    assert library.forget(docs / "su") == ()
    assert (docs / "sub" / "b.md").exists()


def test_a_killed_ingest_leaves_whole_files_and_the_next_one_goes_on(tmp_path: Path, clock: FakeClock) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(30):
        (docs / f"{number:02}.md").write_text(f"# Page{number}\n\nalpha{number}\n\n## Second\n\nomega{number}")
    code = textwrap.dedent(
        """
        import os, signal, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from quell.memory import Library
        done = 0
        def hear(step):
            global done
            done += 1
            if done == 11:
                os.kill(os.getpid(), signal.SIGKILL)
        Library(Path(sys.argv[1]), clock=lambda: datetime(2026, 11, 20, tzinfo=UTC)).ingest(
            Path(sys.argv[2]), store="documents", hear=hear)
        """
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "state"), str(docs)], check=False)
    assert ended.returncode == -signal.SIGKILL
    library = Library(tmp_path / "state", clock=clock)
    assert len(library.sources()) == 11
    for number in range(11):
        assert asked(library, f"alpha{number}")
        assert asked(library, f"omega{number}")
    steps = kinds(library.ingest(docs, store="documents"))
    assert list(steps.values()).count("same") == 11
    assert list(steps.values()).count("added") == 19
    raw = sqlite3.connect(tmp_path / "state" / "library.sqlite")
    try:
        raw.execute("INSERT INTO piece_text(piece_text) VALUES ('integrity-check')")
    finally:
        raw.close()


def test_the_file_is_private_and_a_damaged_or_later_one_is_told_with_what_to_do(
    library: Library, docs: Path, tmp_path: Path
) -> None:
    library.ingest(docs, store="documents")
    file = tmp_path / "state" / "library.sqlite"
    assert file.stat().st_mode & 0o077 == 0
    raw = sqlite3.connect(file)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(SourceError, match="version 99") as later:
        asked(library, "rollback")
    assert "update" in later.value.hint
    for each in file.parent.glob("library.sqlite*"):
        each.write_bytes(b"no database at all" * 100)
    with pytest.raises(SourceError, match="library") as damaged:
        asked(library, "rollback")
    assert "ingest" in damaged.value.hint


@pytest.mark.parametrize(("store", "roles"), [("", ()), ("a b", ()), ("a/b", ()), ("x" * 41, ()), ("ok", ("",))])
def test_names_that_are_none_are_refused(library: Library, docs: Path, store: str, roles: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        library.ingest(docs, store=store, roles=roles)


def test_a_store_without_documents_answers_with_nothing(library: Library, docs: Path) -> None:
    assert asked(library, "anything") == []
    assert library.sources() == ()
    assert library.forget(docs) == ()
