"""What a caller wants of one call of a tool server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from quell.domain import CallProgress, Reply

OnProgress: TypeAlias = Callable[[CallProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One call, in the words of `Servers.call`."""

    original: str
    arguments: Mapping[str, object]
    digest: str
    timeout_s: float | None
    key: str
    meta: Mapping[str, object]
    on_progress: OnProgress | None
    replies: Mapping[str, Reply]
    request_state: str
    answers: Literal["anything", "json"]
    as_of: str
    fresh_for_s: float | None
    result_max_bytes: int | None
