"""What is heard of a run, as lines: one for each stage, and the text of the answer as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quell.cli._values import length_text
from quell.domain import Heard, one_line

_ARGUMENTS_CHARS = 90
_DETAIL_CHARS = 200
Colour = Literal["green", "red", "yellow", "cyan", "dim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One line for people."""

    colour: Colour
    word: str
    name: str
    tail: str
    is_passing: bool = False
    """It only tells what is being done now; nothing of it need stay."""


@dataclass(slots=True)
class Call:
    """A tool call as it was heard."""

    tool: str
    arguments: str
    outcome: str = ""
    detail: str = ""
    content: str = ""
    evidence: str = ""
    """Id under which the answer cites it."""


@dataclass(slots=True)
class Reply:
    """What was heard of one run so far."""

    run: str = ""
    agent: str = ""
    model: str = ""
    pieces: list[str] = field(default_factory=list)
    """Text that counts; that of a try that broke off is taken out again."""
    _turn_at: int = 0
    """Where the text of the present turn begins in it."""
    _turn: object = None
    body: Mapping[str, object] = field(default_factory=dict)
    """Of `agent.answered`; empty as long as there is no answer."""
    calls: dict[str, Call] = field(default_factory=dict)
    parked: list[Mapping[str, object]] = field(default_factory=list)
    ended: Literal["", "finished", "failed", "cancelled"] = ""
    error: str = ""
    last: str = ""
    """Id of what was heard last."""

    @property
    def text(self) -> str:
        """Return the whole answer."""
        return str(self.body.get("text") or "".join(self.pieces)).strip()

    @property
    def stop(self) -> str:
        """Return why the agent stopped; empty as long as it has not."""
        return str(self.body.get("stop", ""))

    def take(self, heard: Heard) -> None:
        """Take note of one thing."""
        self.last = heard.id or self.last
        body = heard.body
        match heard.name:
            case "text" if not body.get("task"):
                self._said(body)
            case "void" if not body.get("task"):
                del self.pieces[self._turn_at :]
            case "agent.began":
                self.agent, self.model = str(body.get("agent", "")), str(body.get("model", ""))
            case "agent.call_asked":
                call = Call(str(body.get("tool", "")), str(body.get("arguments", "")))
                self.calls.setdefault(str(body.get("call", "")), call)
            case "agent.call_ended":
                self._ended(body)
            case "agent.call_parked":
                self.parked.append(body)
            case "agent.answered":
                self.body = body
            case "run.finished" | "run.failed" | "run.cancelled":
                self.ended = heard.name.removeprefix("run.")  # type: ignore[assignment]  # one of the three
                self.error = str(body.get("error", ""))

    def _said(self, body: Mapping[str, object]) -> None:
        if body.get("turn") != self._turn:
            self._turn, self._turn_at = body.get("turn"), len(self.pieces)
        self.pieces.append(str(body.get("text", "")))

    def _ended(self, body: Mapping[str, object]) -> None:
        call = self.calls.setdefault(str(body.get("call", "")), Call(str(body.get("tool", "")), ""))
        call.outcome, call.detail = str(body.get("kind", "")), str(body.get("detail", ""))
        call.content = str(body.get("content", ""))
        # A server tells no names: of its results that an answer may cite, the number in their order is the name.
        call.evidence = str(body.get("evidence") or f"e{sum(bool(each.outcome) for each in self.calls.values())}")


def stage_of(heard: Heard, reply: Reply) -> Stage | None:
    """Return what people are told of it; None: nothing."""
    if heard.name == "agent.call_ended":
        return _call_stage(heard.body, reply)
    if heard.name == "agent.turn":
        return _turn_stage(heard.body)
    return _beginning(heard.name, heard.body, reply) or _other_stage(heard)


def _beginning(name: str, body: Mapping[str, object], reply: Reply) -> Stage | None:
    """Tell of what begins, or waits."""
    tool = str(body.get("tool", ""))
    match name:
        case "agent.began":
            tail = f"{_model_text(str(body.get('model', '')))} {reply.run}".strip()
            return Stage(colour="cyan", word="began", name=str(body.get("agent") or "agent"), tail=tail)
        case "agent.call_asked" | "agent.call_started":
            return Stage(colour="cyan", word="calls", name=tool, tail="", is_passing=True)
        case "agent.progress":
            tail = one_line(str(body.get("message", "")), chars_max=_DETAIL_CHARS)
            return Stage(colour="dim", word="...", name=tool, tail=tail, is_passing=True)
        case "agent.call_parked":
            tail = f"approval {body.get('approval', '')}, until {str(body.get('expires_at', ''))[:19]}Z"
            return Stage(colour="yellow", word="waits", name="people", tail=tail)
    return None


def _model_text(model: str) -> str:
    """Return a model as people name it: the one that is built in has no provider."""
    return "builtin" if model == "builtin/builtin" else model


def _call_stage(body: Mapping[str, object], reply: Reply) -> Stage:
    call = reply.calls.get(str(body.get("call", ""))) or Call(str(body.get("tool", "")), "")
    kind = str(body.get("kind", ""))
    took = body.get("elapsed_ms")
    parts = [one_line(call.arguments, chars_max=_ARGUMENTS_CHARS)]
    parts += [length_text(took / 1000)] if isinstance(took, int | float) and took else []
    if kind != "ok":
        parts.append(one_line(f"{kind}: {call.detail}" if call.detail else kind, chars_max=_DETAIL_CHARS))
    elif call.evidence:
        parts.append(f"[{call.evidence}]")
    is_ok = kind in {"ok", "empty", "truncated", "stale"}
    word = "done" if is_ok else "denied" if kind == "denied" else "failed"
    return Stage(colour="green" if is_ok else "red", word=word, name=call.tool, tail="  ".join(filter(None, parts)))


def _turn_stage(body: Mapping[str, object]) -> Stage | None:
    tries = body.get("tries")
    if body.get("fault"):
        return Stage(
            colour="red", word="failed", name="model", tail=one_line(str(body["fault"]), chars_max=_DETAIL_CHARS)
        )
    if isinstance(tries, int) and tries > 1:
        return Stage(colour="yellow", word="done", name="model", tail=f"at try {tries}")
    return None


def _other_stage(heard: Heard) -> Stage | None:
    """Tell of plans and tasks, and of runs that went on elsewhere."""
    body = heard.body
    told: Mapping[str, tuple[Colour, str, str]] = {
        "agent.plan_made": ("cyan", "plan", "made"),
        "agent.routed": ("cyan", "route", str(body.get("mode") or "")),
        "agent.task_started": ("cyan", "began", f"task {body.get('task', '')}"),
        "agent.task_ended": ("green", "done", f"task {body.get('task', '')}"),
        "agent.replanned": ("yellow", "plan", "made anew"),
        "run.recovered": ("yellow", "goes on", "the run had died; its finished steps are kept"),
        "run.taken_over": ("yellow", "goes on", "another process had died with it"),
    }
    if heard.name not in told:
        return None
    colour, word, name = told[heard.name]
    tail = body.get("worker") or body.get("goal") or body.get("description") or body.get("status") or ""
    return Stage(colour=colour, word=word, name=name, tail=one_line(str(tail), chars_max=_DETAIL_CHARS))
