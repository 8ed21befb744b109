"""What people see of tools and their servers, and of the calls that they make by hand: here and behind a server alike."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from quell.domain._guard import Parked, Recovery, Tool, ToolClass, ToolOutcome
from quell.domain._lifecycle import RunStatus
from quell.domain._mcp import ToolTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class PinNote:
    """A pin as lists show it: what was accepted, as what, and by whom."""

    server: str
    tool: str
    """Its name on the wire."""
    digest: str
    tool_class: ToolClass
    recovery: Recovery
    reason: str
    """Why it has its class."""
    by: str
    """Empty for who belongs to another tenant than the pin."""
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTool:
    """A tool that may be called."""

    tool: Tool
    pin: PinNote | None
    """None: it is our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BareServer:
    """A configured MCP server of which nothing is pinned."""

    name: str
    pins: Literal["by_person", "first_use"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolList:
    """Which tools there are, and what keeps others from being there."""

    tools: tuple[ListedTool, ...]
    idle: tuple[PinNote, ...]
    """Pins whose server nobody configured."""
    bare: tuple[BareServer, ...]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSheet:
    """A tool whole."""

    tool: Tool
    pin: PinNote | None
    definition: str
    """What was pinned, every invisible character made visible; empty of our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDrift:
    """How what a server offers now compares with what is pinned."""

    server: str
    tool: str
    verdict: Literal["pinned", "changed", "unknown", "gone"]
    change: str
    """The difference for people; empty when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDown:
    """An MCP server that did not say what it offers."""

    server: str
    reason: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolComparison:
    """How what servers offer compares with what is pinned."""

    tools: tuple[ToolDrift, ...]
    down: tuple[ServerDown, ...] = ()
    """Of whose tools nothing is known now."""

    @property
    def is_same(self) -> bool:
        """Whether every pinned tool of the servers that answered is what was accepted."""
        return all(each.verdict in {"pinned", "unknown"} for each in self.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCheck:
    """What came of looking at one MCP server."""

    server: str
    transport: str
    state: Literal["up", "down", "not configured"]
    pinned: int
    changed: tuple[str, ...] = ()
    """Pinned tools that are another one now."""
    gone: tuple[str, ...] = ()
    unknown: int = 0
    """Tools on offer that nobody pinned."""
    effects: tuple[str, ...] = ()
    """Tools on offer that are not known to read: people are asked about each call of them."""
    pins: Literal["by_person", "first_use"] = "by_person"
    reason: str = ""
    hint: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it is there, and every pinned tool of it is what was accepted."""
        return self.state == "up" and not self.changed and not self.gone


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferSheet:
    """What a server offers under a name, for whoever is to accept it."""

    server: str
    tool: str
    digest: str
    terms: ToolTerms
    verdict: Literal["pinned", "changed", "unknown"]
    text: str
    """The definition, every invisible character made visible."""
    change: str
    """How it differs from what is pinned under the name; empty when nothing is, or nothing does."""
    old: PinNote | None
    is_settled: bool
    """Whether exactly this is pinned already: to accept it again changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What came of accepting a tool."""

    pin: PinNote
    change: Literal["none", "pinned", "changed", "unknown"]
    """`none`: it was pinned just so; else what the offer was to the pin of that name before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallState:
    """How far a call is that a person made by hand."""

    run: str
    status: RunStatus
    seq: int
    """Number of the last event that was heard: what is asked after it tells what is new."""
    parked: Parked | None = None
    """Set when people were asked since."""
    outcome: ToolOutcome | None = None
    error: str = ""
