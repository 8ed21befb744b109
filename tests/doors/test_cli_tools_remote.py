"""`quell tool --server URL`: the same words and exit codes as in this process, and the same guard on the other side."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests._quell import NOWHERE, quell, started, wait_for_line
from tests.doors._cli_bench import Desk
from tests.doors.test_cli_server import QUIET, server, typed

pytestmark = pytest.mark.timeout(120)  # whole processes, a server among them

READ = ("--arguments", '{"service": "web", "query": "x"}')
_AGO = re.compile(r"\d+ s ago")
_DIGEST = re.compile(r"digest:\s+(sha256:\S+)")


def desk_at(at: Path) -> Desk:
    desk = Desk(at=at)
    desk.configure()
    return desk


def test_every_look_at_tools_says_the_same_here_and_there(tmp_path: Path) -> None:
    desk = desk_at(tmp_path)
    ann = desk.key("ann", "operator")
    desk.done("tool", "pin", "small", "logs", "--yes")
    looks = (
        ("list",),
        ("list", "small"),
        ("list", "nowhere"),
        ("show", "logs"),
        ("show", "small/logs"),
        ("show", "investigate"),
        ("show", "none"),
        ("check",),
        ("check", "small"),
        ("check", "none"),
        ("diff",),
        ("diff", "none"),
    )
    with server(tmp_path) as url:

        def both(*words: str) -> tuple[int, str, str]:
            here, there = (desk.quell("tool", *words, *where, env=ann) for where in ((), ("--server", url)))
            said = [(each.code, _AGO.sub("AGO", each.out)) for each in (here, there)]
            assert said[0] == said[1], words
            if "--json" in words and here.code == 2:
                assert here.error == there.error, words
            return (*said[1], there.err)

        for look in looks:
            both(*look)
            both(*look, "--json")
        assert "no pinned tool of nowhere at http://" in both("list", "nowhere")[2]
        assert "read_file" in both("list")[1]
        changed = json.loads((tmp_path / "tools.json").read_text())
        changed[0]["description"] = "Read \u202eeverything."
        desk.offer(changed)
        code, told, _ = both("diff", "small")
        assert (code, "changed" in told, r"\u202e" in told) == (1, True, True)
        assert both("check")[0] == 1
        (tmp_path / "tools.json").unlink()
        assert (both("check")[0], both("diff")[0], both("diff", "small")[0]) == (3, 3, 3)


def test_a_pin_on_a_server_is_of_what_was_seen_and_in_a_persons_name(tmp_path: Path) -> None:
    desk = desk_at(tmp_path)
    ann, viewer = desk.key("ann", "operator"), desk.key("vi", "viewer")
    with server(tmp_path) as url:
        there = ("--server", url)

        def said(*words: str, env: dict[str, str] = ann) -> tuple[int, str, str]:
            told = desk.quell("tool", *words, *there, env=env)
            return told.code, told.out, told.err

        code, shown, error = said("pin", "small", "logs")
        assert (code, "nothing was pinned" in error) == (4, True)
        assert "tool.description" in shown
        digest = _DIGEST.findall(shown)[0]
        assert said("pin", "small", "logs", "--yes", "--digest", "00000000")[0] == 4
        assert said("pin", "small", "logs", "--yes", env=viewer)[0] == 4, "it takes an operator"
        code, told, _ = said("pin", "small", "logs", "--yes", "--digest", digest[:20])
        assert (code, f"logs of small is pinned as read: {digest}" in told) == (0, True)
        assert "is pinned already" in said("pin", "small", "logs", "--yes")[1]
        assert said("call", "logs", *READ)[0] == 0, "it is there at once"
        assert said("unpin", "small", "logs", env=viewer)[0] == 4
        assert said("unpin", "small", "logs")[:2] == (0, "logs of small is pinned no more\n")
        assert said("unpin", "small", "logs")[0] == 2
        assert said("call", "logs", *READ)[0] == 4

        declared = tmp_path / "declared.json"
        declared.write_text(json.dumps([{"name": "ticket", "inputSchema": {"type": "object", "properties": {}}}]))
        assert said("pin", "client", "ticket", "--yes", "--from", str(declared))[0] == 0
        assert said("pin", "small", "ticket", "--yes", "--from", str(declared))[0] == 2
    lines = desk.done("audit", "list", "--json").splitlines()
    records = [json.loads(each)["record"] for each in lines if '"verb":"tool.pin"' in each]
    assert {each["principal"] for each in records} == {"ann"}
    kinds = [(each["kind"], each["body"].get("way", "")) for each in records]
    assert ("refusal", "") in kinds, "what was not what is offered"
    assert kinds.count(("pin", "api")) == 2, "the two that were made, with where they came from"


def test_a_call_on_a_server_goes_the_one_path_and_waits_for_people(tmp_path: Path) -> None:
    desk = desk_at(tmp_path)
    desk.pin_all()
    ann, bob, eve = desk.key("ann", "operator"), desk.key("bob", "approver"), desk.key("eve", "viewer")
    with server(tmp_path) as url:
        there = ("--server", url)

        def call(*words: str, env: dict[str, str] = ann) -> tuple[int, str, str]:
            told = desk.quell("tool", "call", *words, *there, env=env)
            return told.code, told.out, told.err

        # Each in a process of its own: the tool tells what it was started with.
        near, far = (quell("tool", "call", "logs", *READ, *where, cwd=tmp_path, env=ann) for where in ((), there))
        assert near.stdout == far.stdout != ""
        code, told, _ = call("logs", *READ, "--json")
        document = json.loads(told)
        assert (code, document["kind"], document["outcome"]["kind"]) == (0, "tool_outcome", "ok")
        trace = desk.done("run", "trace", document["run"], *there, env=ann)
        assert "logs" in trace
        missing = call("logs")
        assert (missing[0], missing[2].count("missing: service, query")) == (4, 1), missing
        for words, expected in ((("nobody",), 4), (("logs", "--arguments", "[]"), 2), (("read_file",), 4)):
            assert call(*words)[0] == expected == desk.quell("tool", "call", *words, env=ann).code

        parked = call("restart", "--arguments", '{"service": "web"}')
        assert (parked[0], parked[1]) == (5, ""), parked
        assert f"--server {url}" in parked[2], "where it can be looked at"

        wish = ("tool", "call", "restart", "--arguments", '{"service": "api"}', "--wait", *there)
        with started(*wish, cwd=tmp_path, env=ann) as waiting:
            approval = wait_for_line(waiting, "waits for people").split()[-4].rstrip(",")
            shown = typed(f"/approval show {approval}", url=url, cwd=tmp_path, env=bob)
            found = re.search(r"digest: (\S+)", shown)
            assert found is not None, shown
            said = typed(f"/approval approve {approval} --digest {found[1]}", url=url, cwd=tmp_path, env=bob)
            assert "error:" not in said, said
            out, err = (each.decode() for each in waiting.communicate(timeout=30))
            assert (waiting.returncode, '"ok"' in out) == (0, True), err

        with started(*wish, cwd=tmp_path, env=ann) as waiting:
            wait_for_line(waiting, "waits for people")
            waiting.send_signal(signal.SIGINT)
            err = waiting.communicate(timeout=30)[1].decode()
            run = re.findall(r"run_\w+", err)[-1]
        for _ in range(100):
            told = desk.quell("run", "trace", run, *there, env=ann).out
            if "cancelled" in told:
                break
            time.sleep(0.05)
        assert "cancelled" in told

        listed = typed("/tool list small", "/tool", url=url, cwd=tmp_path, env=eve)
        assert (listed.count("drop_lost"), listed.count("investigate")) == (2, 1)


def test_a_call_outlives_its_server_and_the_one_that_comes_after_ends_it(tmp_path: Path) -> None:
    desk = desk_at(tmp_path)
    desk.pin_all()
    ann, bob = desk.key("ann", "operator"), desk.key("bob", "approver")
    wish = ("tool", "call", "restart", "--arguments", '{"service": "api"}', "--wait")
    with started("serve", "--port", "0", *QUIET, cwd=tmp_path) as first:
        url = wait_for_line(first, "ready: ").split()[1]
        with started(*wish, "--server", url, cwd=tmp_path, env=ann) as waiting:
            approval = wait_for_line(waiting, "waits for people").split()[-4].rstrip(",")
            first.send_signal(signal.SIGKILL)
            first.wait(10)
            wait_for_line(waiting, "trying again")
            port = url.rpartition(":")[2]
            with started("serve", "--port", port, *QUIET, cwd=tmp_path) as second:
                assert wait_for_line(second, "ready: ").split()[1] == url
                shown = desk.quell("approval", "show", approval)
                digest = re.findall(r"\b[0-9a-f]{64}\b", shown.out)[0]
                assert desk.quell("approval", "approve", approval, "--digest", digest, env=bob).code == 0
                out, err = (each.decode() for each in waiting.communicate(timeout=60))
                assert (waiting.returncode, '"ok"' in out) == (0, True), err


def test_what_is_no_server_is_told(tmp_path: Path) -> None:
    desk = desk_at(tmp_path)
    for words in (
        ("list",),
        ("show", "x"),
        ("check",),
        ("diff",),
        ("call", "x"),
        ("pin", "s", "x"),
        ("unpin", "s", "x"),
    ):
        away = desk.quell("tool", *words, "--server", NOWHERE, "--json")
        assert (away.code, away.out) == (3, ""), words
        assert "quell serve" in str(away.error["hint"])
    assert "`quell tool list small`" in desk.quell("tool", "list", "--server", "small").err
    assert desk.quell("tool", "check", "--server", "small").code == 2
