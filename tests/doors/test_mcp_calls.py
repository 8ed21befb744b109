"""How calls of tools end, on a server that does everything wrong: one kind of outcome for each, judged by structure."""

from __future__ import annotations

import asyncio
import json

import pytest

from quell.domain import OutcomeKind, OverloadError, Reply, ServerUnavailable, UsageError
from tests._mcp_bench import ERAS, Era, bad, call, client, piped_server, play, until
from tests._mcp_rogue import ANSWERS, text

K = OutcomeKind
ENDS = {
    "echo": K.OK,
    "structured": K.OK,
    "error_text": K.OK,
    "empty_text": K.EMPTY,
    "empty_list": K.EMPTY,
    "no_content": K.EMPTY,
    "failed": K.TOOL_ERROR,
    "status_401": K.TOOL_ERROR,
    "status_500": K.TRANSPORT_ERROR,
    "huge": K.TRUNCATED,
    "lie": K.SUSPICIOUS,
    "void": K.SUSPICIOUS,
    "html": K.SUSPICIOUS,
    "not_rpc": K.SUSPICIOUS,
    "half_json": K.SUSPICIOUS,
    "error_body": K.SUSPICIOUS,
    "denied_form": K.SUSPICIOUS,
    "twice": K.OK,
    "sample": K.TOOL_ERROR,
    "torn": K.SUSPICIOUS,
    "moved": K.SUSPICIOUS,
    "accepted": K.SUSPICIOUS,
}


@pytest.mark.parametrize("era", ERAS)
def test_every_misdeed_over_http_has_its_own_kind_of_outcome_and_harms_no_later_call(era: Era) -> None:
    async def story() -> None:
        async with bad(era) as (server, servers):
            for tool, kind in ENDS.items():
                if (tool, era) == ("sample", "legacy"):
                    continue  # an old server cannot ask in its result
                answer = await call(servers, tool)
                assert answer.kind is kind, (tool, answer)
                assert bool(answer.detail) is (kind is not K.OK), tool
                assert (await call(servers, "echo")).kind is K.OK, f"after {tool}"
            assert server.handshakes == 1

    play(story)


@pytest.mark.parametrize("era", ERAS)
def test_a_call_that_is_redirected_is_not_sent_again_to_anybody(era: Era) -> None:
    async def story() -> None:
        async with bad(era) as (server, servers):
            assert "nobody knows" in (await call(servers, "moved")).detail
            assert [one["name"] for one in server.calls] == ["moved"]

    play(story)


def test_only_structure_makes_an_error_and_words_never_do() -> None:
    async def story() -> None:
        async with bad() as (_, servers):
            said = await call(servers, "error_text")
            assert (said.kind, said.content) == (K.OK, "Error: everything is on fire")
            failed = await call(servers, "failed")
            assert (failed.kind, failed.content) == (K.TOOL_ERROR, "out of cheese")

    play(story)


def test_structured_content_goes_before_text_and_is_json() -> None:
    async def story() -> None:
        async with bad() as (_, servers):
            answer = await call(servers, "structured")
            assert (answer.content, answer.is_json, answer.size_bytes) == ('{"n":7}', True, 7)
            assert len(answer.digest) == 64

    play(story)


@pytest.mark.parametrize("schema", ["at the server", "nowhere", "no schema"])
def test_an_output_schema_that_cannot_be_used_is_suspicious_and_nothing_is_fetched_for_it(schema: str) -> None:
    async def story() -> None:
        async with bad() as (server, servers):
            kinds = {
                "at the server": {"type": "object", "$ref": server.url},
                "nowhere": {"type": "object", "$ref": "#/$defs/missing"},
                "no schema": {"type": "object", "properties": {"n": {"type": "no such type"}}},
            }
            tool = next(tool for tool in server.tools if tool["name"] == "structured")
            tool["outputSchema"] = kinds[schema]
            assert (await call(servers, "structured")).kind is K.SUSPICIOUS
            assert server.gets == 0

    play(story)


