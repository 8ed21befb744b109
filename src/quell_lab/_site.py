"""The process of the lab: the platform with its control door."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import sys
from pathlib import Path

from quell_lab._child import PARENT_VARIABLE, die_with_parent
from quell_lab._plan import Layout
from quell_lab._truth import write_truth
from quell_lab.faults import Saboteur
from quell_lab.host import Supervisor


class Site:
    """Serves the control door."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._saboteur = Saboteur(supervisor)
        self._token = secrets.token_hex(16)
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Listen, and say where."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fresh = self._supervisor.layout.control.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps({"pid": os.getpid(), "port": port, "token": self._token}))
        fresh.replace(self._supervisor.layout.control)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            if not secrets.compare_digest(str(request.pop("token", "")), self._token):
                answer: dict[str, object] = {"error": "wrong token"}
            else:
                async with self._turn:
                    answer = await self._answer(request.pop("verb"), request)
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _answer(self, verb: str, fields: dict[str, object]) -> dict[str, object]:
        if verb == "status":
            active = self._saboteur.active
            return {**self._supervisor.status(), "broken": active.encode() if active else None}
        if verb == "break":
            return (await self._saboteur.put_in(str(fields["fault"]), seed=int(str(fields["seed"])))).encode()
        if verb == "heal":
            healed = await self._saboteur.heal()
            return {"healed": healed.encode() if healed else None}
        return {"error": f"unknown verb {verb}"}


async def _run(arguments: argparse.Namespace) -> None:
    layout = Layout(root=Path(arguments.directory))
    supervisor = Supervisor(layout, endpoint=arguments.endpoint, rate_per_s=arguments.rate, seed=arguments.seed)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    starting = asyncio.create_task(supervisor.start())
    waiting = asyncio.create_task(told.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            write_truth(layout.truth, None)
            site = Site(supervisor)
            await site.open()
            await waiting
    finally:
        starting.cancel()
        waiting.cancel()
        layout.control.unlink(missing_ok=True)
        await supervisor.close()


def main() -> None:
    """Run a lab until it is told to stop; every child ends with this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if os.environ.get(PARENT_VARIABLE):
        die_with_parent(signal_number=signal.SIGTERM)
    lock = (Path(arguments.directory) / "lab.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("another lab runs in this directory")
    asyncio.run(_run(arguments))


if __name__ == "__main__":
    main()
