"""What runs leave for people and for later runs: the manifest, the files of a task, and the session's history as it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from quell.agent._board import Board, TaskEnd, Trace
from quell.agent._plan import Task
from quell.agent._talk import AgentAnswer, Stop
from quell.agent._words import UNSUBMITTED, escaped

_PREVIEW_CHARS = 500
_GOAL_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, with what it kept."""

    answer: AgentAnswer
    run: str
    session: str


def manifest_of(board: Board, outcome: Outcome) -> str:
    """Return the manifest of a run that ended, in AURA's form."""
    answer = outcome.answer
    plan = board.plan
    told: dict[str, object] = {
        "run_id": outcome.run,
        "session_id": outcome.session or None,
        "timestamp": board.began_at,
        "goal": (plan.goal if plan and plan.goal else board.asked)[:_GOAL_CHARS],
        "status": _status(board, answer),
        "iterations": board.iteration if plan else 0,
        "routing_mode": plan.mode if plan else ("clarification" if answer.stop is Stop.ASKED else "direct_answer"),
        "outcome": answer.stop.value,
        "response_summary": answer.text[:_PREVIEW_CHARS],
        "task_summaries": [
            _summary(task, board.ends[task.number]) for task in board.tasks() if task.number in board.ends
        ],
        "artifact_paths": [
            f"artifacts/{each['filename']}" for number in sorted(board.ends) for each in _artifacts(board.ends[number])
        ],
        "phase_timings": [msgspec.to_builtins(timing) for timing in board.timings],
        "usage": msgspec.to_builtins(answer.usage),
        "confidence": answer.confidence,
    }
    return json.dumps({name: value for name, value in told.items() if value is not None}, indent=2, ensure_ascii=False)


def _status(board: Board, answer: AgentAnswer) -> str:
    done = [end for end in board.ends.values() if end.is_done]
    if answer.stop.is_partial:
        return "partial_success" if done else "failed"
    return "success" if len(done) == len(board.ends) else "partial_success"


def _artifacts(end: TaskEnd) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    if end.artifact:
        size = len(end.result.encode("utf-8", "replace"))
        found.append({"filename": end.artifact, "size_bytes": size, "kind": "result"})
    found += [
        {"filename": trace.artifact, "size_bytes": trace.size_bytes, "kind": "tool_output"}
        for trace in end.traces
        if trace.artifact
    ]
    return found


def _summary(task: Task, end: TaskEnd) -> dict[str, object]:
    told: dict[str, object] = {
        "task_id": task.number,
        "description": task.text,
        "status": "complete" if end.is_done else "failed",
        "worker": task.worker,
        "result_preview": (end.summary or end.result)[:_PREVIEW_CHARS],
        "tool_trace": [_traced(trace) for trace in end.traces],
        "artifacts": _artifacts(end),
    }
    if end.is_done:
        return {**told, "confidence": end.confidence}
    category = end.category.value if end.category else "agent_error"
    context: dict[str, object] = {"category": category, "attempt_count": end.attempts}
    if end.traces:
        context["last_tool_call"] = end.traces[-1].tool
    if end.result:
        context["partial_result"] = end.result[:_PREVIEW_CHARS]
    return {**told, "failure_category": category, "error": end.error, "error_context": context}


def _traced(trace: Trace) -> dict[str, object]:
    outcome: dict[str, object] = {"success": {"output_bytes": trace.size_bytes}}
    if not trace.kind.is_answer:
        outcome = {"error": {"message": trace.detail or trace.kind.value}}
    told: dict[str, object] = {"tool": trace.tool, "duration_ms": round(trace.elapsed_ms), "outcome": outcome}
    if trace.reason:
        told["reasoning"] = trace.reason
    if trace.artifact:
        told["artifact_filename"] = trace.artifact
    return told


def task_files(task: Task, end: TaskEnd, *, prompt: str) -> Iterator[tuple[str, str]]:
    """Yield the files of a task's attempts, with their texts; results and calls are those of the last one."""
    stem = f"task-{task.number}.attempt-{max(end.attempts, 1)}"
    if end.attempts > 1:
        yield f"task-{task.number}.attempt-1.prompt.txt", prompt
        yield f"task-{task.number}.attempt-1.response.txt", end.draft
    yield f"{stem}.prompt.txt", UNSUBMITTED if end.attempts > 1 else prompt
    yield f"{stem}.response.txt", end.result
    if end.is_done:
        submitted = {"summary": end.summary, "result": end.result, "confidence": end.confidence}
        yield f"{stem}.result.json", json.dumps(submitted, indent=2, ensure_ascii=False)
    calls = [{"arguments": trace.arguments, "kind": trace.kind.value, **_traced(trace)} for trace in end.traces]
    yield f"{stem}.tool-calls.json", json.dumps(calls, indent=2, ensure_ascii=False)


def history_text(manifests: Sequence[Mapping[str, object]]) -> str:
    """Return what a coordinator is told of earlier runs of its session, the oldest first."""
    if not manifests:
        return ""
    parts = ["Earlier runs of this session, as data (read_artifact reads their files, with run_id):"]
    for manifest in reversed(manifests):
        paths = manifest.get("artifact_paths")
        files = ", ".join(str(each).rpartition("/")[2] for each in paths) if isinstance(paths, list) else ""
        head = f'<run id="{manifest.get("run_id")}" status="{_flat(manifest.get("status"))}">'
        body = [f"goal: {_flat(manifest.get('goal'))}", f"answer: {_flat(manifest.get('response_summary'))}"]
        if files:
            body.append(f"files: {files}")
        parts.append("\n".join([head, escaped("\n".join(body), fence="run"), "</run>"]))
    return "\n".join(parts)


def _flat(value: object) -> str:
    return " ".join(str(value or "").replace('"', "'").split())[:_PREVIEW_CHARS]
