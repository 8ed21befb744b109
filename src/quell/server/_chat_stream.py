"""Write a run as a stream of OpenAI's chunks, byte for byte as AURA frames them; it sends nothing itself.

What is said often is written by hand: one frame costs one encoding of its text and one concatenation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from quell.domain import Heard
from quell.server._chat_reply import Account, call_object, chat_id_of, usage_object, wire_id
from quell.server._errors import WireError
from quell.server._openai_errors import openai_frame
from quell.server._wire_text import Clean, cut_bytes, json_text

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": heartbeat\n\n"
AGAIN = "\n\n[What stands above broke off and does not count; the answer begins anew.]\n\n"
_GAP = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How a stream is written."""

    run: str
    model: str
    created: int
    usage: Literal["last chunk", "own chunk"] = "last chunk"
    calls: Literal["told", "kept"] = "kept"
    """Whether calls that are carried out here are told as chunks."""
    results: Literal["none", "open-web-ui", "aura"] = "none"
    result_max_bytes: int = 1000
    """0: whole results."""
    hidden: frozenset[str] = frozenset()
    """Tools whose calls are not told as chunks."""
    with_ids: bool = False
    """Whether frames carry the id after which a stream can go on."""
    after: str = ""
    """Id of what the client heard before this stream; empty: nothing."""


class ChatFrames:
    """Turns what is heard of a run into frames; one for each stream."""

    def __init__(self, framing: Framing, *, clean: Clean) -> None:
        self._framing = framing
        self._clean = clean
        self.account = Account(run=framing.run)
        head = {
            "id": chat_id_of(framing.run),
            "object": "chat.completion.chunk",
            "created": framing.created,
            "model": framing.model,
        }
        self._head = b"data: " + msgspec.json.encode(head)[:-1]
        choice = b',"choices":[{"index":0,"delta":'
        self._text_head = self._head + choice + b'{"content":'
        self._first_head = self._head + choice + b'{"role":"assistant","content":'
        self._delta_head = self._head + choice
        # In the way of OpenAI's protocol the chunks before the last one say that they tell no usage.
        self._tail = (b',"usage":null' if framing.usage == "own chunk" else b"") + b"}\n\n"
        self._text_tail = b'},"finish_reason":null}]' + self._tail
        seq, _, inside = framing.after.partition(".")
        self._has_role = bool(framing.after)
        self._has_text = bool(framing.after)
        self._needs_gap = bool(framing.after) and not inside
        self._said: tuple[object, object] | None = None
        """Agent and turn of the text that was said last; None where that was in a stream before this one."""
        self._indices: dict[str, int] = {}
        self._first_index = int(seq) if seq.isdecimal() else 0
        """Of a stream that goes on: calls before it have lower ones."""

    def feed(self, heard: Heard) -> bytes:
        """Return what one thing is on the wire; nothing for most."""
        if heard.name == "text":
            return self._text(heard.body)
        if heard.name == "void":
            return self._void(heard.body)
        if heard.name == "agent.call_asked":
            return self._asked(heard.body)
        if heard.name == "agent.call_ended":
            return self._ended(heard.body)
        self.account.hear(heard)
        return b""

    def said(self, text: str, agent: str, turn: int, id_of: Callable[[], str]) -> bytes:
        """Return what text of a turn is on the wire; `id_of` gives the id after which a stream goes on."""
        if self._said == (agent, turn) and text and not self._needs_gap:
            sent = self._text_head + json_text(text) + self._text_tail  # it goes on, as nearly all does
        else:
            sent = self._of(text, (agent, turn)) if text else b""
        return self.marked(sent, id_of()) if sent and self._framing.with_ids else sent

    def _text(self, body: Mapping[str, object]) -> bytes:
        text = body["text"]
        assert isinstance(text, str), "pieces of text are text"
        if not text or body.get("task"):
            return b""
        return self._of(text, (body.get("agent"), body.get("turn")))

    def _of(self, text: str, place: tuple[object, object]) -> bytes:
        if self._has_text and (self._needs_gap or (self._said is not None and place != self._said)):
            text = _GAP + text
        head = self._text_head if self._has_role else self._first_head
        self._has_role, self._has_text, self._needs_gap, self._said = True, True, False, place
        return head + json_text(text) + self._text_tail

    def _void(self, body: Mapping[str, object]) -> bytes:
        """What was said cannot be taken back: say that it does not count."""
        place = (body.get("agent"), body.get("turn"))
        if body.get("task") or not self._has_text or (self._said is not None and place != self._said):
            return b""
        return self._text_head + json_text(AGAIN) + self._text_tail

    def _asked(self, body: Mapping[str, object]) -> bytes:
        call, tool = str(body["call"]), str(body["tool"])
        self._needs_gap = True
        if self._framing.calls == "kept" or tool in self._framing.hidden or call in self._indices or body.get("task"):
            return b""
        self._indices[call] = index = self._first_index + len(self._indices)
        arguments = "" if self._framing.results == "open-web-ui" else self._clean(str(body.get("arguments") or "{}"))
        function = {"name": tool, "arguments": arguments}
        told = {"index": index, "id": wire_id(call, run=self._framing.run), "type": "function", "function": function}
        return self._role() + self._delta({"tool_calls": [told]})

    def _ended(self, body: Mapping[str, object]) -> bytes:
        call = str(body["call"])
        index = self._indices.get(call)
        if self._framing.results != "open-web-ui" or index is None:
            return b""
        result = cut_bytes(result_of(body), self._framing.result_max_bytes)
        told = {
            "index": index,
            "id": wire_id(call, run=self._framing.run),
            "type": "function",
            "function": {"name": "", "arguments": result},
        }
        return self._delta({"tool_calls": [told]})

    def _role(self) -> bytes:
        if self._has_role:
            return b""
        self._has_role = True
        return self._first_head + b'""' + self._text_tail

    def _delta(self, delta: object) -> bytes:
        return self._delta_head + msgspec.json.encode(delta) + b',"finish_reason":null}]' + self._tail

    def marked(self, frames: bytes, identifier: str) -> bytes:
        """Return frames with the id after which a stream goes on, where that was asked for."""
        return frames[:-1] + b"id: " + identifier.encode() + b"\n\n" if self._framing.with_ids else frames

    def end(self, error: WireError | None = None) -> bytes:
        """Return the last frames: the end of the answer, or why there is none."""
        error = error or self.account.failure
        if error is not None:
            return openai_frame(error, clean=self._clean) + DONE
        calls = b""
        for index, call in enumerate(self.account.client_calls, start=self._first_index + len(self._indices)):
            calls += self._delta({"tool_calls": [{"index": index, **call_object(call)}]})
        choice = {"index": 0, "delta": {}, "finish_reason": self.account.finish}
        usage, quell = usage_object(self.account.usage), self.account.told()
        if self._framing.usage == "last chunk":
            return self._role() + calls + self._chunk([choice], usage, quell) + DONE
        last = self._chunk([choice], None, quell) + self._chunk([], usage, {})
        return self._role() + calls + last + DONE

    def _chunk(self, choices: list[object], usage: object, quell: Mapping[str, object]) -> bytes:
        more: dict[str, object] = {"choices": choices, "usage": usage}
        if quell:
            more["quell"] = quell
        return self._head + b"," + msgspec.json.encode(more)[1:] + b"\n\n"


def result_of(body: Mapping[str, object]) -> str:
    """Return what a call brought, or what went wrong with it."""
    return str(body.get("content") or body.get("detail") or "")
