"""The registry: which tools there are, what each may do, and the hand that does it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from quell.domain import (
    CallRequest,
    ClientTools,
    OutcomeKind,
    PadOwner,
    RefusedError,
    Reply,
    ServerAnswer,
    ServerUnavailable,
    Tool,
    ToolCaller,
    ToolOutcome,
    ToolPin,
)
from quell.governance import pin_of
from quell.tools._asks import NeedsPeopleError, replies_of
from quell.tools._canonical import canonical
from quell.tools._client import ClientHand, ClientSeat
from quell.tools._code import CodeTool
from quell.tools._mcp import Servers
from quell.tools._mcp_checks import CLIENT
from quell.tools._naming import model_names, other_names
from quell.tools._programs import definition, program_reader
from quell.tools._scratchpad import Reader, Scratchpad


class Hand(Protocol):
    """Does what a tool does, once; it is only ever called by the toolbox."""

    dependency: str
    """What it rests on, for retries and breakers: a server's name, or its own."""

    async def use(self, request: CallRequest, *, key: str, within_s: float) -> ToolOutcome:
        """Do it, and say in time how it ended. `key` is the idempotency key of an effect, empty for a read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tool that may be called, and who does it."""

    tool: Tool
    hand: Hand


class Registry:
    """The tools of one process by name; what is not in here does not exist."""

    Seat: TypeAlias = ClientSeat
    """Where one client is that brings tools along: made of what it declares, given with the caller of its calls."""

    def __init__(
        self,
        builtin: Iterable[tuple[Tool, Hand]] = (),
        *,
        scratchpad: Scratchpad | None = None,
        code: CodeTool | None = None,
    ) -> None:
        """Take our own tools, those that read a scratchpad and the one that runs programs over it among them."""
        own = [*builtin, *(_pad_tools(scratchpad, code) if scratchpad is not None else ())]
        self._builtin: Mapping[str, Entry] = {tool.name: Entry(tool=tool, hand=hand) for tool, hand in own}
        self._served: Mapping[str, Entry] = {}
        self.turn = -1
        """Number of the change of pins that the served tools are taken from."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Every tool, by name."""
        return self.tools_with(self._served)

    def there_for(self, client: ClientTools | None) -> tuple[Tool, ...]:
        """Return every tool that `find` finds for a caller, by name."""
        entries = {**self._served, **self._builtin}
        return tuple(entry.tool for _, entry in sorted(entries.items()) if _is_there(entry, client))

    def find(self, name: str, *, client: ClientTools | None = None) -> Entry:
        """Return a tool by exactly its name. Raises RefusedError when there is none: names are never guessed.

        A tool of clients is there for a caller whose client declares it as it was pinned.
        """
        entry = self._builtin.get(name) or self._served.get(name)
        if entry is None:
            raise RefusedError(
                "there is no such tool", hint="use a name of the catalogue as it stands there", code="unknown"
            )
        if isinstance(entry.hand, ClientHand):
            entry.hand.check(client)
        return entry

    def with_served(
        self, pins: Iterable[ToolPin], *, servers: Servers, known: Mapping[str, str], busy: Container[str] = ()
    ) -> Mapping[str, Entry]:
        """Return what `serve` would take: the pinned tools of known servers and of clients, no two names alike.

        `known` gives with each server the name that it stands for, empty where it has the one that it was given.
        Tools of servers that are `busy` keep the names that they have: runs that go on call them by those.
        """
        kept = [pin for pin in pins if pin.server in known or pin.server == CLIENT]
        there = {(pin.server, pin.original) for pin in kept}
        held = {
            (entry.tool.server, entry.tool.original): name
            for name, entry in self._served.items()
            if entry.tool.server in busy and (entry.tool.server, entry.tool.original) in there
        }
        names = model_names(there - held.keys(), taken=frozenset((*self._builtin, *held.values()))) | held
        by_wire = {(pin.server, pin.original): names[pin.server, pin.original] for pin in kept}
        served = {}
        for pin in kept:
            original = pin.server, pin.original
            stands_for = known.get(pin.server, "")
            also = other_names(original, stands_for=stands_for) | {names.get((stands_for, pin.original), "")}
            tool = replace(
                tool_of(pin, name=names[original], names=by_wire),
                stands_for=stands_for,
                # Who names one of our own tools means that one.
                also=tuple(sorted(also - {"", names[original], *self._builtin})),
            )
            hand: Hand = ClientHand(pin) if pin.server == CLIENT else ServerHand(servers, pin)
            served[tool.name] = Entry(tool=tool, hand=hand)
        return served

    def serve(self, served: Mapping[str, Entry], *, turn: int) -> None:
        """Take pinned tools, as they are since a change of pins, in the place of those that were taken before."""
        self._served, self.turn = dict(served), turn

    def is_builtin(self, name: str) -> bool:
        """Tell whether a name is that of a tool of our own, which needs no pin."""
        return name in self._builtin

    def unchanged(self, served: Mapping[str, Entry]) -> Mapping[str, Entry]:
        """Return those tools that are served already, just so."""
        return {
            name: entry
            for name, entry in served.items()
            if name in self._served and self._served[name].tool == entry.tool
        }

    def tools_with(self, served: Mapping[str, Entry]) -> tuple[Tool, ...]:
        """Return every tool there would be."""
        return tuple(entry.tool for _, entry in sorted({**served, **self._builtin}.items()))


def _is_there(entry: Entry, client: ClientTools | None) -> bool:
    with suppress(RefusedError):
        if isinstance(entry.hand, ClientHand):
            entry.hand.check(client)
        return True
    return False


