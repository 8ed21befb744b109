"""Settings: what a `quell.toml` says after it was read, checked and frozen.

Every field is a key of the file; its docstring is what `quell config explain KEY` prints. Units come last in names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

STRICT: dict[str, object] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


class Secret:
    """A value that never prints: not in repr, str, JSON, logs or `quell config show`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value; call it only where the value goes on the wire."""
        return self._value

    def __repr__(self) -> str:
        """Say that there is a secret, and nothing of it."""
        return "Secret(set)" if self._value else "Secret(empty)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        """Never print."""
        return repr(self)

    def __bool__(self) -> bool:
        """Tell whether a value is set."""
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(("Secret", self._value))

    def __deepcopy__(self, memo: object) -> Secret:
        """Stay one object: nothing can change in it."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a pickle would print the value."""
        raise TypeError("a Secret is not pickled")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        """Tell pydantic: a string in the file, a Secret afterwards."""
        # The settings themselves import nothing; only the loader has pydantic, and it is loaded by then.
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuraSettings:
    """The wire of agents as AURA 0.2 has it; AURA's own variables, such as AURA_CUSTOM_EVENTS, set these keys too."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    custom_events: bool = False
    """Tell sessions, tools, progress, plans and usage as `aura.*` events beside the text."""
    emit_reasoning: bool = False
    """Tell what models think aloud as `aura.reasoning`; needs `custom_events`."""
    emit_scratchpad_tool_events: bool = False
    """Tell calls of the tools that read the scratchpad too; needs `custom_events`."""
    tool_calls: bool = False
    """Tell calls that Quell carries out itself as `tool_calls` chunks, as AURA does; `custom_events` does so too. Clients
    that carry out what they are told to (agents on OpenAI's SDKs, Open WebUI) take such calls for theirs, and fail."""
    tool_result_mode: Literal["none", "open-web-ui", "aura"] = "none"
    """Where results of tools stand: nowhere, as a second chunk of their call, or in `aura.tool_complete`."""
    tool_result_max_length: int = 1_000
    """Most bytes of a result that is told; 0 for all of it."""
    first_chunk_timeout_s: float = 90.0
    """Longest wait for the first thing of a run; 0 for ever."""
    streaming_timeout_s: float = 900.0
    """Longest time that a client is kept, streaming or not; 0 for ever. The run goes on by itself."""
    stream_inactivity_timeout_s: float = 0.0
    """Longest silence of a run, heartbeats not counted; 0 for ever."""
    heartbeat_s: float = 15.0
    """A comment line goes out when nothing else did for this long."""
    shutdown_timeout_s: float = 30.0
    """How long running requests may take to end when the server stops; new ones are answered 503 meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The HTTP server of `quell serve`."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs an identity table: nobody is served unasked."""
    names: tuple[str, ...] = ()
    """Host names under which it is reached besides loopback names and addresses, such as that of a proxy in front."""
    port: int = 7433
    """TCP port; 0 picks a free one and prints it."""
    body_max_mb: float = 16.0
    """Largest request body after decompression, in MiB."""
    request_timeout_s: float = 30.0
    """A request whose head or body has not arrived after this long is given up."""
    in_flight_max: int = 64
    """Telemetry requests handled at once; more are answered 429 with Retry-After."""
    a2a: bool = False
    """Whether other agents are answered by the A2A protocol (needs quell[a2a])."""
    a2a_url: str = ""
    """Where other agents reach this server, for its card, such as that of a proxy in front; empty: where it listens."""
    a2a_push_inside: tuple[str, ...] = ()
    """`host:port` of private addresses that may be told of tasks; all others have to be public and https."""
    chats_max: int = 2_000
    """Questions that are answered at once, whatever protocol they come by; more are told when to come back (429)."""
    chats_per_minute: int = 0
    """Questions that one person may ask in a minute, over all protocols; 0 for any number."""
    aura: AuraSettings = AuraSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """The telemetry store: an embedded engine in a process of its own, or any ClickHouse."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    url: str = ""
    """`http(s)://host:port` of an existing ClickHouse; empty means the embedded engine (needs quell[embedded])."""
    user: str = "default"
    """User of an existing ClickHouse."""
    password: Secret = field(default_factory=lambda: Secret(""))
    """Password of that user; write it as `{{ env.NAME }}`."""
    database: str = "default"
    """Database that holds the OpenTelemetry tables."""
    create_tables: Literal["embedded", "always"] = "embedded"
    """`embedded`: never write a table definition into a foreign database; `always`: leave was given to do so."""
    memory_max_mb: int = 1500
    """Memory cap of the embedded engine, in MiB."""
    threads_max: int = 2
    """Thread cap of one query."""
    query_timeout_s: float = 10.0
    """Deadline of one query, enforced by the engine and by the client."""
    retention_hours: float = 72.0
    """Raw telemetry older than this is dropped."""
    rollup_retention_days: float = 30.0
    """Rollups older than this are dropped."""
    disk_max_mb: int = 4096
    """The oldest raw telemetry is dropped above this size on disk, in MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """The journal: durable runs, events, alerts and incidents."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    url: Secret = field(default_factory=lambda: Secret(""))
    """`postgresql://…`; empty means SQLite in the state directory."""
    executor: str = ""
    """Stable name of this process slot; empty takes the first free `slot-N`."""
    lease_s: float = 10.0
    """A process that has not renewed its lease for this long is dead, and its runs are taken over."""
    retention_days: float = 30.0
    """Finished runs and ended requests for approval older than this are deleted, with what hangs on them."""
    attempts_max: int = 10
    """A run that was started or recovered this often without ending is failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """One Prometheus-compatible source."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    name: str
    """Name shown in evidence and gaps."""
    url: str
    """Base URL, such as `http://127.0.0.1:9090`."""
    bearer: Secret = field(default_factory=lambda: Secret(""))
    """Bearer token, if the source wants one."""
    service_label: str = "service"
    """Label that holds the service name; `job` is used where it is missing."""
    metrics: tuple[str, ...] = ()
    """Metric name patterns (regular expressions) to look at; empty means the well-known ones."""
    timeout_s: float = 5.0
    """Deadline of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionSettings:
    """The detector that runs on the rollups."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    enabled: bool = True
    """Whether `quell serve` watches by itself."""
    interval_s: float = 2.5
    """Time between two looks."""
    window_s: float = 10.0
    """Newest stretch that is judged."""
    baseline_minutes: float = 15.0
    """Stretch before it that is compared with."""
    warmup_s: float = 30.0
    """A service is judged only after this much of its own history."""
    confirm_looks: int = 2
    """Consecutive looks that must agree before an alert fires."""
    clear_s: float = 20.0
    """Quiet time before an alert resolves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvestigationSettings:
    """Bounds of one investigation."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    settle_s: float = 8.0
    """Time to let an incident unfold after its first alert before the readers are asked."""
    window_minutes: float = 5.0
    """Longest window in trouble that is looked at."""
    baseline_minutes: float = 15.0
    """Longest baseline before it."""
    read_timeout_s: float = 10.0
    """Deadline of one question to one reader."""
    budget_tokens: int = 1000
    """Hard cap of the briefing."""
    deadline_s: float = 120.0
    """An investigation that takes longer ends as inconclusive, with what it has."""
    group_window_s: float = 120.0
    """Alerts this close together, on services that call each other, become one incident."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What Quell tells about itself."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    enabled: bool = True
    """Spans, metrics and events of Quell itself, into its own store."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe event that is written to stderr."""
    log_format: Literal["auto", "plain", "json"] = "auto"
    """`auto`: coloured lines on a terminal, plain ones otherwise; `json`: one JSON object per line."""
    log_file: str = ""
    """File that keeps the log, not reached through a link; empty: logs/quell.log in the state directory. AURA_LOG_FILE sets it too."""
    log_file_max_mb: float = 10.0
    """Size at which the log file is rotated, in MiB."""
    record_content: bool = False
    """Put what people, models and tools say into spans, without secrets; `OTEL_RECORD_CONTENT` wins."""
    content_max_chars: int = 1000
    """Of each text that is recorded; `OTEL_CONTENT_MAX_LENGTH` wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernanceSettings:
    """Who may do what: policy, approvals, and where the account of it is anchored."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    environment: str = "production"
    """Environment that a call acts on where its arguments name none."""
    pack: Literal["copilot", "reversible-auto", "dark-factory"] = "copilot"
    """Policy pack: `copilot` asks before every effect; the others act by themselves within earned autonomy."""
    policies: tuple[str, ...] = ()
    """Cedar files of your own, beside the pack."""
    watched_policies: tuple[str, ...] = ()
    """Cedar files in log-only mode: what they would have refused is told, and nothing is refused."""
    owners: tuple[str, ...] = ()
    """People who own the agents here: they confirm a promotion too, and it needs the word of somebody else."""
    services: int = 0
    """How many services there are in production: of them a call touches a share. 0: not known; only `copilot` does without."""
    approval_minutes: float = 15.0
    """An approval that nobody decided or used for this long is void."""
    anchor_file: str = ""
    """File on another disk or host to which signed checkpoints of the audit log are appended; empty: none."""
    anchor_git: str = ""
    """Bare git repository of its own, made when it is missing, that keeps signed checkpoints as commits; empty: none."""
    anchor_git_remote: str = ""
    """Git remote that every checkpoint is pushed to, never by force, and read back from; empty: none."""
    anchor_git_branch: str = "quell-audit"
    """Branch of the checkpoints, for this journal alone; let the remote refuse forced pushes to it."""
    code_tool: bool = True
    """Whether the tool `run_code` is offered, where the extra `code` is installed."""
    body_retention_days: float = 30.0
    """Large bodies beside the audit log (prompts, results) older than this are deleted; the log itself is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalSettings:
    """Who outside is told of requests for approval: a service that may answer, and a chat that shows them."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    webhook_url: str = ""
    """Address that is sent every request and answers it, at once or later by POST /v1/approvals/ID; empty: none."""
    webhook_secret: Secret = field(default_factory=lambda: Secret(""))
    """Signs what is sent, and must sign every answer; 32 bytes or more. With it plain http is refused."""
    webhook_secondary: Secret = field(default_factory=lambda: Secret(""))
    """A second secret that answers may be signed with, while one is being replaced."""
    webhook_headers: Mapping[str, Secret] = field(default_factory=dict)
    """Headers sent with every request."""
    webhook_user: str = "webhook"
    """Name under which the service's answers count: it is one person, so it never fills a quorum of two alone."""
    webhook_roles: tuple[str, ...] = ("approver",)
    """Roles that the service has when it answers."""
    tolerance_s: int = 300
    """How old, or how far in the future, a signature may be."""
    timeout_s: float = 300.0
    """How long the service may take to answer a request."""
    slack_url: Secret = field(default_factory=lambda: Secret(""))
    """Incoming webhook of a chat, as Slack has it: it is shown every request, whole or as a link; empty: none."""
    link_url: str = ""
    """Address under which people reach this server, for links in a chat; empty: its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """One identity provider whose signed tokens are believed."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    issuer: str
    """Exactly what the claim `iss` must say."""
    audience: str
    """What the claim `aud` must hold."""
    jwks_url: str
    """Address of its public keys."""
    tenant: str = "local"
    """Tenant of every user of this issuer."""
    user_claim: str = "sub"
    """Claim that names the person."""
    user_prefix: str = ""
    """Stands before every user of this issuer, so that two sources never name the same person."""
    roles_claim: str = "roles"
    """Claim that lists groups or roles."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Value of that claim = role that it gives: viewer, operator, approver or admin."""
    skew_s: float = 60.0
    """How far the two clocks may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """One proxy that authenticates people and names them in a header."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    networks: tuple[str, ...]
    """Addresses that it may come from, such as "10.0.0.5/32"; the header is refused from anywhere else."""
    user_header: str = "X-Forwarded-User"
    """Header that holds the person."""
    user_prefix: str = ""
    """Stands before every user of this proxy, so that two sources never name the same person."""
    roles_header: str = ""
    """Header that holds the groups, separated by commas; empty: none is read."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Group = role that it gives."""
    default_roles: tuple[str, ...] = ()
    """Roles of everybody whom the proxy lets through."""
    tenant: str = "local"
    """Tenant of everybody behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings:
    """Who is asked who they are, and how. Without any of it one local owner is served, on loopback only."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    api_keys: bool = False
    """Whether API keys are accepted."""
    local_owner: Literal["auto", "kept", "none"] = "auto"
    """Whether who sits at this machine is the owner, over loopback. `auto`: only while nothing else is configured here."""
    owner_roles: tuple[str, ...] = ("viewer", "operator", "approver", "admin", "break-glass")
    """What the local owner may, at the command line and over loopback."""
    tenants: tuple[str, ...] = ("local",)
    """Tenants that are served; a credential of another one is refused. Incidents, runs and telemetry are the first's."""
    oidc: tuple[OidcSettings, ...] = ()
    proxy: tuple[ProxySettings, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """What one run, and one day, may spend; a cap of 0 permits nothing."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    run_usd: float = 5.0
    """Money of one run, in US dollars."""
    run_tokens: int = 2_000_000
    """Tokens of one run, both ways."""
    run_calls: int = 500
    """Tool calls of one run."""
    run_minutes: float = 60.0
    """Time that the calls of one run may take together."""
    run_bytes: int = 500_000_000
    """Bytes that the tools of one run may bring."""
    run_units: int = 50
    """Units that one run may touch: its blast radius."""
    day_usd: float = 100.0
    """Money of one tenant in one day (UTC), in US dollars."""
    day_calls: int = 50_000
    """Tool calls of one tenant in one day (UTC)."""
    unknown_price: Literal["refuse", "charge"] = "refuse"
    """`refuse`: a model without a price is not called while money is capped; `charge`: it costs the dearest known price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapSettings:
    """One more cap, beside those of `[budgets]`: the most of one kind that each of some accounts may spend."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    kind: Literal["usd", "tokens", "calls", "steps", "minutes", "bytes", "units"]
    """What is counted; `units` are units of blast radius."""
    limit: float
    """The most of it; 0 permits nothing."""
    per: tuple[str, ...]
    """What tells accounts apart: any of run, agent, feature, tenant, day (UTC)."""
    agent: str = "*"
    """Glob of the agents that it holds for."""
    feature: str = "*"
    """Glob of what the spending is for, such as `investigation`."""
    tenant: str = "*"
    """Glob of the tenants that it holds for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServerSettings:
    """One MCP server whose tools may be used, once a person has pinned them."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    transport: Literal["stdio", "http_streamable", "sse"]
    """How it is reached."""
    cmd: tuple[str, ...] = ()
    """Program of a stdio server, with its leading arguments."""
    args: tuple[str, ...] = ()
    """Further arguments of that program."""
    env: Mapping[str, Secret] = field(default_factory=dict)
    """Environment of that program; nothing of Quell's own environment is passed on."""
    url: str = ""
    """Address of an HTTP server."""
    headers: Mapping[str, Secret] = field(default_factory=dict)
    """Headers sent with every request."""
    forward_headers: tuple[str, ...] = ()
    """Headers of the caller that are passed on, such as `authorization`."""
    headers_from_request: Mapping[str, str] = field(default_factory=dict)
    """Headers passed on under another name: name on the way out = name of the caller's; where there, they win."""
    tools: tuple[str, ...] = ("*",)
    """Globs of its tools that are taken."""
    catalogue: str = ""
    """Section of Quell's catalogue that classes its tools; what nobody classed is irreversible and blind."""
    connect_timeout_s: float = 30.0
    """Deadline of connecting."""
    call_timeout_s: float = 60.0
    """Deadline of one call."""
    sandbox: Literal["required", "best_effort", "off"] = "best_effort"
    """Of a stdio server. `required`: not started where the machine cannot confine it; `best_effort`: told loudly."""
    readable: tuple[str, ...] = ()
    """Paths that a confined server may read, beside the system's programs and the directory of its own."""
    writable: tuple[str, ...] = ()
    """Directories that a confined server may write."""
    network: Literal["none", "host"] = "none"
    """Whether a confined server reaches the network."""
    pin: Literal["by_person", "first_use"] = "by_person"
    """`first_use`: what it offers when first seen is pinned on the record; what changes later waits for a person."""
    reads: tuple[str, ...] = ()
    """Globs of its tools that only read, as you say; they count from the time they are pinned."""
    hints: Literal["ignore", "believe"] = "ignore"
    """`believe`: what the server itself calls read-only counts as a read when it is pinned."""
    stands_for: str = ""
    """Another server: what stops, forbids, `[[tool]]` and pins of people say of its tools holds for this one's too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpSettings:
    """Model Context Protocol: the servers whose tools may be used."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    servers: Mapping[str, McpServerSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSettings:
    """What you say of a tool: its class and all that no server may decide."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    server: str
    """MCP server that offers it."""
    name: str
    """Its name on the wire."""
    effect: Literal["read", "egress", "reversible", "irreversible"]
    """What it may do: `egress` is a read whose arguments can carry data out."""
    recovery: Literal["keyed", "probeable", "natural", "blind"] = "blind"
    """What may be done when nobody saw how a call ended; a blind tool is never automatic."""
    kind: str = "Service"
    """Kind of thing that it acts on."""
    resource: str = ""
    """JSON pointer to the thing's name in the arguments, such as `/service`; empty: the server as a whole."""
    environment: str = ""
    """JSON pointer to the environment; empty: governance.environment."""
    units: str = ""
    """JSON pointer to the number of units touched; empty: one."""
    destination: str = ""
    """JSON pointer to a URL or host that the call reaches; such a read is egress."""
    key_argument: str = ""
    """Argument that takes the idempotency key of a keyed tool."""
    probe: str = ""
    """Read tool that tells, given the same arguments, whether a probeable effect happened."""
    revert: str = ""
    """Tool that undoes it."""
    dry_run: str = ""
    """Read tool of the same server that tells, given the same arguments, what it would change; people are shown that."""
    timeout_s: float = 60.0
    """Deadline of one call."""
    answers: Literal["anything", "json"] = "anything"
    """`json`: an answer that is no JSON is suspicious, such as the page of a login."""
    as_of: str = ""
    """JSON pointer to the time of the data in a structured answer, such as `/observed_at`."""
    fresh_for_s: float = 0.0
    """Age from which that data is stale, and no evidence, as is an answer that does not tell it; 0: nobody asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured, with its defaults. No file at all is a valid configuration."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    state_dir: Path = Path(".quell")
    """Directory of everything Quell keeps: journal, store, spool, logs. One server at a time."""
    agents: str = ""
    """Agent file in AURA's TOML, or a directory of them; empty: one agent that needs no model."""
    default_agent: str = ""
    """Id of the agent for requests that name none; empty: the only one there is."""
    server: ServerSettings = ServerSettings()
    store: StoreSettings = field(default_factory=StoreSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    prometheus: tuple[PrometheusSettings, ...] = ()
    detection: DetectionSettings = DetectionSettings()
    investigation: InvestigationSettings = InvestigationSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    governance: GovernanceSettings = GovernanceSettings()
    approvals: ApprovalSettings = field(default_factory=ApprovalSettings)
    identity: IdentitySettings = IdentitySettings()
    budgets: BudgetSettings = BudgetSettings()
    cap: tuple[CapSettings, ...] = ()
    mcp: McpSettings = field(default_factory=McpSettings)
    tool: tuple[ToolSettings, ...] = ()
