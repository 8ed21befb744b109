"""`--server URL`: the same commands and the same output, over OpenAI's protocol."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests._quell import error_of, quell, started, wait_for_line
from tests.doors._chat_bench import agent_file, calls, played, says
from tests.doors._cli_bench import Desk
from tests.doors._model_bench import delta, end, plain, silence, sse

pytestmark = pytest.mark.timeout(60)  # whole processes


def server_of(url: str) -> tuple[str, str]:
    return ("--server", url)


def test_the_answer_and_the_conversation_are_as_in_this_process(tmp_path: Path) -> None:
    with played(says("It is pay."), says("Since noon.")) as model:
        flags = (*server_of(model.url), "--session", "night")
        env = {"QUELL_API_KEY": "key-1", "AURA_EXTRA_HEADERS": "x-team:sre,x-two: 2"}
        told = quell("ask", "what is slow?", *flags, cwd=tmp_path, env=env)
        assert (told.returncode, told.stdout) == (0, "It is pay.\n"), told
        again = quell("ask", "since when?", "--agent", "sre", *flags, "--json", cwd=tmp_path, env=env)
        document = json.loads(again.stdout)
    assert (document["text"], document["stop"]) == ("Since noon.", "answered")
    head, body = model.heads[1], model.bodies[1]
    assert (head["authorization"], head["x-team"], head["x-two"]) == ("Bearer key-1", "sre", "2")
    assert (body["model"], body["metadata"]) == ("sre", {"chat_session_id": "night"})
    assert [each["content"] for each in body["messages"]] == ["what is slow?", "It is pay.", "since when?"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (plain(401, {"error": {"message": "who are you?"}}), 4, "who are you?"),
        (plain(404, {"error": {"message": "no such agent"}}), 2, "no such agent"),
        (plain(429, {"error": {"message": "too often"}}), 6, "too often"),
        (plain(500, b"<html>"), 3, "answered 500"),
        (sse(delta("Half an ans"), done=False), 3, "in its middle"),
        (sse(delta("Half"), {"error": {"message": "the model broke", "type": "server_error"}}), 3, "the model broke"),
        (sse("no json"), 3, "no JSON"),
        (sse(delta("cut"), end("content_filter")), 3, "content_filter"),
    ],
)
def test_what_is_no_answer_leaves_stdout_empty(tmp_path: Path, answer: object, code: int, words: str) -> None:
    with played(answer) as model:  # type: ignore[arg-type]  # answers of the bench
        told = quell("ask", "hello?", *server_of(model.url), "--json", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (code, ""), told
    assert words in str(error_of(told)["message"])


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    told = quell("ask", "hello?", *server_of("http://127.0.0.1:9"), cwd=tmp_path)
    assert (told.returncode, told.stdout) == (3, "")
    assert "quell serve" in told.stderr


def test_chat_goes_on_with_a_server_and_carries_out_its_tools_here(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("pay is down\n")
    (tmp_path / ".quell").mkdir()
    (tmp_path / ".quell" / "permissions.json").write_text('{"permissions": {"allow": ["Read(*)"]}}')
    listed = plain(200, {"object": "list", "data": [{"id": "sre", "object": "model"}]})
    with played(listed, calls("Read", path="notes.txt"), says("Pay is down."), listed) as model:
        lines = "what do my notes say?\n/agents\n/model builtin\n/effect show x\n"
        told = quell("chat", "--client-tools", *server_of(model.url), cwd=tmp_path, stdin=lines)
    assert told.stdout == "Pay is down.\n* sre    \n", told
    sent = model.bodies[2]["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool"]  # type: ignore[attr-defined]
    assert "pay is down" in sent[2]["content"]  # type: ignore[index]
    assert "chooses its models" in told.stderr
    assert "is not there on a server" in told.stderr


def test_a_tool_call_by_hand_goes_the_one_path_and_can_be_traced(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)
    desk.configure()
    down = desk.quell("tool", "check", "--json")
    assert (down.code, down.document["servers"][0]["state"]) == (0, "up")
    assert down.document["servers"][0]["unknown"] == 3
    desk.pin_all()
    names = {
        word.rpartition("_")[2]: word for word in desk.done("tool", "list").split() if "_" in word or word == "logs"
    }
    logs = names.get("logs", "logs")
    told = desk.quell("tool", "call", logs, "--arguments", '{"service": "web", "query": "x"}', "--json")
    assert (told.code, told.document["outcome"]["kind"]) == (0, "ok"), told
    parked = desk.quell("tool", "call", logs.replace("logs", "restart"), "--arguments", '{"service": "web"}')
    assert (parked.code, parked.out) == (5, ""), parked
    assert "quell approval approve apr_" in parked.err
    assert desk.quell("tool", "call", "nobody").code == 4
    assert desk.quell("tool", "call", logs, "--arguments", "[]").code == 2
    desk.offer([])
    gone = desk.quell("tool", "check", "--json")
    assert (gone.code, gone.document["servers"][0]["gone"]) == (1, ["drop_lost", "logs", "restart"])
    (tmp_path / "tools.json").unlink()
    assert desk.quell("tool", "check").code == 3


def test_a_trace_shows_where_a_run_died_and_went_on(tmp_path: Path) -> None:
    with played(calls("system_overview"), silence(), says("Nothing is wrong [e1].")) as model:
        agent_file(tmp_path, model.url)
        quick = ("--set", "journal.lease_s=1", "--set", "store.url=http://127.0.0.1:9")
        with started("ask", *quick, "well?", cwd=tmp_path) as process:
            run = wait_for_line(process, "began").split()[-1]
            wait_for_line(process, "system_overview")
            while len(model.bodies) < 2:
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
        told = quell("ask", *quick, "--run", run, cwd=tmp_path)
        assert (told.returncode, told.stdout.startswith("Nothing is wrong")) == (0, True), told
    trace = quell("run", "trace", run, cwd=tmp_path).stdout
    assert "died here" in trace
    assert trace.count("system_overview") == 1
    assert "2 model turns, 1 tool call" in trace
