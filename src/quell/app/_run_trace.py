"""A run as a tree, from its event log: who worked, turn by turn and call by call, and where it died and went on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from quell.domain import Event, OutcomeKind, RunTrace, TokenUsage, TraceNode, TraceTotals
from quell.runs import Runs

PriceOf: TypeAlias = Callable[[str, str, TokenUsage], int | None]
"""Tells the micro-USD of a turn by provider, model and what it took; None: nobody knows the price."""

_ARGUMENTS_CHARS = 80
_ASKED = "waits for people"
_NOT_FAILED = {"", _ASKED} | {kind.value for kind in OutcomeKind if not kind.counts_as_failed}
_MARKS: Mapping[str, str] = {
    "run.recovered": "died here; resumed in the same place",
    "run.taken_over": "died here; resumed by another process",
    "run.resumed": "a person let it go on",
    "run.waiting": "waits",
    "agent.routed": "routed",
    "agent.plan_made": "plan made",
    "agent.replanned": "planned anew",
    "agent.round_ended": "round ended",
    "run.failed": "failed",
    "run.cancelled": "cancelled",
}


async def trace_of(runs: Runs, run_id: str, *, price_of: PriceOf) -> RunTrace:
    """Return a run as a tree, by its id or a beginning of it. Raises UsageError when there is no such run."""
    run = await runs.get(run_id)
    root = _Node(kind="run", name=run.id, at=run.created_at, outcome=run.status.value, tries=run.attempts)
    root.took_s = (run.updated_at - run.created_at).total_seconds()
    tree, after = _Tree(root, price_of=price_of), 0
    while batch := await runs.events(run=run.id, after=after):
        after = batch[-1].seq
        for event in batch:
            tree.take(event)
    return RunTrace(run=run, tree=root.frozen(), totals=_totals(root))


@dataclass(slots=True, kw_only=True)
class _Node:
    """A node while the tree grows."""

    kind: Literal["run", "task", "turn", "call", "step", "mark"]
    name: str
    at: datetime
    took_s: float | None = None
    outcome: str = ""
    tries: int = 1
    detail: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    micro_usd: int | None = None
    children: list[_Node] = field(default_factory=list)

    def walk(self) -> Iterator[_Node]:
        """Yield it and everything below it."""
        yield self
        for each in self.children:
            yield from each.walk()

    def frozen(self) -> TraceNode:
        """Return it as it stands now, with everything below it."""
        return TraceNode(
            kind=self.kind,
            name=self.name,
            at=self.at,
            took_s=self.took_s,
            outcome=self.outcome,
            tries=self.tries,
            detail=self.detail,
            model=self.model,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            micro_usd=self.micro_usd,
            children=tuple(each.frozen() for each in self.children),
        )


class _Tree:
    """Takes events in their order; the tree grows at its end."""

    def __init__(self, root: _Node, *, price_of: PriceOf) -> None:
        self.root = root
        self._price_of = price_of
        self._tasks: dict[str, _Node] = {}
        self._turns: dict[str, _Node] = {}
        """The newest turn of a task."""
        self._calls: dict[str, _Node] = {}
        self._steps: dict[str, _Node] = {}
        """The newest step of a name."""
        self._retried: dict[str, list[str]] = {}
        self._payee = ""
        """Provider of the model that the agent began with; turns name the model alone."""

    def take(self, event: Event) -> None:
        """Put one event into the tree."""
        body = _body_of(event)
        task = str(body.get("task", ""))
        if event.name.startswith("agent."):
            self._of_agent(event, body, task)
        elif event.name in {"step.finished", "step.failed"}:
            self._step(event, body)
        elif event.name == "step.retried":
            self._retried.setdefault(str(body.get("name", "")), []).append(str(body.get("error", "")))
        elif event.name == "run.started" and _number(body.get("attempt")) > 1:
            self._last_mark_tells(event, f"try {body.get('attempt')} began")
        elif event.name in _MARKS:
            self._mark(event, body, task)

    def _of_agent(self, event: Event, body: Mapping[str, object], task: str) -> None:
        match event.name:
            case "agent.began":
                self._payee = str(body.get("model", "")).partition("/")[0]
            case "agent.turn":
                self._turn(event, body, task)
            case "agent.call_asked":
                self._asked(event, body, task)
            case "agent.call_ended":
                self._ended(body)
            case "agent.call_parked":
                self._parked(event, body)
            case "agent.task_started" | "agent.task_ended":
                self._task(event, body, task)
            case _ if event.name in _MARKS:
                self._mark(event, body, task)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _step(self, event: Event, body: Mapping[str, object]) -> None:
        name, is_failed = str(body.get("name", "")), event.name == "step.failed"
        errors = self._retried.pop(name, [])
        node = _Node(
            kind="step",
            name=name,
            at=event.at,
            took_s=_number(body.get("elapsed_ms")) / 1000,
            outcome="failed" if is_failed else "done",
            tries=1 + len(errors),
            detail=str(body.get("error", "")) if is_failed else "; ".join(errors),
        )
        self._steps[name] = node
        call = self._calls.get(name.rpartition("tool.")[2])
        if call is not None and "tool." in name:
            # The step of a call is the call: its time is the whole of it, waits for a turn included.
            call.took_s = node.took_s if call.took_s is None else call.took_s + (node.took_s or 0.0)
            call.tries = max(call.tries, node.tries)
            call.detail = call.detail or node.detail
            if is_failed:
                call.outcome = "failed"
            return
        self.root.children.append(node)

    def _turn(self, event: Event, body: Mapping[str, object], task: str) -> None:
        """Make the model's step what it was: a turn, with what it took."""
        node = self._steps.get(event.key)
        if node is None:
            node = _Node(kind="turn", name="", at=event.at)
        else:
            self.root.children.remove(node)
        usage = body.get("usage")
        node.kind, node.model = "turn", str(body.get("model") or "")
        node.name = f"turn {body.get('turn')}" + (f" of {body['agent']}" if body.get("agent") else "")
        node.tries = max(node.tries, int(_number(body.get("tries")) or 1))
        node.outcome = str(body.get("fault") or body.get("reason") or node.outcome)
        if isinstance(usage, dict):
            self._charge(node, usage)
        self._turns[task] = node
        self._parent(task).children.append(node)

    def _charge(self, node: _Node, usage: Mapping[str, object]) -> None:
        names = ("input_tokens", "output_tokens", "cached_tokens", "written_tokens")
        taken = TokenUsage(**{name: int(_number(usage.get(name))) for name in names})
        node.input_tokens, node.output_tokens = taken.input_tokens, taken.output_tokens
        is_free = not (node.input_tokens or node.output_tokens)
        node.micro_usd = 0 if is_free else self._price_of(self._payee, node.model, taken)

    def _asked(self, event: Event, body: Mapping[str, object], task: str) -> None:
        call = str(body.get("call", ""))
        if call in self._calls:
            return
        arguments = " ".join(str(body.get("arguments", "")).split())
        shown = arguments if len(arguments) <= _ARGUMENTS_CHARS else arguments[: _ARGUMENTS_CHARS - 1] + "…"
        node = _Node(kind="call", name=f"{body.get('tool')} {shown}".rstrip(), at=event.at)
        self._calls[call] = node
        (self._turns.get(task) or self._parent(task)).children.append(node)

    def _ended(self, body: Mapping[str, object]) -> None:
        if (node := self._calls.get(str(body.get("call", "")))) is None:
            return
        node.outcome = str(body.get("kind") or body.get("outcome") or node.outcome)
        node.detail = str(body.get("detail") or node.detail)
        node.tries = max(node.tries, int(_number(body.get("attempts")) or 1))

    def _parked(self, event: Event, body: Mapping[str, object]) -> None:
        if (node := self._calls.get(str(body.get("call", "")))) is not None:
            node.outcome = _ASKED
            waits = _Node(kind="mark", name=f"people were asked: {body.get('approval')}", at=event.at)
            node.children.append(waits)

    def _task(self, event: Event, body: Mapping[str, object], task: str) -> None:
        if event.name == "agent.task_started":
            worker = str(body.get("worker") or body.get("agent") or "")
            name = f"task {task}" + (f" by {worker}" if worker else "")
            self._tasks[task] = _Node(kind="task", name=name, at=event.at)
            self.root.children.append(self._tasks[task])
        elif (node := self._tasks.get(task)) is not None:
            node.took_s = (event.at - node.at).total_seconds()
            node.outcome = "done" if body.get("success", True) else str(body.get("category") or "failed")
            node.detail = str(body.get("error") or body.get("detail") or "")

    def _mark(self, event: Event, body: Mapping[str, object], task: str) -> None:
        detail = str(body.get("error") or body.get("until") or body.get("decision") or "")
        mark = _Node(kind="mark", name=_MARKS[event.name], at=event.at, detail=detail)
        self._parent(task).children.append(mark)

    def _last_mark_tells(self, event: Event, text: str) -> None:
        last = self.root.children[-1] if self.root.children else None
        if last is not None and last.kind == "mark":
            last.detail = text
        else:
            self.root.children.append(_Node(kind="mark", name=text, at=event.at))

    def _parent(self, task: str) -> _Node:
        return self._tasks.get(task, self.root)


def _totals(root: _Node) -> TraceTotals:
    nodes = list(root.walk())
    turns, calls = [each for each in nodes if each.kind == "turn"], [each for each in nodes if each.kind == "call"]
    paid = [each.micro_usd for each in turns if each.micro_usd is not None]
    return TraceTotals(
        turns=len(turns),
        calls=len(calls),
        failed_calls=sum(each.outcome not in _NOT_FAILED for each in calls),
        input_tokens=sum(each.input_tokens for each in turns),
        output_tokens=sum(each.output_tokens for each in turns),
        micro_usd=sum(paid) if paid or not turns else None,
        unpriced_turns=sum(each.micro_usd is None and bool(each.input_tokens) for each in turns),
    )


def _body_of(event: Event) -> dict[str, object]:
    body = json.loads(event.body or "{}")
    return body if isinstance(body, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
