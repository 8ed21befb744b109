"""The way to agents behind a URL: OpenAI's protocol, with what a `quell serve` tells beyond it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from quell.cli._chat_door import Asked, Card
from quell.cli._person import API_KEY_VARIABLE
from quell.cli._session import Session
from quell.domain import ChatAsk, Heard, Message, UsageError, WorldError
from quell.server import ServerClient, refusal_of

if TYPE_CHECKING:
    from quell.cli._chat_words import Word
    from quell.server import Stream

EXTRA_HEADERS_VARIABLE, AURAS_KEY_VARIABLE = "AURA_EXTRA_HEADERS", "AURA_API_KEY"
_SHOWN_MAX = 50


class Remote:
    """The agents of a server."""

    def __init__(self, url: str, session: Session) -> None:
        self._client = client_of(url, session)
        self.where = self._client.url
        self._streams: dict[str, tuple[Stream, ChatAsk]] = {}

    async def __aenter__(self) -> Self:
        """Use it, and close it after that."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._client.__aexit__()

    async def cards(self) -> Sequence[Card]:
        """Return the agents that the server lists."""
        told = await self._client.ask("GET", "/v1/models")
        listed = told.get("data")
        rows = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        return [_card(each) for each in rows]

    async def begin(self, ask: ChatAsk) -> str:
        """Begin a stream; the run's id is told by a `quell serve`, and made of the answer's elsewhere."""
        stream = await self._client.stream(
            "POST", "/v1/chat/completions", body=_request(ask), headers={"x-quell-event-ids": "on"}
        )
        run = stream.headers.get("x-quell-run", "") or f"stream-{len(self._streams) + 1}"
        self._streams[run] = (stream, ask)
        return run

    async def hear(self, run: str, *, after: str = "") -> AsyncGenerator[Heard, None]:
        """Yield what the server tells of a run, of one whose stream was lost as well."""
        if run in self._streams and not after:
            stream, ask = self._streams.pop(run)
        else:
            asked_after = {"Last-Event-ID": after} if after else {}
            stream = await self._client.stream("GET", f"/v1/chat/completions/{run}", headers=asked_after)
            ask = ChatAsk(messages=())
        reading = _Reading(run=run, agent=ask.agent, ours=frozenset(spec.name for spec in ask.client_tools))
        async with aclosing(stream.frames) as frames:
            async for frame in frames:
                if frame.body == "[DONE]":
                    break
                for heard in reading.read(frame.name, frame.body, frame.id):
                    yield await self._parked(heard, run) if heard.name == "agent.call_parked" else heard
        if not reading.is_over:
            raise WorldError(f"{self.where} ended the stream in its middle", hint="ask again; a run of ours goes on")
        yield Heard(id="", name="run.finished", body={})

    async def cancel(self, run: str) -> None:
        """Cancel a run; a server that has none is left, which is all that can be done."""
        if run.startswith("run_"):
            await self._client.ask("POST", f"/v1/responses/{run}/cancel")
        if run in self._streams:
            await self._streams.pop(run)[0].frames.aclose()

    async def approvals(self) -> Sequence[Asked]:
        """Return what waits for people there."""
        told = await self._client.ask("GET", "/api/v1/approvals?status=requested")
        listed = told.get("approvals")
        return [_asked(each, text="") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []

    async def approval(self, beginning: str) -> Asked:
        """Return one question whole."""
        found = [each for each in await self.approvals() if each.id.startswith(beginning)]
        identifier = found[0].id if len(found) == 1 else beginning
        told = await self._client.ask("GET", f"/api/v1/approvals/{identifier}")
        approval = told.get("approval")
        return _asked(approval if isinstance(approval, dict) else {}, text=str(told.get("text", "")))

    async def decide(self, asked: Asked, *, verdict: Literal["approve", "reject"], reason: str) -> str:
        """Answer exactly what was shown."""
        body = {"decision": verdict, "digest": asked.digest, "reason": reason}
        return str((await self._client.ask("POST", f"/api/v1/approvals/{asked.id}", body=body)).get("told", verdict))

    async def edit(self, asked: Asked, *, arguments: str) -> str:
        """Ask others about other arguments instead."""
        try:
            wanted = json.loads(arguments)
        except ValueError as error:
            raise UsageError(f"the arguments are no JSON: {error}", hint='e {"service": "web"}') from error
        body = {"decision": "edit", "digest": asked.digest, "arguments": wanted}
        told = await self._client.ask("POST", f"/api/v1/approvals/{asked.id}", body=body)
        return str(told.get("told") or "is asked instead")

    async def use_model(self, wanted: str) -> None:
        """Refuse: the server chooses models."""
        raise UsageError(f"{self.where} chooses its models, not {wanted!r}", hint="/agents lists what it has")

    async def history(self, session: str) -> tuple[Message, ...]:
        """Return nothing: what was said there is kept here."""
        del session
        return ()

    async def _parked(self, heard: Heard, run: str) -> Heard:
        """Say of a call that waits what AURA's event does not: the id and the digest of the question."""
        told = await self._client.ask("GET", f"/api/v1/approvals?status=requested&run={run}")
        listed = told.get("approvals")
        rows = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        wanted = str(heard.body.get("approval", ""))
        found = [each for each in rows if wanted in {each.get("decision_id"), each.get("id")}] or rows[-1:]
        more = {"approval": found[0].get("id"), "digest": found[0].get("digest")} if found else {}
        return Heard(id=heard.id, name=heard.name, body={**heard.body, **more})


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What of a stream was read so far."""

    run: str
    agent: str
    """The one that was asked; empty: the default of the server, which does not say its name."""
    ours: frozenset[str]
    """Tools that are carried out here."""
    is_over: bool = False
    _calls: dict[int, dict[str, str]] = field(default_factory=dict)
    _text: list[str] = field(default_factory=list)
    _usage: object = None
    _began: bool = False

    def read(self, name: str, text: str, identifier: str) -> list[Heard]:
        """Return what one frame tells. Raises what an error in the stream stands for."""
        try:
            body = json.loads(text)
        except ValueError as error:
            raise WorldError("the server sends what is no JSON", hint="is it a `quell serve`?") from error
        if not isinstance(body, dict):
            return []
        if "error" in body and not name:
            status = body["error"].get("code") if isinstance(body["error"], dict) else 0
            raise refusal_of(body, status=status if isinstance(status, int) else 500)
        found = self._event(name, body) if name else self._chunk(body)
        return [Heard(id=identifier, name=each, body=told) for each, told in found]

    def _chunk(self, body: Mapping[str, object]) -> list[tuple[str, dict[str, object]]]:
        found: list[tuple[str, dict[str, object]]] = []
        if not self._began:
            self._began = True
            found.append(("agent.began", {"agent": self.agent, "model": str(body.get("model", ""))}))
        self._usage = body.get("usage") or self._usage
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta") or {}
        if delta.get("content"):
            self._text.append(str(delta["content"]))
            found.append(("text", {"text": str(delta["content"]), "turn": 0}))
        for call in delta.get("tool_calls") or ():
            found += self._call(call)
        if choice.get("finish_reason"):
            self.is_over = True
            found.append(("agent.answered", self._answer(str(choice["finish_reason"]), body.get("quell"))))
        return found

    def _call(self, call: Mapping[str, object]) -> list[tuple[str, dict[str, object]]]:
        index, function = call.get("index", len(self._calls)), call.get("function")
        told = function if isinstance(function, dict) else {}
        is_new = index not in self._calls
        assert isinstance(index, int)
        kept = self._calls.setdefault(index, {"id": str(call.get("id", index)), "name": "", "arguments": ""})
        kept["name"] += str(told.get("name") or "")
        kept["arguments"] += str(told.get("arguments") or "")
        if is_new and kept["name"] not in self.ours:
            body = {"call": kept["id"], "tool": kept["name"], "arguments": kept["arguments"]}
            return [("agent.call_asked", dict[str, object](body))]
        return []

    def _answer(self, finish: str, quell: object) -> dict[str, object]:
        told = quell if isinstance(quell, dict) else {}
        stops = {"stop": "answered", "length": "length", "tool_calls": "client"}
        calls = [each for each in self._calls.values() if each["name"] in self.ours] if finish == "tool_calls" else []
        return {
            "text": "".join(self._text),
            "stop": str(told.get("stop") or stops.get(finish, "model")),
            "fault": "" if finish in stops else f"the answer ended with {finish}",
            "usage": self._usage,
            "client_calls": calls,
            **{name: told[name] for name in ("confidence", "cited", "unverified", "turns") if name in told},
        }

    @staticmethod
    def _event(name: str, body: Mapping[str, object]) -> list[tuple[str, dict[str, object]]]:
        """Return what an event of AURA's stands for."""
        call = {"call": body.get("tool_id") or body.get("tool_call_id"), "tool": body.get("tool_name", "")}
        told: dict[str, object] = {}
        heard = ""
        match name.removeprefix("aura."):
            case "tool_requested":
                heard, told = "agent.call_asked", {**call, "arguments": json.dumps(body.get("arguments") or {})}
            case "tool_complete":
                kind = "ok" if body.get("success") else "tool_error"
                told = {"detail": body.get("error") or "", "content": body.get("result") or "", "kind": kind}
                heard, told = "agent.call_ended", {**call, **told, "elapsed_ms": body.get("duration_ms")}
            case "progress":
                heard, told = "agent.progress", {"tool": "", "message": body.get("message", "")}
            case "reasoning":
                heard, told = "reasoning", {"text": body.get("content", "")}
            case "approval_pending":
                told = {"approval": body.get("decision_id"), "expires_at": body.get("expires_at"), "digest": ""}
                heard = "agent.call_parked"
            case "orchestrator.task_started":
                task = f"{body.get('task_id')} {body.get('description', '')}"
                heard, told = "agent.task_started", {"task": task, "worker": body.get("worker_id")}
        return [(heard, told)] if heard else []


def client_of(url: str, session: Session) -> ServerClient:
    """Return the client of a server: the key of QUELL_API_KEY or else of AURA's variable, and AURA's extra headers."""
    extra: dict[str, str] = {}
    for pair in filter(None, session.env.get(EXTRA_HEADERS_VARIABLE, "").split(",")):
        name, colon, value = pair.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"{EXTRA_HEADERS_VARIABLE} is no list of headers", hint="write NAME:VALUE,NAME:VALUE")
        extra[name.strip()] = value.strip()
    key = session.env.get(API_KEY_VARIABLE, "") or session.env.get(AURAS_KEY_VARIABLE, "")
    return ServerClient(url, key=key, headers=extra)


