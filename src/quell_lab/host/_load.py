"""The users of the shop: a seeded, bounded load with the shape of a day in a few minutes.

It reads commands as JSON lines on stdin and writes what users saw to a file every second.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from quell_lab._child import die_with_parent
from quell_lab._http import CallError, Peer
from quell_lab._watched import write_document

DAY_S = 240.0
SWING = 0.18
SESSIONS_MAX = 120
CUSTOMERS = 400
REQUESTS_PER_SESSION = 5.3
TIMEOUT_S = 6.0


@dataclass(slots=True)
class Seen:
    """What users saw during one second."""

    answers: Counter[str] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)


class Users:
    """Opens sessions at the rate of the hour and lets each of them shop."""

    def __init__(self, *, port: int, rate_per_s: float, seed: int, figures: Path) -> None:
        self.rate_per_s = rate_per_s
        self.factor = 1.0
        self.burst_route = ""
        self.burst_per_s = 0.0
        self.seen = Seen()
        self._random = random.Random(seed)
        self._peer = Peer(address=("127.0.0.1", port), tls=None, server_name="shop")
        self._figures = figures
        self._sessions: set[asyncio.Task[None]] = set()
        self._began_s = time.monotonic()
        self._dropped = 0

    def rate(self) -> float:
        """Return the requests a second that this moment of the day wants."""
        phase = 2 * math.pi * (time.monotonic() - self._began_s) / DAY_S
        return self.rate_per_s * self.factor * (1 + SWING * math.sin(phase))

    async def live(self) -> None:
        """Open sessions for ever."""
        while True:
            rate = self.rate() / REQUESTS_PER_SESSION
            await asyncio.sleep(self._random.expovariate(rate))
            self._open(self._shop)

    async def burst(self) -> None:
        """Open short visits to one route when asked to."""
        while True:
            if not self.burst_per_s:
                await asyncio.sleep(0.2)
                continue
            await asyncio.sleep(self._random.expovariate(self.burst_per_s))
            self._open(self._visit)

    async def report(self) -> None:
        """Write what users saw, every second."""
        while True:
            await asyncio.sleep(1.0)
            seen, self.seen = self.seen, Seen()
            took = sorted(seen.took_ms)
            write_document(
                self._figures,
                {
                    "requests": sum(seen.answers.values()),
                    "errors": sum(count for answer, count in seen.answers.items() if not answer.startswith("2")),
                    "answers": dict(seen.answers),
                    "p50_ms": round(took[len(took) // 2], 1) if took else 0.0,
                    "p95_ms": round(took[len(took) * 95 // 100], 1) if took else 0.0,
                    "wanted_per_s": round(self.rate(), 1),
                    "dropped": self._dropped,
                },
            )

    def follow(self, command: dict[str, object]) -> None:
        """Change the load as told."""
        self.factor = float(str(command.get("factor", self.factor)))
        self.burst_route = str(command.get("burst_route", self.burst_route))
        self.burst_per_s = float(str(command.get("burst_per_s", self.burst_per_s)))

    def _open(self, session: Callable[[], Awaitable[None]]) -> None:
        if len(self._sessions) >= SESSIONS_MAX:
            self._dropped += 1
            return
        task = asyncio.ensure_future(session())
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def _visit(self) -> None:
        user = f"user-{self._random.randrange(CUSTOMERS)}"
        await self._get(self._path(self.burst_route, user))

    def _path(self, route: str, user: str) -> str:
        pick = self._random.randrange
        return {
            "products": f"/products?page={pick(60)}&user={user}",
            "product": f"/products/{1 + pick(2000)}?user={user}",
            "search": f"/search?text=Review%20{pick(9000)}&user={user}",
            "cart": f"/cart?user={user}",
            "orders": f"/orders?user={user}",
        }[route]

    async def _shop(self) -> None:
        user = f"user-{self._random.randrange(CUSTOMERS)}"
        chance = self._random.random
        await self._get(self._path("products", user))
        if chance() < 0.4:
            await self._think()
            await self._get(self._path("search", user))
        for _ in range(1 + self._random.randrange(2)):
            await self._think()
            await self._get(self._path("product", user))
        if chance() < 0.35:
            await self._think()
            await self._get(self._path("orders", user))
        if chance() > 0.75:
            return
        await self._think()
        line = {"user": user, "product": 1 + self._random.randrange(2000), "quantity": 1 + self._random.randrange(4)}
        await self._send("POST", "/cart", line)
        await self._think()
        await self._get(self._path("cart", user))
        if chance() < 0.75:
            await self._think()
            await self._send("POST", "/checkout", {"user": user})

    async def _think(self) -> None:
        await asyncio.sleep(0.1 + 0.5 * self._random.random())

    async def _get(self, path: str) -> None:
        await self._send("GET", path, None)

    async def _send(self, method: str, path: str, body: dict[str, object] | None) -> None:
        began_s = time.perf_counter()
        raw = json.dumps(body).encode() if body is not None else b""
        try:
            status, _ = await self._peer.request(method, path, body=raw, headers={}, timeout_s=TIMEOUT_S)
            self.seen.answers[str(status)] += 1
        except CallError as error:
            self.seen.answers[error.kind] += 1
        self.seen.took_ms.append((time.perf_counter() - began_s) * 1000)


async def serve() -> None:
    """Read commands until stdin ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    first = json.loads(await reader.readline())
    users = Users(
        port=first["port"], rate_per_s=first["rate_per_s"], seed=first["seed"], figures=Path(first["figures"])
    )
    tasks = [asyncio.create_task(work()) for work in (users.live, users.burst, users.report)]
    while line := await reader.readline():
        users.follow(json.loads(line))
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(serve())
