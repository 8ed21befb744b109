"""What a piece of work sees of its run: its arguments, its state, and steps that are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias, TypeVar

import msgspec

from quell import telemetry
from quell.domain import BoundExceededError, Clock, Fence, QuellError, Run, StepError
from quell.runs._clock import from_text, later, to_text

JsonObject: TypeAlias = Mapping[str, object]
"""What JSON calls an object."""

T = TypeVar("T")

RESULT_MAX_BYTES = 4_000_000
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 5.0
_LAST_WORDS_S = 1.0
_REASON_MAX = 500
_RESERVED = ("run.", "step.", "effect.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The run ends well with this result."""

    result: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """The run goes on at once in a new segment, with this state."""

    state: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitUntil:
    """The run goes on at that time in a new segment; until then it is one row and nothing stays alive."""

    at: datetime
    state: JsonObject


Next: TypeAlias = Done | Continue | WaitUntil
"""How a segment ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStep:
    """The end of a step as the journal has it."""

    status: str
    """`done` or `failed`."""
    result: str
    """JSON of the value, or of a Failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a step failed for good."""

    reason: str
    detail: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One line for the journal: a step that ended."""

    name: str
    kind: str
    """`step`, or `now` for a journalled time."""
    status: str
    started_at: str
    ended_at: str
    elapsed_ms: float
    result: str


class Pen(Protocol):
    """Writes for one run, as long as this process holds it; every call fails once it does not."""

    def step_started(self, name: str) -> None:
        """Tell that a step begins, at once or together with its end if that comes first."""

    async def step_ended(self, record: StepRecord, *, error: str | None) -> None:
        """Keep how a step ended, together with its event."""

    async def step_retried(self, name: str, *, attempt: int, error: str) -> None:
        """Tell that an attempt failed and another follows."""

    async def emit(self, name: str, *, key: str, body: JsonObject) -> None:
        """Append to the event log, once per key."""

    async def emit_beside(self, name: str, *, key: str, body: JsonObject) -> None:
        """Append as `emit` does, in the flush of what is written next."""


Work: TypeAlias = Callable[["RunContext"], Awaitable[Next]]
"""What a kind of run does: one segment per call."""


class _DeadlineError(Exception):
    """An attempt did not end within its deadline."""


class RunContext:
    """Hand of one segment of a run; `step` is the only way to do something that must not be lost or repeated."""

    def __init__(
        self,
        *,
        run: Run,
        arguments: str,
        state: JsonObject,
        kept: Mapping[str, KeptStep],
        pen: Pen,
        clock: Clock,
        fence: Fence,
        clean: Callable[[str], str] = str,
    ) -> None:
        self.run = run
        self.fence = fence
        """Proof that this segment holds its run; the ledger asks for it before every effect."""
        self._arguments = arguments
        self.state = state
        """What the segment before handed over; empty at first."""
        self._kept = kept
        self._pen = pen
        self._clock = clock
        self._clean = clean
        self._used: set[str] = set()
        self._nows = 0

    @property
    def arguments(self) -> JsonObject:
        """Read what the run was started with."""
        return msgspec.json.decode(self._arguments, type=dict[str, object])

    async def step(
        self,
        name: str,
        work: Callable[[], Awaitable[T]],
        *,
        returns: type[T],
        timeout_s: float,
        attempts: int = 1,
    ) -> T:
        """Do `work` once and keep what it returned; a recovered run gets the kept value without doing it again.

        A crash between the end of `work` and the write that keeps its result makes it run again: work must bear that.
        Several steps may run at the same time. A step is interrupted at its deadline and when its run is cancelled.

        Args:
            name: unique within this segment.
            work: what to do; an attempt begins with a fresh call.
            returns: type of the value, which goes through JSON.
            timeout_s: deadline of one attempt.
            attempts: how often it is tried before it has failed, with growing pauses between.

        Raises:
            StepError: every attempt failed; a recovered run gets the same error again.
        """
        assert name, "a step has a name"
        assert timeout_s > 0, "a step has a deadline"
        assert attempts >= 1, "a step is tried at least once"
        self._claim(name)
        kept = self._kept.get(name)
        if kept is not None:
            return _replay(name, kept, returns)
        self._pen.step_started(name)
        began_at, began_s = self._clock(), time.perf_counter()
        try:
            about = {"quell.run": self.run.id, "quell.step": name, "openinference.span.kind": "CHAIN"}
            with telemetry.span("quell.step", about):
                raw, value = await self._try(name, work, returns=returns, timeout_s=timeout_s, attempts=attempts)
        except StepError as error:
            failure = Failure(reason=error.reason, detail=str(error), attempts=attempts)
            result = msgspec.json.encode(failure).decode()
            record = _record(name, "failed", began_at=began_at, began_s=began_s, result=result)
            await self._pen.step_ended(record, error=failure.detail)
            raise
        record = _record(name, "done", began_at=began_at, began_s=began_s, result=raw)
        await self._pen.step_ended(record, error=None)
        return value

    async def now(self) -> datetime:
        """Read the clock once and for all: a recovered run gets the same time again."""
        self._nows += 1
        name = f"now#{self._nows}"
        self._claim(name)
        kept = self._kept.get(name)
        if kept is not None:
            return from_text(_replay(name, kept, str))
        at = self._clock()
        raw = msgspec.json.encode(to_text(at)).decode()
        record = StepRecord(
            name=name, kind="now", status="done", started_at=to_text(at), ended_at=to_text(at), elapsed_ms=0, result=raw
        )
        await self._pen.step_ended(record, error=None)
        return at

    async def emit(self, name: str, *, key: str, **body: object) -> None:
        """Append to the run's event log; the same key again changes nothing."""
        _check_own(key)
        await self._pen.emit(name, key=key, body=body)

    async def emit_beside(self, name: str, *, key: str, **body: object) -> None:
        """Append as `emit` does, in the flush of what is written next: for what nothing waits for just now."""
        _check_own(key)
        await self._pen.emit_beside(name, key=key, body=body)

    def _claim(self, name: str) -> None:
        assert name not in self._used, f"two steps of one segment are called {name!r}"
        self._used.add(name)

    async def _try(
        self, name: str, work: Callable[[], Awaitable[T]], *, returns: type[T], timeout_s: float, attempts: int
    ) -> tuple[str, T]:
        for attempt in range(1, attempts + 1):
            try:
                return _through_json(name, await _within(work, timeout_s=timeout_s), returns)
            except BoundExceededError as error:
                raise StepError(f"step {name}: {error}", reason="result", hint=error.hint) from error
            except _DeadlineError as error:
                cause, reason = f"no answer within {timeout_s:g} s", "timeout"
                origin: Exception = error
            except Exception as error:  # noqa: BLE001 - whatever the work raises is the step's failure
                cause, reason = told(error, clean=self._clean), "failed"
                origin = error
            if attempt == attempts:
                hint = origin.hint if isinstance(origin, QuellError) else ""
                raise StepError(f"step {name}: {cause}", reason=reason, hint=hint) from origin
            await self._pen.step_retried(name, attempt=attempt, error=cause)
            await asyncio.sleep(min(_BACKOFF_FIRST_S * 2 ** (attempt - 1), _BACKOFF_MAX_S))
        raise AssertionError("unreachable: the last attempt returns or raises")