async def remote_verb(url: str, session: Session, word: Word) -> str:
    """Do a command of `quell` on a server, as far as its API has it. Raises UsageError for what it has not."""
    verb, *rest = word.arguments or ("list",)
    identifier = rest[0] if rest else ""
    async with Remote(url, session) as door, client_of(url, session) as client:
        if word.name == "approval":
            told = await _approval_verb(door, verb, rest)
        elif (word.name, verb) == ("run", "cancel") and identifier:
            await door.cancel(identifier)
            told = f"{identifier} is cancelled"
        elif word.name in {"incident", "run"} and verb == "list":
            told = _table(await client.ask("GET", f"/api/v1/{word.name}s"), f"{word.name}s")
        elif word.name in {"incident", "run"} and verb == "show" and identifier:
            told = _json(await client.ask("GET", f"/api/v1/{word.name}s/{identifier}"))
        elif (word.name, verb) == ("run", "trace") and identifier:
            from quell.cli._trace import trace_text

            told = trace_text(await client.trace(identifier))
        elif word.name in {"effect", "switch"} and verb == "list":
            told = _json(await client.ask("GET", f"/api/v1/{word.name}{'es' if word.name == 'switch' else 's'}"))
        else:
            told = ""
    if told:
        return told
    raise UsageError(
        f"/{word.name} {verb} is not there on a server, or lacks an ID",
        hint="there: /approval list|show|approve|reject, /incident list|show, /run list|show|trace|cancel, /effect list, /tool list|show|check|diff|call",
    )


