"""What the wire knows of calls: the one it carries, those that are under way, and what the server asks meanwhile."""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import mcp_types as types

EDGE_BYTES = 512
"""Of a message that is too long its beginning and its end are kept: one of them says whose it was."""
QUESTIONS_MAX = 64
_CALLS_KEPT = 256
_ID_FIRST = re.compile(rb'^\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,18})\s*,')
_ID_LAST = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')

Fault = Literal["", "overflow", "unreachable", "cut"]


@dataclass(slots=True, kw_only=True, eq=False)
class Exchange:
    """What the wire saw of one call, for whoever judges its answer. It travels in the context of the call."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with this call alone."""
    status: int = 0
    content_type: str = ""
    fault: Fault = ""
    detail: str = ""
    is_sent: bool = False
    """Whether any of the call may have reached the server."""
    on_fault: Callable[[], object] | None = None

    def end(self, fault: Fault, detail: str) -> None:
        """Say once why no answer will come, and wake whoever waits."""
        if not self.fault:
            self.fault, self.detail = fault, detail
            if self.on_fault is not None:
                self.on_fault()


EXCHANGE: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("quell_exchange", default=None)


class Calls:
    """Calls that went out over a connection, by the id of their request."""

    def __init__(self) -> None:
        self._by_id: dict[int | str, Exchange] = {}

    def went(self, id_: int | str, exchange: Exchange) -> None:
        """Remember one that goes out now."""
        if len(self._by_id) > _CALLS_KEPT:
            # Those that timed out or were given up: no answer takes them away.
            self._by_id = {known: one for known, one in self._by_id.items() if one.on_fault is not None}
        self._by_id[id_] = exchange

    def came(self, id_: int | str | None) -> None:
        """Forget one whose answer came."""
        if id_ is not None:
            self._by_id.pop(id_, None)

    def meant_by(self, edges: bytes) -> tuple[int, Exchange] | None:
        """Find the call that a message answers that cannot be read, by the edges of it; None when it cannot be told."""
        found = _ID_FIRST.search(edges) or _ID_LAST.search(edges)
        exchange = self._by_id.get(int(found[1])) if found else None
        return None if found is None or exchange is None else (int(found[1]), exchange)


class Questions:
    """What a server asked and was not answered. The SDK begins a task for each, and would begin any number."""

    def __init__(self) -> None:
        self._open: set[int | str] = set()

    def came(self, message: object) -> bool:
        """Take notice of a message of the server; False when it asks more than is borne, or one thing twice."""
        if isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            asked = (message.params or {}).get("requestId")
            if isinstance(asked, int | str):
                self._open.discard(asked)  # it is answered no more
        if not isinstance(message, types.JSONRPCRequest):
            return True
        is_new = message.id not in self._open
        self._open.add(message.id)
        return is_new and len(self._open) <= QUESTIONS_MAX

    def went(self, message: object) -> None:
        """Take notice of a message of ours."""
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) and message.id is not None:
            self._open.discard(message.id)
