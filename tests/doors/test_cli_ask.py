"""`quell ask`: stdout is the answer and nothing else, and every other end has an exit code of its own."""

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
from tests.doors._model_bench import plain, silence

pytestmark = pytest.mark.timeout(60)  # whole processes

NOWHERE = ("--set", "store.url=http://127.0.0.1:9", "--set", "store.query_timeout_s=0.5")


def test_without_model_key_and_telemetry_there_is_an_honest_answer(tmp_path: Path) -> None:
    told = quell("ask", *NOWHERE, "is anything wrong?", cwd=tmp_path)
    assert told.returncode == 0, told
    assert "[e1]" in told.stdout
    assert "I do not know whether anything is wrong." in told.stdout
    assert "system_overview" in told.stderr
    assert "began" not in told.stdout


def test_stdout_is_the_answer_and_json_tells_what_bears_it(tmp_path: Path) -> None:
    with played(says("All is well.")) as model:
        agent_file(tmp_path, model.url)
        told = quell("ask", "how are you?", cwd=tmp_path)
        assert (told.returncode, told.stdout) == (0, "All is well.\n")
        document = json.loads(quell("ask", "how are you?", "--json", cwd=tmp_path).stdout)
    assert (document["kind"], document["ok"], document["text"]) == ("answer", True, "All is well.")
    assert (document["agent"], document["stop"], document["calls"]) == ("sre", "answered", 0)
    assert document["usage"]["input_tokens"] == 100
    assert document["run"].startswith("run_")


def test_what_is_piped_in_goes_along_as_material_and_a_dash_is_the_question(tmp_path: Path) -> None:
    with played(says("Seen.")) as model:
        agent_file(tmp_path, model.url)
        assert quell("ask", "what is this?", cwd=tmp_path, stdin="ERROR ``` 42\n").stdout == "Seen.\n"
        assert quell("ask", "-", cwd=tmp_path, stdin="from a pipe?\n").stdout == "Seen.\n"
        empty = quell("ask", "-", cwd=tmp_path, stdin="  \n")
    first, second = ([each for each in body["messages"] if each["role"] == "user"] for body in model.bodies)  # type: ignore[attr-defined]
    assert first[-1]["content"] == "what is this?"
    assert "ERROR ``` 42" in first[0]["content"]
    assert "no instruction:\n````\n" in first[0]["content"]
    assert [each["content"].strip() for each in second] == ["from a pipe?"]
    assert (empty.returncode, empty.stdout) == (2, "")


