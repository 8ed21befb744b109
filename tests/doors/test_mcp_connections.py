"""Connections to tool servers: made when wanted, lost with a typed error, made again, and closed whatever the server does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from quell.domain import ConfigError, OutcomeKind, ServerUnavailable, ToolServer, UsageError
from quell.tools import Servers
from tests._mcp_bench import ERAS, NOON, ROGUE, Era, bad, call, client, http_server, is_alive, piped_server, play, until
from tests._mcp_rogue import Rogue, rogue

K = OutcomeKind


def test_nothing_is_connected_before_it_is_wanted_and_both_protocols_are_spoken() -> None:
    async def story() -> None:
        async with bad("modern") as (new, servers), bad("legacy") as (old, others):
            assert [status.state for status in servers.status()] == ["idle"]
            assert new.handshakes == old.handshakes == 0
            await call(servers, "echo")
            await call(others, "echo")
            assert servers.status()[0].protocol == "2026-07-28"
            assert others.status()[0].protocol == "2025-11-25"
            assert servers.status()[0].state == "connected"
            assert servers.status()[0].tools == len(new.tools)

    play(story)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.timeout(20)
def test_a_server_that_went_away_and_came_back_is_used_again_without_anybody_doing_anything(era: Era) -> None:
    async def story() -> None:
        moved = [1000.0]
        async with rogue(era) as server, client(http_server(server.url), monotonic=lambda: moved[0]) as servers:
            pins = {offer.original: offer.digest for offer in await servers.offers("bad")}
            waiting = asyncio.create_task(servers.call("bad", "hang", {}, digest=pins["hang"]))
            await until(lambda: bool(server.calls))
            await server.stop()
            with pytest.raises(ServerUnavailable) as lost:
                await waiting
            assert lost.value.was_sent
            for _ in range(3):
                with pytest.raises(ServerUnavailable) as away:
                    await servers.call("bad", "echo", {"n": 1}, digest=pins["echo"])
                assert not away.value.was_sent, "nothing of it can have arrived"
            await server.start()
            moved[0] += 60
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                try:
                    answer = await servers.call("bad", "echo", {"n": 1}, digest=pins["echo"])
                    break
                except ServerUnavailable:
                    moved[0] += 60
            assert answer.kind is K.OK

    play(story)


def test_attempts_to_connect_are_spaced_further_and_further_and_callers_in_between_are_not_kept_waiting() -> None:
    async def story() -> None:
        at = [1000.0]
        async with rogue() as gone:
            url = gone.url
        async with client(http_server(url), monotonic=lambda: at[0], entropy=lambda n: bytes([255]) * n) as servers:
            waits = []
            for _ in range(9):
                with pytest.raises(ServerUnavailable):
                    await servers.offers("bad")  # tries
                with pytest.raises(ServerUnavailable) as told:
                    await servers.offers("bad")  # is told when to try again
                waits.append(told.value.retry_after_s)
                at[0] += told.value.retry_after_s + 0.01
            assert [round(wait, 1) for wait in waits] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 29.9, 29.9, 29.9]

    play(story)


def test_a_session_that_an_old_server_forgot_is_a_typed_loss_and_a_new_one_is_made() -> None:
    async def story() -> None:
        async with bad("legacy") as (server, servers):
            pins = {offer.original: offer.digest for offer in await servers.offers("bad")}
            server._sessions.clear()
            with pytest.raises(ServerUnavailable):
                await servers.call("bad", "echo", {"n": 1}, digest=pins["echo"])
            assert (await servers.call("bad", "echo", {"n": 1}, digest=pins["echo"])).kind is K.OK
            assert server.handshakes == 2

    play(story)


def test_closing_waits_for_no_server_and_ends_calls_in_flight_with_a_typed_error() -> None:
    async def story() -> None:
        async with rogue() as server:
            servers = Servers([http_server(server.url)], clock=lambda: NOON)
            pins = {offer.original: offer.digest for offer in await servers.offers("bad")}
            waiting = asyncio.create_task(servers.call("bad", "hang", {}, digest=pins["hang"], timeout_s=3))
            await until(lambda: bool(server.calls))
            await asyncio.wait_for(servers.close(), 4)
            with pytest.raises(ServerUnavailable):
                await waiting
            with pytest.raises(ServerUnavailable):
                await servers.offers("bad")

    play(story)


def test_a_server_that_never_finishes_the_handshake_is_given_up_in_time() -> None:
    async def story() -> None:
        async with rogue() as server:
            server.discover_hangs = True
            async with client(http_server(server.url, connect_timeout_s=0.3)) as servers:
                with pytest.raises(ServerUnavailable) as told:
                    await servers.offers("bad")
                assert not told.value.was_sent
                assert servers.status()[0].state in {"failed", "connecting"}

    play(story)


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("/elsewhere?token=hush", "/elsewhere, which is not followed; write that address"),
        ("http://x:port/", "what is no address"),
    ],
)
def test_a_server_that_moved_is_not_followed_and_its_new_address_is_told(to: str, told: str) -> None:
    async def story() -> None:
        async with bad() as (server, servers):
            server.moved_to = to
            with pytest.raises(ServerUnavailable) as caught:
                await servers.offers("bad")
            assert told in str(caught.value)
            assert "hush" not in str(caught.value)
            assert server.handshakes == 0

    play(story)


def test_a_program_that_dies_in_a_call_is_told_of_with_its_last_words_and_started_again() -> None:
    async def story() -> None:
        async with client(piped_server()) as servers:
            first = json.loads((await call(servers, "echo")).content)["pid"]
            with pytest.raises(ServerUnavailable, match="exit code 3") as lost:
                await call(servers, "die")
            assert lost.value.was_sent
            assert "Segmentation fault, sort of" in str(lost.value)
            second = json.loads((await call(servers, "echo")).content)["pid"]
            assert second != first
            assert not is_alive(first)

    play(story)


@pytest.mark.parametrize(
    ("wall", "hint"),
    [((), "check mcp.servers.bad.cmd"), (("env",), "it runs confined and begins in /: what it may read")],
    ids=["free", "confined"],
)
def test_a_program_that_cannot_start_is_told_of_by_its_error_and_where_to_let_it_read(
    wall: tuple[str, ...], hint: str
) -> None:
    trace = (
        "loader:1210\n  throw err;\n  ^\n\nError: Cannot find module 'x.js'\n"
        + "    at f (l:1)\n" * 9
        + "{\n}\n\nNode v20\n"
    )
    code = f"import sys; sys.stderr.write({trace!r}); sys.exit(1)"

    async def story() -> None:
        server = ToolServer(name="bad", transport="stdio", command=sys.executable, args=("-c", code))
        async with Servers(
            [server], clock=lambda: NOON, prepare=lambda one: (*wall, one.command, *one.args)
        ) as servers:
            with pytest.raises(ServerUnavailable) as told:
                await servers.offers("bad")
            assert "Error: Cannot find module 'x.js'" in str(told.value)
            assert "exit code 1" in str(told.value)
            assert hint in told.value.hint

    play(story)


def test_every_misdeed_over_pipes_has_its_own_kind_of_outcome() -> None:
    async def story() -> None:
        async with client(piped_server("chatty")) as servers:
            pids = set()
            kinds = {"huge": K.TRUNCATED, "lie": K.SUSPICIOUS, "torn": K.SUSPICIOUS, "failed": K.TOOL_ERROR}
            for tool, kind in kinds.items():
                assert (await call(servers, tool)).kind is kind
                pids.add(json.loads((await call(servers, "echo")).content)["pid"])
            assert len(pids) == 1, "none of it cost the connection"

    play(story)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("over", ["pipes", "http"])
def test_a_server_that_asks_without_end_is_given_up_and_the_next_call_is_as_any(over: str) -> None:
    async def story() -> None:
        async with (
            rogue("legacy") as server,
            client(piped_server() if over == "pipes" else http_server(server.url)) as us,
        ):
            with pytest.raises(ServerUnavailable, match="asks more than 64 things at once"):
                await call(us, "asks")
            assert (await call(us, "echo")).kind is K.OK

    play(story)


@pytest.mark.timeout(20)
def test_a_server_that_talks_without_end_leaves_others_their_turn() -> None:
    async def story() -> None:
        turns = 0
        heard: Counter[int] = Counter()

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with client(piped_server()) as servers:
            await servers.offers("bad")
            other = asyncio.create_task(take_turns())
            await call(servers, "flood", on_progress=lambda _: heard.update([turns]))
            other.cancel()
            await asyncio.wait({other})
        assert heard.total() == 900
        assert max(heard.values()) <= 64, "so many of them between two turns of another"

    play(story)


def test_an_answer_too_long_for_a_stream_of_events_fails_its_own_call_alone() -> None:
    async def story() -> None:
        async with rogue("old") as server, client(http_server(server.url, transport="sse")) as servers:
            await servers.offers("bad")
            huge, *others = await asyncio.gather(*(call(servers, tool) for tool in ("huge", "echo", "structured")))
            assert huge.kind is K.TRUNCATED
            assert "an event of this server carries 1048576" in huge.detail
            assert {one.kind for one in others} == {K.OK}
            assert (await call(servers, "echo")).kind is K.OK
            assert server.handshakes == 1, "none of it cost the connection"

    play(story)


def test_a_stream_that_ends_at_once_is_opened_again_at_leisure() -> None:
    async def story() -> None:
        async with bad("legacy") as (server, servers):
            server.ends_streams = True
            began_s = time.monotonic()
            await call(servers, "echo")
            await asyncio.sleep(0.4)
            assert 1 <= server.gets <= 2 + time.monotonic() - began_s

    play(story)


@pytest.mark.timeout(20)
def test_a_deaf_program_is_killed_when_it_hangs_and_the_close_is_bounded() -> None:
    async def story() -> None:
        servers = Servers([piped_server("deaf")], clock=lambda: NOON)
        pid = json.loads((await call(servers, "echo")).content)["pid"]
        assert (await call(servers, "hang", timeout_s=0.1)).kind is K.TIMEOUT
        assert (await call(servers, "echo", timeout_s=0.1)).kind is K.TIMEOUT, "a program that hangs answers nobody"
        await asyncio.wait_for(servers.close(), 8)
        await until(lambda: not is_alive(pid))

    play(story)


def _orphan_of(pid: int) -> int:
    """Return the grandchild that the program of that id has."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in children if b"setsid" in Path(f"/proc/{child}/cmdline").read_bytes())


