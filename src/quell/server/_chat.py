"""Questions to agents over OpenAI's chat completions: begun as durable runs, and followed by whoever asked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send

from quell import telemetry
from quell.agent import AgentAnswer
from quell.app import App
from quell.config import AgentSettings
from quell.domain import Approval, ChatAsk, Heard, Principal, QuellError, RefusedError, UsageError
from quell.server._agent_list import AgentList
from quell.server._approvals import caller_of
from quell.server._aura_events import APPROVAL_EVENTS, AuraEvents
from quell.server._body import Bodies
from quell.server._chat_reply import Account, completion, run_of
from quell.server._chat_request import SESSION_KEY, ChatWish, fitted, read_chat, session_of, unknown_model
from quell.server._chat_stream import HEARTBEAT, ChatFrames, Framing
from quell.server._errors import WireError, json_response
from quell.server._listening import Ending, Listening, ended_as, ending_error
from quell.server._openai_errors import ChatError, chat_error_of
from quell.server._query import headers_of
from quell.server._rates import Rates
from quell.server._scene import Scene
from quell.server._streaming import AtOnce, Ended, Outlet, Straight, Streaming
from quell.tools import Scratchpad

Take: TypeAlias = Callable[[Heard], Awaitable[None]]
BODY_MAX_MB = 16.0
_KEY_MAX = 255
_IDS = "x-quell-event-ids"
STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run that answers a request."""

    run: str
    ask: ChatAsk
    agent: AgentSettings
    tenant: str
    created: int
    trace: str
    warnings: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Return what answers, as `provider/name`."""
        llm = self.agent.agent.llm
        return f"{llm.provider}/{llm.model or llm.provider}"

    @property
    def goes_on(self) -> bool:
        """Tell whether the run goes on when its client has left."""
        return (self.ask.on_disconnect or self.agent.quell.on_disconnect) == "continue"

    def headers(self) -> dict[str, str]:
        """Return what the answer says of the run beside itself."""
        told = {"X-Chat-Session-Id": self.ask.session, "X-Quell-Run": self.run}
        if self.warnings:
            told["X-Quell-Warning"] = "; ".join(self.warnings).encode("ascii", "backslashreplace").decode()[:1000]
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class _Telling:
    """What one stream is written with."""

    frames: ChatFrames
    events: AuraEvents
    listening: Listening
    after: str


class Chats:
    """Takes questions, answers them whole or as a stream, and lets those who lost a stream go on."""

    def __init__(self, app: App, *, bodies: Bodies, rates: Rates) -> None:
        self._app = app
        self._bodies = bodies
        self._rates = rates
        self.closing = rates.closing
        self._settings = app.settings.server.aura
        self._list = AgentList(app)

    async def create(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        by = caller_of(request)
        wish = read_chat(await self.body(request, by))
        listening = self.listening()
        try:
            begun = await self.begin(request, wish, by=by)
            if wish.is_streamed:
                return self._stream(request, begun, listening, usage=wish.usage)
            return await self._whole(request, begun, listening)
        except BaseException:
            self.closing.leave(listening)
            raise

    async def resume(self, request: Request) -> Response:
        """GET /v1/chat/completions/ID: go on with the stream of a run, after the id of what was heard last."""
        by = caller_of(request)
        begun = await self.found(request.path_params["id"], by=by)
        after = request.headers.get("last-event-id") or request.query_params.get("after", "")
        self._app.agents.check_place(after)
        listening = self.listening()
        try:
            return self._stream(request, begun, listening, usage="last chunk", after=after, with_ids=True)
        except BaseException:
            self.closing.leave(listening)
            raise

    # -- what chat completions and responses share ----------------------------------------------------------------------

    async def body(self, request: Request, by: Principal) -> bytes:
        """Read a body. Raises ChatError 415 for another type, and OverloadError when this person asks too often."""
        self._rates.take(by)
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            said = "a question is JSON: send Content-Type: application/json"
            raise ChatError(415, said, reason="unsupported_media_type")
        return await self._bodies.read(request, body_max_mb=min(BODY_MAX_MB, self._app.settings.server.body_max_mb))

    def listening(self) -> Listening:
        """Count one more who listens. Raises OverloadError when there are too many, and ChatError when the server stops."""
        listening = Listening(self._settings)
        self.closing.enter(listening)
        return listening

    async def begin(self, request: Request, wish: ChatWish, *, by: Principal) -> Begun:
        """Start the run that answers. Raises ChatError when the request cannot be taken."""
        agent = self.agent(wish.ask.agent)
        headers = headers_of(request)
        key = headers.get("idempotency-key", "")
        if len(key) > _KEY_MAX:
            raise ChatError(400, f"the Idempotency-Key has more than {_KEY_MAX} characters", reason="invalid_value")
        # The same key is the same question, so it begins no second conversation.
        place = f"{by.tenant}\n{by.user}\n{key}".encode()
        fresh = hashlib.sha256(place).digest() if key else self._app.entropy(16)
        fit = fitted(wish, agent, session=session_of(wish.ask.session, headers, fresh=fresh))
        if not wish.is_streamed:
            _refuse_conversation(agent)
        run = await self._app.agents.start(fit.ask, by=by, headers=headers, key=key)
        for warning in fit.warnings:
            telemetry.event("chat.warned", run=run.id, said=warning)
        return Begun(
            run=run.id,
            ask=fit.ask,
            agent=agent,
            tenant=by.tenant,
            created=int(run.created_at.timestamp()),
            trace=_trace(),
            warnings=fit.warnings,
        )

    def agent(self, name: str) -> AgentSettings:
        """Return the agent that is meant. Raises ChatError 400 when none is, and 404 when there is no such."""
        try:
            return self._app.agents.find(name)
        except UsageError as error:
            said = "you must provide a model parameter"
            reason = "missing_required_parameter"
            raise ChatError(400, said, reason=reason, param="model", hint=error.hint) from error
        except RefusedError as error:
            raise unknown_model(name) from error

    async def found(self, answer: str, *, by: Principal) -> Begun:
        """Return the run of an answer's id. Raises ChatError 404 for one that is not the caller's."""
        run = run_of(answer)
        try:
            wanted = await self._app.agents.wanted(run)
            found = await self._app.runs.get(run)
        except QuellError as error:
            raise _unknown_run(run) from error
        if found.id != run or (wanted.by.tenant, wanted.by.user) != (by.tenant, by.user):
            raise _unknown_run(run)
        created = int(found.created_at.timestamp())
        # Its file may be gone by now, or name another: the run is what it was.
        agent = await self._app.agents.agent_of(wanted)
        return Begun(run=run, ask=wanted.ask, agent=agent, tenant=by.tenant, created=created, trace=_trace())

    async def answer(self, run: str) -> AgentAnswer | None:
        """Return the answer of a run that has ended; None while it has not. Raises as the desk does."""
        return await self._app.agents.answer(run, timeout_s=0)

    async def has_ended(self, run: str) -> bool:
        """Tell whether a run has ended, in whatever way."""
        return (await self._app.runs.get(run)).status.is_final

    async def waiting(self, run: str) -> Sequence[Approval]:
        """Return what a run asks people and nobody decided yet."""
        return await self._app.warden.waiting(run)

    def follow(self, run: str) -> AsyncGenerator[Heard, None]:
        """Yield all that happened in a run."""
        return self._app.agents.follow(run)

    async def cancel(self, run: str) -> None:
        """Stop a run."""
        await self._app.agents.cancel(run)

    @property
    def result_max_bytes(self) -> int | None:
        """Return how much of a tool's result is told; None: nothing of it."""
        return None if self._settings.tool_result_mode == "none" else self._settings.tool_result_max_length

    def clean(self, text: str) -> str:
        """Take out secrets that are held here."""
        return self._app.warden.redactor.text(text)

    async def hear(
        self,
        begun: Begun,
        listening: Listening,
        take: Take,
        *,
        receive: Receive,
        after: str = "",
        straight: Straight | None = None,
    ) -> Ending:
        """Follow a run for a client; what becomes of the run when it leaves is as the agent or the request wants it."""
        try:
            following = self._app.agents.follow(begun.run, after=after, straight=straight)
            ending = await listening.hear(following, take, receive=receive)
            if ending not in {"ended", "stopping"} and not begun.goes_on:
                await self._app.agents.cancel(begun.run)
            return ending
        finally:
            self.closing.leave(listening)

    # -- whole answers ------------------------------------------------------------------------------------------------

    async def _whole(self, request: Request, begun: Begun, listening: Listening) -> Response:
        account = Account(run=begun.run)

        async def take(heard: Heard) -> None:
            account.hear(heard)

        ending = await self.hear(begun, listening, take, receive=request.receive)
        error = account.failure if ending == "ended" else self.ended_by(ending, begun)
        if error is not None:
            error.headers = begun.headers()
            raise error
        metadata = {**begun.ask.metadata, SESSION_KEY: begun.ask.session}
        whole = completion(account, created=begun.created, model=begun.model, metadata=metadata)
        response = json_response(whole)
        response.headers.update(begun.headers())
        return response

    @staticmethod
    def ended_by(ending: Ending, begun: Begun) -> ChatError:
        """Say why a client hears no more of a run that goes on."""
        return ending_error(ending, run=begun.run, goes_on=begun.goes_on or ending == "stopping")

    # -- streams ------------------------------------------------------------------------------------------------------

    def _stream(
        self,
        request: Request,
        begun: Begun,
        listening: Listening,
        *,
        usage: Literal["last chunk", "own chunk"],
        after: str = "",
        with_ids: bool = False,
    ) -> Response:
        settings = self._settings
        # Who wants AURA's events knows whose calls these are.
        is_told = settings.tool_calls or settings.custom_events or settings.tool_result_mode == "open-web-ui"
        framing = Framing(
            run=begun.run,
            model=begun.model,
            created=begun.created,
            usage=usage,
            calls="told" if is_told else "kept",
            results=settings.tool_result_mode,
            result_max_bytes=settings.tool_result_max_length,
            hidden=Scratchpad.READERS,
            with_ids=with_ids or request.headers.get(_IDS, "") == "on",
            after=after,
        )
        scene = Scene(
            run=begun.run, session=begun.ask.session, agent=begun.agent, trace=begun.trace, pads=Scratchpad.READERS
        )
        telling = _Telling(
            frames=ChatFrames(framing, clean=self.clean),
            events=AuraEvents(scene, settings, clean=self.clean),
            listening=listening,
            after=after,
        )
        return Streaming(partial(self._answer, begun=begun, telling=telling), headers=STREAM_HEADERS | begun.headers())

    async def _answer(self, receive: Receive, send: Send, *, at_once: AtOnce, begun: Begun, telling: _Telling) -> Ended:
        """Send the stream of one run to its end, and tell how it ended."""
        frames, events, listening = telling.frames, telling.events, telling.listening
        outlet = Outlet(send, on_sent=listening.sent, at_once=at_once)

        async def beat() -> None:
            outlet.put(HEARTBEAT)
            await outlet.flush()

        async def take(heard: Heard) -> None:
            sent = frames.feed(heard)
            if heard.name != "text":
                approval = await self.approval(heard, events.waiting_for(heard.body), begun)
                sent += events.feed(heard, approval=approval)
                if heard.name == "agent.began" and self._settings.custom_events:
                    sent += events.servers(await self._list.states(begun.agent))
            if sent:
                outlet.put(frames.marked(sent, heard.id))

        listening.on_silence, listening.before_waiting = beat, outlet.flush
        straight = Straight(outlet, frames.said, pulse=listening.pulse)
        error: WireError | None = None
        try:
            ending = await self.hear(begun, listening, take, receive=receive, after=telling.after, straight=straight)
        except QuellError as broken:
            # The head is out: only a frame can say that the journal is away.
            ending, error = "ended", chat_error_of(broken)
        if ending != "left":
            error = error or (None if ending == "ended" else self.ended_by(ending, begun))
            outlet.put(events.end(frames.account) + frames.end(error))
            await outlet.flush()
        return ended_as(ending, error or frames.account.failure)

    async def approval(self, heard: Heard, waits_for: str, begun: Begun) -> Approval | None:
        """Look up the request for approval that something is about: it says so, or its call waits for one."""
        if heard.name not in APPROVAL_EVENTS:
            return None
        identifier = str(heard.body.get("approval") or "") or waits_for
        if not identifier:
            return None
        authority = await self._app.open_authority()

        def read() -> Approval | None:
            with authority.runs.database.reading() as connection:
                return authority.guard.approvals.find(connection, identifier, tenant=begun.tenant)

        found = await asyncio.to_thread(read)
        return None if found is None else await self._app.warden.shown(found)


def _refuse_conversation(agent: AgentSettings) -> None:
    route = agent.hitl.route if agent.hitl is not None else None
    if route is not None and route.mode == "conversational":
        said = "this agent asks people in the stream of its answer: send stream: true"
        raise ChatError(400, said, reason="stream_required", param="stream")


def _unknown_run(run: str) -> ChatError:
    return ChatError(404, f"there is no answer {run[:100]!r}", reason="not_found")


def _trace() -> str:
    """Return the id of the trace that this request belongs to; empty when nothing is traced."""
    carrier: dict[str, str] = {}
    telemetry.inject(carrier)
    parts = carrier.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else ""
