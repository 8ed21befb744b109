"""Tools that a chat client brings along and carries out itself: declared by it, pinned by a person, handed out frozen.

The client is as far outside as any server. What it says of its tools is their definition and nothing more: nobody
believes its hints, and a tool that the operator's settings do not class is irreversible and blind.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quell.domain import (
    BoundExceededError,
    CallRequest,
    ClientTools,
    FrozenCall,
    Offer,
    OutcomeKind,
    RefusedError,
    ServerIdentity,
    ToolOutcome,
    ToolPin,
)
from quell.tools._canonical import canonical
from quell.tools._mcp_checks import CLIENT
from quell.tools._pins import definition_digest, judge_offer

_IDENTITY = ServerIdentity(address=CLIENT)
_DECLARED_MAX_BYTES = 1_000_000
_DECLARED_MAX = 128
_WAITING_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOut:
    """One call for a client to carry out, once."""

    call: FrozenCall
    original: str
    """Name under which the client declared the tool."""
    key: str
    """Idempotency key of an effect; empty for a read. It comes again with every further attempt."""

    @property
    def ticket(self) -> str:
        """Name the call for its answer."""
        return f"{self.call.run}/{self.call.id}"


@dataclass(slots=True, kw_only=True)
class _Wait:
    """A call that is with a client."""

    handed: HandedOut
    answer: asyncio.Future[ToolOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    is_taken: bool = False


class ClientSeat:
    """One client that is connected: what it declared, and the calls that wait for it. It belongs to one event loop."""

    def __init__(self, declared: str) -> None:
        """Read what a client declares: a JSON list of tools, each with `name`, `description` and `inputSchema`.

        Raises RefusedError for anything else, and BoundExceededError for too much.
        """
        self._offers = _offers_of(declared)
        self._waits: dict[str, _Wait] = {}
        self._more = asyncio.Event()
        self._has_left = False

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What the client declared, by name."""
        return tuple(offer for _, offer in sorted(self._offers.items()))

    def offer(self, original: str) -> Offer | None:
        """Return what the client declared under a name."""
        return self._offers.get(original)

    async def use(self, call: FrozenCall, *, original: str, key: str, result_max_bytes: int) -> ToolOutcome:
        """Hand a call out and wait for what the client says of it; how long is the caller's to bound."""
        if self._has_left:
            return _lost(call, sent="no")
        handed = HandedOut(call=call, original=original, key=key)
        if len(self._waits) >= _WAITING_MAX or handed.ticket in self._waits:
            return _not_sent(call, "the client has more calls than it answers, or this one already")
        wait = self._waits[handed.ticket] = _Wait(handed=handed)
        self._more.set()
        try:
            answer = await wait.answer
        finally:
            # What nobody waits for any more is not handed out either.
            del self._waits[handed.ticket]
        return _bounded(answer, bytes_max=result_max_bytes)

    async def next(self) -> HandedOut:
        """Return the next call that the client is to carry out; each is given out once."""
        while True:
            for wait in self._waits.values():
                if not wait.is_taken:
                    wait.is_taken = True
                    return wait.handed
            self._more.clear()
            await self._more.wait()

    def answer(self, ticket: str, *, kind: Literal["ok", "failed"], content: str) -> bool:
        """Take what the client says of a call that it was given; False when nobody waits for that."""
        wait = self._waits.get(ticket)
        if wait is None or not wait.is_taken or wait.answer.done():
            return False
        wait.answer.set_result(_told(wait.handed.call, kind=kind, content=content))
        return True

    def leave(self) -> None:
        """Tell that the client is gone: what it was given may have been done, what it was not given was not."""
        self._has_left = True
        for wait in self._waits.values():
            if not wait.answer.done():
                wait.answer.set_result(_lost(wait.handed.call, sent="perhaps" if wait.is_taken else "no"))


