"""Real servers of others: what Quell's client makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quell.config import McpServerSettings
from quell.domain import (
    CallProgress,
    OutcomeKind,
    Parked,
    Reply,
    ServerUnavailable,
    ToolClass,
    ToolOutcome,
    ToolServer,
    ToolTerms,
)
from quell.tools._pins import terms_for
from tests._mcp_bench import call, client, play, until
from tests.doors._hand_bench import hand_room, person

pytestmark = [pytest.mark.flow, pytest.mark.timeout(240)]
K = OutcomeKind
NODE = ("everything", "filesystem", "memory")


@pytest.fixture(scope="session")
def node_servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the servers that are written in JavaScript, once per session."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("left out: needs node and npm (Debian packages nodejs, npm)")
    home = tmp_path_factory.mktemp("node")
    packages = [f"@modelcontextprotocol/server-{name}" for name in NODE]
    told = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", home, *packages],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if told.returncode != 0:
        pytest.skip(f"left out: npm cannot install the servers: {told.stderr[-300:]}")
    return home / "node_modules" / "@modelcontextprotocol"


@pytest.fixture(scope="session")
def git_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Install the server that is written in Python beside the tests' own environment."""
    home = tmp_path_factory.mktemp("git")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    told = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-input", "mcp-server-git"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if told.returncode != 0:
        pytest.skip(f"left out: pip cannot install mcp-server-git: {told.stderr[-300:]}")
    return str(home / "bin" / "mcp-server-git")


def node_server(home: Path, name: str, *args: str, env: dict[str, str] | None = None) -> ToolServer:
    script = str(home / f"server-{name}" / "dist" / "index.js")
    return ToolServer(name=name, transport="stdio", command="node", args=(script, *args), env=env or {}, catalogue=name)


def test_everything_over_pipes(node_servers: Path) -> None:
    async def story() -> None:
        async with client(node_server(node_servers, "everything")) as servers:
            offers = {offer.original: offer for offer in await servers.offers("everything")}
            echoed = await call(servers, "echo", {"message": "hello"}, server="everything")
            assert (echoed.kind, echoed.content) == (K.OK, "Echo: hello")
            weather = await call(servers, "get-structured-content", {"location": "Chicago"}, server="everything")
            assert weather.kind is K.OK
            assert json.loads(weather.content).keys() == {"temperature", "conditions", "humidity"}
            image = await call(servers, "get-tiny-image", {}, server="everything")
            assert "[image image/png" in image.content
            wrong = await call(servers, "get-sum", {"a": "x", "b": 2}, server="everything")
            assert wrong.kind is K.TOOL_ERROR
            heard: list[CallProgress] = []
            arguments: dict[str, object] = {"duration": 0.5, "steps": 5}
            await call(
                servers, "trigger-long-running-operation", arguments, server="everything", on_progress=heard.append
            )
            assert [one.done for one in heard] == [1, 2, 3, 4, 5]
            slow: dict[str, object] = {"duration": 20, "steps": 2}
            late = await call(servers, "trigger-long-running-operation", slow, server="everything", timeout_s=0.3)
            assert late.kind is K.TIMEOUT
            assert (await call(servers, "get-sum", {"a": 1, "b": 2}, server="everything")).kind is K.OK
            everything = node_server(node_servers, "everything")
            assert terms_for(offers["echo"], server=everything).tool_class is ToolClass.READ
            assert terms_for(offers["get-env"], server=everything).tool_class is ToolClass.IRREVERSIBLE
            assert terms_for(offers["gzip-file-as-resource"], server=everything).tool_class is ToolClass.IRREVERSIBLE

    play(story)


