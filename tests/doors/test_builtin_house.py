"""The senses and the built-in model on a real desk, the one path of tools and durable runs: asked as a person asks."""

from __future__ import annotations

import asyncio
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from quell.agent import AgentAnswer, Stop
from quell.app import open_app
from quell.app._senses_tools import sense_tools
from quell.config import JournalSettings, Secret, Settings
from quell.domain import Answer, Observation, QuestionKind, TokenUsage, ToolClass
from quell.models._tokens import estimated
from quell.runs import system_clock
from tests._story import HOSTILE, RecordedReader, alert, bad_release
from tests.doors._brief_surveys import NOW, answers
from tests.doors._builtin_bench import ChangingReader, House, calm, house
from tests.doors._diagnosis_faults import tell
from tests.doors._diagnosis_story import WINDOW

pytestmark = pytest.mark.timeout(60)
EVERYTHING = (
    "is anything wrong?",
    "what changed?",
    "why is checkout failing?",
    "list incidents",
    "show incident 1",
    "show me more",
    "what would you do?",
    "brief",
    "restart payment",
    "which services are there?",
)


def at_home(work: Callable[[House], Awaitable[None]], state_dir: Path, **options: object) -> None:
    async def run() -> None:
        async with house(state_dir, **options) as home:  # type: ignore[arg-type]  # forwarded as they are
            await work(home)

    asyncio.run(run())


def good(answer: AgentAnswer) -> str:
    """Return the text of an answer that claims nothing without evidence and cost nothing."""
    assert answer.stop is Stop.ANSWERED
    assert answer.unverified == 0, answer.text
    assert "[unverified]" not in answer.text
    assert answer.usage == TokenUsage(input_tokens=0, output_tokens=0)
    assert answer.is_usage_told
    return answer.text


