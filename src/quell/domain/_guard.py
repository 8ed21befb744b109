"""The words of authority: a tool, a call that can no longer change, who wants it, and what was decided."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Literal, TypeAlias

ASK_PEOPLE = "request_approval"
"""Our own tool by which an agent asks people about something: nobody but people ever lets a call of it through."""


class ToolClass(StrEnum):
    """What a tool may do to the world. It comes from our catalogue or from the operator, never from a server's hints."""

    READ = "read"
    EGRESS = "egress"
    """Reads whose arguments can carry data out: a URL, a query to a foreign host."""
    REVERSIBLE = "reversible"
    IRREVERSIBLE = "irreversible"

    @property
    def is_effect(self) -> bool:
        """Whether it changes something, so that the ledger stands in front of it."""
        return self in {ToolClass.REVERSIBLE, ToolClass.IRREVERSIBLE}


class Recovery(StrEnum):
    """What may be done about an effect whose end nobody saw."""

    KEYED = "keyed"
    """Send it again under the same idempotency key."""
    PROBEABLE = "probeable"
    """Read back whether it happened."""
    NATURAL = "natural"
    """It sets a value: doing it again changes nothing more."""
    BLIND = "blind"
    """Nothing: a person decides. Such a tool is never automatic."""


class OutcomeKind(StrEnum):
    """How a tool call ended. Only `ok` may be cited as evidence."""

    OK = "ok"
    TOOL_ERROR = "tool_error"
    TRANSPORT_ERROR = "transport_error"
    DENIED = "denied"
    TIMEOUT = "timeout"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    STALE = "stale"
    SUSPICIOUS = "suspicious"

    @property
    def is_answer(self) -> bool:
        """Whether the tool did what it was called for, however little or old what it told is."""
        return self in {OutcomeKind.OK, OutcomeKind.EMPTY, OutcomeKind.TRUNCATED, OutcomeKind.STALE}

    @property
    def counts_as_failed(self) -> bool:
        """Whether an agent counts the call as failed: that there is nothing is an answer, half of one or an old one is not."""
        return self not in {OutcomeKind.OK, OutcomeKind.EMPTY}


class Level(IntEnum):
    """How far an agent may go by itself, per workflow digest, action class and environment."""

    OBSERVE = 0
    PROPOSE = 1
    APPROVE_EACH = 2
    REVERSIBLE = 3
    """Acts if reversible, verified or reverted, within the blast radius."""
    REVIEWED = 4
    """Acts; people review the next day."""
    CLOSED_LOOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRule:
    """Where in the arguments of a tool stands what it acts on: JSON pointers (RFC 6901) into the frozen arguments."""

    kind: str = "Service"
    name: str = ""
    """Pointer to the name; empty: the tool acts on its own server as a whole."""
    environment: str = ""
    """Pointer to the environment; empty: that of the deployment."""
    units: str = ""
    """Pointer to an integer that says how many units are touched; empty: one."""
    destination: str = ""
    """Pointer to a URL or host that the call reaches; a read that has one is egress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A capability with a schema, pinned."""

    name: str
    """How models and policies call it: letters, digits, `_`, `-`, `.`; qualified by its server when two share one."""
    server: str
    """MCP server that offers it; empty for a built-in."""
    original: str
    """Its name on the wire."""
    description: str
    input_schema: str
    """JSON Schema of the arguments, canonical."""
    output_schema: str = ""
    """JSON Schema of the result, canonical; empty when it has none."""
    tool_class: ToolClass
    recovery: Recovery
    resource: ResourceRule = field(default_factory=ResourceRule)
    key_argument: str = ""
    """Top-level argument that carries the idempotency key of a keyed tool; empty: it travels beside the arguments."""
    probe: str = ""
    """Read tool that tells, given the same arguments, whether a probeable effect happened."""
    revert: str = ""
    """Tool that undoes it; empty: nothing does, and it is irreversible."""
    dry_run: str = ""
    """Read tool that tells, given the same arguments, what it would change; people are shown that."""
    timeout_s: float = 60.0
    result_max_bytes: int = 8_000_000
    stands_for: str = ""
    """Name that its server was given where another server has that name now; empty: it has the one it was given."""
    also: tuple[str, ...] = ()
    """Names that it goes by beside other tools: stops and forbids by one of them count for it, permits do not."""
    pin: str
    """`sha256:` digest of the raw definition and of all fields above that people set."""