async def _approval_verb(door: Remote, verb: str, words: Sequence[str]) -> str:
    if verb == "list":
        found = await door.approvals()
        return "\n".join(f"{each.id}  {each.ends}  {each.what}" for each in found) or "nothing waits for people"
    if verb == "show" and words:
        asked = await door.approval(words[0])
        return f"{asked.text}\ndigest: {asked.digest}"
    return await _decided(door, verb, words) if verb in {"approve", "reject"} and words else ""


async def _decided(door: Remote, verb: str, words: Sequence[str]) -> str:
    """Answer a question by words as the command line has them: ID --digest D --reason TEXT."""
    options = {words[at]: words[at + 1] for at in range(1, len(words) - 1, 2)}
    digest, reason = options.get("--digest", ""), options.get("--reason", "")
    if not digest:
        raise UsageError("say what you saw", hint=f"/approval show {words[0]}, then {verb} {words[0]} --digest D")
    asked = Asked(id=words[0], status="", digest=digest, ends="", what="", text="")
    return await door.decide(asked, verdict="approve" if verb == "approve" else "reject", reason=reason)


def _request(ask: ChatAsk) -> dict[str, object]:
    body: dict[str, object] = {
        "model": ask.agent or "default",
        "messages": [_message(each) for each in ask.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not ask.agent:
        del body["model"]
    if ask.session:
        body["metadata"] = {"chat_session_id": ask.session}
    if ask.client_tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": each.name,
                    "description": each.description,
                    "parameters": json.loads(each.parameters),
                },
            }
            for each in ask.client_tools
        ]
    return body


def _message(message: Message) -> dict[str, object]:
    told: dict[str, object] = {"role": message.role, "content": message.text}
    if message.role == "tool":
        return {**told, "tool_call_id": message.call}
    if message.calls:
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    return told


def _card(told: Mapping[str, object]) -> Card:
    more = told.get("quell")
    ours = more if isinstance(more, dict) else {}
    return Card(
        id=str(told.get("id", "")),
        description=str(told.get("description") or ""),
        model=str(ours.get("model") or ""),
        # One that does not say leaves them out of the request, if it takes none.
        takes_client_tools=ours.get("takes_client_tools") is not False,
    )


def _asked(told: Mapping[str, object], *, text: str) -> Asked:
    calls = told.get("calls")
    rows = [each for each in calls if isinstance(each, dict)] if isinstance(calls, list) else []
    return Asked(
        id=str(told.get("id", "")),
        status=str(told.get("status", "")),
        digest=str(told.get("digest", "")),
        ends=str(told.get("expires_at", "")),
        what=", ".join(str(each.get("tool", "")) for each in rows),
        text=text,
    )


def _table(told: Mapping[str, object], name: str) -> str:
    listed = told.get(name)
    rows = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    keys = ("id", "status", "stage", "severity", "kind", "title", "subject")
    lines = ["  ".join(str(row[key]) for key in keys if row.get(key)) for row in rows[:_SHOWN_MAX]]
    return "\n".join(lines) or f"no {name}"


def _json(told: Mapping[str, object]) -> str:
    return json.dumps(told, indent=2, ensure_ascii=False)