def _check_own(key: str) -> None:
    assert not key.startswith(_RESERVED), f"keys of {_RESERVED} are the journal's own: {key!r}"


async def _within(work: Callable[[], Awaitable[T]], *, timeout_s: float) -> T:
    """Await one attempt; at the deadline, or when the run is cancelled, interrupt it and do not wait long for it."""
    task = asyncio.ensure_future(work())
    try:
        done, _ = await asyncio.wait((task,), timeout=timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(_retrieve)
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=_LAST_WORDS_S)
        raise
    if done:
        if task.cancelled():
            raise RuntimeError("the work cancelled itself")
        return task.result()
    task.cancel()
    task.add_done_callback(_retrieve)
    await asyncio.wait({task}, timeout=_LAST_WORDS_S)
    raise _DeadlineError


def _retrieve(task: asyncio.Future[T]) -> None:
    """Take the outcome of an interrupted attempt, so that nobody reports it as forgotten."""
    if not task.cancelled():
        task.exception()


def _through_json(name: str, value: T, returns: type[T]) -> tuple[str, T]:
    """Return the JSON of a value and the value as it will be read back, so that both lives see the same."""
    raw = msgspec.json.encode(value)
    if len(raw) > RESULT_MAX_BYTES:
        raise BoundExceededError(f"the result of {name}, in bytes,", limit=RESULT_MAX_BYTES, hint="keep less of it")
    return raw.decode(), msgspec.json.decode(raw, type=returns)


def _replay(name: str, kept: KeptStep, returns: type[T]) -> T:
    if kept.status == "failed":
        failure = msgspec.json.decode(kept.result, type=Failure)
        raise StepError(failure.detail, reason=failure.reason)
    try:
        return msgspec.json.decode(kept.result, type=returns)
    except msgspec.DecodeError as error:
        raise StepError(
            f"step {name}: its kept result is no {returns} any more ({error})",
            reason="result",
            hint="start a new run: this one was begun by another version",
        ) from error


def _record(name: str, status: str, *, began_at: datetime, began_s: float, result: str) -> StepRecord:
    """Describe a step that ended now; its end is measured, so that a clock set back cannot put it before its start."""
    elapsed_s = time.perf_counter() - began_s
    return StepRecord(
        name=name,
        kind="step",
        status=status,
        started_at=to_text(began_at),
        ended_at=to_text(later(began_at, seconds=elapsed_s)),
        elapsed_ms=round(elapsed_s * 1000, 3),
        result=result,
    )


def told(error: BaseException, *, clean: Callable[[str], str]) -> str:
    """Say an error in one line that may be kept: cleaned first and cut then, so that no half of a secret stays."""
    said = clean(" ".join(str(error).split()))
    return f"{type(error).__name__}: {said}"[:_REASON_MAX] if said else type(error).__name__