def own_read(
    name: str, *, description: str, takes: Mapping[str, object], resource: ResourceRule, timeout_s: float = 60.0
) -> Tool:
    """Define a read of our own, which may be sent again; `takes` is the JSON Schema of its arguments."""
    schema = json.dumps(takes, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(f"{name}\n{description}\n{schema}".encode()).hexdigest()
    return Tool(
        name=name,
        server="",
        original=name,
        description=description,
        input_schema=schema,
        tool_class=ToolClass.READ,
        recovery=Recovery.NATURAL,
        resource=resource,
        timeout_s=timeout_s,
        pin=f"sha256:{digest}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a call acts on, derived from its frozen arguments and from nothing else."""

    kind: str
    name: str
    environment: str
    units: int
    host: str
    """Host that the call reaches by its arguments; empty when none."""


Inventory: TypeAlias = Callable[[Resource], Awaitable[Sequence[tuple[str, str]]]]
"""Tells people who decide what is known of a resource, as names and values; it may fail and be slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenCall:
    """One use of a tool whose bytes no longer change; everything decided about it is decided about these."""

    run: str
    id: str
    """Unique within the run; the ledger's key is made of both."""
    tool: str
    pin: str
    arguments: str
    """Canonical JSON: sorted keys, no spaces, no floats that are not finite, NFC texts as they came."""
    resource: Resource
    digest: str
    """SHA-256 over tool, pin, arguments and resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who acts: a run, on behalf of a person, through an agent and a workflow version."""

    user: str
    """Subject of the person or service behind it; never empty."""
    tenant: str = "local"
    roles: tuple[str, ...] = ()
    """What the person may, such as `viewer`, `operator`, `approver`, `admin`."""
    scopes: tuple[str, ...] = ()
    """What the credential may; empty: all that the roles may."""
    agent: str = ""
    agent_tools: tuple[str, ...] | None = None
    """Globs of the tools of the agent; None: no agent between, the person acts directly."""
    workflow: str = ""
    workflow_digest: str = ""
    workflow_tools: tuple[str, ...] | None = None
    """Globs of the tools of the workflow version; None: no workflow between."""
    stage: Literal["shadow", "canary", "stable"] = "stable"
    level: Level = Level.APPROVE_EACH
    is_tainted: bool = False
    """Whether text that an attacker may have written has reached the model of this run."""


class CallOrigin(StrEnum):
    """Where a call comes from, said by our code and never by a model."""

    MODEL = "model"
    """A model asked for it, in the form that its provider gives to calls."""
    TEXT = "text"
    """It was read out of what a model wrote."""
    SKILL = "skill"
    RUNBOOK = "runbook"
    """A step of a runbook."""
    WAIT = "wait"
    """It looks whether what a run waits for has come."""
    PROBE = "probe"
    """It looks whether an effect happened whose end nobody saw."""
    DRY_RUN = "dry_run"
    """It asks what an effect would change, before people are asked about it."""
    PERSON = "person"
    CODE = "code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the past and the present say about a call: counted by code in the transaction that decides."""

    calls_1h: int = 0
    """Effects of this principal's workflow version in its tenant in the last hour, those in flight included."""
    services_1h: int = 0
    """Distinct resources among them, this call's included."""
    units_1h: int = 0
    """Units among them, this call's included."""
    failures_1h: int = 0
    in_flight: int = 0
    blast_percent: int = 0
    """Share of the known services that this call touches, in percent."""
    is_frozen: bool = False
    """A freeze covers the environment or the tool."""
    is_killed: bool = False
    """The kill switch is on: nothing acts."""
    is_break_glass: bool = False
    origin: CallOrigin = CallOrigin.MODEL
    approvals: int = 0
    """Valid approvals of exactly this digest by people who are not the requester."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What policy says of a call: permit, ask or deny, each with the rules that decided."""

    decision: Literal["permit", "ask", "deny"]
    policies: tuple[str, ...]
    """Ids of the policies that decided."""
    reason: str
    """One sentence for a person or a model."""
    approver_roles: tuple[str, ...] = ()
    """Who may approve, when the decision is ask."""
    quorum: int = 0
    """Approvals needed, when the decision is ask."""
    policy_digest: str = ""
    would_deny: tuple[str, ...] = ()
    """What sets in log-only mode would have held it up by: policies, or `SET:ask`, `SET:no-permit`, `SET:error`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """How a tool call ended, and what it brought."""

    call: str
    tool: str
    kind: OutcomeKind
    content: str = ""
    """What the caller may read: JSON when `is_json`, text otherwise; a curated head when the rest was spilled."""
    is_json: bool = False
    detail: str = ""
    """What went wrong and what to do about it; empty when nothing did."""
    digest: str = ""
    """SHA-256 of the whole result."""
    size_bytes: int = 0
    handle: str = ""
    """Scratchpad handle of the whole result; empty when `content` is all of it."""
    attempts: int = 1
    elapsed_ms: float = 0.0
    as_of: datetime | None = None
    """How old the data is, where the tool says."""
    evidence: Mapping[str, str] = field(default_factory=dict)
    """Ids under which this outcome is kept: audit record, approval, ledger entry."""

    @property
    def is_citable(self) -> bool:
        """Whether a claim may rest on it: a failed or partial outcome may not."""
        return self.kind is OutcomeKind.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """The call waits for people; the same call again goes on when they have decided."""

    call: str
    approval: str
    """Id of the approval request."""
    digest: str
    expires_at: datetime
    quorum: int
    approver_roles: tuple[str, ...]
    gate: str = ""
    """Pattern of the agent's file that wants people for it, or the tool by which the agent asked; empty: policy asks."""
