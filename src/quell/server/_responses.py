"""Questions to agents over OpenAI's /v1/responses: whole, as a stream, in the background, and on from an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send

from quell.domain import Heard, Message, Principal, QuellError
from quell.server._approvals import caller_of
from quell.server._chat import STREAM_HEADERS, Begun, Chats
from quell.server._chat_reply import wire_id
from quell.server._chat_request import SESSION_KEY
from quell.server._chat_stream import HEARTBEAT
from quell.server._errors import WireError, json_response
from quell.server._listening import Listening, ended_as
from quell.server._openai_errors import ChatError, chat_error_of
from quell.server._responses_items import ResponseItems
from quell.server._responses_request import ResponseWish, goes_on, read_response
from quell.server._streaming import AtOnce, Ended, Outlet, Straight, Streaming


class Responses:
    """Answers in the words of /v1/responses; what is begun and followed is what chat completions begin and follow."""

    def __init__(self, chats: Chats) -> None:
        self._chats = chats

    async def create(self, request: Request) -> Response:
        """POST /v1/responses."""
        by = caller_of(request)
        wish = read_response(await self._chats.body(request, by))
        wish = await self._continued(wish, by)
        if wish.is_background:
            begun = await self._chats.begin(request, wish.chat, by=by)
            items = self._items(begun, wish.echo)
            return self._json(items.response("in_progress"), begun)
        listening = self._chats.listening()
        try:
            begun = await self._chats.begin(request, wish.chat, by=by)
            if wish.chat.is_streamed:
                answering = partial(self._stream, begun=begun, listening=listening, echo=wish.echo)
                return Streaming(answering, headers=STREAM_HEADERS | begun.headers())
            return await self._whole(request, begun, listening, wish.echo)
        except BaseException:
            self._chats.closing.leave(listening)
            raise

    async def one(self, request: Request) -> Response:
        """GET /v1/responses/ID: an answer as it stands now."""
        begun = await self._chats.found(request.path_params["id"], by=caller_of(request))
        items = self._items(begun, {"metadata": begun.ask.metadata})
        if not await self._chats.has_ended(begun.run):
            for approval in await self._chats.waiting(begun.run):
                items.ask_people(approval)
            return self._json(items.response("in_progress"), begun)
        async for heard in self._chats.follow(begun.run):
            items.feed(heard, approval=await self._chats.approval(heard, "", begun))
        items.finish()
        error = items.account.failure
        return self._json(items.response(items.status(error), error=error), begun)

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/ID/cancel."""
        begun = await self._chats.found(request.path_params["id"], by=caller_of(request))
        await self._chats.cancel(begun.run)
        return await self.one(request)

    async def _continued(self, wish: ResponseWish, by: Principal) -> ResponseWish:
        """Put the earlier answer in front of a question that goes on from it, and results beside their calls."""
        if not wish.previous:
            return goes_on(wish, (), session="")
        begun = await self._chats.found(wish.previous, by=by)
        answer = await self._chats.answer(begun.run)
        if answer is None:
            said = "previous_response_id: that answer has not ended"
            raise ChatError(400, said, reason="invalid_value", param="previous_response_id")
        calls = tuple(replace(call, id=wire_id(call.id)) for call in answer.client_calls)
        said_last = Message(role="assistant", text=answer.text, calls=calls)
        return goes_on(wish, (*begun.ask.messages, said_last), session=begun.ask.session)

    def _items(
        self, begun: Begun, echo: Mapping[str, object], *, mode: Literal["stream", "whole"] = "whole"
    ) -> ResponseItems:
        head: dict[str, object] = {
            "id": "resp_" + begun.run.removeprefix("run_"),
            "object": "response",
            "created_at": begun.created,
            "model": begun.model,
            **echo,
        }
        head["metadata"] = {**begun.ask.metadata, SESSION_KEY: begun.ask.session}
        return ResponseItems(
            head,
            run=begun.run,
            clean=self._chats.clean,
            mode=mode,
            result_max_bytes=self._chats.result_max_bytes,
        )

    async def _whole(
        self, request: Request, begun: Begun, listening: Listening, echo: Mapping[str, object]
    ) -> Response:
        items = self._items(begun, echo)

        async def take(heard: Heard) -> None:
            items.feed(heard, approval=await self._chats.approval(heard, "", begun))

        ending = await self._chats.hear(begun, listening, take, receive=request.receive)
        error = items.account.failure if ending == "ended" else self._chats.ended_by(ending, begun)
        if error is not None:
            error.headers = begun.headers()
            raise error
        items.finish()
        return self._json(items.response(items.status(None)), begun)

    async def _stream(
        self,
        receive: Receive,
        send: Send,
        *,
        at_once: AtOnce,
        begun: Begun,
        listening: Listening,
        echo: Mapping[str, object],
    ) -> Ended:
        items = self._items(begun, echo, mode="stream")
        outlet = Outlet(send, on_sent=listening.sent, at_once=at_once)

        async def beat() -> None:
            outlet.put(HEARTBEAT)
            await outlet.flush()

        async def take(heard: Heard) -> None:
            approval = None if heard.name == "text" else await self._chats.approval(heard, "", begun)
            outlet.put(items.feed(heard, approval=approval))

        outlet.put(items.begin())
        listening.on_silence, listening.before_waiting = beat, outlet.flush
        straight = Straight(outlet, items.said, pulse=listening.pulse)
        error: WireError | None = None
        try:
            ending = await self._chats.hear(begun, listening, take, receive=receive, straight=straight)
        except QuellError as broken:
            # The head is out: only an event can say that the journal is away.
            ending, error = "ended", chat_error_of(broken)
        if ending != "left":
            error = error or (None if ending == "ended" else self._chats.ended_by(ending, begun))
            outlet.put(items.end(error))
            await outlet.flush()
        return ended_as(ending, error or items.account.failure)

    @staticmethod
    def _json(body: object, begun: Begun) -> Response:
        response = json_response(body)
        response.headers.update(begun.headers())
        return response
