"""A dependency that fails is not hurt more, and used again once it is well; results do not leave the scratchpad."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from proofs._proof import Promise, Result, Scale
from proofs._virtual_time import run_virtually
from quell.domain import OutcomeKind, OverloadError, PadOwner, Priority, QuellError, ResilienceLimits, ToolOutcome
from quell.tools import Resilience, Scratchpad
from quell.tools._breaker import Throttle

HEALTHY_S, FAILING_S, RECOVERED_S = 30, 60, 60
LOAD_MAX = 1.2
RECOVERY_S = 30
THROUGHPUT_LEAST = 0.95
FAILURES_SHOWN = 5

Work = Callable[[], Awaitable[ToolOutcome]]


class Caller(Protocol):
    """What the clients of the simulation call through: ours, or a broken one."""

    async def call(
        self,
        dependency: str,
        work: Work,
        *,
        deadline_s: float,
        retryable: Literal["read", "effect"],
        priority: Priority = "normal",
    ) -> ToolOutcome:
        """Do the work."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How one brownout goes."""

    seed: int
    calls_per_s: int
    failing_share: float
    failure_s: float
    """How long a failure takes: refused at once, or hanging."""
    layers: int
    """Callers around each other that would all retry."""
    names: Literal["same", "different"]
    """Whether the layers name one dependency or each its own."""


@dataclass(slots=True)
class Seen:
    """What the dependency and its clients saw, per second."""

    offered: list[int] = field(default_factory=lambda: [0] * (HEALTHY_S + FAILING_S + RECOVERED_S))
    attempted: list[int] = field(default_factory=lambda: [0] * (HEALTHY_S + FAILING_S + RECOVERED_S + 60))
    served: list[int] = field(default_factory=lambda: [0] * (HEALTHY_S + FAILING_S + RECOVERED_S))

    def load(self) -> float:
        """Attempts per call offered while it fails."""
        failing = slice(HEALTHY_S, HEALTHY_S + FAILING_S)
        return sum(self.attempted[failing]) / sum(self.offered[failing])

    def throughput(self) -> float:
        """Share of the calls that are served, in the worst five seconds once it should have recovered."""
        first = HEALTHY_S + FAILING_S + RECOVERY_S
        windows = [slice(at, at + 5) for at in range(first, HEALTHY_S + FAILING_S + RECOVERED_S, 5)]
        return min(sum(self.served[window]) / sum(self.offered[window]) for window in windows)

    def recovery_s(self) -> int:
        """Seconds after the end of the failure from which on everything is served."""
        end = HEALTHY_S + FAILING_S
        late = [at for at in range(end, len(self.offered)) if self.served[at] < THROUGHPUT_LEAST * self.offered[at]]
        return late[-1] + 1 - end if late else 0


def brownout(weather: Weather, *, made: Callable[[random.Random], Caller]) -> Seen:
    """Let clients call a dependency through a minute of failure, on virtual time."""
    return run_virtually(_brownout(weather, made=made))


async def _brownout(weather: Weather, *, made: Callable[[random.Random], Caller]) -> Seen:
    chance = random.Random(weather.seed)
    caller = made(random.Random(weather.seed + 1))
    seen = Seen()
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async def dependency() -> ToolOutcome:
        at_s = loop.time() - began_s
        seen.attempted[int(at_s)] += 1
        is_failing = HEALTHY_S <= at_s < HEALTHY_S + FAILING_S and chance.random() < weather.failing_share
        await asyncio.sleep(weather.failure_s if is_failing else chance.uniform(0.02, 0.08))
        kind = OutcomeKind.TRANSPORT_ERROR if is_failing else OutcomeKind.OK
        return ToolOutcome(call="c", tool="t", kind=kind)

    async def through(layers: int) -> ToolOutcome:
        work = dependency if layers == 1 else lambda: through(layers - 1)
        name = f"layer-{layers}" if weather.names == "different" else "dependency"
        return await caller.call(name, work, deadline_s=20, retryable="read")

    async def client(second: int) -> None:
        try:
            outcome = await through(weather.layers)
        except OverloadError:
            return
        seen.served[second] += outcome.kind is OutcomeKind.OK

    async with asyncio.TaskGroup() as clients:
        for second in range(len(seen.offered)):
            for moment in sorted(chance.random() for _ in range(weather.calls_per_s)):
                await asyncio.sleep(max(0.0, began_s + second + moment - loop.time()))
                seen.offered[second] += 1
                clients.create_task(client(second))
    return seen


def ours(chance: random.Random, *, kind: type[Resilience] = Resilience) -> Resilience:
    """Make the real thing, with room for all the clients of the simulation."""
    loop = asyncio.get_running_loop()
    limits = ResilienceLimits(concurrent_max=2_000, queue_max=1_000)
    return kind(limits=limits, entropy=chance.randbytes, monotonic=loop.time)


