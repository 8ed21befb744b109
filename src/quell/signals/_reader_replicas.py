"""Join what several processes of one service report of one metric, though each reports at moments of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

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


def join_replicas(members: Sequence[Mapping[float, float]], *, by: Literal["max", "sum"]) -> dict[float, float]:
    """Return, at each moment that any replica reports, the greatest or the sum of what all of them last said.

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
    joined = np.nanmax(told, axis=0) if by == "max" else np.nansum(told, axis=0)
    return dict(zip(moments.tolist(), joined.tolist(), strict=True))


def instance_of(resource: str) -> str:
    """Write the SQL that names the process that a record of a metric comes from."""
    return "concat(" + ", '|', ".join(f"{resource}['{key}']" for key in INSTANCE_KEYS) + ")"
