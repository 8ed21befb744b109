"""Telling addresses of callers how their tasks stand: screened, at least once, and never to a place inside."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

from a2a.types.a2a_pb2 import StreamResponse, TaskState, TaskStatusUpdateEvent
from a2a.utils.errors import TaskNotFoundError
from google.protobuf.json_format import MessageToDict

from quell import telemetry
from quell.app import TaskBook
from quell.domain import Clock, TaskHook, WorldError
from quell.server._a2a_tasks import ENDED, STILL, Tasks
from quell.tools import post_webhook

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_INSIDE = tuple(map(ipaddress.ip_network, ("::/96", "64:ff9b:1::/48", "fec0::/10")))
"""Forms that carry an address of the older kind or belong to a site, and count as global all the same."""
_AT_ONCE, _LOOKED_AT = 20, 200
_TIMEOUT_S = 10.0
_TRIES_MAX = 8
_PAUSE_FIRST_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """What was found out about an address."""

    refused: str = ""
    """Why nobody is told there; empty: they may be."""
    to: str = ""
    """The IP address that was judged, and the only one to connect to; empty for what the operator named."""


class Screen:
    """Says whether an address may be told: callers choose it, and it must lead nobody inside."""

    def __init__(self, *, inside: frozenset[str]) -> None:
        """Let `host:port` of `inside` through, which the operator named."""
        self._inside = inside

    async def judge(self, url: str) -> Screened:
        """Say why an address is refused, or where it leads: its name is looked up here and nowhere else."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return Screened(refused="it is no URL")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
            return Screened(refused="it is no http or https address without a name and password in it")
        if f"{parts.hostname}:{port}" in self._inside:
            return Screened()
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return Screened(refused="its name cannot be resolved")
        addresses = [str(each[4][0]) for each in found]
        if not addresses or not all(map(_is_public, addresses)):
            return Screened(refused="it leads to a private or local network")
        return Screened(to=addresses[0]) if parts.scheme == "https" else Screened(refused="it has to be https")


def _is_public(written: str) -> bool:
    address = ipaddress.ip_address(written.split("%", maxsplit=1)[0])
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _INSIDE):
            return False
        if address in _NAT64:
            # It is an address of the older kind in other words (RFC 6052), as one of 6to4 is (RFC 3056).
            return _is_public(str(ipaddress.IPv4Address(address.packed[-4:])))
        if (older := address.ipv4_mapped or address.sixtofour) is not None:
            return _is_public(str(older))
    return address.is_global and not address.is_multicast


class Pusher:
    """Tells who wants to be told; what could not be told is tried again, across restarts."""

    def __init__(self, tasks: Tasks, *, screen: Screen, clock: Clock) -> None:
        """Read the tasks as they stand when their turn comes."""
        self._tasks = tasks
        self._screen = screen
        self._clock = clock
        self._after = ("", "")

    @property
    def _book(self) -> TaskBook:
        return self._tasks.book

    async def look(self) -> None:
        """Tell everybody whose task stands otherwise than they know."""
        hooks = await asyncio.to_thread(self._book.due_hooks, rows_max=_LOOKED_AT, after=self._after)
        # Most tasks stand as they are known to: the next look begins where this one ended, and every one has its turn.
        self._after = (hooks[-1].task, hooks[-1].id) if len(hooks) == _LOOKED_AT else ("", "")
        gate = asyncio.Semaphore(_AT_ONCE)
        ended = await asyncio.gather(*(self._tell(hook, gate) for hook in hooks), return_exceptions=True)
        for hook, error in zip(hooks, ended, strict=True):
            if isinstance(error, Exception):
                # What is wrong with one keeps nobody else from being told.
                told = f"{type(error).__name__}: {error}"
                telemetry.event("a2a.push_failed", task=hook.task, tries=hook.tries, error=told)

    async def _tell(self, hook: TaskHook, gate: asyncio.Semaphore) -> None:
        try:
            row = await self._tasks.find(hook.task, by=None)
        except TaskNotFoundError:
            await asyncio.to_thread(self._book.drop_hook, hook.task, hook.id)
            return
        status = await self._tasks.status(row)
        state = TaskState.Name(status.state)
        if status.state not in STILL or hook.told == state:
            if status.state in ENDED:
                await asyncio.to_thread(self._book.drop_hook, hook.task, hook.id)
            return
        update = TaskStatusUpdateEvent(task_id=row.task, context_id=row.context, status=status)
        async with gate:
            await self._send(hook, MessageToDict(StreamResponse(status_update=update)), state=state)

    async def _send(self, hook: TaskHook, body: Mapping[str, object], *, state: str) -> None:
        settings = json.loads(hook.settings)
        url = str(settings.get("url", ""))
        # Names may lead elsewhere by now: screened again, every time.
        found = await self._screen.judge(url)
        trouble = found.refused or await _posted(url, settings, json.dumps(body).encode(), to=found.to)
        if trouble:
            telemetry.event("a2a.push_failed", task=hook.task, tries=hook.tries + 1, error=trouble)
            if hook.tries + 1 >= _TRIES_MAX:
                await asyncio.to_thread(self._book.drop_hook, hook.task, hook.id)
                return
            pause = timedelta(seconds=_PAUSE_FIRST_S * 2**hook.tries)
            await asyncio.to_thread(self._book.not_told, hook, again_at=self._clock() + pause)
        else:
            await asyncio.to_thread(self._book.told, hook, state=state)


async def _posted(url: str, settings: Mapping[str, object], body: bytes, *, to: str) -> str:
    """Tell an address; return why it could not be told, empty when it was."""
    try:
        await post_webhook(url, headers=_headers(settings), body=body, timeout_s=_TIMEOUT_S, to=to)
    except WorldError as error:
        return str(error)
    except ValueError as error:
        return f"its settings cannot be sent: {type(error).__name__}"
    return ""


def _headers(settings: Mapping[str, object]) -> list[tuple[str, str]]:
    headers = [("Content-Type", "application/a2a+json")]
    if settings.get("token"):
        headers.append(("X-A2A-Notification-Token", str(settings["token"])))
    shown = settings.get("authentication")
    if isinstance(shown, Mapping) and shown.get("scheme") and shown.get("credentials"):
        headers.append(("Authorization", f"{shown['scheme']} {shown['credentials']}"))
    return headers
