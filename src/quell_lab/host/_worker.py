"""A child that takes JSON lines on stdin: the network and the users are such children."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from quell_lab._child import parent_environment

ANSWER_TIMEOUT_S = 10.0


class Worker:
    """One child process with a line-wise conversation."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, module: str, *, log: Path) -> Worker:
        """Start a module as a child."""
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=parent_environment(),
            )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def tell(self, command: object) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()

    async def ask(self, command: object) -> dict[str, int]:
        """Send one line and return the line that answers it."""
        assert self._process.stdout is not None
        async with self._turn, asyncio.timeout(ANSWER_TIMEOUT_S):
            await self.tell(command)
            line = await self._process.stdout.readline()
            if not line:
                raise OSError(f"child {self.pid} of the lab ended unexpectedly")
            answer: dict[str, int] = json.loads(line)
            return answer

    async def stop(self) -> None:
        """End it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
