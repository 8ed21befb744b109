"""Row 11 of the acceptance list: people before a call, in the conversation and by webhook, over the wire."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from quell.config import ApprovalSettings, AuraSettings, IdentitySettings, Secret, Settings
from quell.domain import ConfigError, KeyRequest, Principal, RunStatus
from quell.tools._trust import trusted
from tests.aura._bench import LOOSE, Shop, a_shop, agent_at, calls, played, says, server_of, thinking, until
from tests.doors._authority_house import Service, Told, certificate
from tests.doors._model_bench import Answer
from tests.doors._wire_bench import CHAT, Wire, a_wire, frames, settings_of, text_of

pytestmark = pytest.mark.timeout(60)
GATE = '[hitl]\nrequire_approval = ["delete_{volume,disk}"]\n'
TALK = GATE + '[hitl.route]\nmode = "conversational"\n'
DELETES = calls(("delete_volume", {"name": "v1"}))
ASKED = {"messages": [{"role": "user", "content": "Clean up."}], "stream": True}
SECRET = "0123456789abcdef" * 4
Decide = Callable[[Wire, str], Any]


def _brain(body: dict[str, Any]) -> Answer:
    """Delete once, then say how it ended."""
    results = [each["content"] for each in body["messages"] if each["role"] == "tool"]
    return says("It ended so: ", str(results[-1])[-3000:]) if results else DELETES


@asynccontextmanager
async def _scene(
    tmp_path: Path, hitl: str, *, settings: Settings | None = None
) -> AsyncIterator[tuple[Shop, Wire, Any]]:
    async with a_shop() as shop, thinking(_brain) as model:
        agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE + hitl)
        async with a_wire(settings or _signing(tmp_path / "state"), agents) as wire:
            yield shop, wire, model


class Stream:
    """A stream that somebody reads while it goes on."""

    def __init__(self, response: httpx2.Response) -> None:
        self.run = response.headers["x-quell-run"]
        self._text = response.aiter_text()
        self.said = ""

    async def until(self, event: str) -> dict[str, Any]:
        """Read until an event has come, and return what it tells."""
        while not (found := [each for name, each in frames(self.said) if name == event and isinstance(each, dict)]):
            self.said += await anext(self._text)
        return found[-1]

    async def rest(self) -> list[tuple[str, Any]]:
        """Read to the end."""
        async for text in self._text:
            self.said += text
        return frames(self.said)


@asynccontextmanager
async def _streamed(wire: Wire) -> AsyncIterator[Stream]:
    async with wire.http.stream("POST", CHAT, json=ASKED) as response:
        assert response.status_code == 200
        yield Stream(response)


async def _decide(wire: Wire, decision: str, *, approved: bool, reason: str = "", ago_s: int = 0) -> int:
    """Decide as an approver's service does: signed with AURA's secret."""
    body = json.dumps({"approved": approved} | ({"reason": reason} if reason else {})).encode()
    at = str(int(time.time()) - ago_s)  # noqa: TID251 - what is signed is the time of day
    signature = _signed(f"approval-decision:{decision}", body, at=at)
    headers = {"Content-Type": "application/json", "X-Aura-Timestamp": at, "X-Aura-Signature-256": signature}
    return (await wire.http.post(f"/v1/approvals/{decision}", content=body, headers=headers)).status_code


def _signed(context: str, body: bytes, *, at: str, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), f"{at}.{context}.".encode() + body, hashlib.sha256).hexdigest()


def _signing(
    state_dir: Path, *, aura: AuraSettings | None = None, identity: IdentitySettings | None = None
) -> Settings:
    settings = settings_of(state_dir, aura=aura, identity=identity)
    return replace(settings, approvals=ApprovalSettings(webhook_secret=Secret(SECRET)))


def test_row_11_a_person_in_the_conversation_says_yes_once_and_the_call_is_made(tmp_path: Path) -> None:
    async def story() -> None:
        async with _scene(tmp_path, TALK) as (shop, wire, _), _streamed(wire) as stream:
            pending = await stream.until("aura.approval_pending")
            assert "event: aura.tool_requested" not in stream.said, "only approvals are told without custom events"
            assert (pending["tool_name"], pending["arguments"]) == ("delete_volume", {"name": "v1"})
            assert pending["origin"] == {"kind": "config_gate", "matched_pattern": "delete_{volume,disk}"}
            assert pending["scope"]["kind"] == "single"
            assert pending["expires_at"]
            requested = await stream.until("aura.approval_requested")
            assert (requested["decision_id"], "arguments" in requested) == (pending["decision_id"], False)
            assert shop.done == []
            assert await _decide(wire, pending["decision_id"], approved=True) == 204
            assert await _decide(wire, pending["decision_id"], approved=True, ago_s=1) == 404, "one decision counts"
            found = await stream.rest()
            (completed,) = [each for name, each in found if name == "aura.approval_completed"]
            assert completed["outcome"] == {"kind": "approved"}
            assert shop.done == [("delete_volume", {"name": "v1"})]
            assert found[-1] == ("data", "[DONE]")
            assert "v1 is gone" in text_of([each for name, each in found if name == "data"])

    played(story)


def test_row_11_the_only_person_there_may_say_yes_to_what_only_their_own_file_wants_a_word_about(
    tmp_path: Path,
) -> None:
    # AURA knows no persons. Where identities are configured, who asks never decides; where they are not, there is one.
    async def story() -> None:
        plain = settings_of(tmp_path / "state")
        async with _scene(tmp_path, TALK, settings=plain) as (shop, wire, _), _streamed(wire) as stream:
            pending = await stream.until("aura.approval_pending")
            answer = await wire.http.post(f"/v1/approvals/{pending['decision_id']}", json={"approved": True})
            assert answer.status_code == 204
            await stream.rest()
            assert shop.done == [("delete_volume", {"name": "v1"})]

    played(story)


def test_row_11_a_no_reaches_the_model_with_its_reason_and_nothing_is_done(tmp_path: Path) -> None:
    async def story() -> None:
        async with _scene(tmp_path, TALK) as (shop, wire, model), _streamed(wire) as stream:
            pending = await stream.until("aura.approval_pending")
            assert await _decide(wire, pending["decision_id"], approved=False, reason="not on a Friday") == 204
            found = await stream.rest()
            (completed,) = [each for name, each in found if name == "aura.approval_completed"]
            assert completed["outcome"] == {"kind": "denied", "reason": "not on a Friday"}
            assert "not on a Friday" in json.dumps(model.bodies[-1]["messages"])
            assert shop.done == []

    played(story)


def test_row_11_who_is_too_late_finds_nothing_to_decide(tmp_path: Path) -> None:
    async def story() -> None:
        async with _scene(tmp_path, TALK + "timeout_secs = 1\n") as (shop, wire, _), _streamed(wire) as stream:
            pending = await stream.until("aura.approval_pending")
            found = await stream.rest()
            (completed,) = [each for name, each in found if name == "aura.approval_completed"]
            assert completed["outcome"]["kind"] == "timed_out"
            assert await _decide(wire, pending["decision_id"], approved=True) == 404
            assert shop.done == []

    played(story)


def test_row_11_what_is_no_decision_is_refused_in_auras_status_codes(tmp_path: Path) -> None:
    async def story() -> None:
        unsigned = settings_of(tmp_path / "state")
        async with _scene(tmp_path, TALK, settings=unsigned) as (shop, wire, _), _streamed(wire) as stream:
            at = f"/v1/approvals/{(await stream.until('aura.approval_pending'))['decision_id']}"
            assert (await wire.http.post("/v1/approvals/no-uuid", json={"approved": True})).status_code == 400
            json_type = {"content-type": "application/json"}
            assert (await wire.http.post(at, content="{", headers=json_type)).status_code == 400
            assert (
                await wire.http.post(at, content='{"approved":true}', headers={"content-type": "text/plain"})
            ).status_code == 415
            assert (await wire.http.post(at, json={"approved": "yes"})).status_code == 422
            assert (await wire.http.post(at, json={"approved": True, "by": "me"})).status_code == 422
            unknown = "/v1/approvals/01890000-0000-7000-8000-000000000000"
            assert (await wire.http.post(unknown, json={"approved": True})).status_code == 404
            assert shop.done == []

    played(story)


def test_row_11_every_fault_of_a_signature_is_answered_in_the_same_words(tmp_path: Path) -> None:
    async def story() -> None:
        async with _scene(tmp_path, TALK) as (shop, wire, _), _streamed(wire) as stream:
            decision = (await stream.until("aura.approval_pending"))["decision_id"]
            body, now = b'{"approved":true}', str(int(time.time()))  # noqa: TID251 - as above
            context = f"approval-decision:{decision}"
            wrong: list[dict[str, str]] = [
                {},
                {"X-Aura-Timestamp": now, "X-Aura-Signature-256": "sha256=" + "0" * 64},
                {
                    "X-Aura-Timestamp": now,
                    "X-Aura-Signature-256": _signed(f"approval-request:{decision}", body, at=now),
                },
                {"X-Aura-Timestamp": "1", "X-Aura-Signature-256": _signed(context, body, at="1")},
                {"X-Aura-Timestamp": now, "X-Aura-Signature-256": _signed(context, b'{"approved":false}', at=now)},
            ]
            told = [await wire.http.post(f"/v1/approvals/{decision}", content=body, headers=each) for each in wrong]
            assert {each.status_code for each in told} == {401}
            assert len({each.text for each in told}) == 1
            assert shop.done == []
            assert await _decide(wire, decision, approved=False) == 204

    played(story)


def test_row_11_a_person_with_a_key_approves_what_another_asked_for_and_is_on_record(tmp_path: Path) -> None:
    async def story() -> None:
        identity = IdentitySettings(api_keys=True)
        settings = settings_of(tmp_path / "state", identity=identity)
        async with _scene(tmp_path, TALK, settings=settings) as (shop, wire, _):
            ann, bob = await _key(wire, "ann", "operator", "approver"), await _key(wire, "bob", "approver")
            wire.http.headers.update(ann)
            async with _streamed(wire) as stream:
                at = f"/v1/approvals/{(await stream.until('aura.approval_pending'))['decision_id']}"
                # In AURA whoever caused the call may approve it. Here somebody else has to.
                mine = await wire.http.post(at, json={"approved": True})
                assert mine.status_code == 403
                assert "ask somebody else" in mine.text
                assert (
                    await wire.http.post(at, json={"approved": True}, headers={"Authorization": ""})
                ).status_code == 401
                assert (await wire.http.post(at, json={"approved": True}, headers=bob)).status_code == 204
                assert (await stream.rest())[-1] == ("data", "[DONE]")
            assert shop.done == [("delete_volume", {"name": "v1"})]
            (row,) = (await wire.http.get("/api/v1/approvals")).json()["approvals"]
            assert (row["requester"], [vote["voter"] for vote in row["votes"]]) == ("ann", ["bob"])

    played(story)


async def _key(wire: Wire, user: str, *roles: str) -> dict[str, str]:
    identities = await wire.app.warden.identities()
    wish = KeyRequest(
        name=f"of {user}", user=user, tenant="local", roles=roles, expires_at=wire.app.clock() + timedelta(days=1)
    )
    owner = Principal(user="owner", tenant="local", roles=("viewer", "operator", "approver", "admin"))
    with wire.app.runs.database.writing(durability="written") as connection:
        _, secret = identities.new_key(connection, wish, by=owner)
    return {"Authorization": f"Bearer {secret.reveal()}"}


@pytest.mark.parametrize("leaving", ["continue", "cancel"])
def test_row_11_a_client_that_leaves_takes_the_question_along_only_where_it_cancels(
    tmp_path: Path, leaving: str
) -> None:
    # AURA drops what waits when its stream ends. Here people may answer later, and the run goes on with it.
    async def story() -> None:
        hitl = f'on_disconnect = "{leaving}"\n{TALK}'
        async with _scene(tmp_path, hitl) as (shop, wire, _):
            async with _streamed(wire) as stream:
                decision = (await stream.until("aura.approval_pending"))["decision_id"]
            if leaving == "cancel":
                assert (await wire.app.runs.wait(stream.run, timeout_s=15)).status is RunStatus.CANCELLED
                async with asyncio.timeout(15):
                    while await _decide(wire, decision, approved=True) != 404:
                        await asyncio.sleep(0.1)
                assert shop.done == []
            else:
                assert await _decide(wire, decision, approved=True) == 204
                assert (await wire.app.runs.wait(stream.run, timeout_s=15)).status is RunStatus.SUCCEEDED
                assert shop.done == [("delete_volume", {"name": "v1"})]

    played(story)


def test_row_11_a_server_that_stops_cancels_nothing_and_the_answer_counts_after_its_restart(tmp_path: Path) -> None:
    # AURA resolves it as cancelled by the shutdown, and the work is lost.
    async def story() -> None:
        settings = _signing(tmp_path / "state", aura=AuraSettings(shutdown_timeout_s=0.2))
        async with a_shop() as shop, thinking(_brain) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE + TALK)
            async with a_wire(settings, agents) as wire, _streamed(wire) as stream:
                decision = (await stream.until("aura.approval_pending"))["decision_id"]
                wire.serving.cancel()
                found = await stream.rest()
                assert found[-1] == ("data", "[DONE]")
            async with a_wire(settings, agents) as wire:
                assert await _decide(wire, decision, approved=True) == 204
                assert (await wire.app.runs.wait(stream.run, timeout_s=15)).status is RunStatus.SUCCEEDED
                assert shop.done == [("delete_volume", {"name": "v1"})]

    played(story)


def test_row_11_who_does_not_stream_cannot_be_asked_in_the_conversation(tmp_path: Path) -> None:
    async def story() -> None:
        async with _scene(tmp_path, TALK) as (shop, wire, _):
            response = await wire.ask()
            assert response.status_code == 400
            assert "stream" in response.json()["error"]["message"]
            assert shop.done == []

    played(story)


def test_row_11_an_agent_asks_by_itself_and_is_told_as_who_it_is(tmp_path: Path) -> None:
    def brain(body: dict[str, Any]) -> Answer:
        wish = {"action_description": "drop the index", "risk_rationale": "it cannot be undone"}
        answered = [each for each in body["messages"] if each["role"] == "tool"]
        return says("I may.") if answered else calls(("request_approval", wish))

    async def story() -> None:
        async with a_shop() as shop, thinking(brain) as model:
            agents = agent_at(tmp_path, model.url, server_of(shop) + LOOSE + "[hitl]\n")
            async with a_wire(_signing(tmp_path / "state"), agents) as wire, _streamed(wire) as stream:
                pending = await stream.until("aura.approval_pending")
                assert pending["origin"] == {
                    "kind": "agent_requested",
                    "reason": "it cannot be undone",
                    "agent_name": "sre",
                }
                assert await _decide(wire, pending["decision_id"], approved=True) == 204
                assert text_of([each for name, each in await stream.rest() if name == "data"]) == "I may."

    played(story)


# by webhook


def _hook(url: str, *, more: str = "") -> str:
    return f'{GATE}[hitl.route]\nmode = "webhook"\nurl = "{url}"\n{more}'


def _answers(
    approved: bool, *, reason: str = "", secret: str = ""
) -> Callable[[Told], tuple[int, dict[str, str], bytes]]:
    def answer(told: Told) -> tuple[int, dict[str, str], bytes]:
        body = json.dumps({"approved": approved} | ({"reason": reason} if reason else {})).encode()
        headers = {"Content-Type": "application/json"}
        if secret:
            at, decision = told.headers["x-aura-timestamp"], json.loads(told.body)["decision_id"]
            headers |= {
                "X-Aura-Timestamp": at,
                "X-Aura-Signature-256": _signed(f"approval-decision:{decision}", body, at=at, secret=secret),
            }
        return 200, headers, body

    return answer


@pytest.mark.parametrize("approved", [True, False])
def test_row_11_a_webhook_is_asked_in_auras_form_and_its_answer_counts(tmp_path: Path, approved: bool) -> None:
    async def story() -> None:
        async with Service() as service:
            service.answer = _answers(approved, reason="as ann says")
            more = 'headers = { "X-Room" = "sre" }\nheaders_from_request = { "X-On-Behalf-Of" = "X-USER" }\n'
            settings = settings_of(tmp_path / "state")
            async with _scene(tmp_path, _hook(service.url + "/hook", more=more), settings=settings) as (shop, wire, _):
                whose = {"x-user": "ann", "x-chat-session-id": "cs_night"}
                response = await wire.http.post(CHAT, json=ASKED, headers=whose)
                assert response.text.endswith("data: [DONE]\n\n")
                assert response.headers["x-chat-session-id"] == "cs_night"
                (told,) = service.told
                assert (told.headers["x-room"], told.headers["x-on-behalf-of"]) == ("sre", "ann")
                body = json.loads(told.body)
                assert set(body) == {"version", "decision_id", "request_id", "scope", "origin", "items"}
                assert (body["version"], body["request_id"].partition("_")[0]) == (1, "req")
                assert body["scope"] == {"kind": "single", "session_id": "cs_night"}
                assert body["origin"] == {"kind": "config_gate", "matched_pattern": "delete_{volume,disk}"}
                (item,) = body["items"]
                assert (item["tool_name"], item["arguments"]) == ("delete_volume", {"name": "v1"})
                assert shop.done == ([("delete_volume", {"name": "v1"})] if approved else [])

    played(story)


@pytest.mark.parametrize("trouble", ["silent", "status", "no json", "not a decision", "unsigned", "wrong key"])
def test_row_11_whatever_a_webhook_answers_instead_approves_nothing(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    trusted.cache_clear()

    async def story() -> None:
        answers: dict[str, Callable[[Told], Any]] = {
            "silent": lambda _told: None,
            "status": lambda _told: (500, {}, b'{"approved": true}'),
            "no json": lambda _told: (200, {}, b"yes"),
            "not a decision": lambda _told: (200, {}, b'{"approved": true, "by": "me"}'),
            "unsigned": _answers(approved=True),
            "wrong key": _answers(approved=True, secret="f" * 64),
        }
        is_signed = trouble in {"unsigned", "wrong key"}
        async with Service(tls=context if is_signed else None) as service:
            service.answer = answers[trouble]
            settings = _signing(tmp_path / "state") if is_signed else settings_of(tmp_path / "state")
            hitl = _hook(service.url + "/hook", more="timeout_secs = 2\n")
            async with _scene(tmp_path, hitl, settings=settings) as (shop, wire, _):
                found = frames(await wire.stream())
                await until(lambda: bool(service.told))
                if is_signed:
                    told = service.told[0]
                    meant = f"approval-request:{json.loads(told.body)['decision_id']}"
                    signature = _signed(meant, told.body, at=told.headers["x-aura-timestamp"])
                    assert told.headers["x-aura-signature-256"] == signature
                (completed,) = [each for name, each in found if name == "aura.approval_completed"]
                assert completed["outcome"]["kind"] in {"timed_out", "errored"}
                assert shop.done == []

    try:
        played(story)
    finally:
        trusted.cache_clear()


def test_row_11_plain_http_is_refused_where_answers_are_signed(tmp_path: Path) -> None:
    async def story() -> None:
        settings = _signing(tmp_path / "state")
        with pytest.raises(ConfigError) as caught:
            async with _scene(tmp_path, _hook("http://approve.example.com/hook"), settings=settings):
                pass
        assert "https" in f"{caught.value} {caught.value.problems}"

    played(story)
