"""The network of the shop: one process that every edge runs through.

It reads one JSON object a line on stdin and answers each with one line on stdout.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from quell_lab._child import die_with_parent

RETRANSMIT_S = 1.2
ORDER_S = 0.0001
"""Timers that are due at the same moment fire in any order; this keeps segments apart."""
PORTS = range(20_000, 32_000)


@dataclass(slots=True)
class Route:
    """One edge: where it is reached, where it leads, and how its wire is."""

    port: int
    upstream: tuple[str, int] | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    """Share of segments that are lost and sent again later."""
    cut: bool = False
    """Nothing passes, in either direction, and nobody is told."""
    rate_kbps: float = 0.0
    server: asyncio.Server | None = None
    links: set[Link] = field(default_factory=set)


class Link(asyncio.Protocol):
    """One connection of a caller, with its counterpart towards the callee."""

    def __init__(self, route: Route, random_source: random.Random) -> None:
        self.route = route
        self.random = random_source
        self.near: asyncio.Transport | None = None
        self.far: asyncio.Transport | None = None
        self.waiting: list[bytes] = []
        self.free_s = [0.0, 0.0]
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.near = transport
        self.route.links.add(self)
        self.task = asyncio.get_running_loop().create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self.far is None:
            self.waiting.append(data)
        else:
            self.pass_on(data, self.far, 0)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.route.links.discard(self)
        if self.far is not None:
            self.far.close()

    def pass_on(self, data: bytes, target: asyncio.Transport, direction: int) -> None:
        """Send a segment on, as late as the wire makes it."""
        route = self.route
        if route.cut:
            return
        if not (route.delay_s or route.loss or route.rate_kbps or self.free_s[direction]):
            target.write(data)
            return
        now_s = time.monotonic()
        late_s = route.delay_s + route.jitter_s * self.random.random()
        if route.loss and self.random.random() < route.loss:
            late_s += RETRANSMIT_S * (1 if self.random.random() < 0.6 else 3)
        if route.rate_kbps:
            late_s += len(data) / (route.rate_kbps * 125)
        # Segments keep their order.
        due_s = max(now_s + late_s, self.free_s[direction] + ORDER_S)
        self.free_s[direction] = due_s
        asyncio.get_running_loop().call_at(due_s, self._deliver, data, target)

    def abort(self) -> None:
        """Reset both sides."""
        for side in (self.near, self.far):
            if side is not None:
                side.abort()

    def _deliver(self, data: bytes, target: asyncio.Transport) -> None:
        if not self.route.cut and not target.is_closing():
            target.write(data)

    async def _connect(self) -> None:
        assert self.near is not None
        upstream = self.route.upstream
        if upstream is None:
            self.near.abort()
            return
        if self.route.cut:
            return
        if self.route.delay_s:
            await asyncio.sleep(self.route.delay_s)
        loop = asyncio.get_running_loop()
        try:
            far, _ = await loop.create_connection(lambda: _Far(self), *upstream)
        except OSError:
            self.near.abort()
            return
        self.far = far
        if self.near.is_closing():
            far.close()
            return
        for data in self.waiting:
            self.pass_on(data, far, 0)
        self.waiting.clear()


class _Far(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self.link = link

    def data_received(self, data: bytes) -> None:
        if self.link.near is not None:
            self.link.pass_on(data, self.link.near, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        near = self.link.near
        if near is None or self.link.route.cut:
            return
        if exc is None:
            near.close()
        else:
            near.abort()


class Network:
    """All edges."""

    def __init__(self, names: list[str]) -> None:
        self.routes: dict[str, Route] = {}
        self._random = random.Random(7)
        ports = random.SystemRandom().sample(PORTS, len(PORTS))
        for name in names:
            self.routes[name] = Route(port=_free_port(ports))

    async def change(self, name: str, fields: dict[str, object]) -> None:
        """Apply new properties to one edge; an edge with no upstream refuses connections."""
        route = self.routes[name]
        heals = route.cut and fields.get("cut") is False
        for key, value in fields.items():
            if key == "upstream":
                assert value is None or isinstance(value, list)
                await self._lead(name, route, None if value is None else (str(value[0]), int(value[1])))
            else:
                assert key in {"delay_s", "jitter_s", "loss", "cut", "rate_kbps"}
                setattr(route, key, value)
        if heals:
            for link in list(route.links):
                link.abort()

    async def _lead(self, name: str, route: Route, upstream: tuple[str, int] | None) -> None:
        route.upstream = upstream
        if upstream is None:
            if route.server is not None:
                route.server.close()
                route.server = None
            for link in list(route.links):
                link.abort()
        elif route.server is None:
            make: Callable[[], Link] = lambda: Link(self.routes[name], self._random)  # noqa: E731 - a factory
            route.server = await asyncio.get_running_loop().create_server(
                make,
                "127.0.0.1",
                route.port,
                reuse_address=True,
            )


def _free_port(ports: list[int]) -> int:
    while ports:
        port = ports.pop()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on the loopback interface")


async def serve() -> None:
    """Read commands until stdin ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    network = Network(json.loads(await reader.readline()))
    print(json.dumps({name: route.port for name, route in network.routes.items()}), flush=True)
    while line := await reader.readline():
        for name, fields in json.loads(line).items():
            await network.change(name, fields)
        print("{}", flush=True)


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(serve())
