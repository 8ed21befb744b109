"""/v1/responses: items and events as OpenAI's newer protocol has them, over the same durable runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import delta, end, plain, provider, sse, usage
from tests.doors._wire_bench import a_wire, frames, settings_of

pytestmark = pytest.mark.timeout(60)
LOOSE = '[quell]\nevidence = "off"\n'
AT = "/v1/responses"
CALL = {"index": 0, "id": "x", "function": {"name": "system_overview", "arguments": "{}"}}


def said(response: dict[str, Any]) -> str:
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "\n".join(part["text"] for message in messages for part in message["content"])


def test_an_answer_is_whole_can_be_read_again_and_gone_on_from(tmp_path: Path) -> None:
    async def story() -> None:
        thought = usage(9, 5, completion_tokens_details={"reasoning_tokens": 4})
        turns = (sse(delta("Four."), end(), thought), sse(delta("Five."), end(), usage(19, 1)))
        async with provider(*turns) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                first = (await wire.http.post(AT, json={"input": "Two and two?"})).json()
                assert (first["object"], first["status"], first["error"]) == ("response", "completed", None)
                assert said(first) == "Four."
                assert first["usage"]["input_tokens"] == 9
                assert first["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}
                again = (await wire.http.get(f"{AT}/{first['id']}")).json()
                assert (again["output"], again["status"]) == (first["output"], "completed")
                more = {"input": "And one more?", "previous_response_id": first["id"]}
                second = (await wire.http.post(AT, json=more)).json()
                assert said(second) == "Five."
                assert second["metadata"]["chat_session_id"] == first["metadata"]["chat_session_id"]
                sent = [(each["role"], each["content"]) for each in model.bodies[1]["messages"][1:]]  # type: ignore[index]
                assert sent == [("user", "Two and two?"), ("assistant", "Four."), ("user", "And one more?")]
                assert (await wire.http.get(f"{AT}/resp_none")).status_code == 404

    asyncio.run(story())


def test_a_stream_tells_every_item_and_ends_with_the_whole(tmp_path: Path) -> None:
    async def story() -> None:
        turns = (
            sse(delta("I look."), delta(tool_calls=[CALL]), end("tool_calls"), usage(9, 3)),
            sse(delta("All "), delta("well."), end(), usage(20, 3)),
        )
        async with provider(*turns) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                response = await wire.http.post(AT, json={"input": "Well?", "stream": True})
                found = frames(response.text)
                assert [each["type"] for _, each in found] == [name for name, _ in found]
                assert [each["sequence_number"] for _, each in found] == list(range(1, len(found) + 1))
                assert [name.removeprefix("response.") for name, _ in found] == [
                    "created",
                    "in_progress",
                    "output_item.added",
                    "content_part.added",
                    "output_text.delta",
                    "output_text.done",
                    "content_part.done",
                    "output_item.done",
                    "output_item.added",
                    "mcp_call.in_progress",
                    "mcp_call_arguments.done",
                    "mcp_call.completed",
                    "output_item.done",
                    "output_item.added",
                    "content_part.added",
                    "output_text.delta",
                    "output_text.delta",
                    "output_text.done",
                    "content_part.done",
                    "output_item.done",
                    "completed",
                ]
                last = found[-1][1]["response"]
                assert said(last) == "I look.\nAll well."
                assert [item["type"] for item in last["output"]] == ["message", "mcp_call", "message"]
                assert last["usage"]["total_tokens"] == 35
                read = (await wire.http.get(f"{AT}/{last['id']}")).json()
                assert read["output"] == last["output"]

    asyncio.run(story())


def test_a_function_of_the_client_goes_out_and_its_output_comes_back(tmp_path: Path) -> None:
    async def story() -> None:
        call = {"index": 0, "id": "x", "function": {"name": "local_time", "arguments": "{}"}}
        turns = (
            sse(delta(tool_calls=[call]), end("tool_calls"), usage(9, 3)),
            sse(delta("Noon."), end(), usage(20, 3)),
        )
        async with provider(*turns) as model:
            file = file_of("sre", model.url, agent="enable_client_tools = true", more=LOOSE)
            async with a_wire(settings_of(tmp_path / "state"), agents_of(tmp_path / "a", file)) as wire:
                tools = [{"type": "function", "name": "local_time", "parameters": {"type": "object"}, "strict": False}]
                first = (await wire.http.post(AT, json={"input": "When?", "tools": tools})).json()
                (item,) = first["output"]
                assert (item["type"], item["name"]) == ("function_call", "local_time")
                output = {"type": "function_call_output", "call_id": item["call_id"], "output": "12:00"}
                more = {"input": [output], "tools": tools, "previous_response_id": first["id"]}
                assert said((await wire.http.post(AT, json=more)).json()) == "Noon."
                assert "12:00" in str(model.bodies[1]["messages"])
                alone = await wire.http.post(AT, json={"input": [output], "tools": tools})
                assert alone.status_code == 400, "an output of a call that nobody knows of"

    asyncio.run(story())


def test_what_runs_in_the_background_is_asked_for_later_and_may_be_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(sse(*[delta("word ")] * 200, end(), usage(1, 1), gap_s=0.05)) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                begun = (await wire.http.post(AT, json={"input": "Count.", "background": True})).json()
                assert begun["status"] == "in_progress"
                assert (await wire.http.get(f"{AT}/{begun['id']}")).json()["status"] == "in_progress"
                early = {"input": "And?", "previous_response_id": begun["id"]}
                assert (await wire.http.post(AT, json=early)).status_code == 400
                cancelled = (await wire.http.post(f"{AT}/{begun['id']}/cancel")).json()
                assert cancelled["status"] == "cancelled"

    asyncio.run(story())


def test_what_waits_for_people_is_an_item_and_its_id_is_where_they_answer(tmp_path: Path) -> None:
    async def story() -> None:
        gate = f'[hitl]\nrequire_approval = ["system_overview"]\n{LOOSE}'
        turns = (sse(delta(tool_calls=[CALL]), end("tool_calls"), usage(9, 3)), sse(delta("Well."), end(), usage(9, 3)))
        async with provider(*turns) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=gate))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                begun = (await wire.http.post(AT, json={"input": "Well?", "background": True})).json()

                async def until(kind: str, *, status: str) -> dict[str, Any]:
                    while True:
                        now = (await wire.http.get(f"{AT}/{begun['id']}")).json()
                        found: list[dict[str, Any]] = [item for item in now["output"] if item["type"] == kind]
                        if found and now["status"] == status:
                            return found[0]
                        await asyncio.sleep(0.05)

                asked = await until("mcp_approval_request", status="in_progress")
                assert (asked["name"], asked["arguments"]) == ("system_overview", "{}")
                answer = await wire.http.post(f"/v1/approvals/{asked['id']}", json={"approved": True})
                assert answer.status_code == 204
                assert (await until("message", status="completed"))["content"][0]["text"] == "Well."
                assert (await until("mcp_call", status="completed"))["status"] == "completed"

    asyncio.run(story())


def test_a_model_that_fails_is_a_failed_response(tmp_path: Path) -> None:
    async def story() -> None:
        async with provider(plain(401, {"error": {"message": "bad key"}})) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=LOOSE))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                assert (await wire.http.post(AT, json={"input": "Hello?"})).status_code == 502
                response = await wire.http.post(AT, json={"input": "Hello?", "stream": True})
                name, last = frames(response.text)[-1]
                assert name == "response.failed"
                assert last["response"]["error"]["code"] == "model_auth"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "truncation": "auto"}, "truncation"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function", "name": "look"}] * 2}, "tools"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "look"}}, "tool_choice.name"),
        ({"input": "x", "stream": True, "background": True}, "background"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ],
)
def test_what_is_not_taken_is_refused_by_its_name(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            refused = await wire.http.post(AT, json=fields)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    asyncio.run(story())
