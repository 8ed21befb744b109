"""Units of time, by the names that telemetry gives them (UCUM)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_SECONDS: Final[Mapping[str, float]] = MappingProxyType({"ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0})


def seconds_of(unit: str) -> float:
    """Return how many seconds a unit of time is; 1 for everything else."""
    return _SECONDS.get(unit, 1.0)