def test_a_session_goes_on_where_it_was_and_an_answer_that_failed_leaves_no_trace_in_it(tmp_path: Path) -> None:
    with played(says("Checkout."), plain(401, {"error": {"message": "no"}}), says("Because of pay.")) as model:
        agent_file(tmp_path, model.url)
        assert quell("ask", "what is slow?", "--session", "s/1", cwd=tmp_path).stdout == "Checkout.\n"
        failed = quell("ask", "what?", "--session", "s/1", "--json", cwd=tmp_path)
        assert (failed.returncode, failed.stdout) == (3, "")
        assert "auth" in str(error_of(failed)["message"])
        assert quell("ask", "why?", "--session", "s/1", cwd=tmp_path).stdout == "Because of pay.\n"
    told = [(each["role"], each["content"]) for each in model.bodies[-1]["messages"] if each["role"] != "system"]  # type: ignore[attr-defined]
    assert told == [("user", "what is slow?"), ("assistant", "Checkout."), ("user", "why?")]
    (kept,) = (tmp_path / ".quell" / "conversations").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_model_that_is_not_there_leaves_stdout_empty(tmp_path: Path) -> None:
    agent_file(tmp_path, "http://127.0.0.1:9/v1")
    told = quell("ask", "anybody?", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (3, "")
    hint = next(line for line in told.stderr.splitlines() if line.startswith("hint: "))
    assert "`base_url`" in hint
    assert "--model builtin" in hint
    assert "Nothing was found out" not in told.stderr
    other = quell("ask", *NOWHERE, "what can you do?", "--model", "builtin", cwd=tmp_path)
    assert other.returncode == 0, other
    assert "without a language model" in other.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "say what to ask"),
        (("q", "--run", "run_1"), "say what to ask"),
        (("q", "--model", "gpt"), "is no model"),
        (("q", "--model", "anthropic/x"), "there is no key of anthropic"),
        (("q", "--server", "http://127.0.0.1:9", "--model", "builtin"), "not for --server"),
        (("q", "--server", "nonsense"), "is no address"),
        (("--run", "run_nobody"), "run_nobody"),
    ],
)
def test_what_cannot_be_asked_so_is_told_before_anything_runs(
    tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    told = quell("ask", *flags, "--json", cwd=tmp_path, env={"ANTHROPIC_API_KEY": ""})
    assert (told.returncode, told.stdout) == (2, "")
    assert words in str(error_of(told)["message"])


def test_the_deadline_and_ctrl_c_cancel_the_run_for_good(tmp_path: Path) -> None:
    with played(silence()) as model:
        agent_file(tmp_path, model.url)
        late = quell("ask", "hello?", "--timeout", "3", "--json", cwd=tmp_path)
        assert (late.returncode, late.stdout) == (124, "")
        assert "cancelled run_" in str(error_of(late)["hint"])
        with started("ask", "hello?", cwd=tmp_path) as process:
            wait_for_line(process, "began")
            time.sleep(0.3)
            os.kill(process.pid, signal.SIGINT)
            out, _ = process.communicate(timeout=20)
        assert (process.returncode, out) == (130, b"")
    runs = json.loads(quell("run", "list", "--json", cwd=tmp_path).stdout)["runs"]
    assert [each["status"] for each in runs] == ["cancelled", "cancelled"]


def test_people_who_have_to_decide_are_exit_5_and_the_run_goes_on_when_they_have(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)
    desk.configure()
    desk.pin_all()
    tool = next(name for name in desk.done("tool", "list").split() if name.endswith("restart"))
    with played(calls(tool, service="web"), says("Restarted [e1].")) as model:
        agent_file(tmp_path, model.url)
        parked = quell("ask", "restart web", "--json", cwd=tmp_path)
        names = {each["function"]["name"] for each in model.bodies[0]["tools"]}  # type: ignore[attr-defined]
        assert tool in names
        assert (parked.returncode, parked.stdout) == (5, ""), parked
        error = error_of(parked)
        flags = ("--digest", str(error["digest"])[:12])
        env = desk.key("bob", "approver")
        shown = quell("approval", "approve", str(error["approval"]), *flags, cwd=tmp_path, env=env)
        assert shown.returncode == 0, shown
        told = quell("ask", "--run", str(error["run"]), cwd=tmp_path)
        assert (told.returncode, told.stdout) == (0, "Restarted [e1].\n"), told
    trace = quell("run", "trace", str(error["run"]), cwd=tmp_path).stdout
    assert "people were asked: apr_" in trace
    assert f"{tool} " in trace
    assert "200+" in trace
    document = json.loads(quell("run", "trace", str(error["run"]), "--json", cwd=tmp_path).stdout)
    assert (document["kind"], document["totals"]["turns"], document["totals"]["calls"]) == ("trace", 2, 1)
    turn = next(each for each in document["tree"]["children"] if each["kind"] == "turn")
    (call,) = turn["children"]
    assert (call["outcome"], call["took_s"] > 0) == ("ok", True)


def test_a_key_that_does_not_hold_is_told_with_what_helps_and_what_was_found_until_then_stays(tmp_path: Path) -> None:
    refusal = plain(401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}})
    with played(refusal, calls("system_overview"), refusal) as model:
        agent_file(tmp_path, model.url)
        told = quell("ask", *NOWHERE, "anybody?", cwd=tmp_path)
        found = quell("ask", *NOWHERE, "anything wrong?", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (3, "")
    assert "answered 401" in told.stderr
    assert "`api_key`" in told.stderr
    assert (found.returncode, found.stdout) == (3, "")
    assert "stopped by the model" in found.stderr
    assert "\\n" not in found.stderr, "lines are lines"