@pytest.mark.timeout(20)
def test_a_grandchild_that_left_the_group_and_ignores_signals_dies_with_the_connection() -> None:
    async def story() -> None:
        async with client(piped_server("forks")) as servers:
            pid = json.loads((await call(servers, "echo")).content)["pid"]
            orphan = _orphan_of(pid)
            assert is_alive(orphan)
        await until(lambda: not is_alive(pid) and not is_alive(orphan))

    play(story)


CLIENT = """
import asyncio, json, sys, time
from datetime import UTC, datetime
from quell.domain import ToolServer
from quell.tools import Servers

async def main():
    server = ToolServer(name="bad", transport="stdio", command=sys.executable, args=(sys.argv[1], "forks"))
    servers = Servers([server], clock=lambda: datetime(2026, 11, 20, tzinfo=UTC))
    pins = {offer.original: offer.digest for offer in await servers.offers("bad")}
    answer = await servers.call("bad", "echo", {"n": 1}, digest=pins["echo"])
    print(json.loads(answer.content)["pid"], flush=True)
    time.sleep(60)

asyncio.run(main())
"""


@pytest.mark.timeout(30)
def test_nothing_is_left_of_a_server_when_we_are_killed_without_a_word() -> None:
    with subprocess.Popen([sys.executable, "-c", CLIENT, ROGUE], stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout is not None
        pid = int(us.stdout.readline())
        orphan = _orphan_of(pid)
        assert is_alive(pid)
        assert is_alive(orphan)
        os.kill(us.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (is_alive(pid) or is_alive(orphan)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)
    assert not is_alive(orphan)


def test_a_command_that_does_not_exist_is_said_so() -> None:
    async def story() -> None:
        async with client(ToolServer(name="none", transport="stdio", command="quell-no-such-program")) as servers:
            with pytest.raises(ServerUnavailable, match="quell-no-such-program"):
                await servers.offers("none")

    play(story)


def test_a_sandbox_may_wrap_the_command_of_a_program() -> None:
    async def story() -> None:
        def wrapped(server: ToolServer) -> list[str]:
            return ["env", "WRAPPED=yes", server.command, *server.args]

        servers = Servers([piped_server()], clock=lambda: NOON, prepare=wrapped)
        async with servers:
            pid = json.loads((await call(servers, "echo")).content)["pid"]
            assert b"WRAPPED=yes" in Path(f"/proc/{pid}/environ").read_bytes()

    play(story)


def test_a_program_gets_its_own_environment_and_nothing_else_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUELL_SECRET_OF_OURS", "hush")

    async def story() -> None:
        async with client(piped_server(env={"TOKEN": "theirs"})) as servers:
            pid = json.loads((await call(servers, "echo")).content)["pid"]
            told = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"TOKEN=theirs" in told
            assert b"hush" not in told

    play(story)


@pytest.mark.timeout(20)
def test_many_calls_at_once_get_each_its_own_answer() -> None:
    async def story() -> None:
        async with bad() as (_, by_http), client(piped_server()) as by_pipes:
            for servers in (by_http, by_pipes):
                answers = await asyncio.gather(*(call(servers, "echo", {"n": n}) for n in range(50)))
                told = [json.loads(answer.content) for answer in answers]
                assert [one.get("arguments", one)["n"] for one in told] == list(range(50))

    play(story)


def test_every_mistake_in_the_settings_is_told_at_once() -> None:
    wrong = [
        ToolServer(name="Not A Name", transport="stdio", command="x"),
        ToolServer(name="a", transport="stdio", url="http://x"),
        ToolServer(name="a", transport="streamable_http", url="ftp://x", headers={"Host": "y"}),
        ToolServer(name="b", transport="sse", url="http://x", headers={"x": "a\r\nb: c"}, call_timeout_s=0),
        ToolServer(name="c", transport="sse", url="http://x", forward_headers=("mcp-session-id",)),
        ToolServer(name="d", transport="stdio", command="x", headers={"a": "b"}),
    ]
    with pytest.raises(ConfigError) as caught:
        Servers(wrong, clock=lambda: NOON)
    told = {problem.path.removeprefix("mcp.servers.") for problem in caught.value.problems}
    assert told == {"Not A Name.name", "a.command", "a.url", "a.headers", "a.name"} | {
        "b.headers",
        "b.call_timeout_s",
        "c.headers",
        "d.headers",
    }


def test_settings_print_no_secret() -> None:
    server = ToolServer(name="a", transport="sse", url="http://u:hush@x", headers={"a": "hush"}, env={"b": "hush"})
    assert "hush" not in repr(server)


def test_a_server_that_nobody_configured_is_a_mistake_of_the_caller() -> None:
    async def story() -> None:
        async with client(http_server("http://127.0.0.1:1/mcp")) as servers:
            with pytest.raises(UsageError, match="another"):
                await servers.offers("another")

    play(story)


def test_a_stream_of_events_that_breaks_off_is_a_typed_loss_for_whoever_waits() -> None:
    async def story() -> None:
        async with (
            rogue() as server,
            client(http_server(server.url, transport="sse", connect_timeout_s=0.4)) as servers,
        ):
            with pytest.raises(ServerUnavailable):  # it never names the place to write to
                await servers.offers("bad")

    play(story)


def test_a_rogue_is_not_left_over() -> None:
    """The bench itself: a stopped rogue answers nobody."""

    async def story() -> None:
        server = Rogue("modern")
        await server.start()
        await server.stop()
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", server.port)

    play(story)
