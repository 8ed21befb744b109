"""The scratchpad as a store: whose a result is, how long it stays, and what happens when things go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quell.domain import (
    BoundExceededError,
    OutcomeKind,
    OverloadError,
    PadOwner,
    RefusedError,
    ScratchpadLimits,
    Spilled,
)
from quell.tools import Scratchpad
from tests.conftest import FakeClock

ME = PadOwner(tenant="t1", session="s1")
OTHER = PadOwner(tenant="t1", session="s2")


def opened(root: Path, clock: FakeClock, **limits: int) -> Scratchpad:
    return Scratchpad(
        root / "state" / "pad", clock=clock, entropy=random.Random(3).randbytes, limits=ScratchpadLimits(**limits)
    )


@pytest.fixture
def pad(tmp_path: Path, clock: FakeClock) -> Iterator[Scratchpad]:
    made = opened(tmp_path, clock)
    yield made
    made.close()


def put(pad: Scratchpad, content: str | bytes, *, owner: PadOwner = ME) -> Spilled:
    return asyncio.run(pad.put(owner, content))


def kind_of_read(pad: Scratchpad, handle: str, *, owner: PadOwner = ME) -> OutcomeKind:
    return asyncio.run(pad.readers["head"](owner, {"handle": handle})).kind


def test_directories_are_ours_alone_and_so_are_files(pad: Scratchpad, tmp_path: Path) -> None:
    put(pad, "x" * 50_000)
    found = list((tmp_path / "state" / "pad").rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [*found, tmp_path / "state" / "pad"] if path.is_dir()} == {
        0o700
    }
    assert len(found) == 2


def test_a_result_survives_a_restart_byte_for_byte(tmp_path: Path, clock: FakeClock) -> None:
    first = opened(tmp_path, clock)
    text = "first line\n" + "ä\u2028\x00x\n" * 100
    handle = put(first, text).handle
    first.close()
    second = opened(tmp_path, clock)
    reading = asyncio.run(second.readers["read"](ME, {"handle": handle}))
    assert (reading.kind, reading.content) == (OutcomeKind.OK, text)
    second.close()


def test_what_stands_under_its_name_was_whole_before_it_got_it(pad: Scratchpad, tmp_path: Path) -> None:
    """A writer that is killed leaves no name, only a part that is tidied away."""
    code = (
        "import os, sys; from pathlib import Path; from datetime import datetime, UTC; import asyncio;"
        "from quell.tools import Scratchpad; from quell.domain import PadOwner;"
        "os.rename = lambda *a, **k: os._exit(9);"
        "pad = Scratchpad(Path(sys.argv[1]), clock=lambda: datetime(2020, 1, 1, tzinfo=UTC), entropy=os.urandom);"
        "asyncio.run(pad.put(PadOwner(session='s1', tenant='t1'), 'torn' * 9999))"
    )
    root = tmp_path / "state" / "pad"
    died = subprocess.run([sys.executable, "-c", code, str(root)], check=False, timeout=60)
    assert died.returncode == 9
    parts = [path.name for path in root.rglob("*.part")]
    assert len(parts) == 1
    assert kind_of_read(pad, f"pad_{hashlib.sha256(b'torn' * 9999).hexdigest()[:32]}") is OutcomeKind.DENIED
    asyncio.run(pad.sweep())
    assert not list(root.rglob("*.part"))


def test_another_session_is_told_the_same_as_of_a_handle_that_never_was(pad: Scratchpad) -> None:
    handle = put(pad, "mine").handle
    never = "pad_" + "0" * 32
    answers = [
        asyncio.run(pad.readers["read"](OTHER, {"handle": asked})).detail.replace(asked, "HANDLE")
        for asked in (handle, never)
    ]
    assert answers[0] == answers[1]
    assert kind_of_read(pad, handle, owner=OTHER) is OutcomeKind.DENIED
    assert kind_of_read(pad, handle, owner=PadOwner(tenant="t2", session="s1")) is OutcomeKind.DENIED


def test_a_wrong_handle_is_answered_with_those_that_exist(pad: Scratchpad) -> None:
    handle = put(pad, "mine").handle
    reading = asyncio.run(pad.readers["read"](ME, {"handle": "pad_1"}))
    assert handle in reading.detail


def test_the_same_content_has_the_same_handle_and_lies_there_once(pad: Scratchpad, tmp_path: Path) -> None:
    assert put(pad, "same" * 9_000) == put(pad, "same" * 9_000)
    assert len(list((tmp_path / "state" / "pad").rglob("*.text"))) == 1


def test_digest_and_size_are_those_of_the_result_as_it_came(pad: Scratchpad) -> None:
    content = '{"a": 1.50, "b": [1,2]}'
    spilled = put(pad, content)
    assert (spilled.digest, spilled.size_bytes) == (hashlib.sha256(content.encode()).hexdigest(), len(content))
    assert spilled.form == "json"


def test_results_go_when_they_are_too_old_and_stay_when_they_came_again(tmp_path: Path, clock: FakeClock) -> None:
    pad = opened(tmp_path, clock, keep_s=100)
    old, again = put(pad, "old").handle, put(pad, "again").handle
    clock.forward(seconds=80)
    put(pad, "again")
    clock.forward(seconds=30)
    assert asyncio.run(pad.sweep()) == 1
    assert kind_of_read(pad, old) is OutcomeKind.DENIED
    assert kind_of_read(pad, again) is OutcomeKind.OK
    pad.close()


def test_the_oldest_of_a_session_make_room_and_other_sessions_do_not(tmp_path: Path, clock: FakeClock) -> None:
    pad = opened(tmp_path, clock, session_max_bytes=10_000, total_max_bytes=30_000)
    theirs = put(pad, "theirs", owner=OTHER).handle
    handles = []
    for number in range(6):
        clock.forward(seconds=1)
        handles.append(put(pad, f"t{number}" * 2_000).handle)
    kinds = [kind_of_read(pad, handle) for handle in handles]
    assert kinds == [OutcomeKind.DENIED] * 4 + [OutcomeKind.OK] * 2
    assert kind_of_read(pad, theirs, owner=OTHER) is OutcomeKind.OK
    pad.close()


def test_all_results_together_stay_within_the_total(tmp_path: Path, clock: FakeClock) -> None:
    pad = opened(tmp_path, clock, session_max_bytes=10_000, total_max_bytes=20_000)
    for number in range(12):
        clock.forward(seconds=1)
        put(pad, f"t{number:03d}" * 1_000, owner=PadOwner(session=f"s{number}"))
        kept = sum(path.stat().st_size for path in (tmp_path / "state" / "pad").rglob("*.text"))
        assert kept <= 20_000
    assert kept == 20_000
    pad.close()


def test_putting_the_same_again_and_again_costs_no_room(tmp_path: Path, clock: FakeClock) -> None:
    pad = opened(tmp_path, clock, session_max_bytes=10_000, total_max_bytes=10_000)
    first = put(pad, "a" * 4_000).handle
    for _ in range(10):
        clock.forward(seconds=1)
        put(pad, "b" * 4_000)
    assert kind_of_read(pad, first) is OutcomeKind.OK
    pad.close()


def test_a_result_that_comes_again_can_be_read_all_the_time(pad: Scratchpad) -> None:
    async def story() -> None:
        handle = (await pad.put(ME, "same" * 9_000)).handle
        puts = [asyncio.create_task(pad.put(ME, "same" * 9_000)) for _ in range(5)]
        while not all(task.done() for task in puts):
            assert (await pad.readers["head"](ME, {"handle": handle})).kind is OutcomeKind.OK

    asyncio.run(story())


def test_a_session_that_is_forgotten_leaves_nothing(pad: Scratchpad, tmp_path: Path) -> None:
    put(pad, "one")
    put(pad, "two")
    theirs = put(pad, "three", owner=OTHER).handle
    assert asyncio.run(pad.forget(ME)) == 2
    assert kind_of_read(pad, theirs, owner=OTHER) is OutcomeKind.OK


def test_a_result_that_is_too_large_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    pad = opened(tmp_path, clock, result_max_bytes=1_000)
    with pytest.raises(BoundExceededError, match="1,001 bytes"):
        put(pad, "x" * 1_001)
    pad.close()


def test_a_disk_that_takes_no_more_is_said_and_leaves_no_part(pad: Scratchpad, tmp_path: Path) -> None:
    kept = put(pad, "kept").handle
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        with pytest.raises(OverloadError, match="cannot be written"):
            put(pad, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "state" / "pad").rglob("*.part"))
    assert kind_of_read(pad, kept) is OutcomeKind.OK


@pytest.mark.parametrize("trap", ["link", "file", "open to others"])
def test_a_root_that_is_not_ours_is_refused(tmp_path: Path, clock: FakeClock, trap: str) -> None:
    root = tmp_path / "state" / "pad"
    root.parent.mkdir()
    away = tmp_path / "away"
    away.mkdir(mode=0o700)
    if trap == "link":
        root.symlink_to(away)
    elif trap == "file":
        root.write_text("x")
    else:
        root.mkdir()
        root.chmod(0o755)
    with pytest.raises(RefusedError, match="not entered"):
        opened(tmp_path, clock)


def test_renaming_the_root_away_while_it_is_open_changes_nothing(pad: Scratchpad, tmp_path: Path) -> None:
    handle = put(pad, "mine").handle
    away = tmp_path / "away"
    away.mkdir(mode=0o700)
    (tmp_path / "state" / "pad").rename(tmp_path / "moved")
    (tmp_path / "state" / "pad").symlink_to(away)
    put(pad, "more")
    assert kind_of_read(pad, handle) is OutcomeKind.OK
    assert not list(away.iterdir())


def test_two_sessions_write_and_read_at_the_same_time_and_nothing_is_left_open(pad: Scratchpad) -> None:
    async def story() -> None:
        owners = [PadOwner(session=f"s{number}") for number in range(4)]
        contents = [json.dumps({"n": number, "x": "y" * 9_000}) for number in range(10)]
        spilled = await asyncio.gather(*(pad.put(owner, content) for owner in owners for content in contents))
        readings = await asyncio.gather(
            *(
                pad.readers["get_in"](owner, {"handle": spilled[which * 10 + number].handle, "path": "n"})
                for which, owner in enumerate(owners)
                for number in range(10)
            )
        )
        assert [reading.content for reading in readings] == [str(number) for _ in owners for number in range(10)]

    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(story())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_was_damaged_is_said_to_be(pad: Scratchpad, tmp_path: Path) -> None:
    handle = put(pad, '{"a": [1, {"b": 2}]}').handle
    (path,) = (tmp_path / "state" / "pad").rglob("*.json")
    for broken in (b"{", b'{\n "a": [\n  1', b"{\n a: 1\n}", b'{\n "a": [\n  1,\n  {\n'):
        path.write_bytes(broken)
        reading = asyncio.run(pad.readers["get_in"](ME, {"handle": handle, "path": "a.1"}))
        assert reading.kind is OutcomeKind.TOOL_ERROR, broken
        assert "damaged" in reading.detail, broken