class ThreeLayers:
    """What many harnesses do: every layer tries three times."""

    async def call(
        self,
        _dependency: str,
        work: Callable[[], Awaitable[ToolOutcome]],
        *,
        deadline_s: float,
        retryable: Literal["read", "effect"],
        priority: Priority = "normal",
    ) -> ToolOutcome:
        assert (deadline_s > 0, retryable, priority) == (True, "read", "normal")
        for attempt in range(3):
            outcome = await work()
            if outcome.kind is OutcomeKind.OK or attempt == 2:
                break
        return outcome


class Grudge(Throttle):
    """Throttling as in the book: what failed counts until the window has passed."""

    def forget(self) -> None:
        pass


class Grudging(Resilience):
    throttle_class = Grudge


def grudging(chance: random.Random, *, kind: type[Resilience] = Grudging) -> Resilience:
    """Make callers without a breaker, so that throttling stands alone, and with a window as long as the failure."""
    limits = ResilienceLimits(concurrent_max=2_000, queue_max=1_000, open_share=1.0, window_s=60)
    return kind(limits=limits, entropy=chance.randbytes, monotonic=asyncio.get_running_loop().time)


def weathers(scale: Scale, seed: int) -> list[Weather]:
    """List the brownouts to try: the one that was promised first, others around it."""
    chance = random.Random(seed)
    shapes: tuple[tuple[float, int, Literal["same", "different"]], ...] = (
        (0.05, 1, "same"),
        (2.0, 3, "same"),
        (0.5, 3, "different"),
    )
    rates, count = ((20,), 1) if scale == "ci" else ((5, 20, 100, 300), 3)
    return [
        Weather(
            seed=chance.randrange(1 << 32),
            calls_per_s=rate,
            failing_share=share,
            failure_s=failure_s,
            layers=layers,
            names=names,
        )
        for _ in range(count)
        for rate in rates
        for share in (0.9, 0.6, 1.0)
        for failure_s, layers, names in shapes
    ]


def try_failing_dependency(scale: Scale, seed: int, *, made: Callable[[random.Random], Caller] = ours) -> Result:
    """Judge every brownout by what the dependency got and what the clients got."""
    failures = []
    loads, recoveries = [], []
    cases = weathers(scale, seed)
    for weather in cases:
        seen = brownout(weather, made=made)
        loads.append(seen.load())
        recoveries.append(seen.recovery_s())
        if seen.load() > LOAD_MAX:
            failures.append(f"attempted load {seen.load():.2f}x: {weather}")
        if seen.throughput() < THROUGHPUT_LEAST:
            failures.append(f"throughput {seen.throughput():.2f} {RECOVERY_S} s after recovery: {weather}")
    told = replace(cases[0], calls_per_s=20, failing_share=0.9, layers=3, names="different")
    heavy = brownout(told, made=lambda _: ThreeLayers()).load()
    late = brownout(replace(told, layers=1), made=grudging).throughput()
    if heavy <= LOAD_MAX or late >= THROUGHPUT_LEAST:
        failures.append("the judge does not tell broken callers from ours")
    note = f"brownouts of 60 s; worst load {max(loads):.2f}x, slowest recovery {max(recoveries)} s"
    note += f" (three layers of three retries: {heavy:.1f}x; throttling that never forgets: throughput {late:.2f})"
    return Result(
        cases=len(cases),
        violations=len(failures),
        is_exhaustive=False,
        note=note,
        failures=tuple(failures[:FAILURES_SHOWN]),
    )


SECRET = "the-neighbour's-result"
MINE = PadOwner(tenant="t1", session="s1")
OTHERS = (
    PadOwner(tenant="t1", session="s2"),
    PadOwner(tenant="t2", session="s1"),
    PadOwner(tenant="t1s", session="1"),
    PadOwner(tenant="", session="t1s1"),
    PadOwner(tenant="t1", session="../s1"),
    PadOwner(tenant="t1/s1", session=""),
    PadOwner(tenant="t1", session="s1\0"),
    PadOwner(tenant="..", session=".."),
    PadOwner(tenant="t1", session="\ud800"),
)
ARGUMENTS: dict[str, dict[str, object]] = {
    "head": {},
    "slice": {"start": 1, "end": 9},
    "grep": {"pattern": "."},
    "schema": {},
    "item_schema": {},
    "get_in": {"path": ""},
    "iterate_over": {"fields": ["a"]},
    "read": {},
}


