"""An agent as its file says it: the tables and keys of AURA 0.2, which keep their meaning, and `[quell]` beside them.

Field names are the keys of the file, and the string below a field says what the key means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from quell.config._settings import STRICT, Secret

Provider: TypeAlias = Literal["openai", "anthropic", "bedrock", "gemini", "ollama", "openrouter", "builtin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmSettings:
    """The model of an agent or of a worker."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    provider: Provider
    """Who runs it; `builtin` is Quell's own evidence engine and needs neither key nor network."""
    model: str = ""
    """Its name at the provider."""
    api_key: Secret = field(default_factory=lambda: Secret(""))
    """Key at the provider; write it as `{{ env.NAME }}`."""
    base_url: str = ""
    """Address of the provider or of anything that speaks its protocol; empty: the provider's own."""
    region: str = ""
    """AWS region of Bedrock."""
    profile: str = ""
    """AWS profile of Bedrock."""
    max_tokens: int | None = None
    """Most tokens of one answer."""
    context_window: int | None = None
    """Tokens that request and answer may have together."""
    temperature: float | None = None
    """How freely the model chooses its words."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """How long a reasoning model may think."""
    fallback_tool_parsing: bool = False
    """Look for tool calls in the text of a model that has no protocol for them."""
    additional_params: Mapping[str, object] = field(default_factory=dict)
    """Merged into the body of every request; wins over all above."""
    constrained_calls: bool = False
    """Hold a weak model to a JSON schema with one branch for each tool."""
    proxy: Secret = field(default_factory=lambda: Secret(""))
    """Proxy on the way to it, or `none`; empty: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say. Never for this machine itself."""
    prompt_cache: Literal["auto", "always", "off"] = "auto"
    """`auto`: tell providers that know it which part of a prompt stays the same; `always`: what is compatible with OpenAI too."""
    first_token_timeout_s: float = 90.0
    """Longest silence before the first word."""
    inactivity_timeout_s: float = 60.0
    """Longest silence between two words."""
    requests_per_minute: int | None = None
    """Most requests of a minute, over all runs of this process; absent: as the provider's headers tell."""
    tokens_per_minute: int | None = None
    """Most tokens of a minute, over all runs of this process; absent: as the provider's headers tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchpadSettings:
    """Whether large results are put aside and read piece by piece."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    enabled: bool = False
    """Whether results above a tool's `min_tokens` go to the scratchpad."""
    context_safety_margin: float = 0.20
    """Share of the window that stays free, at most 0.95."""
    max_extraction_tokens: int = 10_000
    """Most tokens that one reading tool gives back."""
    turn_depth_bonus: int = 6
    """Turns more for an agent that reads a scratchpad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillSource:
    """A directory of skills as agentskills.io has them."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    source: str
    """Directory, relative to where Quell was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitSkills:
    """Skills in a git repository, of one commit; AURA has directories only."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    url: str
    """Address of the repository: https, ssh, or file for a directory of this machine; it holds no credentials."""
    ref: str
    """A full commit id, which is pinned by itself; or a branch or tag: the commit that a person pinned is used."""
    path: str = ""
    """Directory in the repository; empty: its root."""

    @property
    def named(self) -> str:
        """Name it on one line."""
        return " ".join(filter(None, (self.url, self.ref, self.path)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillSettings:
    """Where skills lie."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    local: tuple[SkillSource, ...] = ()
    git: tuple[GitSkills, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTable:
    """The agent, or the coordinator of several workers."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    name: str
    """Name for people; the agent's id where there is no alias."""
    system_prompt: str
    """What the model is told first; of a coordinator, how to route."""
    alias: str = ""
    """Stable id by which clients choose the agent."""
    description: str = ""
    """Shown in lists of agents."""
    context: tuple[str, ...] = ()
    """Read and never used, as in AURA."""
    turn_depth: int = 5
    """Rounds of tools."""
    created_at: int | None = None
    """Milliseconds since 1970, for lists of models."""
    model_owner: str = ""
    """Owner, for lists of models."""
    mcp_filter: tuple[str, ...] | None = None
    """Globs of the MCP tools that it may use; absent: all of them, `[]`: none."""
    enable_client_tools: bool = False
    """Whether a request may bring tools that its client executes."""
    client_tool_filter: tuple[str, ...] | None = None
    """Globs of those that are taken; absent or `[]`: all."""
    hidden: bool = False
    """Left out of lists, and still there for who knows its id."""
    nudge_last_turn: bool = False
    """Tell the model when a turn is its last."""
    nudge_turns_remaining: int | None = None
    """Tell the model to wrap up when so many turns or fewer remain."""
    llm: LlmSettings
    scratchpad: ScratchpadSettings = ScratchpadSettings()
    skills: SkillSettings = SkillSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interception:
    """From which size on results of a tool go to the scratchpad."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    min_tokens: int = 5_120
    """Tokens of a result from which on it is put aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentMcpServer:
    """An MCP server of this agent."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    transport: Literal["stdio", "http_streamable", "sse"]
    """How it is reached."""
    cmd: tuple[str, ...] = ()
    """Program of a stdio server, with its leading arguments."""
    args: tuple[str, ...] = ()
    """Further arguments of that program."""
    env: Mapping[str, Secret] = field(default_factory=dict)
    """Environment of that program."""
    url: str = ""
    """Address of an HTTP server."""
    headers: Mapping[str, Secret] = field(default_factory=dict)
    """Headers sent with every request."""
    headers_from_request: Mapping[str, str] = field(default_factory=dict)
    """Headers taken from the caller's request: name on the way out, name on the way in; where there, they win."""
    description: str = ""
    """Shown in `/aura/info`."""
    scratchpad: Mapping[str, Interception] = field(default_factory=dict)
    """By glob of a tool's name: from which size on its results are put aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentMcp:
    """The MCP servers of this agent."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    sanitize_schemas: bool = True
    """Make schemas strict for providers that want every property required and no other."""
    servers: Mapping[str, AgentMcpServer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSettings:
    """The model that turns texts into vectors."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    provider: Literal["openai", "bedrock"]
    """Who runs it."""
    model: str
    """Its name at the provider."""
    api_key: Secret = field(default_factory=lambda: Secret(""))
    """Key at the provider."""
    base_url: str = ""
    """Address of anything that speaks its protocol."""
    region: str = ""
    """AWS region of Bedrock."""
    profile: str = ""
    """AWS profile of Bedrock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStoreSettings:
    """A store of documents that agents may search."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    name: str
    """Name; the tool is `vector_search_NAME`."""
    type: Literal["in_memory", "qdrant", "bedrock_kb"]
    """Which kind of store."""
    context_prefix: str = ""
    """What the tool's description begins with."""
    embedding_model: EmbeddingSettings | None = None
    url: str = ""
    """Address of Qdrant."""
    collection_name: str = ""
    """Collection in Qdrant."""
    knowledge_base_id: str = ""
    """Knowledge base in Bedrock."""
    region: str = ""
    """AWS region of Bedrock."""
    profile: str = ""
    """AWS profile of Bedrock."""
    managed: bool = False
    """Whether Bedrock manages the knowledge base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeTools:
    """Tools of Quell's own."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    filesystem: bool = False
    """Whether the agent may read files: `read_file` and `list_dir`."""
    custom_tools: tuple[str, ...] = ()
    """Only noted in the log, as in AURA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutSettings:
    """How long a call of the coordinator or a task of a worker may take."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    per_call_timeout_secs: int = 0
    """Of one coordinator call and of one task; 0: only the run's own deadline."""
    stream_inactivity_timeout_secs: int = 0
    """Longest silence in one call, tools not counted; 0: off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSettings:
    """What is kept of a run, and how much of it is shown to the coordinator."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    memory_dir: str = ""
    """Directory of runs; the top-level key wins."""
    result_artifact_threshold: int = 4_000
    """Characters from which on a worker's result becomes a file."""
    result_summary_length: int = 2_000
    """Characters of it that the coordinator sees then."""
    session_history_turns: int = 3
    """Earlier runs of the session that the coordinator is told of."""
    persistence_drain_timeout_ms: int = 2_000
    """Accepted; Quell writes before it goes on."""
    tool_output_artifact_threshold: int = 500
    """Characters from which on a tool's output becomes a file."""
    tool_output_duration_threshold_ms: int = 5_000
    """Milliseconds from which on a tool's output becomes a file."""
    show_tool_reasoning_in_continuation: bool = False
    """Whether the coordinator sees why workers called their tools."""
    max_session_runs: int = 20
    """Runs kept per session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """One worker of a coordinator."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    description: str
    """What the coordinator is told of it."""
    preamble: str
    """What its model is told first."""
    mcp_filter: tuple[str, ...] | None = None
    """Globs of the MCP tools that it may use; absent: as the agent, `[]`: none."""
    vector_stores: tuple[str, ...] = ()
    """Stores that it may search."""
    turn_depth: int | None = None
    """Rounds of tools; absent: as the agent."""
    llm: LlmSettings | None = None
    scratchpad: ScratchpadSettings | None = None
    skills: SkillSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestrationSettings:
    """A coordinator that plans, and workers that do."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    enabled: bool = False
    """Whether the agent is a coordinator."""
    max_planning_cycles: int = 3
    """Rounds of plan and execution."""
    max_plan_parse_retries: int = 3
    """How often the coordinator is asked again when it did not route."""
    worker_system_prompt: str = ""
    """What every worker is told before its own preamble."""
    coordinator_vector_stores: tuple[str, ...] = ()
    """Stores that the coordinator may search."""
    allow_direct_answers: bool = True
    """Whether the coordinator may answer itself."""
    allow_clarification: bool = True
    """Whether the coordinator may ask back."""
    tools_in_planning: Literal["none", "summary", "full"] = "summary"
    """How much of the workers' tools the coordinator sees."""
    max_tools_per_worker: int = 10
    """How many tools of each."""
    duplicate_call_nudge_threshold: int = 3
    """Same call and result so often: the worker is told."""
    duplicate_call_block_threshold: int = 5
    """Same call and result so often: the task ends."""
    timeouts: TimeoutSettings = TimeoutSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    worker: Mapping[str, WorkerSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HitlRoute:
    """How people are asked."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    mode: Literal["conversational", "webhook"]
    """`conversational`: in the stream and by HTTP; `webhook`: by a signed request."""
    timeout_secs: int | None = None
    """How long the answer may take; absent: 60 in a conversation, 300 by webhook."""
    url: str = ""
    """Address of the webhook."""
    headers: Mapping[str, Secret] = field(default_factory=dict)
    """Headers of the webhook."""
    headers_from_request: Mapping[str, str] = field(default_factory=dict)
    """Headers of the webhook that are taken from the caller's request."""
    tool_headers_from_response: Mapping[str, str] = field(default_factory=dict)
    """Headers of the approver's answer that go with the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HitlSettings:
    """Which tools wait for people."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    require_approval: tuple[str, ...] = ()
    """Globs of tools that are approved call by call, beside all that policy asks about."""
    route: HitlRoute | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBudget:
    """What one run of this agent may spend."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    usd: float | None = None
    """US dollars."""
    tokens: int | None = None
    """Tokens, in and out."""
    calls: int = 200
    """Tool calls."""
    minutes: float = 30.0
    """Minutes from first to last word, waits for people not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfinement:
    """What one MCP server of this file may do on this machine, and how long it may take."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    sandbox: Literal["required", "best_effort", "off"] = "best_effort"
    """Of a stdio server. `required`: not started where the machine cannot confine it; `off`: as in AURA."""
    network: Literal["none", "host"] = "host"
    """Whether a confined server reaches the network."""
    readable: tuple[str, ...] = ()
    """Paths that a confined server may read, beside the system's programs and what its command line names."""
    writable: tuple[str, ...] = ()
    """Directories that a confined server may write."""
    catalogue: str = ""
    """Section of Quell's catalogue that classes its tools."""
    connect_timeout_s: float = 30.0
    """Deadline of connecting."""
    call_timeout_s: float = 60.0
    """Deadline of one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuellTable:
    """What Quell has beyond AURA; files without it load as they are."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    on_disconnect: Literal["continue", "cancel"] = "continue"
    """What becomes of a run whose client left; AURA cancels it."""
    system_messages: Literal["ignore", "append"] = "ignore"
    """What becomes of system messages in requests; AURA drops them."""
    evidence: Literal["mark", "off"] = "mark"
    """`mark`: claims about the system that cite no evidence of the run are marked as such."""
    default_worker: str = ""
    """Worker of plan steps that name none; empty: such a plan is refused."""
    parallel_max: int = 4
    """Tasks at once."""
    workflow_tools: tuple[str, ...] | None = None
    """Globs of all tools that runs of this file may use, whatever their agent may; absent: no further bound."""
    budget: AgentBudget = AgentBudget()
    fallback: tuple[LlmSettings, ...] = ()
    small: LlmSettings | None = None
    pin: Literal["first_use", "by_person"] = "first_use"
    """`first_use`: what the servers of this file offer when first seen is pinned on the record; what changes waits for a person."""
    reads: tuple[str, ...] = ()
    """Globs of the tools of its servers that only read, as you say; all others are effects that nothing undoes."""
    hints: Literal["ignore", "believe"] = "believe"
    """`believe`: a tool that its server calls read-only is a read; `ignore`: people are asked about it."""
    files: tuple[str, ...] = (".",)
    """Directories that `read_file` and `list_dir` may read, with [tools].filesystem."""
    servers: Mapping[str, ServerConfinement] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """One file: one agent, with its workers if it has any."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    agent: AgentTable
    memory_dir: str = ""
    """Directory of artifacts, manifests and the scratchpad."""
    mcp: AgentMcp = field(default_factory=AgentMcp)
    vector_stores: tuple[VectorStoreSettings, ...] = ()
    tools: NativeTools = NativeTools()
    orchestration: OrchestrationSettings = field(default_factory=OrchestrationSettings)
    hitl: HitlSettings | None = None
    quell: QuellTable = QuellTable()

    @property
    def id(self) -> str:
        """Return the id by which clients choose it."""
        return self.agent.alias or self.agent.name

    @property
    def runs_dir(self) -> str:
        """Return the directory of its runs; empty when it keeps none."""
        return self.memory_dir or self.orchestration.artifacts.memory_dir
