"""The error tree: three kinds of blame, and one hint per error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from quell.domain._model import ModelFault

RefusalCode: TypeAlias = Literal["forbidden", "unauthenticated", "unknown", "mismatch", "gone"]
"""Why something was refused, for machines: not allowed (HTTP 403), nobody knows who asks (401), not there for this caller
(404), not what was seen or approved (409), too late because it expired or was settled (410)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake in the configuration: where, what, and what to do about it."""

    path: str
    """Key, such as `server.port`; empty when the mistake is not at a key."""
    reason: str
    hint: str
    source: str
    """`quell.toml:4`, `env QUELL_SERVER__PORT`, `flag`."""

    def __str__(self) -> str:
        """Write it as one line."""
        where = f"{self.path} ({self.source})" if self.path else self.source
        return f"{where}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


class QuellError(Exception):
    """Base of everything raised on purpose.

    QuellError
    ├── ConfigError        the operator wrote something that cannot be accepted (exit 2)
    ├── UsageError         the caller asked for something that does not exist (exit 2)
    ├── RefusedError       policy, identity or a life-cycle table said no (exit 4)
    │   └── DriftError     an approved plan was left; the rest of it is void
    ├── WorldError         a system we depend on failed or lied (exit 3)
    │   ├── StoreError     the telemetry store
    │   ├── SourceError    a reader's backend
    │   ├── JournalError   the database of runs and incidents
    │   ├── StepError      a step of a run failed for good
    │   ├── ServerUnavailable a server of tools cannot be reached, or was lost in a call
    │   └── ModelError     a model did not answer, or not as the protocol has it
    ├── StateHeldError     another live process holds this state directory or port (exit 3)
    ├── OverloadError      we shed load; try again after `retry_after_s` (exit 6)
    └── BoundExceededError a limit that we set ourselves was reached (exit 6)
    """

    hint: str = ""
    exit_code: int = 7

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.hint


class ConfigError(QuellError):
    """The operator wrote something that cannot be accepted."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems
        """Every mistake that was found, in the order of the sources."""


class UsageError(QuellError):
    """The caller asked for something that does not exist."""

    exit_code = 2


class RefusedError(QuellError):
    """Policy, identity or a life-cycle table said no."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "", code: RefusalCode = "forbidden") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class DriftError(RefusedError):
    """What came next is not what an approved plan says; the rest of the plan is void."""

    def __init__(self, message: str, *, approval: str, hint: str = "") -> None:
        super().__init__(message, hint=hint, code="mismatch")
        self.approval = approval
        """Id of the approval of the plan that was left."""


class WorldError(QuellError):
    """A system that we depend on failed or lied."""

    exit_code = 3


class StoreError(WorldError):
    """The telemetry store failed, refused or answered nonsense."""

    def __init__(self, message: str, *, hint: str = "", code: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        """The engine's own error number, such as 60 (no such table), 159 (timeout), 241 (memory)."""


class SourceError(WorldError):
    """A reader's backend failed, timed out or answered nonsense."""


class JournalError(WorldError):
    """The database of runs and incidents failed."""


class StepError(WorldError):
    """A step of a run failed for good."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        """`timeout`, `failed`, or `result` when what it returned could not be kept."""


class ServerUnavailable(WorldError):  # noqa: N818 - named by what happened, as callers say it
    """A server of tools cannot be reached, or was lost in a call."""

    def __init__(
        self, message: str, *, server: str, was_sent: bool, retry_after_s: float = 0.0, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.server = server
        self.was_sent = was_sent
        """Whether the call may have reached the server: an effect is then unknown, and otherwise did not happen."""
        self.retry_after_s = retry_after_s
        """When the next attempt to connect begins; zero: at once."""


class ModelError(WorldError):
    """A model did not answer, or not as the protocol has it."""

    def __init__(
        self,
        message: str,
        *,
        fault: ModelFault,
        said: bool = False,
        status: int = 0,
        retry_after_s: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.fault = fault
        self.said = said
        """Whether part of an answer had come before."""
        self.status = status
        """HTTP status, where one came; zero otherwise."""
        self.retry_after_s = retry_after_s
        """When the provider wants to be asked again; None: it did not say."""
        self.place = 0
        """Which of several models in a chain it was."""


class StateHeldError(QuellError):
    """Another live process holds this state directory or port."""

    exit_code = 3


class OverloadError(QuellError):
    """Load was shed; the caller may try again later."""

    exit_code = 6

    def __init__(self, message: str, *, retry_after_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class BoundExceededError(QuellError):
    """A limit that we set ourselves was reached."""

    exit_code = 6

    def __init__(self, what: str, *, limit: float, hint: str = "raise the limit or narrow the task") -> None:
        super().__init__(f"{what} passed the limit of {limit:g}", hint=hint)
        self.limit = limit
