"""Files that agents read: what their file allows, judged by where a path really leads, and never our secrets."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quell.app._file_tools import READ_MAX_BYTES, _open_below, file_hands, is_secret_name
from quell.domain import OutcomeKind, RefusedError, ToolOutcome
from tests.doors._hand_bench import Room, hand_room, outcome_of

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Make a directory that an agent may read, with secrets in it and things beside it."""
    root = tmp_path / "work" / "shop"
    (root / "src").mkdir(parents=True)
    (root / "README.md").write_text("one\ntwo\nthree\n")
    (root / "src" / "main.py").write_text("print('hello')\n")
    (root / "empty").write_text("")
    (root / "blob").write_bytes(b"\x00\x01\x02")
    (root / ".env").write_text("KEY=1\n")
    (root / "tls.key").write_text("private\n")
    (root / "passwords").symlink_to("/etc/passwd")
    (root / "mine").symlink_to(root / "src")
    (root / ".quell").mkdir()
    (root / ".quell" / "votes").write_text("ours\n")
    (tmp_path / "work" / "beside.txt").write_text("not yours\n")
    os.mkfifo(root / "pipe")
    return root


def _played(tmp_path: Path, root: Path, story: Callable[[Room], Awaitable[None]], *, allowed: tuple[str, ...]) -> None:
    async def tell() -> None:
        state = tmp_path / "state"
        state.mkdir()
        hands = file_hands(lambda _: allowed, state_dir=root / ".quell")
        async with hand_room(state, hands=hands) as room:
            await story(room)

    asyncio.run(tell())


async def _read(room: Room, path: str, **more: Any) -> ToolOutcome:
    return outcome_of(await room.call("read_file", path=path, **more))


def test_an_agent_reads_and_lists_what_its_file_allows(tmp_path: Path, shop: Path) -> None:
    async def story(room: Room) -> None:
        for path in ("README.md", "./src/../README.md", str(shop / "README.md"), "mine/../README.md"):
            found = await _read(room, path)
            assert (found.kind, found.content) == (OutcomeKind.OK, "one\ntwo\nthree\n"), path
        assert (await _read(room, "mine/main.py")).content == "print('hello')\n"
        assert (await _read(room, "empty")).kind is OutcomeKind.EMPTY
        assert (await _read(room, "blob")).kind is OutcomeKind.TOOL_ERROR
        assert (await _read(room, "README.md", start=3)).content == "three\n"
        listed = outcome_of(await room.call("list_dir", path="."))
        assert {each["name"]: each["kind"] for each in json.loads(listed.content)} == {
            "README.md": "file",
            "blob": "file",
            "empty": "file",
            "mine": "link",
            "passwords": "link",
            "pipe": "file",
            "src": "dir",
        }
        assert json.loads(outcome_of(await room.call("list_dir", path="src")).content)[0]["name"] == "main.py"

    _played(tmp_path, shop, story, allowed=(str(shop),))


@pytest.mark.parametrize(
    "path",
    [
        "../beside.txt",
        "/etc/passwd",
        "passwords",
        "passwords/../shadow",
        "../../../../../../etc/passwd",
        ".env",
        "tls.key",
        ".quell/votes",
        "src/../.quell/votes",
        "nothing",
        "src",
        "pipe",
        "/proc/self/environ",
        "README.md\x00.txt",
        "README.md/x",
        "a" * 4_000,
    ],
)
def test_nothing_else_is_read_whatever_the_path_looks_like(path: str, tmp_path: Path, shop: Path) -> None:
    async def story(room: Room) -> None:
        found = await _read(room, path)
        assert (found.kind, found.content) == (OutcomeKind.DENIED, ""), found

    _played(tmp_path, shop, story, allowed=(str(shop), "/proc"))


def test_what_is_outside_is_told_like_what_is_not_there(tmp_path: Path, shop: Path) -> None:
    async def story(room: Room) -> None:
        there, gone = await _read(room, "../beside.txt"), await _read(room, "../nowhere.txt")
        assert there.detail.replace("beside", "nowhere") == gone.detail

    _played(tmp_path, shop, story, allowed=(str(shop),))


def test_an_agent_whose_file_allows_nothing_reads_nothing(tmp_path: Path, shop: Path) -> None:
    async def story(room: Room) -> None:
        assert (await _read(room, str(shop / "README.md"))).kind is OutcomeKind.DENIED

    _played(tmp_path, shop, story, allowed=())


def test_a_large_file_comes_in_parts_that_say_how_to_go_on(tmp_path: Path, shop: Path) -> None:
    lines = [f"line {number:06d} of many, which is what it says\n" for number in range(30_000)]
    (shop / "large.log").write_text("".join(lines))
    (shop / "wide.log").write_text("x" * 50_000)

    async def story(room: Room) -> None:
        seen, start = "", 1
        for _ in range(100):
            found = await _read(room, "large.log", start=start)
            seen += found.content
            if "start=" not in found.detail:
                break
            assert (found.kind, len(found.content) <= 24_000) == (OutcomeKind.TRUNCATED, True)
            start = int(found.detail.partition("start=")[2])
        whole = "".join(lines)
        assert seen == whole[: len(seen)]
        assert len(seen) == READ_MAX_BYTES
        assert len((await _read(room, "wide.log")).content) == 24_000

    _played(tmp_path, shop, story, allowed=(str(shop),))


def test_a_link_that_is_put_there_between_two_looks_is_not_followed(shop: Path) -> None:
    outside = shop.parent / "beside.txt"
    (shop / "src" / "main.py").unlink()
    (shop / "src" / "main.py").symlink_to(outside)
    with pytest.raises(RefusedError, match="changed meanwhile"):
        _open_below(shop, ("src", "main.py"))
    (shop / "src" / "main.py").unlink()
    (shop / "src").rmdir()
    (shop / "src").symlink_to(shop.parent)
    with pytest.raises(RefusedError):
        _open_below(shop, ("src", "beside.txt"))


def test_swapping_a_directory_for_a_link_all_the_time_never_brings_what_lies_outside(
    tmp_path: Path, shop: Path
) -> None:
    inside, away = shop / "data", shop / "data.away"
    inside.mkdir()
    (inside / "beside.txt").write_text("inside\n")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            inside.rename(away)
            inside.symlink_to(shop.parent)
            inside.unlink()
            away.rename(inside)

    async def story(room: Room) -> None:
        thread = threading.Thread(target=swap)
        thread.start()
        try:
            contents = {(await _read(room, "data/beside.txt")).content for _ in range(60)}
        finally:
            over.set()
            thread.join()
        assert contents <= {"inside\n", ""}

    _played(tmp_path, shop, story, allowed=(str(shop),))


@pytest.mark.parametrize(
    "name", [".env", ".ENV", "prod.env", ".env.local", "id_rsa", "server.PEM", ".ssh", "credentials.json"]
)
def test_names_of_secrets_are_known_whatever_their_case(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["environment.md", "keys.md", "main.py", "README"])
def test_other_names_are_not_taken_for_them(name: str) -> None:
    assert not is_secret_name(name)
