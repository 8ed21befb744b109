"""Try promises side by side, each in a process of its own, and say how it goes while it takes minutes."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

import proofs
from proofs._proof import Promise, Result, Scale

_TOLD_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one promise."""

    name: str
    result: Result
    spent_s: float


def promises() -> list[Promise]:
    """Return every promise of the modules beside this one, in the order of their names."""
    found: list[Promise] = []
    for module in pkgutil.iter_modules(proofs.__path__):
        if not module.name.startswith("_"):
            found += importlib.import_module(f"proofs.{module.name}").PROMISES
    return found


def try_all(names: Sequence[str], *, scale: Scale, seed: int, lanes: int = 0) -> Iterator[Tried]:
    """Try promises, as many at a time as there are cores, and give each as soon as it is known.

    A proof that fails to run counts as broken: nothing was shown. KeyboardInterrupt ends what is under way.
    """
    lanes = lanes or len(os.sched_getaffinity(0))
    # Fresh processes: a fork would take over threads and servers of the proof before.
    pool = ProcessPoolExecutor(lanes, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    began_s = time.monotonic()
    waiting: dict[Future[Tried], str] = {pool.submit(_try_one, name, scale, seed): name for name in names}
    try:
        while waiting:
            done, _ = wait(waiting, timeout=_TOLD_EVERY_S, return_when=FIRST_COMPLETED)
            for future in done:
                del waiting[future]
                _tell("")
                yield future.result()
            # The pool hands out one task more than it has processes.
            under_way = [name for future, name in waiting.items() if future.running()][:lanes]
            _tell(f"{time.monotonic() - began_s:.0f} s, {len(waiting)} to go; under way: {', '.join(under_way)}")
    except BaseException:
        for process in list(pool._processes.values()):  # noqa: SLF001 - nothing else ends what a pool has begun
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT) if process.pid else None
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        _tell("")
        pool.shutdown(wait=False, cancel_futures=True)


def _try_one(name: str, scale: Scale, seed: int) -> Tried:
    promise = next(each for each in promises() if each.name == name)
    began_s = time.monotonic()
    try:
        result = promise.try_it(scale, seed)
    except Exception:  # noqa: BLE001 - whatever it is, the promise was not kept to the end
        told = traceback.format_exc(limit=-3)
        note = "the proof itself failed: nothing was shown"
        result = Result(cases=0, violations=1, is_exhaustive=False, note=note, failures=(told,))
    return Tried(name=name, result=result, spent_s=time.monotonic() - began_s)


def _tell(told: str) -> None:
    """Say on a terminal what is under way; a log has the lines that stay."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{told[:110]}")
        sys.stderr.flush()
