"""AURA's events of a coordinator and its workers.

AURA's task ids begin again in every round; ours count through the run, so that no two tasks share one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from quell.domain import Heard, OutcomeKind
from quell.server._chat_reply import wire_id
from quell.server._chat_stream import result_of
from quell.server._scene import Scene
from quell.server._wire_text import Clean, cut_bytes, event_frame

_COORDINATOR = "coordinator"
_OF_CALLS = frozenset({"agent.call_asked", "agent.call_ended"})
_TIMES = ("planning_ms", "execution_ms", "task_compute_ms", "tool_ms")


class PlanEvents:
    """Turns what is heard of an orchestrated run into named events."""

    def __init__(self, scene: Scene, *, result_max_bytes: int, clean: Clean) -> None:
        self._scene = scene
        self._result_max_bytes = result_max_bytes
        self._clean = clean
        tellers: dict[str, Callable[[Mapping[str, object]], bytes]] = {
            "agent.routed": self._routed,
            "agent.plan_made": self._planned_as,
            "agent.task_started": self._started,
            "agent.task_ended": self._ended,
            "agent.call_asked": self._asked,
            "agent.call_ended": self._answered,
            "agent.synthesizing": self._synthesizing,
            "agent.round_ended": self._round_ended,
            "agent.replanned": self._replanned,
        }
        self._tellers = tellers if scene.agent.orchestration.enabled else {}

    def feed(self, heard: Heard) -> bytes:
        """Return the events that one thing is."""
        told = self._tellers.get(heard.name)
        is_of_a_task = heard.name not in _OF_CALLS or bool(self._scene.worker(heard.body))
        return told(heard.body) if told is not None and is_of_a_task else b""

    def reasoned(self, worker: str, body: Mapping[str, object]) -> bytes:
        """Tell what a worker thinks aloud."""
        task = self._number(body)
        return self._event("worker_reasoning", task_id=task, worker_id=worker, content=body.get("text", ""))

    def _event(self, name: str, **payload: object) -> bytes:
        tail: dict[str, object] = {"agent_id": _COORDINATOR, "agent_name": self._scene.agent.agent.name}
        return event_frame(f"aura.orchestrator.{name}", payload | tail | self._scene.session_tail())

    def _routed(self, body: Mapping[str, object]) -> bytes:
        rationale = body.get("rationale", "")
        match body.get("decision"):
            case "respond_directly" if body.get("mode") == "direct_answer":
                return self._event("direct_answer", response=body.get("response", ""), routing_rationale=rationale)
            case "request_clarification":
                told: dict[str, object] = {"question": body.get("question", "")}
                if body.get("options"):
                    told["options"] = body["options"]
                return self._event("clarification_needed", **told, routing_rationale=rationale)
        return b""

    def _planned_as(self, body: Mapping[str, object]) -> bytes:
        tasks = body.get("tasks")
        listed = tasks if isinstance(tasks, list | tuple) else ()
        told = {
            "goal": body.get("goal", ""),
            "tasks": [str(task.get("text", "")) if isinstance(task, Mapping) else str(task) for task in listed],
            "routing_mode": body.get("mode") or ("routed" if len(listed) == 1 else "orchestrated"),
            "routing_rationale": body.get("rationale", ""),
        }
        if body.get("summary"):
            told["planning_response"] = body["summary"]
        return self._event("plan_created", **told)

    def _task(self, body: Mapping[str, object]) -> dict[str, object]:
        worker = self._scene.worker(body)
        return {"task_id": self._number(body), "orchestrator_id": _COORDINATOR, "worker_id": worker}

    @staticmethod
    def _number(body: Mapping[str, object]) -> int:
        """Return AURA's number of a task, which begins at 0; the same for whoever comes later to a stream."""
        digits = str(body.get("task") or "").removeprefix("t")
        return int(digits) - 1 if digits.isdecimal() else 0

    def _started(self, body: Mapping[str, object]) -> bytes:
        return self._event("task_started", description=body.get("description", ""), **self._task(body))

    def _ended(self, body: Mapping[str, object]) -> bytes:
        told = self._task(body) | {"success": bool(body.get("success")), "duration_ms": _whole(body.get("elapsed_ms"))}
        if body.get("result"):
            told["result"] = cut_bytes(str(body["result"]), self._result_max_bytes)
        return self._event("task_completed", **told)

    def _synthesizing(self, body: Mapping[str, object]) -> bytes:
        return self._event("synthesizing", iteration=_whole(body.get("iteration")))

    def _asked(self, body: Mapping[str, object]) -> bytes:
        return self._event(
            "tool_call_started",
            task_id=self._number(body),
            tool_call_id=wire_id(str(body["call"]), run=self._scene.run),
            tool_name=body["tool"],
            worker_id=self._scene.worker(body),
            arguments=_object(self._clean(str(body.get("arguments") or "{}"))),
        )

    def _answered(self, body: Mapping[str, object]) -> bytes:
        return self._event(
            "tool_call_completed",
            task_id=self._number(body),
            tool_call_id=wire_id(str(body["call"]), run=self._scene.run),
            success=OutcomeKind(str(body["kind"])).is_answer,
            duration_ms=_whole(body.get("elapsed_ms")),
            result=cut_bytes(result_of(body), self._result_max_bytes),
        )

    def _replanned(self, body: Mapping[str, object]) -> bytes:
        iteration = _whole(body.get("iteration"))
        return self._event("replan_started", iteration=iteration, trigger="post_execute_create_plan")

    def _round_ended(self, body: Mapping[str, object]) -> bytes:
        told: dict[str, object] = {
            "iteration": _whole(body.get("iteration")),
            "will_replan": bool(body.get("will_replan")),
        }
        if body.get("reasoning"):
            told["reasoning"] = body["reasoning"]
        if body.get("gaps"):
            told["gaps"] = body["gaps"]
        told |= {name: _whole(body.get(name)) for name in _TIMES}
        return self._event("iteration_complete", **told)


def _object(written: str) -> object:
    try:
        return json.loads(written)
    except ValueError:
        return {"_unreadable": written}


def _whole(value: object) -> int:
    return round(value) if isinstance(value, int | float) else 0
