"""What came of a run, as whoever follows it hears it: one account for streams, for whole answers, and for /v1/responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from quell.agent import AgentAnswer, Stop
from quell.domain import CallWanted, Heard, TokenUsage
from quell.server._openai_errors import ChatError, fault_error

_FOREIGN = re.compile(r"[^A-Za-z0-9_-]+")
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True, kw_only=True)
class Account:
    """Grows with everything that is heard of a run."""

    run: str
    answer: AgentAnswer | None = None
    ended: Literal["", "finished", "failed", "cancelled"] = ""
    error: str = ""
    _spent: list[TokenUsage] = field(default_factory=list)
    """Of the turns, for a run that has no answer to sum them up."""

    def hear(self, heard: Heard) -> None:
        """Take one thing in."""
        match heard.name:
            case "agent.turn":
                self._spent.append(msgspec.convert(heard.body["usage"], TokenUsage))
            case "agent.answered":
                self.answer = msgspec.convert(heard.body, AgentAnswer)
            case "run.finished":
                self.ended = "finished"
            case "run.failed":
                self.ended, self.error = "failed", str(heard.body.get("error", ""))
            case "run.cancelled":
                self.ended = "cancelled"

    @property
    def failure(self) -> ChatError | None:
        """Why there is no answer; None when there is one."""
        if self.answer is not None and self.answer.stop is Stop.MODEL:
            return fault_error(self.answer.fault)
        if self.ended == "cancelled":
            return ChatError(409, "the run was cancelled", reason="cancelled")
        if self.answer is None:
            said = f"the run failed: {self.error}" if self.error else "the run ended without an answer"
            return ChatError(500, said, reason="run_failed", hint=f"quell run show {self.run} says more")
        return None

    @property
    def finish(self) -> Finish:
        """Say in OpenAI's words why it stopped."""
        stop = Stop.ANSWERED if self.answer is None else self.answer.stop
        if stop is Stop.CLIENT:
            return "tool_calls"
        return "length" if stop.is_partial else "stop"

    @property
    def client_calls(self) -> tuple[CallWanted, ...]:
        """Return what the client is to carry out."""
        return () if self.answer is None else self.answer.client_calls

    @property
    def usage(self) -> TokenUsage:
        """Return what the whole run took, as far as it is known."""
        if self.answer is not None:
            return self.answer.usage
        return sum(self._spent, start=TokenUsage(input_tokens=0, output_tokens=0))

    def told(self) -> dict[str, object]:
        """Say of the answer what OpenAI's protocol has no words for."""
        answer = self.answer
        if answer is None:
            return {"run": self.run, "stop": self.ended or "timeout"}
        return {
            "run": self.run,
            "stop": answer.stop.value,
            "is_partial": answer.stop.is_partial,
            "turns": answer.turns,
            "tool_calls": answer.calls,
            "tool_failures": answer.failed,
            "confidence": answer.confidence,
            "cited": answer.cited,
            "unverified": answer.unverified,
            "is_usage_told": answer.is_usage_told,
        }


def usage_object(usage: TokenUsage) -> dict[str, object]:
    """Return usage as chat completions tell it."""
    found: dict[str, object] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    if usage.cached_tokens:
        found["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens:
        found["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return found


def call_object(call: CallWanted) -> dict[str, object]:
    """Return a call that the client is to carry out."""
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {"id": wire_id(call.id), "type": "function", "function": function}


def wire_id(call: str, *, run: str = "") -> str:
    """Return the id of a call as every provider takes it back: letters, digits, `_` and `-`."""
    tag = f"{run[-10:]}_" if run else ""
    return f"call_{tag}{_FOREIGN.sub('_', call)}"


def chat_id_of(run: str) -> str:
    """Return the id of an answer: the same for every stream of one run."""
    return "chatcmpl-" + run.removeprefix("run_")


def run_of(written: str) -> str:
    """Return the id of the run of an answer's id, or of its own."""
    for prefix in ("chatcmpl-", "resp_"):
        if written.startswith(prefix):
            return "run_" + written.removeprefix(prefix)
    return written


def completion(account: Account, *, created: int, model: str, metadata: Mapping[str, str]) -> dict[str, object]:
    """Return a whole answer as one object."""
    answer = account.answer
    assert answer is not None, "a run without an answer is an error"
    message: dict[str, object] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if account.client_calls:
        message["tool_calls"] = [call_object(call) for call in account.client_calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": account.finish}
    return {
        "id": chat_id_of(account.run),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage_object(account.usage),
        "metadata": metadata,
        "quell": account.told(),
    }
