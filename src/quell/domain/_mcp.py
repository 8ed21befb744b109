"""The words of tool servers: how one is reached, what it offers, how it answered, and what a person said of its tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from quell.domain._guard import OutcomeKind, Recovery, ResourceRule, ToolClass

_TRANSPORT_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "last-event-id",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def is_transport_header(header: str) -> bool:
    """Tell whether a header belongs to the transport of tool servers, so that no settings may set it."""
    return header.lower() in _TRANSPORT_HEADERS or header.lower().startswith("mcp-")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolServer:
    """How one MCP server is reached, and how far it is trusted with time and memory."""

    name: str
    """Lower-case letters, digits and `-`; it qualifies the tools of the server."""
    transport: Literal["stdio", "sse", "streamable_http"]
    command: str = ""
    """Program of a stdio server."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to a small inherited environment (HOME, LOGNAME, PATH, SHELL, TERM, USER); nothing else is passed on."""
    cwd: str = ""
    url: str = field(default="", repr=False)
    """Where an HTTP server listens; it may hold a secret."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request."""
    forward_headers: tuple[str, ...] = ()
    """Names of the caller's own headers that are passed on: what says who calls, such as `authorization`."""
    headers_from_request: Mapping[str, str] = field(default_factory=dict)
    """Name of a header on the way out = the caller's own header that it takes its value from; where there, it wins."""
    roots: tuple[str, ...] = ()
    """`file://` URIs told to a server that asks; empty: such questions are refused."""
    tools: tuple[str, ...] = ("*",)
    """Globs of the original names of the tools that are taken; empty: none."""
    catalogue: str = ""
    """Section of our catalogue that says what its tools do; empty: none, and what nobody classed is irreversible."""
    reads: tuple[str, ...] = ()
    """Globs of the original names of the tools that only read, as the operator says."""
    hints: Literal["ignore", "believe"] = "ignore"
    """`believe`: a tool that the server itself calls read-only is one."""
    connect_timeout_s: float = 30.0
    call_timeout_s: float = 60.0
    result_max_bytes: int = 8_000_000
    offers_fresh_s: float = 300.0
    """How long a listing of tools is believed before the next call lists them again."""
    offers_max: int = 2000
    """More tools than that are a mistake or an attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """What a definition of a tool is pinned together with."""

    address: str = field(repr=False)
    """URL, or the command line as JSON."""
    instructions: str = ""
    """What the server tells models about itself: as able to mislead one as any description."""
    product: str = ""
    """Name that the server gives itself."""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A tool as a server offers it now, byte for byte."""

    server: str
    original: str
    """Its name on the wire."""
    definition: str
    """The whole wire object, canonical JSON."""
    digest: str
    """`sha256:` over the definition and the identity of the server."""
    identity: ServerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTerms:
    """What people say of a tool: its class and all that no server may decide."""

    tool_class: ToolClass = ToolClass.IRREVERSIBLE
    recovery: Recovery = Recovery.BLIND
    resource: ResourceRule = field(default_factory=ResourceRule)
    key_argument: str = ""
    probe: str = ""
    revert: str = ""
    dry_run: str = ""
    timeout_s: float = 60.0
    result_max_bytes: int = 8_000_000
    answers: Literal["anything", "json"] = "anything"
    """`json`: an answer that is not JSON is suspicious, such as the page of a login."""
    as_of: str = ""
    """Pointer (RFC 6901) to the time of the data in a structured answer."""
    fresh_for_s: float | None = None
    """Age from which that data is stale, as is an answer that does not tell it; None: nobody asks."""
    reason: str = "nobody said what it does"
    """Why it has its class: one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPin:
    """A definition that a person accepted; any other definition of that tool is refused."""

    server: str
    original: str
    digest: str
    definition: str
    identity: ServerIdentity
    terms: ToolTerms
    pinned_by: str
    pinned_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question of a server to people. Its words are the server's own: not trusted."""

    key: str
    """Under which the reply is given."""
    message: str
    schema: str = ""
    """JSON Schema of the wanted content; empty for a URL."""
    url: str = ""
    """Page that the server wants a person to open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a person said to one question."""

    action: Literal["accept", "decline", "cancel"]
    content: str = ""
    """JSON object that fits the schema, when accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsPeople:
    """A call that goes on only when people have replied: the same call, with their replies and the state."""

    asks: tuple[Ask, ...]
    request_state: str = ""
    """Opaque; given back as it came. The server binds it to the arguments."""
    goes_on: Literal["resumes", "restarts"] = "resumes"
    """`restarts`: an old server forgot the call; the question was declined and the call begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """How a server answered one call, judged by its structure and never by its words."""

    kind: OutcomeKind
    """`denied` with `needs` set: nothing is to be read before people have replied."""
    content: str = ""
    is_json: bool = False
    detail: str = ""
    """What went wrong and what to do about it; empty when nothing did."""
    digest: str = ""
    """SHA-256 of the whole content."""
    size_bytes: int = 0
    as_of: datetime | None = None
    needs: NeedsPeople | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallProgress:
    """How far a server says that it is."""

    done: float
    total: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """Whether a server is there, for people."""

    name: str
    transport: str
    state: Literal["idle", "connecting", "connected", "failed"]
    """`idle`: nobody asked for it yet."""
    reason: str = ""
    """Why it failed."""
    protocol: str = ""
    """Negotiated version of MCP."""
    tools: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What became of one server of an agent, as clients are told."""

    name: str
    """As the agent's file calls it."""
    transport: Literal["stdio", "sse", "http_streamable"]
    is_up: bool
    tools: tuple[str, ...] = ()
    """Original names of those of its tools that may be called: pinned, and offered as they were pinned."""
    reason: str = ""
    """Why it is not there; empty when it is."""
    held_back: tuple[str, ...] = ()
    """Original names of what it offers and nobody pinned as it is now."""