class ClientHand:
    """A tool of clients, as a person pinned it; whichever client is connected carries it out."""

    dependency = CLIENT

    def __init__(self, pin: ToolPin) -> None:
        self._pin = pin

    def check(self, client: ClientTools | None) -> None:
        """Refuse what the connected client does not offer just so. Raises RefusedError."""
        offer = client.offer(self._pin.original) if client is not None else None
        if offer is None:
            raise RefusedError(
                f"no client is connected that declares {self._pin.original!a}", hint="use a tool of the catalogue"
            )
        if judge_offer(offer, self._pin) != "pinned":
            raise RefusedError(
                f"{self._pin.original!a} of this client is changed: nobody accepted it as it is now",
                hint="let a person look at its definition and pin it",
            )

    async def use(self, request: CallRequest, *, key: str, within_s: float) -> ToolOutcome:  # noqa: ARG002 - cut off like any
        """Hand the call out and wait; a client that is slow is cut off like every other dependency."""
        client = request.caller.client
        self.check(client)
        assert client is not None, "checked"
        bytes_max = self._pin.terms.result_max_bytes
        return await client.use(request.call, original=self._pin.original, key=key, result_max_bytes=bytes_max)


def _offers_of(declared: str) -> Mapping[str, Offer]:
    if len(declared) > _DECLARED_MAX_BYTES:
        raise BoundExceededError("characters that a client declares", limit=_DECLARED_MAX_BYTES)
    try:
        tools = json.loads(declared)
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RefusedError(
            "what the client declares is no JSON list of tools", hint='[{"name": "…", "inputSchema": …}]'
        )
    if len(tools) > _DECLARED_MAX:
        raise BoundExceededError("tools that a client declares", limit=_DECLARED_MAX)
    offers: dict[str, Offer] = {}
    for tool in tools:
        name, schema = tool.get("name"), tool.get("inputSchema")
        if not isinstance(name, str) or not name or not isinstance(schema, dict) or name in offers:
            raise RefusedError(
                "a tool that the client declares has no name, no inputSchema, or the name of another",
                hint="declare each tool once, with its schema",
            )
        text = canonical(tool)
        digest = definition_digest(json.loads(text), _IDENTITY)
        offers[name] = Offer(server=CLIENT, original=name, definition=text, digest=digest, identity=_IDENTITY)
    return offers


def _told(call: FrozenCall, *, kind: Literal["ok", "failed"], content: str) -> ToolOutcome:
    raw = content.encode("utf-8", "replace")
    ended = OutcomeKind.TOOL_ERROR if kind == "failed" else OutcomeKind.OK if content.strip() else OutcomeKind.EMPTY
    return ToolOutcome(
        call=call.id,
        tool=call.tool,
        kind=ended,
        content=content if kind == "ok" else "",
        is_json=kind == "ok" and _is_json(content),
        detail=content if kind == "failed" else "",
        digest=hashlib.sha256(raw).hexdigest(),
        size_bytes=len(raw),
    )


def _is_json(content: str) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _bounded(answer: ToolOutcome, *, bytes_max: int) -> ToolOutcome:
    if answer.size_bytes <= bytes_max:
        return answer
    return ToolOutcome(
        call=answer.call,
        tool=answer.tool,
        kind=answer.kind if answer.kind is OutcomeKind.TOOL_ERROR else OutcomeKind.TRUNCATED,
        detail=f"the client answered {answer.size_bytes:,} bytes, and {bytes_max:,} are the most; ask for less",
        digest=answer.digest,
        size_bytes=answer.size_bytes,
    )


def _lost(call: FrozenCall, *, sent: Literal["no", "perhaps"]) -> ToolOutcome:
    told = "before it got the call" if sent == "no" else "while it had the call: it may have been carried out"
    return ToolOutcome(
        call=call.id,
        tool=call.tool,
        kind=OutcomeKind.TRANSPORT_ERROR,
        detail=f"the client left {told}",
        evidence={"sent": sent},
    )


def _not_sent(call: FrozenCall, why: str) -> ToolOutcome:
    evidence = {"sent": "no"}
    return ToolOutcome(
        call=call.id, tool=call.tool, kind=OutcomeKind.TRANSPORT_ERROR, detail=why, attempts=0, evidence=evidence
    )
