"""AURA's named events beside the chunks of a stream: what is heard of a run, in AURA's words and behind its switches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from quell.config import AuraSettings
from quell.domain import Approval, ApprovalStatus, Heard, OutcomeKind, TokenUsage
from quell.governance import Approvals
from quell.server._aura_plan import PlanEvents
from quell.server._chat_reply import Account, usage_object, wire_id
from quell.server._chat_stream import result_of
from quell.server._scene import Scene
from quell.server._wire_text import Clean, cut_bytes, event_frame

_BYTES_PER_TOKEN = 4
"""About, in English and JSON."""
APPROVAL_EVENTS = frozenset({"agent.call_parked", "agent.call_ended"})
"""What may be about a request for approval, which is then looked up before."""


@dataclass(slots=True, kw_only=True)
class _Call:
    """A call that was heard of."""

    tool: str
    turn: int
    is_started: bool = False
    is_ended: bool = False
    approval: str = ""


@dataclass(slots=True, kw_only=True)
class _Turn:
    """The newest turn of a model, and the calls that it wanted."""

    usage: TokenUsage
    calls: list[str] = field(default_factory=list)


class AuraEvents:
    """Turns what is heard of a run into named events; one for each stream."""

    def __init__(self, scene: Scene, settings: AuraSettings, *, clean: Clean) -> None:
        self._scene = scene
        self._settings = settings
        self._clean = clean
        self._calls: dict[str, _Call] = {}
        self._turns: dict[str, _Turn] = {}
        """By task: workers go on side by side."""
        self._parked: dict[str, str] = {}
        """Approvals that wait -> the call that waits for them."""
        self._weights: dict[str, dict[str, int]] = {}
        """By agent: tokens of results that were put aside, and of what was read out of them."""
        self._plan = PlanEvents(scene, result_max_bytes=settings.tool_result_max_length, clean=clean)

    def feed(self, heard: Heard, *, approval: Approval | None = None) -> bytes:
        """Return the events that one thing is; `approval` is what it is about, where it is about one."""
        name, body = heard.name, heard.body
        if name == "text":
            return b""
        told = self._approved(name, body, approval) if approval is not None else b""
        if name == "agent.call_ended":
            self._weigh(body)
        if not self._settings.custom_events:
            return told
        match name:
            case "agent.began":
                told += self._began(body)
            case "reasoning":
                told += self._reasoned(body)
            case "agent.turn":
                self._turns[_task(body)] = _Turn(usage=msgspec.convert(body["usage"], TokenUsage))
            case "agent.call_asked" | "agent.call_started" | "agent.progress" | "agent.call_ended":
                told += self._call(name, body)
        return told + self._plan.feed(heard)

    def waiting_for(self, body: Mapping[str, object]) -> str:
        """Return the approval that a call waits for; empty when none."""
        call = str(body.get("call") or "")
        return next((approval for approval, waiting in self._parked.items() if waiting == call), "")

    def servers(self, states: Sequence[Mapping[str, object]]) -> bytes:
        """Tell which MCP servers are there; nothing where none is configured."""
        if not states:
            return b""
        return event_frame("aura.mcp_status", {"servers": states, **self._scene.session_tail()})

    def end(self, account: Account) -> bytes:
        """Tell what is left to tell when the run has ended."""
        told = b"".join(
            event_frame("aura.scratchpad_usage", {**weighed, **self._scene.tail({"agent": agent})})
            for agent, weighed in self._weights.items()
            if any(weighed.values())
        )
        if not self._settings.custom_events:
            return told
        told += b"".join(self._spent(task) for task in list(self._turns))
        usage = account.usage
        if usage.input_tokens:
            told += event_frame("aura.usage", self._tokens(usage) | self._scene.session_tail())
        return told

    # -- single events ------------------------------------------------------------------------------------------------

    def _event(self, name: str, body: Mapping[str, object], **payload: object) -> bytes:
        return event_frame(f"aura.{name}", payload | self._scene.tail(body))

    def _began(self, body: Mapping[str, object]) -> bytes:
        # As the chunks of the stream name it: whose price list it is on is another matter.
        llm = self._scene.agent.agent.llm
        told: dict[str, object] = {"model": f"{llm.provider}/{llm.model or llm.provider}"}
        if body.get("window"):
            told["model_context_limit"] = body["window"]
        return event_frame("aura.session_info", told | self._scene.session_tail())

    def _reasoned(self, body: Mapping[str, object]) -> bytes:
        if not self._settings.emit_reasoning:
            return b""
        told = b""
        if worker := self._scene.worker(body):
            told = self._plan.reasoned(worker, body)
        return told + self._event("reasoning", body, content=body.get("text", ""))

    def _call(self, name: str, body: Mapping[str, object]) -> bytes:
        identifier = str(body["call"])
        known = self._calls.get(identifier)
        if known is None:
            known = self._calls[identifier] = _Call(tool=str(body.get("tool") or ""), turn=0)
        if known.tool in self._scene.pads and not self._settings.emit_scratchpad_tool_events:
            return b""
        head: dict[str, object] = {"tool_id": wire_id(identifier, run=self._scene.run), "tool_name": known.tool}
        match name:
            case "agent.call_asked":
                return self._asked(identifier, body, head)
            case "agent.call_started":
                return self._started(known, body)
            case "agent.progress":
                return self._started(known, body) + self._moved(body)
        known.is_ended = True
        ended = self._started(known, body) + self._ended(body, head)
        return ended + (self._spent(_task(body)) if self._is_turn_over(_task(body)) else b"")

    def _asked(self, identifier: str, body: Mapping[str, object], head: Mapping[str, object]) -> bytes:
        turn = self._turns.get(_task(body))
        if turn is not None and identifier not in turn.calls:
            turn.calls.append(identifier)
        return self._event("tool_requested", body, **head, arguments=_arguments(self._clean(str(body["arguments"]))))

    def _started(self, known: _Call, body: Mapping[str, object]) -> bytes:
        """Tell that a call began: before its progress and its end, also where nobody said so."""
        if known.is_started:
            return b""
        known.is_started = True
        identifier = wire_id(str(body["call"]), run=self._scene.run)
        return self._event("tool_start", body, tool_id=identifier, tool_name=known.tool, progress_token=identifier)

    def _moved(self, body: Mapping[str, object]) -> bytes:
        told: dict[str, object] = {"message": body.get("message", ""), "phase": "mcp_progress"}
        done, total = body.get("done"), body.get("total")
        if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
            told["percent"] = max(0, min(100, round(done * 100 / total)))
        token = wire_id(str(body["call"]), run=self._scene.run)
        return self._event("progress", body, **told, progress_token=token)

    def _ended(self, body: Mapping[str, object], head: Mapping[str, object]) -> bytes:
        success = OutcomeKind(str(body["kind"])).is_answer
        told: dict[str, object] = {"duration_ms": round(_number(body.get("elapsed_ms"))), "success": success}
        if self._settings.tool_result_mode == "aura" and success:
            told["result"] = cut_bytes(result_of(body), self._settings.tool_result_max_length)
        if not success:
            # The kind of failure first, then what the tool itself said.
            said = ": ".join(str(body[key]) for key in ("detail", "content") if body.get(key)) or str(body["kind"])
            told["error"] = cut_bytes(said, self._settings.tool_result_max_length)
        return self._event("tool_complete", body, **head, **told)

    def _is_turn_over(self, task: str) -> bool:
        turn = self._turns.get(task)
        return turn is not None and all(self._calls[call].is_ended for call in turn.calls)

    def _spent(self, task: str) -> bytes:
        """Tell what the turn took that wanted the calls, once they are over."""
        turn = self._turns.pop(task, None)
        if turn is None or not turn.calls:
            return b""
        ids = [wire_id(call, run=self._scene.run) for call in turn.calls]
        return event_frame("aura.tool_usage", {"tool_ids": ids} | self._tokens(turn.usage) | self._scene.session_tail())

    @staticmethod
    def _tokens(usage: TokenUsage) -> dict[str, object]:
        told = usage_object(usage)
        return {name: told[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}

    def _weigh(self, body: Mapping[str, object]) -> None:
        """Count what was put aside instead of being read whole, and what was read of it."""
        shown = len(str(body.get("content") or "").encode("utf-8", "replace"))
        is_reading, is_aside = str(body.get("tool") or "") in self._scene.pads, bool(body.get("handle"))
        if not is_reading and not is_aside:
            return
        none = {"tokens_intercepted": 0, "tokens_extracted": 0}
        weighed = self._weights.setdefault(str(body.get("agent") or ""), none)
        if is_reading:
            weighed["tokens_extracted"] += shown // _BYTES_PER_TOKEN
        else:
            weighed["tokens_intercepted"] += max(0, round(_number(body.get("size_bytes"))) - shown) // _BYTES_PER_TOKEN

    # -- approvals ----------------------------------------------------------------------------------------------------

    def _approved(self, name: str, body: Mapping[str, object], approval: Approval) -> bytes:
        """Tell of a request for approval: that there is one, or how it ended."""
        waiting = approval.id in self._parked
        decision, scope = Approvals.decision_id_of(approval.id), self._scene.asker(body).scope()
        if name == "agent.call_parked":
            if waiting:
                return b""
            self._parked[approval.id] = str(body["call"])
            tools = approval.terms.calls
            head = {"decision_id": decision, "tool_name": tools[0].call.tool}
            more = {"origin": approval.terms.origin(), "scope": scope}
            arguments = _arguments(tools[0].call.arguments)
            pending = {**head, "arguments": arguments, **more, "expires_at": approval.terms.expires_at}
            return event_frame("aura.approval_requested", {**head, **more}) + event_frame(
                "aura.approval_pending", pending
            )
        if not waiting:
            return b""
        del self._parked[approval.id]
        settled = approval.settled_at or approval.terms.expires_at
        took_ms = round((settled - approval.terms.requested_at).total_seconds() * 1000)
        told = {"decision_id": decision, "outcome": _outcome(approval, took_ms), "duration_ms": took_ms, "scope": scope}
        return event_frame("aura.approval_completed", told)


def _task(body: Mapping[str, object]) -> str:
    return str(body.get("task") or "")


def _outcome(approval: Approval, took_ms: int) -> dict[str, object]:
    match approval.status:
        case ApprovalStatus.APPROVED | ApprovalStatus.CONSUMED:
            return {"kind": "approved"}
        case ApprovalStatus.REJECTED:
            reasons = [vote.reason for vote in approval.votes if vote.verdict == "reject" and vote.reason]
            told: dict[str, object] = {"kind": "denied"}
            return told | ({"reason": reasons[-1]} if reasons else {})
        case ApprovalStatus.EXPIRED:
            return {"kind": "timed_out", "waited_ms": took_ms}
        case ApprovalStatus.SUPERSEDED:
            return {"kind": "cancelled", "reason": "sender_dropped"}
    return {"kind": "errored", "message": approval.told}


def _arguments(written: str) -> object:
    """Return arguments as an object; what is none stands under a name of its own."""
    try:
        found = json.loads(written or "{}")
    except ValueError:
        return {"_unreadable": written}
    return found if isinstance(found, dict) else {"_unreadable": written}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
