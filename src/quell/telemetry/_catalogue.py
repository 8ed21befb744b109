"""The one catalogue of event names: log lines, run events and OpenTelemetry log records use no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = Scalar | Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSpec:
    """What one event means and carries."""

    fields: tuple[str, ...]
    """Names of the values in its body; any of them may be missing."""
    level: Level
    meaning: str
    """One sentence for people."""


def _spec(level: Level, meaning: str, *fields: str) -> EventSpec:
    return EventSpec(fields=fields, level=level, meaning=meaning)


EVENTS: Mapping[str, EventSpec] = {
    # a durable run and its steps
    "run.queued": _spec("info", "A run was written down and waits for a process.", "kind", "subject"),
    "run.started": _spec("info", "A run began, or began again after a crash.", "kind", "subject", "attempt"),
    "run.continued": _spec("debug", "A run went on to its next segment.", "segment"),
    "run.waiting": _spec("info", "A run waits for a moment; nothing of it stays alive meanwhile.", "until"),
    "run.resumed": _spec("info", "A run that had failed or been cancelled was started again.", "kind", "subject"),
    "run.recovered": _spec(
        "warning", "A run was found interrupted by its own process slot and goes on.", "kind", "attempt"
    ),
    "run.taken_over": _spec(
        "warning", "A run of a dead process was taken over.", "kind", "from_executor", "to_executor"
    ),
    "run.finished": _spec("info", "A run reached its result.", "kind", "elapsed_ms", "outcome"),
    "run.failed": _spec("error", "A run ended without a result.", "kind", "error", "elapsed_ms"),
    "run.cancelled": _spec("info", "A run was cancelled by a person.", "kind"),
    "run.retained": _spec("debug", "Finished runs past their retention were deleted.", "deleted"),
    "step.started": _spec("debug", "A step of a run began.", "name", "index"),
    "step.finished": _spec("info", "A step of a run is journalled.", "name", "index", "elapsed_ms"),
    "step.retried": _spec("warning", "An attempt of a step failed and another follows.", "name", "attempt", "error"),
    "step.failed": _spec("warning", "A step of a run failed for good.", "name", "index", "error", "elapsed_ms"),
    # effects, as the ledger has them
    "effect.intended": _spec("debug", "An effect was written down before anything of it.", "call", "tool", "resource"),
    "effect.started": _spec("info", "An effect is sent.", "call", "tool", "resource", "attempt"),
    "effect.ended": _spec(
        "info", "It is known how an effect ended.", "call", "tool", "resource", "attempt", "state", "reason"
    ),
    "effect.unknown": _spec(
        "warning", "Nobody knows whether an effect happened: a person must look.", "call", "tool", "resource", "attempt"
    ),
    "effect.settled": _spec(
        "info", "A person settled an effect that nobody knew about.", "call", "tool", "resource", "state", "by"
    ),
    # conversations with agents
    "agent.began": _spec("info", "An agent began to answer.", "agent", "model", "window", "session", "version"),
    "chat.warned": _spec("info", "A part of a question was not taken, and its client was told so.", "said"),
    "agent.version_differs": _spec(
        "warning",
        "A run goes on with its agent's file as it was; skills, tools, policy or prices are not those it began with.",
        "agent",
        "version",
        "now",
    ),
    "agent.model_left": _spec("warning", "A model failed, and the next of its chain is asked.", "model", "error"),
    "agents.reloaded": _spec("info", "The agent files were taken anew.", "agents", "servers", "after_restart"),
    "agents.not_reloaded": _spec("error", "The agent files have mistakes: the agents stay as they were.", "error"),
    "a2a.push_failed": _spec("warning", "Another agent could not be told of its task.", "task", "tries", "error"),
    "agent.turn": _spec(
        "info",
        "A model said its turn.",
        "agent",
        "task",
        "turn",
        "text",
        "calls",
        "model",
        "usage",
        "tries",
        "reason",
        "fault",
    ),
    "agent.call_asked": _spec(
        "debug", "A model wants a tool called.", "call", "tool", "arguments", "intent", "agent", "task"
    ),
    "agent.call_started": _spec("debug", "A call of an agent is being sent.", "call", "tool", "agent", "task"),
    "agent.call_parked": _spec(
        "info", "A call of an agent waits for people.", "call", "approval", "expires_at", "agent", "task"
    ),
    "agent.call_ended": _spec(
        "debug", "A call of an agent ended.", "call", "tool", "kind", "detail", "evidence", "agent", "task"
    ),
    "agent.compacted": _spec(
        "info",
        "Part of a conversation was left out of a request to make room.",
        "agent",
        "task",
        "turn",
        "dropped",
        "tokens_before",
        "tokens_after",
    ),
    "agent.answered": _spec("info", "An agent ended, with an answer or without.", "stop", "turns", "calls", "fault"),
    "agent.routed": _spec(
        "info",
        "A coordinator decided: answer, plan, or ask the person.",
        "agent",
        "decision",
        "rationale",
        "mode",
        "response",
        "question",
        "options",
        "summary",
    ),
    "agent.plan_made": _spec(
        "info", "A plan begins.", "agent", "goal", "tasks", "mode", "rationale", "summary", "iteration"
    ),
    "agent.task_started": _spec(
        "info", "A worker began a task.", "task", "iteration", "worker", "description", "attempt"
    ),
    "agent.task_ended": _spec(
        "info",
        "A task ended.",
        "task",
        "iteration",
        "worker",
        "success",
        "elapsed_ms",
        "result",
        "confidence",
        "category",
        "error",
        "attempts",
    ),
    "agent.synthesizing": _spec("info", "A coordinator looks at what its workers brought.", "agent", "iteration"),
    "agent.round_ended": _spec(
        "info",
        "A round of a plan is over.",
        "agent",
        "iteration",
        "will_replan",
        "reasoning",
        "gaps",
        "planning_ms",
        "execution_ms",
        "task_compute_ms",
        "tool_ms",
    ),
    "agent.replanned": _spec("info", "A coordinator begins another round.", "agent", "iteration"),
    "agent.file_lost": _spec("warning", "A file of a run could not be written.", "run", "file", "error"),
    # tool calls
    "tool.called": _spec(
        "debug", "A tool call ended.", "call", "tool", "outcome", "attempts", "elapsed_ms", "size_bytes"
    ),
    "tool.denied": _spec("info", "A tool call was refused.", "call", "tool", "reason"),
    "tool.parked": _spec("info", "A tool call waits for people.", "call", "tool", "approval", "quorum", "expires_at"),
    "tool.pin_broken": _spec("error", "A stored pin is not what a person accepted: its tool is not served.", "tool"),
    "tool.first_pin_refused": _spec(
        "warning", "What a server offers can not be used, and was not pinned.", "server", "tool", "reason"
    ),
    "tool.sandbox_weak": _spec(
        "warning", "A tool server runs less confined than its settings want.", "server", "missing"
    ),
    "approval.notice_failed": _spec(
        "warning", "A request for approval could not be told to people outside.", "approval", "channel", "error"
    ),
    "break_glass.opened": _spec(
        "warning",
        "A person took emergency authority; another has to review it.",
        "emergency",
        "by",
        "tenant",
        "expires_at",
        "review_due_at",
    ),
    # trouble
    "alert.received": _spec("info", "Alerts arrived by the webhook.", "source", "firing", "resolved"),
    "alert.fired": _spec(
        "warning", "A condition began.", "alert", "fingerprint", "source", "service", "symptom", "severity", "summary"
    ),
    "alert.repeated": _spec("debug", "A condition that is known to fire was reported again.", "alert", "fingerprint"),
    "alert.resolved": _spec("info", "A condition ended.", "alert", "fingerprint", "service", "symptom"),
    "alert.refused": _spec("warning", "An alert could not be read.", "source", "reason"),
    "incident.opened": _spec(
        "warning", "Alerts that belong together became an incident.", "incident", "title", "services", "severity"
    ),
    "incident.joined": _spec("info", "An alert joined an open incident.", "incident", "alert", "service", "symptom"),
    "incident.updated": _spec(
        "info", "Title, severity or services of an incident changed.", "incident", "title", "severity", "services"
    ),
    "incident.stage": _spec(
        "info", "An incident went from one stage to another.", "incident", "before", "after", "reason"
    ),
    "incident.investigating": _spec(
        "info", "An investigation of an incident was started.", "incident", "investigation"
    ),
    "incident.escalated": _spec(
        "warning", "An incident was handed to a person with its case file.", "incident", "reason"
    ),
    "incident.closed": _spec("info", "An incident is over.", "incident", "by", "reason"),
    "finding.made": _spec(
        "info",
        "An investigation reached its finding.",
        "incident",
        "outcome",
        "category",
        "subject",
        "confidence",
        "statement",
    ),
    "finding.reported": _spec("info", "A report was written.", "incident", "form", "path"),
    # the eyes
    "source.gap": _spec(
        "warning", "Something was asked and could not be learned.", "source", "question", "reason", "detail"
    ),
    "source.reached": _spec("debug", "A source answered its check.", "source"),
    "source.unreachable": _spec("warning", "A source did not answer its check.", "source", "detail"),
    "store.starting": _spec("debug", "The process that owns the telemetry store is being started.", "path"),
    "store.ready": _spec("info", "The telemetry store answers.", "url", "pid", "elapsed_ms"),
    "store.attached": _spec("debug", "A live telemetry store of another process is used.", "url", "pid"),
    "store.lost": _spec("error", "The process that owns the telemetry store died.", "pid", "exit_code"),
    "store.restarted": _spec("warning", "The telemetry store was started again.", "pid", "restarts"),
    "store.retained": _spec("info", "Telemetry past its age or size was dropped.", "table", "rows", "reason"),
    "store.failed": _spec("error", "The telemetry store refused or failed a request.", "code", "error"),
    "store.maintained": _spec("debug", "Rollups were brought up to date.", "elapsed_ms", "rows"),
    "store.closed": _spec("debug", "The telemetry store was closed cleanly.", "pid", "elapsed_ms"),
    "receiver.accepted": _spec("debug", "A batch of telemetry is stored or spooled.", "signal", "records", "bytes"),
    "receiver.spooled": _spec(
        "warning", "A batch was kept on disk because the store could not take it.", "signal", "bytes", "reason"
    ),
    "receiver.drained": _spec("info", "Batches kept on disk went into the store.", "signal", "batches"),
    "receiver.quarantined": _spec(
        "warning", "A payload that nobody can read was set aside.", "signal", "bytes", "reason", "path"
    ),
    "receiver.rejected": _spec(
        "warning", "Part of a request was refused and answered so.", "signal", "records", "reason"
    ),
    "receiver.overloaded": _spec(
        "warning", "Load was shed; the sender was told when to try again.", "signal", "retry_after_s"
    ),
    "receiver.change": _spec("info", "A change of production was recorded.", "change", "service", "subject"),
    "detector.started": _spec("info", "The detector watches.", "interval_s"),
    "detector.looked": _spec("debug", "The detector looked at the newest window.", "services", "firing", "elapsed_ms"),
    "detector.failed": _spec("warning", "One look of the detector failed; the next one follows.", "error"),
    "detector.rebuilt": _spec("info", "The detector rebuilt its state from the rollups.", "firing"),
    # the house
    "config.loaded": _spec("debug", "The configuration was read.", "version", "files"),
    "config.refused": _spec("error", "The configuration has mistakes.", "problems"),
    "journal.ready": _spec("debug", "The journal is open.", "kind", "executor"),
    "journal.lease_lost": _spec("error", "This process lost its slot; its runs belong to another now.", "executor"),
    "journal.failed": _spec("error", "The journal refused or failed a request.", "error"),
    "server.starting": _spec("debug", "The HTTP server is being started.", "host", "port"),
    "server.ready": _spec("info", "The HTTP server answers.", "url", "pid"),
    "server.failed": _spec("error", "A request ended in an error that nobody expected.", "path", "error"),
    "server.stopping": _spec("info", "The server finishes what it has begun and stops.", "reason"),
    "server.stopped": _spec("info", "The server stopped.", "elapsed_ms"),
    "app.part_failed": _spec("error", "A part of the serve loop failed and is started again.", "part", "error"),
    "cli.started": _spec("debug", "A command began.", "command"),
    "cli.finished": _spec("debug", "A command ended.", "command", "exit", "elapsed_ms"),
    "cli.failed": _spec(
        "info", "A command ended with an error that was told to its caller.", "command", "exit", "error", "traceback"
    ),
    "cli.crashed": _spec("error", "A command ended in a bug of ours.", "command", "report", "error", "traceback"),
    "telemetry.dropped": _spec("warning", "Telemetry about Quell itself was dropped.", "signal", "records", "reason"),
    "telemetry.rerouted": _spec("warning", "Telemetry goes out otherwise than the environment asked for.", "reason"),
    "library.logged": _spec(
        "warning", "A library that Quell uses wrote a log line.", "logger", "severity", "message", "traceback"
    ),
}

_SAID = frozenset(
    {"answer", "arguments", "calls", "content", "detail", "goal", "plan", "question", "reasoning", "result", "text"}
)
_SPOKEN_KINDS = frozenset({"chat"})
"""Of runs whose subject is what a person said."""


def unsaid(name: str, body: Mapping[str, Value]) -> dict[str, Value]:
    """Return the body of an event without what people, models and tools said: that goes nowhere unless somebody asked.

    Numbers stay, and of conversations what the catalogue does not name goes.
    """
    if name.startswith("agent."):
        fields = EVENTS[name].fields
        return {
            key: value
            for key, value in body.items()
            if key in fields and (key not in _SAID or isinstance(value, int | float))
        }
    if name.startswith("run.") and body.get("kind") in _SPOKEN_KINDS:
        return {key: value for key, value in body.items() if key != "subject"}
    return dict(body)
