"""One life of one service process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from quell_lab._child import parent_environment
from quell_lab.kit import SPEC_VARIABLE, ProcessSpec

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 6.0
PAGE = os.sysconf("SC_PAGE_SIZE")


def bind_listener() -> socket.socket:
    """Bind a port that refuses connections until the process that inherits it listens."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    return listener


class Instance:
    """A started process with its address."""

    def __init__(self, spec: ProcessSpec, port: int, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.address = ("127.0.0.1", port)
        self.started_s = time.monotonic()
        self.reason = "crashed"
        """Why it will have ended; the platform says otherwise before it ends it itself."""
        self.ready = False
        self._process = process

    @classmethod
    async def start(cls, spec: ProcessSpec, *, listener: socket.socket, log: Path) -> Instance:
        """Start the process; it is not ready yet."""
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "quell_lab.kit"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                pass_fds=(listener.fileno(),),
                env={**parent_environment(), SPEC_VARIABLE: spec.encode()},
            )
        port = listener.getsockname()[1]
        listener.close()
        return cls(spec, port, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def becomes_ready(self) -> bool:
        """Wait until it serves; tell whether it does."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                self.ready = (await self._process.stdout.readline()).strip() == b"ready"
        except TimeoutError:
            self.ready = False
        return self.ready

    async def ends(self) -> int:
        """Wait for the end and return the exit code as a shell shows it."""
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    async def ends_within(self, seconds: float) -> bool:
        """Wait a little for the end; tell whether it came."""
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    def resident(self) -> int:
        """Return the resident bytes; 0 when it has ended."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            return 0

    async def stop(self, *, reason: str) -> None:
        """Ask it to leave, and make it leave when it does not."""
        self.reason = reason
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def kill(self, *, reason: str) -> None:
        """End it at once."""
        self.reason = reason
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
