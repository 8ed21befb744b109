"""The words of a tool call on its way: who asks, within which bounds, and what is decided about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from quell.domain._guard import CallOrigin, FrozenCall, Principal, Tool, ToolOutcome
from quell.domain._incident import ToolCall
from quell.domain._ledger import Fence
from quell.domain._mcp import CallProgress, NeedsPeople, Offer
from quell.domain._resilience import Priority
from quell.domain._scratchpad import SpillTable


class ClientTools(Protocol):
    """A client that is connected and carries out tools of its own."""

    def offer(self, original: str) -> Offer | None:
        """Return what the client declared under a name."""

    async def use(self, call: FrozenCall, *, original: str, key: str, result_max_bytes: int) -> ToolOutcome:
        """Hand a call out and wait for what the client says of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCaller:
    """On whose behalf tools are called, and within which bounds."""

    principal: Principal
    run: str
    fence: Fence | None = None
    """Proof that the run is held; without it nothing is changed in the world."""
    session: str = ""
    """Whose large results these are; empty: the run's own."""
    deadline_s: float = 60.0
    """Longest that one call may take, retries included."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The caller's own request headers, for servers that are told to pass some on."""
    feature: str = ""
    """What the spending is for, such as `investigation`."""
    priority: Priority = "normal"
    evidence_digest: str = ""
    """Digest of the evidence that led here; approvals are bound to it."""
    approval: str = ""
    """Id of the approved plan that is being carried out; empty: the calls stand for themselves."""
    origin: CallOrigin = CallOrigin.MODEL
    """Where the calls come from: on record, and policies see it."""
    client: ClientTools | None = field(default=None, repr=False)
    """The client whose own tools may be called."""
    ask_first: tuple[str, ...] = ()
    """Patterns of tools that people approve call by call, whatever policy says; of our own only what is named whole."""
    people_s: float = 0.0
    """How long people have to decide about a call, which is over then; 0: as the settings say, and asked anew."""
    spill: SpillTable | None = None
    """From which size on results are put aside; None: as the deployment does."""
    worker: str = ""
    """Name of the agent's worker that calls; empty: the agent itself."""
    on_start: Callable[[], None] | None = field(default=None, repr=False)
    """Is told that a call is being sent: whoever had to let it through has done so."""
    on_progress: Callable[[CallProgress], None] | None = field(default=None, repr=False)
    """Is told how far a call is, in the server's own words: bounded, and without our secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """One frozen call with everything that is decided about."""

    call: FrozenCall
    tool: Tool
    caller: ToolCaller
    diff: str = ""
    """What a dry run said would change; shown to approvers and bound."""
    revert: str = "[]"
    """JSON of the calls that undo it; kept with the intent."""
    explanation: str = ""
    """The model's own words: shown apart, never believed."""
    facts: tuple[tuple[str, str], ...] = ()
    """What the inventory knows of the resource, as people are shown it."""
    needs: NeedsPeople | None = None
    """What the server asked about it before: approving the call is the answer, and nothing else lets it through."""
    edited: str = ""
    """Approval of the edit that put these arguments in the place of the caller's; empty: nobody edited it."""
    editors: tuple[str, ...] = ()
    """Who may not approve it for having edited it."""
    answers: str = ""
    """JSON object of what people filled into the server's form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCall:
    """One call of a plan, with what people shall be shown of it."""

    wanted: ToolCall
    diff: str = ""
    revert: str = "[]"
    facts: tuple[tuple[str, str], ...] = ()
