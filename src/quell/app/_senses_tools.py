"""The senses as tools: what each takes, in as few words as a model needs."""

from __future__ import annotations

from collections.abc import Mapping

from quell.domain import ResourceRule, Tool, own_read

MINUTES_MAX = 1_440
_SERVICE = {"type": "string", "maxLength": 120}
_MINUTES = {"type": "integer", "minimum": 1, "maximum": MINUTES_MAX}
_INCIDENT = {"type": "string", "minLength": 1, "maxLength": 120}
_QUICK_S, _LOOK_S, _INVESTIGATE_S = 15.0, 60.0, 150.0

_SENSES: tuple[tuple[str, str, Mapping[str, object], tuple[str, ...], float], ...] = (
    (
        "system_overview",
        "Is anything wrong now: open incidents, firing alerts, errors and latency that moved.",
        {"service": _SERVICE, "minutes": _MINUTES},
        (),
        _LOOK_S,
    ),
    (
        "what_changed",
        "Deploys, flags, configuration, restarts, and what moved, in the last minutes (30).",
        {"service": _SERVICE, "minutes": _MINUTES},
        (),
        _LOOK_S,
    ),
    (
        "investigate",
        "Find the cause of trouble, with evidence; joins an investigation that runs.",
        {"question": {"type": "string", "maxLength": 300}, "service": _SERVICE, "minutes": _MINUTES},
        (),
        _INVESTIGATE_S,
    ),
    (
        "incidents",
        "List incidents, newest first.",
        {
            "service": _SERVICE,
            "state": {"enum": ["open", "all"]},
            "limit": {"type": "integer", "minimum": 1, "maximum": 30},
        },
        (),
        _QUICK_S,
    ),
    (
        "incident",
        "One incident: finding, evidence, gaps, next steps. Named by id, by number (1 is the newest) or by service.",
        {"incident": _INCIDENT},
        ("incident",),
        _QUICK_S,
    ),
    (
        "brief",
        "Everything that stands out in telemetry, within a budget of tokens.",
        {
            "service": _SERVICE,
            "minutes": _MINUTES,
            "tokens": {"type": "integer", "minimum": 100, "maximum": 1_500},
        },
        (),
        _LOOK_S,
    ),
    (
        "advise",
        "What to do about an incident: steps, exact calls, who may approve them. Without one: the newest cause found.",
        {"incident": _INCIDENT},
        (),
        _QUICK_S,
    ),
)
"""Name, description, arguments, which of them have to be given, and the longest that it takes."""


def sense_tools() -> tuple[Tool, ...]:
    """Define the senses for the registry: reads of our own, which may be sent again."""
    return tuple(
        _tool(name, description, properties, required, timeout_s)
        for name, description, properties, required, timeout_s in _SENSES
    )


def _tool(
    name: str, description: str, properties: Mapping[str, object], required: tuple[str, ...], timeout_s: float
) -> Tool:
    shape: dict[str, object] = {"type": "object", "properties": properties, "additionalProperties": False}
    return own_read(
        name,
        description=description,
        takes=shape | ({"required": list(required)} if required else {}),
        resource=ResourceRule(kind="Production"),
        timeout_s=timeout_s,
    )
