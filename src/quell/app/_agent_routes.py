"""Where requests of an agent go whose file names a service of its own for approvals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quell.config import AgentSettings, ApprovalSettings, Secret, Settings
from quell.domain import ConfigError, Problem

_SECRET, _SECONDARY = "AURA_HITL_WEBHOOK_SECRET", "AURA_HITL_WEBHOOK_SECRET_SECONDARY"
_TOLERANCE = "AURA_HITL_WEBHOOK_TOLERANCE_SECS"
_TOLERANCE_MAX_S = 86_400
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRoute:
    """One approver's service, and what of the caller's headers it is sent."""

    approvals: ApprovalSettings
    headers_from_request: Mapping[str, str] = field(default_factory=dict)
    """Name on the way out = name on the way in."""


def with_secrets_of(settings: Settings, *, env: Mapping[str, str]) -> Settings:
    """Return settings that have the secrets of approvals from the variables that AURA has for them; ours win.

    Raises ConfigError when the tolerance is no number of seconds up to a day.
    """
    ours = settings.approvals
    text = env.get(_TOLERANCE, "")
    tolerance_s = ours.tolerance_s
    if text:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _TOLERANCE_MAX_S):
            problem = Problem(path=_TOLERANCE, reason="must be 1 to 86400 seconds", hint="300 is usual", source="env")
            raise ConfigError("the tolerance of signatures cannot be used", problems=(problem,))
        tolerance_s = int(text)
    approvals = replace(
        ours,
        webhook_secret=ours.webhook_secret or Secret(env.get(_SECRET, "")),
        webhook_secondary=ours.webhook_secondary or Secret(env.get(_SECONDARY, "")),
        tolerance_s=tolerance_s,
    )
    return replace(settings, approvals=approvals)


def routes_of(settings: Settings, agents: Sequence[AgentSettings]) -> Mapping[str, AgentRoute]:
    """Return the services of agents whose `[hitl.route]` is a webhook, by id; they sign as the deployment does."""
    found = {}
    for agent in agents:
        route = agent.hitl.route if agent.hitl is not None else None
        if route is None or route.mode != "webhook":
            continue
        own = replace(
            settings.approvals,
            webhook_url=route.url,
            webhook_headers=route.headers,
            timeout_s=float(route.timeout_secs if route.timeout_secs is not None else _TIMEOUT_S),
        )
        found[agent.id] = AgentRoute(approvals=own, headers_from_request=route.headers_from_request)
    return found
