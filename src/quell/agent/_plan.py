"""Plans of a coordinator: steps as it writes them become tasks that wait for one another, or a list of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TASKS_MAX = 40
_NESTING_MAX = 2
_TEXT_MAX_CHARS = 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work for one worker."""

    number: int
    """Unique in the run, over all its rounds."""
    text: str
    worker: str
    needs: tuple[int, ...] = ()
    """Tasks whose results it is given; it begins when all of them are there."""

    @property
    def tag(self) -> str:
        """Return what steps, calls and evidence of it are called by."""
        return f"t{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a coordinator wants done."""

    goal: str
    tasks: tuple[Task, ...]
    rationale: str = ""
    summary: str = ""

    @property
    def mode(self) -> str:
        """Return AURA's word for how the question is routed."""
        return "orchestrated" if len(self.tasks) > 1 else "routed"


@dataclass(slots=True, kw_only=True)
class _Making:
    """Tasks as they are read, and what is wrong with them."""

    workers: Sequence[str]
    default: str
    first: int
    tasks: list[Task] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def steps(self, steps: object, entry: tuple[int, ...], *, at: str, depth: int) -> tuple[int, ...]:
        """Read steps that follow one another: each waits for all that the one before it ends in."""
        if not isinstance(steps, list) or not steps:
            self.faults.append(f"{at}: a list of at least one step is needed")
            return entry
        for place, step in enumerate(steps):
            entry = self._step(step, entry, at=f"{at}[{place}]", depth=depth)
        return entry

    def _step(self, step: object, entry: tuple[int, ...], *, at: str, depth: int) -> tuple[int, ...]:
        if not isinstance(step, dict):
            self.faults.append(f"{at}: a step is an object")
            return entry
        kind = step.get("type", "task" if "task" in step else "")
        if kind == "task":
            return self._task(step, entry, at=at)
        if kind not in {"parallel", "chain"}:
            self.faults.append(f"{at}.type: {kind!r} is none of task, parallel, chain")
            return entry
        if depth >= _NESTING_MAX:
            self.faults.append(f"{at}: nested deeper than {_NESTING_MAX}; put it into a step of its own")
            return entry
        inner = step.get("steps", step.get("items"))
        if kind == "chain":
            return self.steps(inner, entry, at=f"{at}.steps", depth=depth + 1)
        return self._parallel(inner, entry, at=at, depth=depth + 1)

    def _parallel(self, items: object, entry: tuple[int, ...], *, at: str, depth: int) -> tuple[int, ...]:
        """Read steps side by side: all begin where this one begins, and it ends where all of them end."""
        if not isinstance(items, list) or not items:
            self.faults.append(f"{at}.items: a list of at least one step is needed")
            return entry
        exits: dict[int, None] = {}
        for place, item in enumerate(items):
            exits |= dict.fromkeys(self._step(item, entry, at=f"{at}.items[{place}]", depth=depth))
        return tuple(exits)

    def _task(self, step: Mapping[str, object], entry: tuple[int, ...], *, at: str) -> tuple[int, ...]:
        text, named = str(step.get("task") or "").strip(), str(step.get("worker") or "").strip()
        worker = named or self.default
        if not text:
            self.faults.append(f"{at}.task: say what is to be done")
        if not worker:
            self.faults.append(f"{at}.worker: no worker is named; the workers are {self._workers()}")
        elif worker not in self.workers:
            self.faults.append(f"{at}.worker: there is no worker {worker!r}; the workers are {self._workers()}")
        number = self.first + len(self.tasks)
        self.tasks.append(Task(number=number, text=text[:_TEXT_MAX_CHARS], worker=worker, needs=entry))
        return (number,)

    def _workers(self) -> str:
        return ", ".join(self.workers)


def plan_of(
    given: Mapping[str, object], *, workers: Iterable[str], default: str = "", first: int = 1
) -> Plan | list[str]:
    """Read a plan and flatten it: steps one after the other, `parallel` side by side, `chain` in its order.

    Returns everything that is wrong instead, so that it can be mended at once. `first` is the number of its first task.
    """
    making = _Making(workers=tuple(workers), default=default, first=first)
    steps = given.get("steps")
    if isinstance(steps, str):  # some models write nested JSON as a text
        try:
            steps = json.loads(steps)
        except ValueError:
            steps = None
    making.steps(steps, (), at="steps", depth=0)
    if len(making.tasks) > TASKS_MAX:
        making.faults.append(f"steps: {len(making.tasks)} tasks are more than {TASKS_MAX}")
    if making.faults:
        return making.faults
    return Plan(
        goal=str(given.get("goal") or "")[:_TEXT_MAX_CHARS],
        tasks=tuple(making.tasks),
        rationale=str(given.get("routing_rationale") or ""),
        summary=str(given.get("planning_summary") or ""),
    )


def plan_schema(workers: Iterable[str], *, needs_worker: bool) -> str:
    """Return the JSON Schema of the arguments of `create_plan`, without recursion: not every provider takes it."""
    text = {"type": "string"}
    task = {
        "type": "object",
        "properties": {
            "type": {"const": "task"},
            "task": {**text, "description": "What is to be done; the worker knows nothing else of the question."},
            "worker": {"enum": sorted(workers)},
        },
        "required": ["type", "task", *(["worker"] if needs_worker else [])],
    }
    step: Mapping[str, object] = task
    for _ in range(_NESTING_MAX):
        parallel = {
            "type": "object",
            "properties": {"type": {"const": "parallel"}, "items": {"type": "array", "items": step, "minItems": 1}},
            "required": ["type", "items"],
        }
        chain = {
            "type": "object",
            "properties": {"type": {"const": "chain"}, "steps": {"type": "array", "items": step, "minItems": 1}},
            "required": ["type", "steps"],
        }
        step = {"anyOf": [task, parallel, chain]}
    schema = {
        "type": "object",
        "properties": {
            "goal": text,
            "steps": {"type": "array", "items": step, "minItems": 1, "maxItems": TASKS_MAX},
            "routing_rationale": text,
            "planning_summary": text,
        },
        "required": ["goal", "steps", "routing_rationale", "planning_summary"],
    }
    return json.dumps(schema, separators=(",", ":"))