def test_of_a_healthy_system_it_says_that_nothing_is_wrong(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        answer = await home.ask("is anything wrong?")
        assert good(answer).startswith("Nothing is wrong: no incident is open and no alert fires, and errors and")
        assert answer.cited == ("e1",)
        assert good(await home.ask("is the order worker ok?")).startswith("Nothing is wrong with order-worker")
        changed = good(await home.ask("what changed in the last 5 minutes?"))
        assert changed == "No change was recorded in the last 5 minutes [e1].\n- No signal moved [e1]."
        why = good(await home.ask("why is checkout slow?"))
        assert "cause" not in why.splitlines()[0].lower()
        assert good(await home.ask("list open incidents")) == "There is no open incident [e1]."
        assert "nothing to advise" in good(await home.ask("what would you do?"))
        assert good(await home.ask("show incident 7")) == "There is no incident 7 [e1]."
        last = good(await home.ask("list incidents of the last hour"))
        assert last.startswith("The time that was named narrows nothing here.\n1 incident, newest first [e1].")
        assert "No incident is about payment [e1]." in good(await home.ask("list incidents of payment"))

    at_home(story, tmp_path, reader=ChangingReader(rows=calm()))


def test_gaps_beside_good_news_are_told_and_lower_the_confidence(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        text = good(await home.ask("is anything wrong?"))
        assert text.startswith("Nothing is wrong, as far as could be read: no incident is open")
        assert "Confidence: high" not in text
        assert "made did not tell slow operations, metric shifts (timeout): too late [e1]." in text

    blind = frozenset({QuestionKind.SLOW_OPERATIONS, QuestionKind.METRIC_SHIFTS})
    at_home(story, tmp_path, reader=ChangingReader(rows=calm(), gaps=blind))


def test_trouble_elsewhere_is_told_when_one_service_is_asked_about(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        text = good(await home.ask("is catalogue ok?"))
        assert text.startswith("Nothing is wrong with catalogue itself: no incident is open")
        assert "Elsewhere something is wrong, confidence high: Bad release of service payment" in text

    at_home(story, tmp_path)


def test_of_a_broken_system_it_says_what_is_wrong_why_and_what_to_do(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        (incident,) = await home.desk.handle([alert()])
        await home.runs.wait(incident.run or "", timeout_s=10)
        wrong = good(await home.ask("is anything wrong?"))
        assert wrong.startswith("Something is wrong: 1 open incident, 1 firing alert, 3 symptoms [e1].")
        assert incident.id in wrong
        assert "Bad release of service payment" in wrong
        changed = good(await home.ask("what changed?"))
        assert (
            'payment: deploy of "service.version" from "1.4.0" to "1.5.0" at 2026-11-20 12:00:00 UTC [e1].' in changed
        )
        why = good(await home.ask("why is payment failing?"))
        assert f"This was investigated already, in {incident.id}" in why
        assert "Confidence: high [e1]." in why
        assert len(await home.runs.list(limit=9, kind="investigation")) == 1, "a fresh finding is not made again"
        more = good(await home.ask("why is payment failing?", why, "show me more"))
        assert await home.calls("show me more") == [("incident", {"incident": incident.id})]
        assert more.count("Evidence E") > why.count("Evidence E")
        advice = good(await home.ask("why is payment failing?", why, "what would you do?"))
        assert "1. Roll payment back to the version before [e1]." in advice
        assert "No pinned tool does this by itself" in advice

    at_home(story, tmp_path)


@pytest.mark.parametrize(
    ("fault", "subject", "said"),
    [
        ("crash_loop", "stock", 'The call would be restart with {"environment": "production", "service": "stock"}; policy asks for one approval by approver or admin, and never by who asked'),
        ("release_with_errors", "bill", "No pinned tool does this by itself"),
        ("database_down", "maindb", "restart does not fit"),
        ("cpu_hog", "stock", "a person has to choose replicas"),
    ],
)  # fmt: skip
def test_a_fault_is_found_and_the_exact_call_and_who_approves_it_are_told(
    tmp_path: Path, fault: str, subject: str, said: str
) -> None:
    rows: dict[QuestionKind, list[Observation]] = defaultdict(list)
    for fact in tell(fault).survey().facts:
        rows[fact.evidence.question].append(fact.observation)

    async def story(home: House) -> None:
        assert good(await home.ask("is anything wrong?")).startswith("Something is wrong")
        why = good(await home.ask("why is everything failing?"))
        assert subject in why.splitlines()[0]
        advice = good(await home.ask("why is everything failing?", why, "how do I fix it?"))
        assert said in advice, advice
        assert "Verify: " in advice

    at_home(story, tmp_path, reader=ChangingReader(rows=rows), at=WINDOW.end)


def test_words_of_strangers_in_telemetry_stay_data_in_every_answer(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        before: tuple[str, ...] = ()
        for question in EVERYTHING:
            text = good(await home.ask(*before, question))
            assert "\x1b" not in text
            assert "\u202e" not in text
            before = (question, text)
        effects = {call[0] for question in EVERYTHING for call in await home.calls(question)}
        assert effects <= {tool.name for tool in sense_tools()}

    at_home(story, tmp_path, reader=RecordedReader(rows=bad_release(text=HOSTILE)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_claim_goes_without_evidence_whatever_telemetry_holds(tmp_path: Path, seed: int) -> None:
    rows: dict[QuestionKind, tuple[Observation, ...]] = {}
    gaps = set()
    for answer in answers(seed):
        if isinstance(answer, Answer):
            rows[answer.question.kind] = answer.rows
        else:
            gaps.add(answer.question)

    async def story(home: House) -> None:
        for question in ("is anything wrong?", "what changed?", "why is anything failing?", "brief", "list services"):
            text = good(await home.ask(question))
            assert not {unicodedata.category(letter) for letter in text} & {"Cf", "Cs", "Co"}
            assert not any(unicodedata.category(letter) == "Cc" for letter in text.replace("\n", ""))

    print(f"seed {seed}")
    at_home(story, tmp_path, reader=ChangingReader(rows=rows, gaps=frozenset(gaps)), at=NOW)


def test_where_nothing_can_be_read_it_says_that_it_does_not_know(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        text = good(await home.ask("is anything wrong?"))
        assert text.startswith(
            "No incident is open and no alert fires, but whether anything is wrong cannot be told [e1]."
        )
        assert "What I could not see:\n- made did not tell error rates, " in text
        assert text.endswith("I do not know whether anything is wrong.")
        assert "as far as could be read" in good(await home.ask("what changed?"))
        assert good(await home.ask("why is checkout slow?")).endswith("I do not know the cause.")

    at_home(story, tmp_path, reader=ChangingReader(gaps=frozenset(QuestionKind)))


def test_a_misspelt_service_is_taken_for_the_one_like_it_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        text = good(await home.ask("what changed in paymnet?"))
        assert text.startswith(
            "I took “paymnet” to mean payment [e1].\n1 change about payment in the last 30 minutes [e2]."
        )
        assert good(await home.ask("is the database slow?")).startswith("I took “database” to mean postgres [e1].")
        unknown = good(await home.ask("is foo-bar-7 ok?"))
        assert unknown.startswith("Telemetry knows nothing called foo-bar-7 [e1].\nKnown are ")
        assert {"catalogue", "checkout", "postgres"} <= set(re.findall(r"[a-z]+", unknown))

    at_home(story, tmp_path)


def test_two_people_who_ask_the_same_share_one_investigation(tmp_path: Path) -> None:
    reader = ChangingReader(rows=bad_release(), held=frozenset({QuestionKind.EXEMPLARS}))

    async def story(home: House) -> None:
        first = asyncio.create_task(home.ask("why is payment failing?"))
        await until(lambda: home.runs.list(limit=9, kind="investigation"))
        second = asyncio.create_task(home.ask("investigate payment"))
        await until(lambda: home.calls("investigate payment"))
        reader.go.set()
        texts = [good(await first), good(await second)]
        assert all("Bad release of service payment" in text for text in texts)
        assert len(await home.runs.list(limit=9, kind="investigation")) == 1

    at_home(story, tmp_path, reader=reader, read_timeout_s=30.0)


def test_a_process_that_ends_while_it_investigates_goes_on_with_the_same_investigation(tmp_path: Path) -> None:
    held = ChangingReader(rows=bad_release(), held=frozenset({QuestionKind.EXEMPLARS}))

    async def first_life(home: House) -> None:
        await home.runs.start("chat", subject="why", arguments={"said": ["why is payment failing?"]})
        await until(lambda: home.runs.list(limit=9, kind="investigation"))

    async def second_life(home: House) -> None:
        (chat,) = await home.runs.list(limit=9, kind="chat")
        assert "Bad release of service payment" in good(await home.answer(chat.id))
        assert len(await home.runs.list(limit=9, kind="investigation")) == 1
        assert len(await home.desk.incidents()) == 1

    at_home(first_life, tmp_path, reader=held, read_timeout_s=30.0)
    at_home(second_life, tmp_path, reader=ChangingReader(rows=bad_release()), read_timeout_s=30.0)


async def until(seen: Callable[[], Awaitable[Sequence[object]]]) -> None:
    for _ in range(1_000):
        try:
            if await seen():
                return
        except ValueError:
            pass  # the run is not there yet
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


def test_an_investigation_that_takes_longer_than_a_call_may_is_told_and_found_later(tmp_path: Path) -> None:
    reader = ChangingReader(rows=bad_release(), held=frozenset({QuestionKind.EXEMPLARS}))

    async def story(home: House) -> None:
        text = good(await home.ask("why is payment failing?"))
        assert "goes on; it has no finding yet [e1]." in text
        assert text.endswith("Ask again in a moment, or ask to see the incident.")
        (run,) = await home.runs.list(limit=9, kind="investigation")
        reader.go.set()
        await home.runs.wait(run.id, timeout_s=10)
        assert "Bad release of service payment" in good(await home.ask("why is payment failing?", text, "why?"))

    at_home(story, tmp_path, reader=reader, read_timeout_s=30.0, deadline_s=6.0)


def test_a_beginning_that_several_incidents_have_is_a_failed_look_that_is_told(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        for question in ("why is payment failing?", "why is catalogue failing?"):
            good(await home.ask(question))
        text = good(await home.ask("show incident inc_01"))
        assert text == "I could not find out what is known of the incident: the look itself failed."

    at_home(story, tmp_path)


def test_a_briefing_keeps_to_its_budget(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        (incident,) = await home.desk.handle([alert()])
        await home.runs.wait(incident.run or "", timeout_s=10)
        text = good(await home.ask("brief of payment"))
        assert "deploy service.version 1.4.0 -> 1.5.0" in text
        assert "catalogue" not in text

    at_home(story, tmp_path)


def test_the_senses_are_small_reads() -> None:
    tools = sense_tools()
    tokens = sum(8 + estimated(t.name) + estimated(t.description) + estimated(t.input_schema) for t in tools)
    assert tokens <= 900
    assert {tool.tool_class for tool in tools} == {ToolClass.READ}
    assert all(json.loads(tool.input_schema)["additionalProperties"] is False for tool in tools)
    assert len({tool.pin for tool in tools}) == len(tools)


def test_every_agent_of_a_process_gets_the_senses(tmp_path: Path) -> None:
    async def story() -> None:
        settings = Settings(state_dir=tmp_path, journal=JournalSettings(url=Secret("")))
        async with open_app(settings, role="command", clock=system_clock, entropy=os.urandom, env={}) as app:
            names = {tool.name for tool in (await app.open_authority()).toolbox.catalog()}
        assert {tool.name for tool in sense_tools()} <= names

    asyncio.run(story())