DOUBLING = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)} | {"d60": {"type": "object"}}
BOMBS: dict[str, tuple[dict[str, object], dict[str, object], K]] = {
    "pattern": ({"properties": {"n": {"pattern": "^(a+)+$"}}}, {"n": "a" * 60 + "!"}, K.SUSPICIOUS),
    "pattern that fits": ({"properties": {"n": {"pattern": "^(a+)+$"}}}, {"n": "a" * 60}, K.OK),
    "look-around": ({"properties": {"n": {"pattern": "(?=a)"}}}, {"n": "a"}, K.SUSPICIOUS),
    "names": ({"patternProperties": {"^(a+)+$": False}}, {"a" * 60 + "!": 1}, K.OK),
    "names refused": ({"patternProperties": {"^(a+)+$": False}}, {"a" * 60: 1}, K.SUSPICIOUS),
    "names left over": (
        {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
        {"a" * 60 + "!": 1},
        K.SUSPICIOUS,
    ),
    "names nowhere evaluated": (
        {"patternProperties": {"^(a+)+$": {}}, "unevaluatedProperties": False},
        {"a" * 60 + "!": 1},
        K.SUSPICIOUS,
    ),
    "unique": ({"properties": {"n": {"uniqueItems": True}}}, {"n": [{"a": n} for n in range(20_000)]}, K.OK),
    "not unique": ({"properties": {"n": {"uniqueItems": True}}}, {"n": [{"a": 1}, {"a": 1}]}, K.SUSPICIOUS),
    "doubling": ({"$defs": DOUBLING, "$ref": "#/$defs/d0"}, {"n": 1}, K.SUSPICIOUS),
    "itself": ({"$ref": "#"}, {"n": 1}, K.SUSPICIOUS),
    "wide": ({"properties": {f"p{n}": {"type": "string"} for n in range(9_000)}}, {"n": 1}, K.SUSPICIOUS),
    "a large answer": (
        {"properties": {"n": {"items": {"properties": {"a": {"type": "integer"}, "b": {"pattern": "^x*$"}}}}}},
        {"n": [{"a": n, "b": "x" * 40} for n in range(10_000)]},
        K.OK,
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_output_schema_of_a_server_makes_judging_its_answer_endless(
    bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bad() as (server, servers):
            schema, answer, kind = BOMBS[bomb]
            tool = next(tool for tool in server.tools if tool["name"] == "structured")
            tool["outputSchema"] = {"type": "object", **schema}
            monkeypatch.setitem(ANSWERS, "structured", text("", structuredContent=answer))
            told = await call(servers, "structured")
            assert told.kind is kind, told.detail

    play(story)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_no_json(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bad() as (_, servers):
            monkeypatch.setitem(ANSWERS, "old", text("", structuredContent={"n": float(number)}))
            assert (await call(servers, "old")).kind is K.SUSPICIOUS
            monkeypatch.setitem(ANSWERS, "old", text("", structuredContent={"n": f"{number}"}))
            assert (await call(servers, "old")).is_json, "the word is a text like any other"
            monkeypatch.setitem(ANSWERS, "old", text(f'{{"n": {number}}}'))
            answer = await call(servers, "old")
            assert (answer.kind, answer.is_json) == (K.OK, False)

    play(story)


def test_the_page_of_a_login_is_suspicious_where_json_was_promised_and_a_page_elsewhere() -> None:
    async def story() -> None:
        async with bad() as (_, servers):
            assert (await call(servers, "login")).kind is K.OK
            assert (await call(servers, "login", answers="json")).kind is K.SUSPICIOUS
            assert (await call(servers, "echo", answers="json")).kind is K.OK

    play(story)


@pytest.mark.parametrize(
    ("fresh_for_s", "as_of", "kind"),
    [(7200, "/at", K.OK), (60, "/at", K.STALE), (7200, "/when", K.STALE), (7200, "/n", K.STALE), (None, "/at", K.OK)],
)
def test_an_answer_whose_data_is_older_than_asked_is_stale(fresh_for_s: float | None, as_of: str, kind: K) -> None:
    async def story() -> None:
        async with bad() as (_, servers):
            answer = await call(servers, "old", as_of=as_of, fresh_for_s=fresh_for_s)
            assert answer.kind is kind
            if as_of == "/at":
                assert answer.as_of is not None
                assert answer.as_of.hour == 11

    play(story)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("tool", ["hang", "drip", "other_id"])
def test_a_call_without_an_answer_times_out_and_is_cancelled_on_the_server(era: Era, tool: str) -> None:
    async def story() -> None:
        async with bad(era) as (server, servers):
            answer = await call(servers, tool, timeout_s=0.2)
            assert answer.kind is K.TIMEOUT
            if era == "legacy":
                await until(lambda: len(server.cancelled) == 1)
            if tool == "drip" or (tool, era) == ("hang", "modern"):
                await until(lambda: server.gone == [tool])  # nobody goes on reading; today's protocol cancels that way
            assert (await call(servers, "echo")).kind is K.OK

    play(story)


@pytest.mark.parametrize("era", ERAS)
def test_a_caller_who_gives_up_is_free_at_once_and_the_server_is_told(era: Era) -> None:
    async def story() -> None:
        async with bad(era) as (server, servers):
            task = asyncio.create_task(call(servers, "hang"))
            await until(lambda: bool(server.calls))
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)
            assert task.cancelled()
            await until(lambda: bool(server.cancelled) or bool(server.gone))
            assert (await call(servers, "echo")).kind is K.OK

    play(story)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("tool", ["close", "gzip"])
def test_a_connection_that_breaks_in_a_call_is_an_error_with_a_type_that_says_it_was_sent(era: Era, tool: str) -> None:
    async def story() -> None:
        async with bad(era) as (server, servers):
            with pytest.raises(ServerUnavailable) as caught:
                await call(servers, tool)
            assert caught.value.was_sent
            assert caught.value.server == "bad"
            assert (await call(servers, "echo")).kind is K.OK
            assert server.handshakes == 1

    play(story)


@pytest.mark.parametrize("era", ERAS)
def test_progress_is_passed_on_and_a_flood_of_it_is_not_nor_does_a_bad_listener_harm(era: Era) -> None:
    async def story() -> None:
        async with bad(era) as (_, servers):
            heard: list[float] = []

            def listen(progress: object) -> None:
                heard.append(getattr(progress, "done", -1.0))
                raise ValueError("a bad listener")

            assert (await call(servers, "flood", on_progress=listen)).kind is K.OK
            assert len(heard) == 1_000
            assert heard[:3] == [0.0, 1.0, 2.0]

    play(story)


def test_arguments_reach_the_server_as_they_were_approved() -> None:
    async def story() -> None:
        async with bad() as (server, servers):
            whole: dict[str, object] = {"none": None, "deep": {"none": None, "list": [1, 2.5, True]}, "ü": "\u202e"}
            await call(servers, "echo", whole)
            assert server.calls[-1]["arguments"] == whole
            assert server.calls[-1]["name"] == "echo"

    play(story)


def test_the_idempotency_key_travels_beside_the_arguments() -> None:
    async def story() -> None:
        async with bad() as (server, servers):
            await call(servers, "echo", key="run_1/3", meta={"a": "b"})
            sent = server.calls[-1]
            assert sent["_meta"]["quell/idempotency-key"] == "run_1/3"
            assert sent["_meta"]["a"] == "b"
            assert sent["headers"]["idempotency-key"] == "run_1/3"
            assert sent["arguments"] == {"n": 1}
            await call(servers, "echo")
            assert "idempotency-key" not in server.calls[-1]["headers"]

    play(story)


def test_only_listed_headers_of_a_caller_are_passed_on_and_callers_never_share_a_connection() -> None:
    async def story() -> None:
        async with bad(headers={"x-static": "s"}, forward_headers=("Authorization",)) as (server, servers):
            for who in ("ann", "bob"):
                await call(servers, "echo", headers={"authorization": who, "cookie": "secret", "host": "evil"})
                sent = server.calls[-1]["headers"]
                assert (sent["authorization"], sent["x-static"]) == (who, "s")
                assert "cookie" not in sent
                assert sent["host"].startswith("127.0.0.1")
            assert server.handshakes == 2
            await call(servers, "echo")
            assert "authorization" not in server.calls[-1]["headers"]

    play(story)


@pytest.mark.timeout(60)
def test_callers_beyond_the_bound_take_the_place_of_idle_ones_and_are_turned_away_when_none_is() -> None:
    async def story() -> None:
        async with bad(forward_headers=("authorization",), call_timeout_s=60.0, tools=("echo", "hang")) as (
            server,
            servers,
        ):
            server.page_size = 100
            for number in range(40):
                assert (await call(servers, "echo", headers={"authorization": str(number)})).kind is K.OK
            waiting = [
                asyncio.create_task(call(servers, "hang", headers={"authorization": f"w{number}"}))
                for number in range(32)
            ]
            await until(lambda: len(server.calls) == 72, seconds=20)
            with pytest.raises(OverloadError):
                await call(servers, "echo", headers={"authorization": "one more"})
            for task in waiting:
                task.cancel()

    play(story)


def test_a_call_that_needs_people_is_parked_and_goes_on_with_their_reply_and_the_state() -> None:
    async def story() -> None:
        async with bad() as (server, servers):
            parked = await call(servers, "park")
            assert (parked.kind, parked.content) == (K.DENIED, "")
            assert parked.needs is not None
            (ask,) = parked.needs.asks
            assert (ask.key, ask.message, parked.needs.goes_on) == ("q", "sure?", "resumes")
            assert json.loads(ask.schema)["required"] == ["sure"]
            reply = Reply(action="accept", content='{"sure": true}')
            done = await call(servers, "park", replies={"q": reply}, request_state=parked.needs.request_state)
            assert (done.kind, done.content) == (K.OK, "accept {'sure': True}")
            assert server.calls[-1]["requestState"] == "state-1"

    play(story)


@pytest.mark.parametrize("over", ["http", "pipes"])
def test_an_old_server_that_asks_in_a_call_is_told_no_and_asked_again_with_the_reply(over: str) -> None:
    async def story() -> None:
        async with bad("legacy") as (_, by_http), client(piped_server()) as by_pipes:
            servers = by_http if over == "http" else by_pipes
            parked = await call(servers, "elicit")
            assert parked.kind is K.DENIED
            assert parked.needs is not None
            (ask,) = parked.needs.asks
            assert (ask.message, parked.needs.goes_on) == ("sure?", "restarts")
            reply = Reply(action="accept", content='{"sure": true}')
            done = await call(servers, "elicit", replies={ask.key: reply})
            assert (done.kind, done.content) == (K.OK, "accept {'sure': True}")
            declined = await call(servers, "elicit", replies={ask.key: Reply(action="decline")})
            assert declined.content == "decline None"
            other = await call(servers, "elicit", replies={"another question": reply})
            assert other.kind is K.DENIED, "a reply fits only the question that was shown"

    play(story)


def test_a_reply_that_is_no_json_is_the_callers_mistake_and_is_not_sent() -> None:
    async def story() -> None:
        async with bad() as (server, servers):
            for content in ("yes", "[1]", '{"deep": {"er": 1}}'):
                with pytest.raises(UsageError):
                    await call(servers, "park", replies={"q": Reply(action="accept", content=content)})
            assert server.calls == []

    play(story)


def test_a_server_that_asks_for_a_model_is_refused() -> None:
    async def story() -> None:
        async with bad() as (_, servers):
            answer = await call(servers, "sample")
            assert answer.kind is K.TOOL_ERROR
            assert "sampling/createMessage" in answer.detail
            assert answer.needs is None

    play(story)
