"""All connections of a process to servers of tools: what they offer, and calls of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from quell.domain import (
    Clock,
    Entropy,
    Offer,
    OverloadError,
    Reply,
    ServerAnswer,
    ServerStatus,
    ServerUnavailable,
    ToolServer,
    UsageError,
    is_transport_header,
)
from quell.tools._mcp_checks import check_servers
from quell.tools._mcp_wish import OnProgress, Wish

if TYPE_CHECKING:
    from quell.tools._mcp_peer import Peer

PEERS_MAX = 32
"""Connections to one server: one for each set of forwarded headers in use."""
_LEAVE_LOOK_S = 0.05

Prepare: TypeAlias = Callable[[ToolServer], Sequence[str]]
Release: TypeAlias = Callable[[Sequence[str]], None]
Passed: TypeAlias = tuple[tuple[str, str], ...]


def plain_command(server: ToolServer) -> Sequence[str]:
    """Return the command line of a stdio server as it is, in no sandbox."""
    return [server.command, *server.args]


def nothing_held(_argv: Sequence[str]) -> None:
    """Release what held the program of a stdio server: nothing did."""


class Servers:
    """Tool servers by name. Connections are made when first wanted; a lost one is made again.

    Use it as a context manager, or close it: child processes and connections end with it.
    """

    def __init__(
        self,
        servers: Sequence[ToolServer],
        *,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        entropy: Entropy = os.urandom,
        prepare: Prepare = plain_command,
        release: Release = nothing_held,
        clean: Callable[[str], str] = str,
    ) -> None:
        """Take the settings; connect to nobody yet.

        `prepare` may wrap a command, as a sandbox does, and `release` blocks until what it held is gone; it is called for
        servers that leave, those that are there at the end are for whoever closes. `clean` takes secrets out of what a server says when it breaks.

        Raises:
            ConfigError: settings that cannot be, all of them at once.
        """
        check_servers(servers)
        self._servers = {server.name: server for server in servers}
        self._clock = clock
        self._monotonic = monotonic
        self._entropy = entropy
        self._prepare = prepare
        self._release = release
        self._clean = clean
        self._peers: dict[str, dict[Passed, Peer]] = {name: {} for name in self._servers}
        self._is_closed = False
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def offers(
        self, server: str, *, headers: Mapping[str, str] | None = None, max_age_s: float | None = None
    ) -> tuple[Offer, ...]:
        """Return what a server offers now, or offered at most `max_age_s` ago and has not said to have changed.

        Raises:
            ServerUnavailable: it cannot be reached.
            WorldError, BoundExceededError: its listing is not to be trusted.
            UsageError: there is no such server.
        """
        return await self._peer(server, headers or {}).offers(max_age_s=max_age_s)

    async def call(
        self,
        server: str,
        original: str,
        arguments: Mapping[str, object],
        *,
        digest: str,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        key: str = "",
        meta: Mapping[str, object] | None = None,
        on_progress: OnProgress | None = None,
        replies: Mapping[str, Reply] | None = None,
        request_state: str = "",
        answers: Literal["anything", "json"] = "anything",
        as_of: str = "",
        fresh_for_s: float | None = None,
        result_max_bytes: int | None = None,
    ) -> ServerAnswer:
        """Call a tool whose definition still has the digest that a person pinned.

        A call that is given up or takes too long is cancelled on the server too. `key` is the idempotency key; it goes
        into the metadata of the call and, over HTTP, into a header. `replies` and `request_state` go on with a call
        that needed people.

        Raises:
            ServerUnavailable: it cannot be reached, or was lost; `was_sent` tells whether the call may have arrived.
            RefusedError: the tool is not offered, or is not what was pinned.
            WorldError, BoundExceededError: its listing is not to be trusted.
            UsageError: there is no such server, or a reply is no JSON.
        """
        wish = Wish(
            original=original,
            arguments=arguments,
            digest=digest,
            timeout_s=timeout_s,
            key=key,
            meta=meta or {},
            on_progress=on_progress,
            replies=replies or {},
            request_state=request_state,
            answers=answers,
            as_of=as_of,
            fresh_for_s=fresh_for_s,
            result_max_bytes=result_max_bytes,
        )
        return await self._peer(server, headers or {}).call(wish)

    def status(self) -> tuple[ServerStatus, ...]:
        """Tell of each server whether it is there; of one with several connections, the last used."""
        told = []
        for name, server in self._servers.items():
            peer = next(reversed(self._peers[name].values()), None)
            if peer is None:
                told.append(ServerStatus(name=name, transport=server.transport, state="idle"))
                continue
            told.append(
                ServerStatus(
                    name=name,
                    transport=server.transport,
                    state=peer.link.state,
                    reason=peer.link.reason,
                    protocol=peer.link.protocol,
                    tools=len(peer.listing.tools),
                )
            )
        return tuple(told)

    def take(self, servers: Sequence[ToolServer]) -> None:
        """Reach these servers from now on, and no others; who is reached as before keeps its connections.

        Connections to the others are closed once their calls have ended, or have had their time.

        Raises:
            ConfigError: settings that cannot be, all of them at once; then everything stays as it was.
        """
        check_servers(servers)
        known = {server.name: server for server in servers}
        kept = {name for name in known if name in self._servers and _is_same(self._servers[name], known[name])}
        leaving = [(name, peer) for name, peers in self._peers.items() if name not in kept for peer in peers.values()]
        self._servers = known
        self._peers = {name: self._peers[name] if name in kept else {} for name in known}
        for name, peer in leaving:
            self._let_go(name, peer)

    async def close(self) -> None:
        """End every call, connection and child, in bounded time whatever the servers do."""
        self._is_closed = True
        peers = [peer for peers in self._peers.values() for peer in peers.values()]
        await asyncio.gather(*(peer.link.close() for peer in peers), *self._leaving)

    def _peer(self, name: str, headers: Mapping[str, str]) -> Peer:
        """Return the connection for a caller: one for each set of forwarded headers, the longest unused one leaves."""
        server = self._servers.get(name)
        if server is None:
            raise UsageError(f"there is no tool server {name}", hint=f"there are: {', '.join(self._servers) or 'none'}")
        if self._is_closed:
            raise ServerUnavailable(f"tool server {name} is not available: closed", server=name, was_sent=False)
        passed = _passed(server, headers)
        peers = self._peers[name]
        peer = peers.pop(passed, None)
        if peer is None:
            self._make_room(name, peers)
            peer = self._make_peer(server, dict(passed))
        peers[passed] = peer
        return peer

    def _make_peer(self, server: ToolServer, headers: Mapping[str, str]) -> Peer:
        # The SDK takes most of a second to load, and no other tool needs it.
        from quell.tools._mcp_link import Link  # noqa: PLC0415
        from quell.tools._mcp_peer import Peer  # noqa: PLC0415

        argv = self._prepare(server) if server.transport == "stdio" else ()
        link = Link(
            server,
            headers=headers,
            argv=argv,
            monotonic=self._monotonic,
            entropy=self._entropy,
            clean=self._clean,
        )
        return Peer(link, clock=self._clock, monotonic=self._monotonic)

    def _make_room(self, name: str, peers: dict[Passed, Peer]) -> None:
        if len(peers) < PEERS_MAX:
            return
        idle = next((passed for passed, peer in peers.items() if not peer.link.calls), None)
        if idle is None:
            raise OverloadError(f"all {PEERS_MAX} connections to tool server {name} are in use", retry_after_s=1.0)
        self._let_go(name, peers.pop(idle))

    def _let_go(self, name: str, peer: Peer) -> None:
        leaving = asyncio.create_task(self._leave(peer), name=f"quell mcp {name} leaves")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, peer: Peer) -> None:
        """Close a connection once its calls have ended: of a call that is cut off nobody knows what it did."""
        until_s = self._monotonic() + peer.link.server.call_timeout_s
        while peer.link.calls and not self._is_closed and self._monotonic() < until_s:  # noqa: ASYNC110 - calls end in many ways
            await asyncio.sleep(_LEAVE_LOOK_S)
        await peer.link.close()
        if peer.link.argv:
            await asyncio.to_thread(self._release, peer.link.argv)


def _is_same(one: ToolServer, other: ToolServer) -> bool:
    """Tell whether two servers are reached alike; what is said of their tools counts when those are pinned."""
    plain = [replace(each, reads=(), hints="ignore", catalogue="") for each in (one, other)]
    return plain[0] == plain[1]


def _passed(server: ToolServer, headers: Mapping[str, str]) -> Passed:
    """Return what of a caller's headers goes to a server, under the names that it has there; they tell callers apart."""
    came = {header.lower(): value for header, value in headers.items()}
    wanted = {header.lower(): header.lower() for header in server.forward_headers}
    wanted |= {header.lower(): source.lower() for header, source in server.headers_from_request.items()}
    return tuple(
        sorted(
            (header, came[source])
            for header, source in wanted.items()
            if source in came and not is_transport_header(header)
        )
    )
