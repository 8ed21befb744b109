"""Small programs over results of tools: a Python without files, network, clock or chance, in a process of its own.

The interpreter is pydantic-monty (extra `code`). It runs in worker processes that it kills when they pass their limits, so
that no program can block or end this one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from quell.domain import BoundExceededError, CodeResult, ConfigError, UsageError, WorldError

if TYPE_CHECKING:
    from pydantic_monty import Monty, MontySession

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""What a program reads as now: always the same, so that the same program comes to the same."""
_SEED = "quell"
_GRACE_S = 1.0
_START_S = 10.0
_SAID_MAX = 400
_FIRST = "<python-input-0>"
_NAMED = "__quell_result"
_ENCODE = f"import json as __quell_json\n{_NAMED} = __quell_json.dumps(result)\n{_NAMED}"
_HINT = "set `result` to what you found: None, bools, numbers, texts, lists and dicts with text keys"
_LIMITS = {
    "TimeoutError": "look at less, or do it in fewer steps",
    "MemoryError": "keep less at once, and print a summary",
    "RecursionError": "use a loop instead of a function that calls itself",
}


class CodeTool:
    """Runs programs, some at once; `close` ends its workers."""

    def __init__(
        self,
        *,
        time_max_s: float = 2.0,
        memory_max_bytes: int = 64 << 20,
        depth_max: int = 200,
        program_max_bytes: int = 32_000,
        inputs_max_bytes: int = 8_000_000,
        output_max_bytes: int = 64_000,
        programs_max: int = 2,
    ) -> None:
        if not self.is_installed():
            raise ConfigError("running programs needs the extra `code`", hint="pip install 'quell[code]'")
        self._time_max_s = time_max_s
        self._memory_max_bytes = memory_max_bytes
        self._depth_max = depth_max
        self._program_max_bytes = program_max_bytes
        self._inputs_max_bytes = inputs_max_bytes
        self._output_max_bytes = output_max_bytes
        self._programs_max = programs_max
        self._turn = asyncio.Semaphore(programs_max)
        self._pool: Monty | None = None

    @staticmethod
    def is_installed() -> bool:
        """Tell whether the extra is there; it is not loaded for that."""
        return importlib.util.find_spec("pydantic_monty") is not None

    async def __aenter__(self) -> Self:
        """Begin; workers are started when they are needed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        await self.close()

    async def run(self, program: str, *, inputs: Mapping[str, str]) -> CodeResult:
        """Run a program with inputs as variables, each JSON, and return the `result` that it sets and what it printed.

        Raises:
            UsageError: it does not parse, failed, wanted what there is not, or set no result that can be told.
            BoundExceededError: it passed a limit of time, memory, depth, or size.
            WorldError: the worker died of something else.
        """
        self._check_sizes(program, inputs)
        async with self._turn:
            await asyncio.to_thread(_load)
            pool = self._started()
            # Shielded: a caller that is cancelled must not give its turn away while the program still runs.
            running = asyncio.ensure_future(asyncio.to_thread(self._run, pool, program, inputs))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait([running])
                raise

    async def close(self) -> None:
        """End the workers; what runs is waited for, which is not long."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.__exit__, None, None, None)

    def _check_sizes(self, program: str, inputs: Mapping[str, str]) -> None:
        for what, size, most in (
            ("the program", len(program.encode(errors="replace")), self._program_max_bytes),
            ("its inputs", sum(len(text.encode(errors="replace")) for text in inputs.values()), self._inputs_max_bytes),
        ):
            if size > most:
                raise BoundExceededError(f"{what} with {size:,} bytes", limit=most, hint="hand it less")
        try:
            program.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the program is no text: {error}", hint="leave out halves of characters") from None
        for name in inputs:
            if not name.isidentifier() or name == "result" or name.startswith("__"):
                raise UsageError(f"{name!r} cannot name an input", hint="use a plain name that is not `result`")

    def _run(self, pool: Monty, program: str, inputs: Mapping[str, str]) -> CodeResult:
        """Run in a fresh worker. The result is written as JSON in there, where a trap in it costs the program's limits."""
        monty = _load()
        values = {name: _value(name, text) for name, text in inputs.items()}
        printed = monty.CollectString(self._output_max_bytes)
        try:
            with self._session(pool) as session:
                session.feed_run(f"result = None\n{program}\nNone", inputs=values, print_callback=printed)
                encoded = session.feed_run(_ENCODE, print_callback=printed)
        except monty.MontyCrashedError as error:
            raise self._of_crash(error) from None
        except monty.MontyError as error:
            raise self._of_program(error) from None
        except UnicodeError as error:
            raise UsageError(f"an input is no text: {error}", hint="leave out halves of characters") from None
        except TimeoutError:
            raise WorldError("no worker was free to run the program", hint="try again when others have ended") from None
        return CodeResult(result=self._told(encoded), printed=printed.output)

    def _started(self) -> Monty:
        if self._pool is None:
            self._pool = (
                _load()
                .Monty(
                    min_processes=0,
                    max_processes=self._programs_max,
                    request_timeout=self._time_max_s + 2 * _GRACE_S,
                    checkout_timeout=_START_S,
                    max_checkouts_per_worker=1,
                    feed_duration_limit_grace=_GRACE_S,
                )
                .__enter__()
            )
        return self._pool

    def _session(self, pool: Monty) -> MontySession:
        return pool.checkout(
            script_name="program.py",
            limits={
                "max_feed_duration_secs": self._time_max_s,
                "max_memory": self._memory_max_bytes,
                "max_recursion_depth": self._depth_max,
                "max_suspensions": 1,
            },
            os_policy={"datetime": _EPOCH, "sleep": "zero", "random_start": {"seed": _SEED}},
        )

    def _told(self, encoded: object) -> str:
        """Check what came back, which the program may have made up: it has to be JSON of a bounded size."""
        if not isinstance(encoded, str):
            raise UsageError("the program changed how results are written", hint=_HINT)
        if len(encoded.encode(errors="replace")) > self._output_max_bytes:
            raise BoundExceededError("the result of the program", limit=self._output_max_bytes, hint="return a summary")
        try:
            value = json.loads(encoded, parse_constant=_refuse_constant)
            told = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            told.encode()
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the result of the program cannot be told: {error}", hint=_HINT) from None
        return told

    def _of_crash(self, error: Any) -> BoundExceededError | WorldError:
        if error.timed_out:
            return BoundExceededError("the program's seconds", limit=self._time_max_s, hint=_LIMITS["TimeoutError"])
        return WorldError(f"the worker that ran the program died: {error}", hint="try again, or write it differently")

    def _of_program(self, error: Any) -> UsageError | BoundExceededError:
        """Say what was wrong with a program, and where, so that its writer can mend it."""
        kind = type(error.exception()).__name__
        said = " ".join(str(error).split())[:_SAID_MAX]
        if kind in _LIMITS:
            is_print = f"> {self._output_max_bytes} bytes" in said
            what, limit = {
                "TimeoutError": ("the program's seconds", self._time_max_s),
                "MemoryError": ("what the program prints, in bytes,", self._output_max_bytes)
                if is_print
                else ("the program's bytes of memory", self._memory_max_bytes),
                "RecursionError": ("the program's depth of calls or of its result", self._depth_max),
            }[kind]
            return BoundExceededError(what, limit=limit, hint=_LIMITS[kind])
        frames = error.traceback() if hasattr(error, "traceback") else []
        # One line stands before the program.
        where = f" in line {frames[-1].line - 1}" if frames and _FIRST in frames[-1].filename else ""
        return UsageError(f"the program failed{where}: {said}", hint=_advice(kind))


def _advice(kind: str) -> str:
    if kind in {"PermissionError", "ModuleNotFoundError", "FileNotFoundError"}:
        return (
            "there are no files, no network and no packages: the inputs are variables already, and json, re, math work"
        )
    if kind == "NameError":
        return "only the inputs and what the program defines have names"
    if kind == "TypeError":
        return f"check the types; {_HINT}"
    return "mend the program and run it again"


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the input {name!r} is no JSON: {error}", hint="hand texts as JSON strings") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _load() -> ModuleType:
    # An extra: whoever runs no programs neither installs nor loads it.
    import pydantic_monty  # noqa: PLC0415

    return pydantic_monty
