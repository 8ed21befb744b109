"""Money and tokens of model calls: taken at their worst before a call, charged by what can be true of its report."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quell.agent import BudgetAccounts, Live, Stop
from quell.agent._asking import Asked, Voice, asked
from quell.agent._talk import NOTHING
from quell.config import LlmSettings, Secret
from quell.domain import (
    Balance,
    BoundExceededError,
    BudgetKind,
    BudgetScope,
    Cap,
    Ended,
    Message,
    ModelError,
    ModelFault,
    ModelRequest,
    Price,
    RefusedError,
    Spender,
    TextPiece,
    TokenUsage,
    UsageTold,
)
from quell.governance import Budgets
from quell.models import ChainModel, Model, ScriptedModel, TokenCounter, bills_of, open_model
from quell.models._scripted import Turn, says
from quell.runs import Database
from tests.doors._agent_bench import agent_room
from tests.doors._budget_bench import MovedClock, cap, opened
from tests.doors._model_bench import NOW

RUN, TENANT = BudgetScope.RUN, BudgetScope.TENANT
MONEY, TOKENS = BudgetKind.MONEY, BudgetKind.TOKENS
PRICE = Price(
    provider="scripted",
    models="*",
    input=((0, 1_000_000),),
    output=((0, 5_000_000),),
    source="the test",
    as_of="2026-11-20",
)
"""One micro-USD for a token in, five for a token out."""
ANN = Spender(run="run_1", agent="sre", tenant="acme")
REQUEST = ModelRequest(messages=(Message(role="user", text="Why is checkout slow? " * 40),), output_max_tokens=100)
FAIR = TokenUsage(input_tokens=240, output_tokens=20)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


def _budgets(*caps: Cap, prices: tuple[Price, ...] = (PRICE,)) -> Budgets:
    return Budgets(caps or (cap(MONEY, 10_000, RUN), cap(TOKENS, 10_000, RUN)), clock=MovedClock(), prices=prices)


def _stand(budgets: Budgets, database: Database, spender: Spender = ANN) -> dict[BudgetKind, tuple[int, int]]:
    """Return spent and in flight by kind."""
    with database.reading() as connection:
        balances: tuple[Balance, ...] = budgets.balances(connection, spender)
    return {balance.cap.kind: (balance.spent, balance.in_flight) for balance in balances}


def _ask(model: Model, accounts: BudgetAccounts, *, request: ModelRequest = REQUEST, turn: int = 0) -> Asked:
    async def no_pause(_seconds: float) -> None:
        await asyncio.sleep(0)

    return asyncio.run(
        asked(
            model,
            request,
            run="run_1",
            turn=turn,
            voice=Voice(live=Live()),
            accounts=accounts,
            deadline_s=5,
            pause=no_pause,
        )
    )


def test_the_most_is_held_while_a_call_is_in_flight_and_what_it_took_is_charged_after_it(database: Database) -> None:
    budgets = _budgets()
    seen: list[dict[BudgetKind, tuple[int, int]]] = []

    def turn(_request: ModelRequest) -> Turn:
        seen.append(_stand(budgets, database))
        return says("Because of the database.", usage=FAIR)

    model = ScriptedModel(turn)
    (bill,) = bills_of(model, REQUEST)
    assert _ask(model, BudgetAccounts(budgets, database, spender=ANN)).text
    tokens, money = bill.input_tokens + 100, bill.input_tokens + 500
    assert seen == [{MONEY: (0, money), TOKENS: (0, tokens)}]
    assert _stand(budgets, database) == {MONEY: (340, 0), TOKENS: (260, 0)}


def test_a_price_that_nobody_knows_is_refused_before_the_model_is_asked_while_money_is_capped(
    database: Database,
) -> None:
    model = ScriptedModel([says("never")])
    reply = _ask(model, BudgetAccounts(_budgets(prices=()), database, spender=ANN))
    assert (reply.fault, model.asked) == ("budget", [])
    assert "unknown" in reply.detail
    uncapped = _budgets(cap(TOKENS, 10_000, RUN), prices=())
    assert _ask(model, BudgetAccounts(uncapped, database, spender=ANN)).text == "never"


def test_a_model_on_ones_own_machine_is_asked_under_a_cap_on_money(database: Database) -> None:
    settings = LlmSettings(provider="ollama", model="qwen3:4b", max_tokens=50)
    model = open_model(settings, clock=lambda: NOW, env={})
    accounts, budgets = BudgetAccounts(_budgets(), database, spender=ANN), _budgets()
    asyncio.run(accounts.reserve(REQUEST, model, key="model.0.1"))
    assert _stand(budgets, database)[MONEY] == (0, 0)
    remote = open_model(
        LlmSettings(provider="openai", model="no-such", api_key=Secret("k"), base_url="https://llm.example.com/v1"),
        clock=lambda: NOW,
        env={},
    )
    with pytest.raises(RefusedError, match="price"):
        asyncio.run(accounts.reserve(REQUEST, remote, key="model.0.2"))


def test_a_call_that_does_not_fit_is_not_made(database: Database) -> None:
    model = ScriptedModel([says("never")])
    reply = _ask(model, BudgetAccounts(_budgets(cap(TOKENS, 200, RUN)), database, spender=ANN))
    assert (reply.fault, model.asked) == ("budget", [])
    assert "tokens" in reply.detail


@pytest.mark.parametrize(
    "lie",
    [
        TokenUsage(input_tokens=0, output_tokens=0),
        TokenUsage(input_tokens=-5, output_tokens=20),
        TokenUsage(input_tokens=240, output_tokens=-1),
        TokenUsage(input_tokens=20, output_tokens=20),
        TokenUsage(input_tokens=240, output_tokens=0),
        TokenUsage(input_tokens=240, output_tokens=20, cached_tokens=-9),
        TokenUsage(input_tokens=10**15, output_tokens=20),
        TokenUsage(input_tokens=True, output_tokens=20),
        TokenUsage(input_tokens=240.5, output_tokens=20),  # type: ignore[arg-type]  # as a provider might
    ],
    ids=repr,
)
def test_a_report_that_cannot_be_true_frees_nothing(database: Database, lie: TokenUsage) -> None:
    budgets, accounts = _budgets(), BudgetAccounts(_budgets(), database, spender=ANN)
    model = ScriptedModel([])
    asyncio.run(accounts.reserve(REQUEST, model, key="model.0.1"))
    held = {kind: in_flight for kind, (_, in_flight) in _stand(budgets, database).items()}
    asyncio.run(accounts.settle(model, lie, key="model.0.1", said_tokens=20))
    assert _stand(budgets, database) == {kind: (amount, 0) for kind, amount in held.items()}


def test_a_report_of_more_is_charged_whole_and_nothing_is_asked_after_it(database: Database) -> None:
    dear = TokenUsage(input_tokens=240, output_tokens=9_990)
    model = ScriptedModel([says("a", usage=dear), says("b")])
    accounts = BudgetAccounts(_budgets(), database, spender=ANN)
    assert _ask(model, accounts).text == "a"
    assert _ask(model, accounts, turn=1).fault == "budget"
    assert len(model.asked) == 1


def test_a_call_that_reached_nobody_costs_nothing_and_one_that_broke_off_costs_what_was_reserved(
    database: Database,
) -> None:
    budgets = _budgets()
    away = ModelError("nobody there", fault=ModelFault.UNREACHABLE)
    broken = ModelError("broke off", fault=ModelFault.BROKEN_STREAM, said=True)
    (bill,) = bills_of(ScriptedModel([]), REQUEST)
    model = ScriptedModel([[away], [TextPiece(text="It"), broken], says("It is.", usage=FAIR)])
    reply = _ask(model, BudgetAccounts(budgets, database, spender=ANN))
    assert (reply.text, reply.tries) == ("It is.", 3)
    assert _stand(budgets, database)[TOKENS] == (bill.input_tokens + 100 + 260, 0)


def test_a_call_that_was_cancelled_stays_charged_as_reserved(database: Database) -> None:
    budgets = _budgets()

    async def story() -> None:
        begun = asyncio.Event()

        async def hang(_seconds: float) -> None:
            begun.set()
            await asyncio.Event().wait()

        from quell.models._scripted import Pause  # noqa: PLC0415 - only here

        model = ScriptedModel([[Pause(seconds=1)]], pause=hang)
        accounts = BudgetAccounts(budgets, database, spender=ANN)
        call = asked(model, REQUEST, run="run_1", turn=0, voice=Voice(live=Live()), accounts=accounts, deadline_s=5)
        task = asyncio.create_task(call)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    (bill,) = bills_of(ScriptedModel([]), REQUEST)
    assert _stand(budgets, database)[TOKENS] == (bill.input_tokens + 100, 0)


def test_a_try_in_which_a_process_died_stays_charged_and_the_new_one_is_reserved_beside_it(database: Database) -> None:
    budgets = _budgets()
    (bill,) = bills_of(ScriptedModel([]), REQUEST)
    most = bill.input_tokens + 100
    for died in range(1, 4):
        accounts = BudgetAccounts(budgets, database, spender=ANN)
        asyncio.run(accounts.reserve(REQUEST, ScriptedModel([]), key="model.3.1"))
        assert _stand(budgets, database)[TOKENS] == (most * (died - 1), most)
    asyncio.run(accounts.settle(ScriptedModel([]), NOTHING, key="model.3.1"))
    assert _stand(budgets, database)[TOKENS] == (most * 2, 0)


def test_a_try_that_is_counted_otherwise_after_a_crash_is_a_try_of_its_own(database: Database) -> None:
    budgets = _budgets()
    for text in ("Why?", "Why is that so, and since when?"):
        request = replace(REQUEST, messages=(Message(role="user", text=text * 30),))
        accounts = BudgetAccounts(budgets, database, spender=ANN)
        asyncio.run(accounts.reserve(request, ScriptedModel([]), key="model.3.1"))
    spent, in_flight = _stand(budgets, database)[TOKENS]
    assert spent == 0
    assert in_flight > 400


def test_conversations_of_one_run_share_its_cap_and_not_their_keys(database: Database) -> None:
    budgets = _budgets(cap(TOKENS, 700, RUN))

    async def story() -> None:
        for place in ("task.1.", "task.2."):
            accounts = BudgetAccounts(budgets, database, spender=ANN, place=place)
            await accounts.reserve(REQUEST, ScriptedModel([]), key="model.0.1")

    with pytest.raises(BoundExceededError):
        asyncio.run(story())


def test_a_chain_is_reserved_at_the_dearest_of_its_models(database: Database) -> None:
    cheap = replace(PRICE, models="cheap", input=((0, 1),), output=((0, 1),))
    budgets = _budgets(prices=(cheap, PRICE))
    chain = ChainModel([ScriptedModel([], name="cheap"), ScriptedModel([], name="dear")])
    (_, bill) = bills_of(chain, REQUEST)
    asyncio.run(BudgetAccounts(budgets, database, spender=ANN).reserve(REQUEST, chain, key="model.0.1"))
    assert _stand(budgets, database)[MONEY] == (0, bill.input_tokens + 500)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.timeout(60)
def test_runs_in_parallel_whose_provider_lies_never_use_more_than_the_cap(database: Database, seed: int) -> None:
    """What was really used is kept by the test; reports are lies of every kind, calls break off, and runs are cancelled."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    limit = 6_000
    budgets = _budgets(cap(TOKENS, limit, TENANT), cap(MONEY, 60_000, TENANT))
    used = {TOKENS: 0, MONEY: 0}
    counter = TokenCounter()

    def turn(request: ModelRequest) -> Turn:
        words = chance.randrange(1, 60)
        text = "word " * words
        said_tokens, read = counter.count_text(text), counter.count(request)
        assert said_tokens <= 100
        used[TOKENS] += read + said_tokens
        used[MONEY] += read + 5 * said_tokens
        lies = (
            TokenUsage(input_tokens=read, output_tokens=said_tokens),
            TokenUsage(input_tokens=0, output_tokens=0),
            TokenUsage(input_tokens=-read, output_tokens=said_tokens),
            TokenUsage(input_tokens=read // 5, output_tokens=said_tokens // 5),
            TokenUsage(input_tokens=10**13, output_tokens=10**13),
            TokenUsage(input_tokens=read, output_tokens=said_tokens, cached_tokens=10**9),
            None,
        )
        lie = chance.choice(lies)
        told = () if lie is None else (UsageTold(usage=lie),)
        if chance.random() < 0.2:
            return (TextPiece(text=text), ModelError("cut", fault=ModelFault.BROKEN_STREAM, said=True))
        return (TextPiece(text=text), Ended(reason="stop"), *told)

    async def no_pause(_seconds: float) -> None:
        await asyncio.sleep(0)

    async def run(number: int) -> int:
        spender = replace(ANN, run=f"run_{number}")
        answers = 0
        for number_of_turn in range(6):
            accounts = BudgetAccounts(budgets, database, spender=spender)
            call = asked(
                ScriptedModel(turn),
                REQUEST,
                run=spender.run,
                turn=number_of_turn // 2,  # every second turn is one that a crash has repeated
                voice=Voice(live=Live()),
                accounts=accounts,
                deadline_s=5,
                pause=no_pause,
            )
            reply = await call
            answers += not reply.fault
            if reply.fault == "budget":
                break
        return answers

    async def story() -> list[int]:
        return list(await asyncio.gather(*(run(number) for number in range(8))))

    answers = asyncio.run(story())
    assert sum(answers) >= 3, "a cap that lets nobody through proves nothing"
    assert used[TOKENS] <= limit
    assert used[MONEY] <= 60_000
    assert _stand(budgets, database)[TOKENS][1] == 0, "nothing is in flight any more"


@pytest.mark.timeout(30)
def test_an_agent_on_a_durable_run_ends_when_its_money_does(tmp_path: Path) -> None:
    from quell.models._scripted import wants  # noqa: PLC0415 - only here
    from tests.doors.test_agent_loop import search  # noqa: PLC0415 - only here

    async def story(database: Database) -> None:
        budgets = _budgets(cap(TOKENS, 40_000, RUN))
        accounts = BudgetAccounts(budgets, database, spender=ANN)
        turns = [wants(search(query=str(number))) for number in range(5)]
        async with agent_room(tmp_path / "room", turns, accounts=accounts) as room:
            answer = await room.ask("Why?")
            assert answer.stop is Stop.SPENT
            assert 0 < len(room.model.asked) < len(turns)  # type: ignore[attr-defined]  # a script
        assert _stand(budgets, database)[TOKENS][1] == 0

    with opened(tmp_path) as database:
        asyncio.run(story(database))
