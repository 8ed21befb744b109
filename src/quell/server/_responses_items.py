"""What a run did as the items of /v1/responses, and the events that tell of each as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from quell.domain import Approval, CallWanted, Heard, OutcomeKind
from quell.governance import Approvals
from quell.server._chat_reply import Account, wire_id
from quell.server._chat_stream import AGAIN, result_of
from quell.server._errors import WireError
from quell.server._openai_errors import openai_object
from quell.server._wire_text import Clean, cut_bytes, json_text

_LABEL = "quell"
Item = dict[str, object]


class ResponseItems:
    """Grows with everything that is heard of a run; each thing may be some events of a stream."""

    def __init__(
        self,
        head: Mapping[str, object],
        *,
        run: str,
        clean: Clean,
        mode: Literal["stream", "whole"],
        result_max_bytes: int | None,
    ) -> None:
        """`head` is what every form of the answer says; `result_max_bytes` None tells no results of tools."""
        self.account = Account(run=run)
        self._head = head
        self._tag = run.removeprefix("run_")
        self._clean = clean
        self._mode = mode
        self._result_max_bytes = result_max_bytes
        self._items: list[Item] = []
        self._texts: list[str] = []
        """Of the message that is being said."""
        self._open: Item | None = None
        self._place: tuple[object, object] | None = None
        self._calls: dict[str, int] = {}
        self._sequence = 0
        self._delta_head = b""

    def begin(self) -> bytes:
        """Return the events at the beginning."""
        whole = self.response("in_progress")
        return self._event("response.created", response=whole) + self._event("response.in_progress", response=whole)

    def feed(self, heard: Heard, *, approval: Approval | None = None) -> bytes:
        """Take one thing in, and return its events."""
        body = heard.body
        match heard.name:
            case "text":
                return self._text(body)
            case "void":
                return self._void(body)
            case "agent.call_asked" if not body.get("task"):
                return self._close() + self._asked(body)
            case "agent.call_parked" if approval is not None:
                return self.ask_people(approval)
            case "agent.call_ended" if not body.get("task"):
                return self._ended(body)
        self.account.hear(heard)
        return b""

    def end(self, error: WireError | None = None) -> bytes:
        """Return the last events."""
        told = self._close()
        for call in self.account.client_calls:
            told += self._client_call(call)
        error = error or self.account.failure
        status = self.status(error)
        name = "response.completed" if status == "completed" else f"response.{status}"
        if status == "cancelled":
            name = "response.failed"
        return told + self._event(name, response=self.response(status, error=error))

    def finish(self) -> None:
        """Close what is open: a whole answer has no events."""
        self._close()
        for call in self.account.client_calls:
            self._client_call(call)

    def status(self, error: WireError | None) -> Literal["completed", "incomplete", "failed", "cancelled"]:
        """Say how the answer stands, now that no more comes."""
        if error is not None:
            return "cancelled" if self.account.ended == "cancelled" else "failed"
        answer = self.account.answer
        return "incomplete" if answer is not None and answer.stop.is_partial else "completed"

    def response(self, status: str, *, error: WireError | None = None) -> dict[str, object]:
        """Return the whole answer as it stands."""
        told: dict[str, object] = {**self._head, "status": status, "error": None, "incomplete_details": None}
        if error is not None:
            inner = openai_object(error, clean=self._clean)["error"]
            assert isinstance(inner, dict), "an error object has one inside"
            told["error"] = {"code": inner["code"] or "server_error", "message": inner["message"]}
        if status == "incomplete":
            told["incomplete_details"] = {"reason": "max_output_tokens"}
        told["output"] = list(self._items)
        told["usage"] = None if status == "in_progress" else self._usage()
        if status != "in_progress":
            told["quell"] = self.account.told()
        return told

    def _usage(self) -> dict[str, object]:
        usage = self.account.usage
        return {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }

    # -- messages -----------------------------------------------------------------------------------------------------

    def _text(self, body: Mapping[str, object]) -> bytes:
        text = body["text"]
        assert isinstance(text, str), "pieces of text are text"
        if not text or body.get("task"):
            return b""
        return self._of(text, (body.get("agent"), body.get("turn")))

    def said(self, text: str, agent: str, turn: int, _id_of: Callable[[], str]) -> bytes:
        """Return what text of a turn is on the wire."""
        return self._of(text, (agent, turn)) if text else b""

    def _of(self, text: str, place: tuple[object, object]) -> bytes:
        told = b""
        if self._open is not None and place != self._place:
            told = self._close()
        if self._open is None:
            told += self._message()
        self._place = place
        return told + self._said(text)

    def _said(self, text: str) -> bytes:
        self._texts.append(text)
        if self._mode == "whole":
            return b""
        self._sequence += 1
        return self._delta_head + b"%d" % self._sequence + b',"delta":' + json_text(text) + b"}\n\n"

    def _void(self, body: Mapping[str, object]) -> bytes:
        if self._open is None or (body.get("agent"), body.get("turn")) != self._place:
            return b""
        if self._mode == "whole":
            self._texts.clear()
            return b""
        return self._said(AGAIN)

    def _message(self) -> bytes:
        index = len(self._items)
        item: Item = {
            "type": "message",
            "id": f"msg_{self._tag}_{index}",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self._open = item
        self._items.append(item)
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        head = {"type": "response.output_text.delta", **place, "logprobs": []}
        self._delta_head = (
            b"event: response.output_text.delta\ndata: " + msgspec.json.encode(head)[:-1] + b',"sequence_number":'
        )
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return self._event("response.output_item.added", output_index=index, item=item) + self._event(
            "response.content_part.added", **place, part=part
        )

    def _close(self) -> bytes:
        """End the message that is being said."""
        item, self._open = self._open, None
        if item is None:
            return b""
        text, self._texts = "".join(self._texts), []
        index = self._items.index(item)
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        self._items[index] = done = item | {"status": "completed", "content": [part]}
        return (
            self._event("response.output_text.done", **place, text=text, logprobs=[])
            + self._event("response.content_part.done", **place, part=part)
            + self._event("response.output_item.done", output_index=index, item=done)
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    def _asked(self, body: Mapping[str, object]) -> bytes:
        call, index = str(body["call"]), len(self._items)
        if call in self._calls:
            return b""
        item: Item = {
            "type": "mcp_call",
            "id": f"mcp_{wire_id(call, run=self.account.run).removeprefix('call_')}",
            "status": "in_progress",
            "name": body["tool"],
            "server_label": _LABEL,
            "arguments": self._clean(str(body.get("arguments") or "{}")),
            "output": None,
            "error": None,
        }
        self._calls[call] = index
        self._items.append(item)
        place = {"output_index": index, "item_id": item["id"]}
        return (
            self._event("response.output_item.added", output_index=index, item=item)
            + self._event("response.mcp_call.in_progress", **place)
            + self._event("response.mcp_call_arguments.done", **place, arguments=item["arguments"])
        )

    def _ended(self, body: Mapping[str, object]) -> bytes:
        index = self._calls.get(str(body["call"]))
        if index is None:
            return b""
        is_answer = OutcomeKind(str(body["kind"])).is_answer
        item = self._items[index] | {"status": "completed" if is_answer else "failed"}
        if not is_answer:
            item["error"] = cut_bytes(str(body.get("detail") or body["kind"]), self._result_max_bytes or 1000)
        elif self._result_max_bytes is not None:
            item["output"] = cut_bytes(result_of(body), self._result_max_bytes)
        self._items[index] = item
        name = "response.mcp_call.completed" if is_answer else "response.mcp_call.failed"
        return self._event(name, output_index=index, item_id=item["id"]) + self._event(
            "response.output_item.done", output_index=index, item=item
        )

    def ask_people(self, approval: Approval) -> bytes:
        """Tell that people are asked; POST /v1/approvals/ID with the id of the item answers."""
        identifier = Approvals.decision_id_of(approval.id)
        if any(item["id"] == identifier for item in self._items):
            return b""
        call = approval.terms.calls[0].call
        asked = {"name": call.tool, "server_label": _LABEL, "arguments": call.arguments}
        return self._whole_item({"type": "mcp_approval_request", "id": identifier, **asked})

    def _client_call(self, call: CallWanted) -> bytes:
        identifier = wire_id(call.id)
        arguments = call.arguments or "{}"
        item: Item = {
            "type": "function_call",
            "id": f"fc_{identifier.removeprefix('call_')}",
            "status": "completed",
            "call_id": identifier,
            "name": call.name,
            "arguments": arguments,
        }
        index = len(self._items)
        self._items.append(item)
        place = {"item_id": item["id"], "output_index": index}
        begun = item | {"status": "in_progress", "arguments": ""}
        return (
            self._event("response.output_item.added", output_index=index, item=begun)
            + self._event("response.function_call_arguments.delta", **place, delta=arguments)
            + self._event("response.function_call_arguments.done", **place, name=call.name, arguments=arguments)
            + self._event("response.output_item.done", output_index=index, item=item)
        )

    def _whole_item(self, item: Item) -> bytes:
        index = len(self._items)
        self._items.append(item)
        return self._event("response.output_item.added", output_index=index, item=item) + self._event(
            "response.output_item.done", output_index=index, item=item
        )

    def _event(self, name: str, /, **payload: object) -> bytes:
        if self._mode == "whole":
            return b""
        self._sequence += 1
        told = {"type": name, "sequence_number": self._sequence, **payload}
        return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(told) + b"\n\n"