def hostile_handles(root: Path, handle: str) -> list[object]:
    """List handles that are none: paths, escapes, near misses, and what is no text."""
    stem = handle.removeprefix("pad_")
    return [
        "", ".", "..", "/", "~", "\0", "*", "pad_", "pad_*", "pad_..", "pad_/", f"{handle}\n", f"{handle}\0", f" {handle}",
        f"{handle} ", f"{handle}/", f"{handle}/..", f"./{handle}", f"{handle}.json", f"{handle}.text", f"{handle}0",
        handle[:-1], handle.upper(), stem, f"pad_{stem}.json", f"PAD_{stem}", f"pad-{stem}", f"pad_{'٣' * 32}",
        f"pad_{chr(0xFF41) * 32}", f"pad_{'0' * 32}", f"pad_{'g' * 32}", f"pad_{'../' * 10}ab", f"pad_{'a' * 31}/",
        str(root / "outside"), str(root / "pad"), "/etc/passwd", "../outside", "../../outside", "..\\outside", "file:///etc/passwd",
        "%2e%2e%2foutside", "..%c0%afoutside", "pad_" + "%2e%2e%2f" * 4, "\u202e" + handle, handle.replace("_", "\u2017"),
        "a" * 5_000, "\ud800", None, 0, True, 1.5, [], [handle], {"handle": handle}, b"pad_",
    ]  # fmt: skip


def plant(root: Path, pad_root: Path, kind: str) -> str:
    """Put a trap where a result of ours would lie; return the handle that leads there."""
    outside = root / "outside"
    own = next(path for path in pad_root.iterdir())
    trap = own / f"{'f' * 32}.text"
    if kind == "link to a file":
        trap.symlink_to(outside)
    elif kind == "relative link":
        trap.symlink_to("../../outside")
    elif kind == "link to a link":
        (own / "hop").symlink_to(outside)
        trap.symlink_to(own / "hop")
    elif kind == "link to /proc":
        trap.symlink_to("/proc/self/environ")
    elif kind == "hard link":
        os.link(outside, trap)
    elif kind == "pipe":
        os.mkfifo(trap)
    elif kind == "directory":
        trap.mkdir()
    elif kind == "link to a directory":
        trap.symlink_to(root)
    elif kind == "directory that is a link":
        away = root / "away"
        away.mkdir(mode=0o700)
        (away / trap.name).write_text(SECRET)
        own.rename(root / "moved")
        own.symlink_to(away)
    elif kind == "directory open to others":
        trap.write_text(SECRET)
        own.chmod(0o777)
    return f"pad_{'f' * 32}"


TRAPS = (
    "link to a file", "relative link", "link to a link", "link to /proc", "hard link", "pipe", "directory",
    "link to a directory", "directory that is a link", "directory open to others",
)  # fmt: skip


def try_scratchpad_escapes(_scale: Scale, _seed: int, *, kind: type[Scratchpad] = Scratchpad) -> Result:
    """Try every handle, every owner and every trap with every reading tool."""
    cases, failures = asyncio.run(_escapes(kind))
    note = "reading tool x hostile handle, foreign owner, or planted trap; the table is the space"
    return Result(
        cases=cases, violations=len(failures), is_exhaustive=True, note=note, failures=tuple(failures[:FAILURES_SHOWN])
    )


async def _escapes(kind: type[Scratchpad]) -> tuple[int, list[str]]:
    cases, failures = 0, []
    for trap in ("", *TRAPS):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "outside").write_text(SECRET)
            pad = kind(
                root / "pad", clock=lambda: datetime(2026, 11, 20, tzinfo=UTC), entropy=random.Random(7).randbytes
            )
            handle = (await pad.put(MINE, SECRET)).handle
            if trap:
                tries: list[tuple[PadOwner, object, str]] = [(MINE, plant(root, root / "pad", trap), trap)]
            else:
                tries = [(MINE, hostile, f"{hostile!r:.60}") for hostile in hostile_handles(root, handle)]
                tries += [(other, handle, f"{other!r}") for other in OTHERS]
            for owner, hostile, told in tries:
                for tool, more in ARGUMENTS.items():
                    cases += 1
                    if await _leaks(pad, tool, owner, {"handle": hostile, **more}):
                        failures.append(f"{tool} with {told} was not plainly refused")
            pad.close()
    return cases, failures


async def _leaks(pad: Scratchpad, tool: str, owner: PadOwner, arguments: dict[str, object]) -> bool:
    try:
        reading = await pad.readers[tool](owner, arguments)
    except QuellError:
        return False
    except Exception:  # noqa: BLE001 - whatever else it is, it is no clear refusal
        return True
    return bool(reading.content) or reading.kind not in {OutcomeKind.DENIED, OutcomeKind.TOOL_ERROR}


PROMISES = (
    Promise(
        name="failing-dependency",
        promise="A dependency that fails gets at most 1.2 times the load, and 95 % of the calls 30 s after it recovered.",
        try_it=try_failing_dependency,
    ),
    Promise(
        name="scratchpad-escapes",
        promise="No handle, path, link or foreign session reads a result that is not the session's own.",
        try_it=try_scratchpad_escapes,
    ),
)
