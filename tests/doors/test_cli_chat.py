"""`quell chat`: a conversation that goes on, at a real terminal and in a script."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Literal

import pytest

from quell.cli._chat_permit import Permit, Rule, add_rule, read_permit
from quell.cli._chat_tools import ClientTools
from quell.domain import CallWanted, ConfigError
from tests._quell import quell
from tests.doors._chat_bench import agent_file, calls, played, says, terminal
from tests.doors._cli_bench import Desk
from tests.doors._model_bench import silence

pytestmark = pytest.mark.timeout(90)  # whole processes


def users(body: dict[str, object]) -> list[str]:
    messages = body["messages"]
    assert isinstance(messages, list)
    return [each["content"] for each in messages if each["role"] == "user"]


def test_a_script_gets_answers_on_stdout_and_everything_else_beside_them(tmp_path: Path) -> None:
    with played(says("It is pay."), says("Since noon.")) as model:
        agent_file(tmp_path, model.url)
        lines = "what is slow?\n/rename night\n/hepl\n/agents\nsince when?\n"
        told = quell("chat", cwd=tmp_path, stdin=lines)
        assert told.returncode == 0, told
        assert told.stdout == "It is pay.\n* sre  openai/played  \nSince noon.\n"
        assert "did you mean /help?" in told.stderr
        assert users(model.bodies[1]) == ["what is slow?", "since when?"]
        resumed = quell("chat", "--resume", "night", cwd=tmp_path, stdin="why?\n/conversations\n")
        assert users(model.bodies[2]) == ["what is slow?", "since when?", "why?"]
        assert "night" in resumed.stdout
        unknown = quell("chat", "--resume", "nobody", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "there is no conversation 'nobody'" in unknown.stderr


def test_slash_verbs_are_those_of_the_command_line(tmp_path: Path) -> None:
    with played(says("Fine.")) as model:
        agent_file(tmp_path, model.url)
        told = quell("chat", cwd=tmp_path, stdin="well?\n/run list --json\n/run show\n/stream off\nwell?\n")
    runs = json.loads(told.stdout[told.stdout.index("{") : told.stdout.rindex("}") + 1])
    assert (runs["kind"], [each["subject"] for each in runs["runs"]]) == ("runs", ["well?"])
    assert "missing argument" in told.stdout
    assert told.stdout.endswith("Fine.\n")


def test_another_model_answers_from_the_next_question_on(tmp_path: Path) -> None:
    with played(says("It is pay.")) as model:
        agent_file(tmp_path, model.url)
        lines = "what is slow?\n/model builtin\nwhat can you do?\n/model\n/model nobody/none\n"
        told = quell("chat", cwd=tmp_path, stdin=lines)
    assert (told.returncode, len(model.bodies)) == (0, 1), told
    assert told.stdout.startswith("It is pay.\n")
    assert "without a language model" in told.stdout
    assert "sre: builtin" in told.stderr
    assert "'nobody/none' is no model" in told.stderr


def test_what_others_wrote_cannot_move_the_cursor(tmp_path: Path) -> None:
    with played(says("a\x1b[2Jb \u202ec\nsecond line")) as model:
        agent_file(tmp_path, model.url, more='[quell]\nevidence = "off"\n')
        told = quell("chat", cwd=tmp_path, stdin="hello\n")
    assert told.stdout == "a\\x1b[2Jb \\u202ec\nsecond line\n"


def test_at_a_terminal_typing_queues_and_commands_act_while_an_answer_comes(tmp_path: Path) -> None:
    long = says("one two three four five six seven eight nine ten\n" * 3, gap_s=0.05)
    with played(long, says("Second answer.")) as model:
        agent_file(tmp_path, model.url)
        with terminal("chat", cwd=tmp_path) as sitting:
            sitting.wait("/help tells")
            sitting.type("first?\r")
            sitting.wait("began")
            sitting.type("second?\r")
            sitting.wait("queued (1 waiting)")
            sitting.type("/agents\r")
            sitting.wait("openai/played")
            sitting.wait("eight nine ten")
            sitting.wait("Second answer.")
            sitting.type("/quit\r")
            sitting.end()
    assert sitting.code == 0
    assert users(model.bodies[1]) == ["first?", "second?"]


def test_ctrl_c_cancels_the_answer_for_good_and_twice_leaves(tmp_path: Path) -> None:
    with played(silence()) as model:
        agent_file(tmp_path, model.url)
        with terminal("chat", cwd=tmp_path) as sitting:
            sitting.wait("/help tells")
            sitting.type("anybody?\r")
            sitting.wait("began")
            sitting.type("\x03")
            sitting.wait("stopping")
            sitting.wait("cancelled run_")
            sitting.type("/conversations\r")
            sitting.wait("conv_")
            sitting.type("\x03")
            sitting.wait("once more leaves")
            sitting.type("\x03")
            sitting.end()
    assert sitting.code == 130
    (run,) = json.loads(quell("run", "list", "--json", cwd=tmp_path).stdout)["runs"]
    assert run["status"] == "cancelled"


def test_people_are_asked_in_a_block_that_is_shown_whole_and_words_decide(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)
    desk.configure()
    desk.pin_all()
    tool = next(name for name in desk.done("tool", "list").split() if name.endswith("restart"))
    key = desk.key("bob", "approver")
    with played(calls(tool, service="web"), says("Restarted [e1].")) as model:
        agent_file(tmp_path, model.url)
        with terminal("chat", cwd=tmp_path) as sitting:
            sitting.wait("/help tells")
            sitting.type("restart web\r")
            came = sitting.wait("more lines: Enter") + sitting.wait("leaves it --")
            sitting.type("\r")
            came += sitting.wait("to ask for other arguments")
            assert "service" in came
            sitting.type("a\r")
            sitting.wait("error:")
            approval = json.loads(quell("approval", "list", "--json", cwd=tmp_path).stdout)["approvals"][0]
            flags = ("--digest", approval["digest"][:12])
            assert quell("approval", "approve", approval["approval"], *flags, cwd=tmp_path, env=key).returncode == 0
            sitting.wait("Restarted")
            sitting.type("/quit\r")
            sitting.end()


def test_tools_of_the_terminal_are_carried_out_as_the_rules_say(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("pay is down since noon\n")
    (tmp_path / ".aura").mkdir()
    rules = {"permissions": {"allow": ["Read(*)", "Shell(echo *)"], "deny": ["Shell(rm *)"]}}
    (tmp_path / ".aura" / "permissions.json").write_text(json.dumps(rules))
    answers = (
        calls("Read", path="notes.txt"),
        calls("Shell", command="echo hi; rm -rf notes.txt"),
        calls("Update", path="notes.txt", old_text="pay", new_text="all"),
        says("Pay is down since noon."),
    )
    with played(*answers) as model:
        agent_file(tmp_path, model.url, agent="enable_client_tools = true")
        told = quell("chat", "--client-tools", cwd=tmp_path, stdin="what do my notes say?\n")
    assert told.stdout.endswith("Pay is down since noon.\n"), told
    results = [each["content"] for each in model.bodies[-1]["messages"] if each["role"] == "tool"]  # type: ignore[attr-defined]
    assert "pay is down since noon" in results[0]
    assert "does not allow" in results[1]
    assert "does not allow" in results[2]
    assert "nobody can be asked" in told.stderr
    assert (tmp_path / "notes.txt").read_text() == "pay is down since noon\n"


def test_what_may_not_be_read_is_not_found_by_a_search_either(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the token is in the vault\n")
    (tmp_path / "prod.env").write_text("token=of-the-shop\n")
    (tmp_path / ".quell").mkdir()
    rules = {"allow": ["SearchFiles(*)", "FindFiles(*)"], "deny": ["Read(*.env)", "FindFiles(*.env)"]}
    (tmp_path / ".quell" / "permissions.json").write_text(json.dumps({"permissions": rules}))
    answers = (calls("SearchFiles", pattern="token"), calls("FindFiles", pattern="*"), says("In the vault."))
    with played(*answers) as model:
        agent_file(tmp_path, model.url, agent="enable_client_tools = true")
        told = quell("chat", "--client-tools", cwd=tmp_path, stdin="where is the token?\n")
    assert told.stdout.endswith("In the vault.\n"), told
    results = [each["content"] for each in model.bodies[-1]["messages"] if each["role"] == "tool"]  # type: ignore[attr-defined]
    assert "the token is in the vault" in results[0]
    assert "notes.txt" in results[1]
    assert not any("prod.env" in each or "of-the-shop" in each for each in results)


def test_who_gives_the_flag_is_told_when_the_agent_takes_no_tools(tmp_path: Path) -> None:
    with played(says("Hello.")) as model:
        agent_file(tmp_path, model.url)
        told = quell("chat", "--client-tools", cwd=tmp_path, stdin="hello\n")
    assert "enable_client_tools = true" in told.stderr
    assert "Shell" not in json.dumps(model.bodies)


@pytest.mark.parametrize(
    ("tool", "argument", "judged"),
    [
        ("Read", "src/a.py", "allow"),
        ("Read", "src/../secret", "ask"),
        ("Read", "src/../.env", "deny"),
        ("Read", "/etc/passwd", "ask"),
        ("Read", "src/link", "ask"),
        ("Shell", "git status", "allow"),
        ("Shell", "git status; rm -rf /", "deny"),
        ("Shell", "git status && curl x", "ask"),
        ("Shell", "git log $(curl x)", "ask"),
        ("Shell", "true | rm x", "deny"),
        ("Shell", "make", "ask"),
        ("Update", "src/a.py", "ask"),
    ],
)
def test_rules_see_through_paths_and_joined_commands(tmp_path: Path, tool: str, argument: str, judged: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "link").symlink_to("/etc/passwd")
    permit = Permit(
        allow=(Rule("Read", "src/*"), Rule("Shell", "git *")),
        deny=(Rule("Read", "*.env"), Rule("Shell", "rm *")),
        directory=tmp_path,
    )
    assert permit.judge(tool, argument) == judged


def test_an_answer_for_always_is_a_rule_for_exactly_that(tmp_path: Path) -> None:
    rule = add_rule(tmp_path, "Shell", "ls *.py", to="allow")
    permit = read_permit(tmp_path, home=None)
    assert permit.allow == (rule,)
    assert (permit.judge("Shell", "ls *.py"), permit.judge("Shell", "ls a.py")) == ("allow", "ask")
    (tmp_path / ".quell" / "permissions.json").write_text("[]")
    with pytest.raises(ConfigError, match="no list of permissions"):
        read_permit(tmp_path, home=None)


def test_sigterm_cancels_and_ends_a_script(tmp_path: Path) -> None:
    with played(silence()) as model:
        agent_file(tmp_path, model.url)
        with terminal("chat", cwd=tmp_path) as sitting:
            sitting.wait("/help tells")
            sitting.type("anybody?\r")
            sitting.wait("began")
            os.kill(sitting.pid, signal.SIGTERM)
            sitting.end()
    assert sitting.code == 130
    (run,) = json.loads(quell("run", "list", "--json", cwd=tmp_path).stdout)["runs"]
    assert run["status"] == "cancelled"


def searched(directory: Path, pattern: str) -> str:
    """Have the tools of a chat search a directory."""
    permit = Permit(allow=(Rule("SearchFiles", "*"),), deny=(), directory=directory)

    async def nobody(_tool: str, _told: str) -> Literal["no"]:
        return "no"

    call = CallWanted(id="1", name="SearchFiles", arguments=json.dumps({"pattern": pattern}))
    return asyncio.run(ClientTools(permit, ask=nobody).carry_out(call))


@pytest.mark.timeout(20)
def test_no_expression_of_a_model_holds_up_a_search_nor_does_a_pipe(tmp_path: Path) -> None:
    """Python's own engine would take longer than anybody lives."""
    (tmp_path / "notes.txt").write_text("a" * 60 + "!\npay is down\n")
    os.mkfifo(tmp_path / "pipe")
    assert searched(tmp_path, r"^(a+)+$") == "(nothing)"
    assert searched(tmp_path, r"^(a|aa)+!") == f"notes.txt:1: {'a' * 60}!"
    assert searched(tmp_path, r"(?i)PAY\s+is") == "notes.txt:2: pay is down"


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "unclosed group"),
        ("(?=pay)", "look-around"),
        (r"(a)\1", "backreferences"),
        ("((a{1000}){1000}){1000}", "cannot be used"),
        ("a" * 513, "longer than 512"),
    ],
)
def test_an_expression_that_cannot_be_used_is_said_to_be_one(pattern: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("pay is down\n")
    result = searched(tmp_path, pattern)
    assert result.startswith("error: the pattern ")
    assert told in result


def test_a_search_that_takes_too_long_ends_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quell.cli._chat_tools._SEARCH_S", 0.0)
    (tmp_path / "notes.txt").write_text("pay is down\n")
    assert searched(tmp_path, "pay").startswith("[stopped after 0 s in ")
