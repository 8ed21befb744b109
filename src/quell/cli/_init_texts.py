"""What `quell init` writes: an agent in AURA's TOML, and what a quell.toml says beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_PROMPT = """\
You are an SRE who looks after production systems for the people who ask you.
Look before you answer: read what the tools show, and cite the evidence id of everything you claim about the system.
Say what you could not find out. When nothing is wrong, say so. When something is to be changed, propose it with its
blast radius and the way back; people decide."""
_COORDINATOR = """\
You coordinate SREs who look after production systems. Answer simple questions yourself; otherwise plan: who looks at
what, and what has to be known first. Judge what comes back, send somebody again where it does not hold together, and
answer with the evidence that bears it and the gaps that remain."""
_WORKERS: Mapping[str, tuple[str, str]] = {
    "signals": (
        "Reads metrics, logs and traces: what is slow, failing or saturated, since when, and what it depends on",
        "You read telemetry. Bring numbers with their time, their unit and their evidence id; never guess one.",
    ),
    "changes": (
        "Finds what changed before trouble began: deployments, configuration, traffic, dependencies",
        "You look for causes in time. Put changes beside the moment at which symptoms began, and say what does not fit.",
    ),
    "remedies": (
        "Knows runbooks, documents and earlier incidents; proposes what to do and how to undo it",
        "You propose remedies. Cite the runbook or incident, name the blast radius, the check and the way back.",
    ),
}
_CLOSING = '"""'


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was answered, by flags or by a person."""

    provider: str
    model: str
    name: str
    form: Literal["single", "team"]
    variable: str = ""
    """Environment variable of the provider's key."""
    base_url: str = ""
    region: str = ""
    context_window: int | None = None
    prometheus: str = ""
    clickhouse: str = ""


def agent_text(wanted: Wanted) -> str:
    """Return the agent's file. AURA takes it as well, but for the provider `builtin`."""
    is_team = wanted.form == "team"
    lines = [
        "# An agent, in AURA's format. `quell config check` judges it; `quell ask` asks it.",
        *(['memory_dir = ".quell/agents"', ""] if wanted.context_window is not None else []),
        "[agent]",
        f"name = {_text(wanted.name)}",
        f"alias = {_text(alias_of(wanted.name))}",
        f"system_prompt = {_block(_COORDINATOR if is_team else _PROMPT)}",
        "turn_depth = 12",
        "nudge_last_turn = true",
        "nudge_turns_remaining = 2",
        "",
        "[agent.llm]",
        f"provider = {_text(wanted.provider)}",
    ]
    pairs: list[tuple[str, str]] = []
    if wanted.provider != "builtin":
        pairs.append(("model", wanted.model))
    if wanted.variable:
        pairs.append(("api_key", f"{{{{ env.{wanted.variable} }}}}"))
    pairs += [(key, value) for key, value in (("base_url", wanted.base_url), ("region", wanted.region)) if value]
    lines += [f"{key} = {_text(value)}" for key, value in pairs]
    if wanted.context_window is not None:
        lines += [f"context_window = {wanted.context_window}", "", "[agent.scratchpad]", "enabled = true"]
    if is_team:
        lines += _team()
    return "\n".join(lines) + "\n"


def prometheus_text(url: str) -> str:
    """Return the table of a Prometheus."""
    return f'[[prometheus]]\nname = "prometheus"\nurl = {_text(url)}\n'


def store_text(url: str) -> str:
    """Return the table of an existing ClickHouse."""
    return f"[store]\nurl = {_text(url)}\n"


def agents_line(file: str) -> str:
    """Return the line that says where the agents are."""
    return f"agents = {_text(file)}\n"


def alias_of(name: str) -> str:
    """Return the id under which clients choose an agent of this name."""
    return "-".join("".join(each if each.isalnum() else " " for each in name.lower()).split()) or "sre"


def _team() -> list[str]:
    lines = [
        "",
        "[orchestration]",
        "enabled = true",
        "max_planning_cycles = 3",
        "",
        "[orchestration.timeouts]",
        "per_call_timeout_secs = 600",
        "stream_inactivity_timeout_secs = 180",
    ]
    for name, (description, preamble) in _WORKERS.items():
        lines += ["", f"[orchestration.worker.{name}]", f"description = {_text(description)}"]
        lines += [f"preamble = {_text(preamble)}"]
    return lines


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _block(text: str) -> str:
    return f"{_CLOSING}\n{text}{_CLOSING}"
