"""What is kept of a conversation between two segments of its run, and what an agent is told to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from quell.domain import CallWanted, Message, OutcomeKind, TokenUsage, ToolSpec

_DIGEST_LINES_MAX = 24
NOTHING = TokenUsage(input_tokens=0, output_tokens=0)


class Stop(StrEnum):
    """Why an agent stopped. Only `answered` and `asked` are its own doing."""

    ANSWERED = "answered"
    ASKED = "asked"
    """It asks the person one question."""
    CLIENT = "client"
    """It wants tools called that the client carries out itself; a further question brings their results."""
    TURNS = "turns"
    CALLS = "calls"
    SPENT = "spent"
    """A cap on money or tokens."""
    TIME = "time"
    LOOP = "loop"
    """The same calls brought the same results again and again."""
    MODEL = "model"
    """The model did not answer."""
    LENGTH = "length"
    """The answer was cut off at the most tokens that it may have."""

    @property
    def is_partial(self) -> bool:
        """Whether what was said is less than what was asked."""
        return self not in {Stop.ANSWERED, Stop.ASKED, Stop.CLIENT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What an agent is told to be, and how far it goes."""

    name: str
    preamble: str
    tools: tuple[str, ...] | None = None
    """Globs of the tools that it is offered; None: all that are pinned."""
    turns_max: int = 5
    calls_max: int = 200
    minutes_max: float = 30.0
    silent_max_s: float = 0.0
    """Longest silence of its model within one call; 0: as the model's own settings say."""
    nudge_last: bool = False
    nudge_remaining: int | None = None
    repeats_nudge: int = 3
    repeats_max: int = 5
    output_max_tokens: int | None = None
    temperature: float | None = None
    effort: str = ""
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choice: str = "auto"
    """Which tool the first turn has to call, as in a ModelRequest; later turns are free."""
    answer_schema: str = ""
    client_tools: tuple[ToolSpec, ...] = ()
    """Tools that the client carries out: a turn that wants only such ends the run."""
    extra: Mapping[str, object] = field(default_factory=dict)
    evidence: Literal["mark", "off"] = "mark"
    """`mark`: claims about the system that nothing of the run bears out are marked."""
    asks: Literal["person", "nobody"] = "person"
    """`person`: it may end a turn with a question."""
    schemas: Literal["as_they_are", "strict"] = "as_they_are"
    """`strict`: schemas of MCP tools are shown with every property required, and null for what may be left out."""
    window_margin: float = 0.20
    """Share of the model's window that requests leave free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A tool's outcome as the answer may cite it."""

    id: str
    """Such as `e3`; unique in the run."""
    tool: str
    call: str
    kind: OutcomeKind
    text: str
    """What it brought, cut; numbers of the answer are looked for in it."""
    digest: str = ""
    detail: str = ""
    """What went wrong, or what people said; cut."""
    gaps: int = 0
    """Things that it says it could not see."""
    warning: str = ""
    """What is odd about its text, such as words that read like instructions."""

    @property
    def is_citable(self) -> bool:
        """Whether a claim may rest on it."""
        return self.kind is OutcomeKind.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """How often one call brought one result in a row."""

    result: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What is left of turns that left the context: a line for each of the newest, and how many there were."""

    lines: tuple[str, ...] = ()
    messages: int = 0

    @property
    def text(self) -> str:
        """Return it as a model reads it."""
        head = f"To make room {self.messages} older messages of this conversation were left out. What happened in them:"
        earlier = self.messages > len(self.lines) and len(self.lines) >= _DIGEST_LINES_MAX
        return "\n".join([head, *(["- (earlier ones)"] if earlier else []), *(f"- {line}" for line in self.lines)])

    def with_lines(self, lines: Sequence[str], *, messages: int) -> Digest:
        """Return it with what happened after it."""
        kept = (*self.lines, *lines)[-_DIGEST_LINES_MAX:]
        return Digest(lines=kept, messages=self.messages + messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A conversation as it stands: everything that the next segment needs."""

    messages: tuple[Message, ...]
    turn: int = 0
    waiting: tuple[CallWanted, ...] = ()
    """Calls of the newest turn whose results are not in the messages yet."""
    exhibits: tuple[Exhibit, ...] = ()
    repeats: Mapping[str, Repeat] = field(default_factory=dict)
    failures: int = 0
    """Calls that failed in a row, whatever they were."""
    calls: int = 0
    failed: int = 0
    usage: TokenUsage = NOTHING
    is_usage_told: bool = True
    began_s: float = 0.0
    """Seconds of work of earlier segments; waits for people do not count."""
    is_tainted: bool = False
    dropped: tuple[str, ...] = ()
    """Exhibits whose texts left the context to make room."""
    digest: Digest = Digest()
    fence: str = ""
    """Key of the fences around results, drawn anew for each conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """What came of a conversation."""

    text: str
    stop: Stop
    usage: TokenUsage
    is_usage_told: bool
    turns: int
    calls: int
    failed: int
    cited: tuple[str, ...] = ()
    """Exhibits that the text cites and that bear it."""
    unverified: int = 0
    """Claims about the system that nothing of this run bears out."""
    invented: int = 0
    """Citations of results that there are not, which were taken away."""
    confidence: str = ""
    """`high`, `medium`, `low` or `none`, set by code from what is cited and what failed."""
    fault: str = ""
    """Why the model did not answer."""
    client_calls: tuple[CallWanted, ...] = ()
    """What the client is to carry out, when it stopped for that."""
    model: str = ""
    """What answered last, as `provider/name`."""
