"""Programs that a person's own terminal starts: verbs of `quell` for slash commands, and what client tools run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from quell.cli._session import Session

_OUTPUT_BYTES_MAX = 1_000_000
_KILL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program ended."""

    code: int
    out: str
    err: str
    is_cut: bool = False


async def run_verb(session: Session, arguments: Sequence[str], *, timeout_s: float) -> Ran:
    """Run `quell` with these words on the same state: the same command, the same output."""
    shared: list[str] = []
    if session.config is not None:
        shared += ["--config", str(session.config)]
    for key, value in session.overrides.items():
        shared += ["--set", f"{key}={value}"]
    return await run_program([sys.executable, "-m", "quell", *shared, *arguments], env=session.env, timeout_s=timeout_s)


async def run_program(
    command: Sequence[str], *, env: Mapping[str, str], timeout_s: float, directory: str | None = None
) -> Ran:
    """Run a program without input, in a group of its own that ends with it. Raises TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        cwd=directory,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(timeout_s):
            out, err, code = await asyncio.gather(_read(process.stdout), _read(process.stderr), process.wait())
    finally:
        with suppress(ProcessLookupError):
            # Its children too: who left one behind would keep the pipe open.
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), timeout=_KILL_S)
    texts = [each[:_OUTPUT_BYTES_MAX].decode("utf-8", errors="replace") for each in (out, err)]
    return Ran(code=code, out=texts[0], err=texts[1], is_cut=max(len(out), len(err)) > _OUTPUT_BYTES_MAX)


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Read to the end, and keep no more than is shown."""
    kept = bytearray()
    while piece := await stream.read(65536):
        if len(kept) <= _OUTPUT_BYTES_MAX:
            kept += piece
    return bytes(kept)
