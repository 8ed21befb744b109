"""Settings: what a `quell.toml` says after it was read, checked and frozen.

Every field is a key of the file; its docstring is what `quell config explain KEY` prints. Units come last in names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

_STRICT: dict[str, object] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


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
class ServerSettings:
    """The HTTP server of `quell serve`."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    host: str = "127.0.0.1"
    """Address to listen on. Only loopback is accepted until identities are configured."""
    port: int = 7433
    """TCP port; 0 picks a free one and prints it."""
    body_max_mb: float = 16.0
    """Largest request body after decompression, in MiB."""
    request_timeout_s: float = 30.0
    """A request whose head or body has not arrived after this long is given up."""
    in_flight_max: int = 64
    """Telemetry requests handled at once; more are answered 429 with Retry-After."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """The telemetry store: an embedded engine in a process of its own, or any ClickHouse."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

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

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    url: Secret = field(default_factory=lambda: Secret(""))
    """`postgresql://…`; empty means SQLite in the state directory."""
    executor: str = ""
    """Stable name of this process slot; empty takes the first free `slot-N`."""
    lease_s: float = 10.0
    """A process that has not renewed its lease for this long is dead, and its runs are taken over."""
    retention_days: float = 30.0
    """Finished runs older than this are deleted."""
    attempts_max: int = 10
    """A run that was started or recovered this often without ending is failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """One Prometheus-compatible source."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

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

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

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

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

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

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    enabled: bool = True
    """Spans, metrics and events of Quell itself, into its own store."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe event that is written to stderr."""
    log_format: Literal["auto", "plain", "json"] = "auto"
    """`auto`: coloured lines on a terminal, plain ones otherwise; `json`: one JSON object per line."""
    log_file_max_mb: float = 10.0
    """Size at which the log file in the state directory is rotated, in MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured, with its defaults. No file at all is a valid configuration."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    state_dir: Path = Path(".quell")
    """Directory of everything Quell keeps: journal, store, spool, logs. One server at a time."""
    server: ServerSettings = ServerSettings()
    store: StoreSettings = field(default_factory=StoreSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    prometheus: tuple[PrometheusSettings, ...] = ()
    detection: DetectionSettings = DetectionSettings()
    investigation: InvestigationSettings = InvestigationSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
