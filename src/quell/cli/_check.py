"""One look of `quell doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What came of one look."""

    name: str
    status: Literal["ok", "warn", "bad"]
    detail: str
    hint: str = ""