def tool_of(pin: ToolPin, *, name: str, names: Mapping[tuple[str, str], str]) -> Tool:
    """Make the tool that a person pinned: its schema from the definition, everything else from people."""
    definition = json.loads(pin.definition)
    terms = pin.terms
    unpinned = Tool(
        name=name,
        server=pin.server,
        original=pin.original,
        description=str(definition.get("description") or ""),
        input_schema=canonical(definition.get("inputSchema") or {"type": "object"}),
        output_schema=canonical(definition["outputSchema"]) if definition.get("outputSchema") else "",
        tool_class=terms.tool_class,
        recovery=terms.recovery,
        resource=terms.resource,
        key_argument=terms.key_argument,
        probe=names.get((pin.server, terms.probe), terms.probe),
        revert=names.get((pin.server, terms.revert), terms.revert),
        dry_run=names.get((pin.server, terms.dry_run), terms.dry_run),
        timeout_s=terms.timeout_s,
        result_max_bytes=terms.result_max_bytes,
        pin="",
    )
    identity = {"digest": pin.digest, "server": pin.server}
    return replace(unpinned, pin=pin_of(definition, tool=unpinned, server=identity))


class ServerHand:
    """A tool of an MCP server, called only while its definition is what was pinned."""

    def __init__(self, servers: Servers, pin: ToolPin) -> None:
        self._servers = servers
        self._pin = pin
        self.dependency = f"mcp:{pin.server}"

    async def use(self, request: CallRequest, *, key: str, within_s: float) -> ToolOutcome:
        """Call the server; a connection that is not there is an outcome, not an error."""
        arguments = json.loads(request.call.arguments)
        terms = self._pin.terms
        if terms.key_argument and key:
            arguments[terms.key_argument] = key
        try:
            answer = await self._servers.call(
                self._pin.server,
                self._pin.original,
                arguments,
                digest=self._pin.digest,
                timeout_s=min(terms.timeout_s, within_s),
                headers=request.caller.headers,
                key=key,
                answers=terms.answers,
                as_of=terms.as_of,
                fresh_for_s=terms.fresh_for_s,
                result_max_bytes=terms.result_max_bytes,
                replies=_replies(request),
                request_state=request.needs.request_state if request.needs is not None else "",
                on_progress=request.caller.on_progress,
            )
        except ServerUnavailable as error:
            kind = OutcomeKind.TRANSPORT_ERROR
            sent = {"sent": "perhaps" if error.was_sent else "no"}
            return outcome(request, kind, detail=f"{error}", evidence=sent)
        return _of_answer(request, answer)


def _replies(request: CallRequest) -> Mapping[str, Reply] | None:
    """Return what people say to the server. Raises RefusedError when it is not all that it asked."""
    if request.needs is None:
        return None
    replies = replies_of(request.needs.asks, answers=request.answers)
    if replies is None:
        raise RefusedError("the form of the server is not filled in", hint="nothing was sent; ask people anew")
    return replies


def _of_answer(request: CallRequest, answer: ServerAnswer) -> ToolOutcome:
    if answer.needs is not None:
        raise NeedsPeopleError(answer.needs)
    return ToolOutcome(
        call=request.call.id,
        tool=request.call.tool,
        kind=answer.kind,
        content=answer.content,
        is_json=answer.is_json,
        detail=answer.detail,
        digest=answer.digest,
        size_bytes=answer.size_bytes,
        as_of=answer.as_of,
    )


Local: TypeAlias = Callable[[CallRequest, str], Awaitable[ToolOutcome]]
"""A tool of our own: the request and the idempotency key; it gives an outcome and never raises for the world's sake."""


class LocalHand:
    """A built-in tool."""

    def __init__(self, name: str, work: Local) -> None:
        self.dependency = f"builtin:{name}"
        self._work = work

    async def use(self, request: CallRequest, *, key: str, within_s: float) -> ToolOutcome:  # noqa: ARG002 - cut off like any
        """Do it."""
        return await self._work(request, key)


def pad_owner_of(caller: ToolCaller) -> PadOwner:
    """Return whose results a caller puts aside and reads: those of its session, or of its run where it has none."""
    who = caller.principal
    if not caller.session:
        return PadOwner(session=caller.run, tenant=who.tenant)
    return PadOwner(session=caller.session, tenant=who.tenant, user=who.user)


def _pad_tools(pad: Scratchpad, code: CodeTool | None) -> Iterable[tuple[Tool, Hand]]:
    """Return the tools that read results which were put aside: eight, and with an interpreter one that runs programs."""
    readers = pad.readers
    own: list[tuple[Tool, Hand]] = [(tool, LocalHand("scratchpad", _reading(readers[tool.name]))) for tool in pad.tools]
    if code is not None:
        own.append((definition(), LocalHand("code", _reading(program_reader(code, pad)))))
    return own


def _reading(reader: Reader) -> Local:
    async def read(request: CallRequest, _key: str) -> ToolOutcome:
        caller = request.caller
        owner = pad_owner_of(caller)
        tokens_max = caller.spill.reading_tokens if caller.spill is not None else None
        found = await reader(owner, json.loads(request.call.arguments), tokens_max=tokens_max)
        return outcome(request, found.kind, content=found.content, is_json=found.is_json, detail=found.detail)

    return read


def outcome(
    request: CallRequest,
    kind: OutcomeKind,
    *,
    content: str = "",
    is_json: bool = False,
    detail: str = "",
    evidence: Mapping[str, str] | None = None,
) -> ToolOutcome:
    """Make an outcome of a call."""
    return ToolOutcome(
        call=request.call.id,
        tool=request.call.tool,
        kind=kind,
        content=content,
        is_json=is_json,
        detail=detail,
        size_bytes=len(content.encode("utf-8", "replace")),
        evidence=evidence or {},
    )