@pytest.fixture(params=["sse", "streamableHttp"])
def everything_by_http(node_servers: Path, request: pytest.FixtureRequest) -> Iterator[ToolServer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = node_servers / "server-everything" / "dist" / "index.js"
    command = ["node", str(script), request.param]
    quiet = subprocess.DEVNULL
    path = shutil.which("node") or "node"
    with subprocess.Popen([path, *command[1:]], env={"PORT": str(port)}, stdout=quiet, stderr=quiet) as server:
        transport = "sse" if request.param == "sse" else "streamable_http"
        where = "sse" if request.param == "sse" else "mcp"
        yield ToolServer(
            name="everything",
            transport=transport,  # type: ignore[arg-type]  # one of the two
            url=f"http://127.0.0.1:{port}/{where}",
        )
        server.kill()


def test_everything_over_http_and_when_it_is_gone(everything_by_http: ToolServer) -> None:
    async def story() -> None:
        async with client(everything_by_http) as servers:
            for _ in range(100):
                try:
                    offers = await servers.offers("everything")
                    break
                except ServerUnavailable:
                    await asyncio.sleep(0.1)
            pins = {offer.original: offer.digest for offer in offers}
            done = await servers.call("everything", "get-sum", {"a": 1, "b": 2}, digest=pins["get-sum"])
            assert done.kind is K.OK
            assert "3" in done.content
            heard: list[CallProgress] = []
            await servers.call(
                "everything",
                "trigger-long-running-operation",
                {"duration": 0.3, "steps": 3},
                digest=pins["trigger-long-running-operation"],
                on_progress=heard.append,
            )
            assert [one.done for one in heard] == [1, 2, 3]
            if "trigger-elicitation-request" in pins:
                parked = await servers.call(
                    "everything", "trigger-elicitation-request", {}, digest=pins["trigger-elicitation-request"]
                )
                assert parked.needs is not None

    play(story)


def test_an_old_server_that_asks_people_is_parked_and_goes_on(node_servers: Path) -> None:
    async def story() -> None:
        async with client(node_server(node_servers, "everything")) as servers:
            offers = {offer.original for offer in await servers.offers("everything")}
            assert "trigger-elicitation-request" in offers, "it is offered to those who can be asked"
            parked = await call(servers, "trigger-elicitation-request", {}, server="everything")
            assert parked.kind is K.DENIED
            assert parked.needs is not None
            (ask,) = parked.needs.asks
            wanted = json.loads(ask.schema)["properties"]
            assert "name" in wanted
            reply = Reply(action="accept", content='{"name": "Ann"}')
            done = await call(servers, "trigger-elicitation-request", {}, server="everything", replies={ask.key: reply})
            assert done.kind is K.OK
            assert "Ann" in done.content

    play(story)


def test_people_fill_in_the_form_of_a_server_and_it_goes_on_with_that(node_servers: Path, tmp_path: Path) -> None:
    async def story() -> None:
        program = node_server(node_servers, "everything")
        known = {
            "everything": McpServerSettings(transport="stdio", cmd=(program.command, *program.args), sandbox="off")
        }
        async with hand_room(tmp_path, servers=known) as room:
            offers = {offer.original: offer for offer in await room.authority.servers.offers("everything")}
            terms = ToolTerms(tool_class=ToolClass.READ, reason="it only asks")
            with room.runs.database.writing() as connection:
                pins = room.authority.pins
                pins.accept(connection, offers["trigger-elicitation-request"], terms, by=person("ann", "operator"))
            await room.authority.reload()
            parked = await room.call("trigger-elicitation-request", call="c")
            assert isinstance(parked, Parked)
            with room.runs.database.writing() as connection:
                room.authority.guard.approvals.decide(
                    connection,
                    parked.approval,
                    by=person("bob", "approver"),
                    verdict="approve",
                    digest_seen=parked.digest,
                    answers={"name": "Ann"},
                )
            done = await room.call("trigger-elicitation-request", call=parked.call)
            assert isinstance(done, ToolOutcome)
            assert done.kind is K.OK
            assert "Ann" in done.content

    play(story)


def test_filesystem_reads_writes_and_keeps_to_its_directory(node_servers: Path, tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "a.txt").write_text("one\ntwo\n")
        async with client(node_server(node_servers, "filesystem", str(tmp_path))) as servers:
            read = await call(servers, "read_text_file", {"path": str(tmp_path / "a.txt")}, server="filesystem")
            assert json.loads(read.content) == {"content": "one\ntwo\n"}
            wrote = await call(
                servers, "write_file", {"path": str(tmp_path / "b.txt"), "content": "three"}, server="filesystem"
            )
            assert wrote.kind is K.OK
            assert (tmp_path / "b.txt").read_text() == "three"
            out = await call(servers, "read_text_file", {"path": "/etc/passwd"}, server="filesystem")
            assert out.kind is K.TOOL_ERROR
            server = node_server(node_servers, "filesystem", str(tmp_path))
            for offer in await servers.offers("filesystem"):
                is_read = json.loads(offer.definition)["annotations"]["readOnlyHint"]
                assert (terms_for(offer, server=server).tool_class is ToolClass.READ) is is_read, offer.original

    play(story)


def test_roots_are_told_when_they_are_configured_and_only_then(node_servers: Path, tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "open" / "a.txt").write_text("one")
        plain = node_server(node_servers, "filesystem", str(tmp_path / "other"))
        rooted = replace(plain, name="rooted", roots=((tmp_path / "open").as_uri(),))
        path: dict[str, object] = {"path": str(tmp_path / "open" / "a.txt")}
        async with client(plain, rooted) as servers:
            assert (await call(servers, "read_text_file", path, server="filesystem")).kind is K.TOOL_ERROR
            for _ in range(50):  # the server asks after the handshake, in its own time
                read = await call(servers, "read_text_file", path, server="rooted")
                if read.kind is K.OK:
                    break
                await asyncio.sleep(0.1)
            assert read.kind is K.OK, read

    play(story)


def test_memory_remembers_and_every_tool_of_it_is_in_the_catalogue(node_servers: Path, tmp_path: Path) -> None:
    async def story() -> None:
        server = node_server(node_servers, "memory", env={"MEMORY_FILE_PATH": str(tmp_path / "memory.json")})
        async with client(server) as servers:
            entity = {"name": "db", "entityType": "service", "observations": ["slow"]}
            made = await call(servers, "create_entities", {"entities": [entity]}, server="memory")
            assert made.kind is K.OK
            again = await call(servers, "create_entities", {"entities": [entity]}, server="memory")
            assert again.kind in {K.OK, K.EMPTY}
            graph = await call(servers, "read_graph", {}, server="memory")
            assert len(json.loads(graph.content)["entities"]) == 1, "what it is told twice it keeps once"
            for offer in await servers.offers("memory"):
                assert terms_for(offer, server=server).reason != "nobody said what it does"

    play(story)


def test_git_of_another_sdk_speaks_todays_protocol(git_server: str, tmp_path: Path) -> None:
    async def story() -> None:
        for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
            who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
            subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)
        server = ToolServer(name="git", transport="stdio", command=git_server, catalogue="git")
        async with client(server) as servers:
            log = await call(servers, "git_log", {"repo_path": str(tmp_path)}, server="git")
            assert log.kind is K.OK
            assert "first" in log.content
            assert servers.status()[0].protocol == "2026-07-28"
            status = await call(servers, "git_status", {"repo_path": "/nowhere"}, server="git")
            assert status.kind is K.TOOL_ERROR
            for offer in await servers.offers("git"):
                assert terms_for(offer, server=server).reason != "nobody said what it does", offer.original

    play(story)


def test_no_program_of_a_server_is_left_over(node_servers: Path) -> None:
    async def story() -> None:
        async with client(node_server(node_servers, "everything")) as servers:
            await servers.offers("everything")
            assert str(node_servers) in _running()
        await until(lambda: str(node_servers) not in _running())

    play(story)


def _running() -> str:
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(process.read_bytes().decode(errors="replace"))
    return "\n".join(lines)
