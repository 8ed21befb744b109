"""Join what several processes of one service report of one metric, though each reports at moments of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Join: TypeAlias = Literal["max", "min", "far", "sum"]
INSTANCE_KEYS = ("service.instance.id", "k8s.pod.name", "container.id", "host.name")
"""Resource attributes that tell one process of a service from another; not every system sets the first."""
REPLICA_LABELS = frozenset(
    {
        *INSTANCE_KEYS,
        *("pod", "pod_name", "k8s_pod_name", "k8s.pod.uid", "uid", "id", "name", "container_id", "service_instance_id"),
        *(
            "node",
            "host",
            "hostname",
            "host_name",
            "task",
            "replica",
            "replicaset",
            "version",
            "service_version",
            "image",
        ),
    }
)
"""Labels of a series that do the same."""
_HELD_CADENCES = 1.5
_LESS_IS_WORSE = re.compile(
    r"(?:^|[._])(?:free|avail|available|idle|unused|headroom|remaining|left|expiry|expiration|not_?after)(?:[._]|$)",
    re.IGNORECASE,
)
_EITHER_WAY = re.compile(r"clock.*(?:offset|skew|drift)", re.IGNORECASE)


def worst_of(metric: str) -> Literal["max", "min", "far"]:
    """Say which of several replicas is the one in trouble: the fullest, the one with least left, or the one farthest off."""
    return "far" if _EITHER_WAY.search(metric) else "min" if _LESS_IS_WORSE.search(metric) else "max"


def join_replicas(members: Sequence[Mapping[float, float]], *, by: Join) -> dict[float, float]:
    """Return, at each moment that any replica reports, the worst or the sum of what all of them last said.

    A replica counts until its next point is overdue, and past its last point only beside replicas that ran with it: what
    replaced it speaks for itself.
    """
    known = [member for member in members if member]
    if len(known) < 2:
        return dict(known[0]) if known else {}
    moments = np.unique(np.concatenate([np.fromiter(member, dtype=np.float64) for member in known]))
    spans = [(min(member), max(member)) for member in known]
    told = np.full((len(known), len(moments)), np.nan)
    for place, member in enumerate(known):
        times = np.array(sorted(member))
        values = np.array([member[at] for at in times])
        last = np.searchsorted(times, moments, side="right") - 1
        held_s = _HELD_CADENCES * float(np.quantile(np.diff(times), 0.9)) if len(times) > 1 else 0.0
        counts = (last >= 0) & (moments - times[np.maximum(last, 0)] <= held_s)
        beside = np.zeros(len(moments), dtype=np.bool_)
        for other, (first, end) in enumerate(spans):
            if other != place and first < times[-1]:
                beside |= (moments >= first) & (moments <= end)
        counts &= (moments <= times[-1]) | beside
        told[place, counts] = values[last[counts]]
    return dict(zip(moments.tolist(), _joined(told, by=by).tolist(), strict=True))


def _joined(told: NDArray[np.float64], *, by: Join) -> NDArray[np.float64]:
    if by == "sum":
        return np.asarray(np.nansum(told, axis=0), dtype=np.float64)
    if by == "min":
        return np.asarray(np.nanmin(told, axis=0), dtype=np.float64)
    high = np.nanmax(told, axis=0)
    if by == "max":
        return np.asarray(high, dtype=np.float64)
    low = np.nanmin(told, axis=0)
    return np.asarray(np.where(-low > high, low, high), dtype=np.float64)


def instance_of(resource: str) -> str:
    """Write the SQL that names the process that a record of a metric comes from."""
    return "concat(" + ", '|', ".join(f"{resource}['{key}']" for key in INSTANCE_KEYS) + ")"
