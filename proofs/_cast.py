"""Who is in a story: the runs and who stands behind them, the people around them, and what a model remembers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from proofs import _oracle as told
from quell.app import Authority
from quell.domain import Fence, Principal

_OP, _VIEW = ("operator",), ("viewer",)
_ALL = ("*",)
_FEW = ("logs_*", "restart", "scale", "fetch_page", "delete_volume", "big_report", "head")


def _actor(user: str, tenant: str, workflow: str, level: int, **changes: object) -> told.Actor:
    actor = told.Actor(
        run="",
        user=user,
        tenant=tenant,
        roles=_OP,
        agent="sre",
        tools=_ALL,
        workflow=workflow,
        digest=f"{workflow}-{tenant}",
        stage="stable",
        level=level,
        is_tainted=False,
    )
    return replace(actor, **changes)  # type: ignore[arg-type]  # fields of an Actor


ACTORS: tuple[told.Actor, ...] = (
    _actor("ann", "acme", "heal", 4, roles=("operator", "approver")),
    _actor("ann", "acme", "heal", 3),
    _actor("gus", "acme", "tidy", 3, is_tainted=True),
    _actor("gus", "acme", "tidy", 2, tools=_FEW, agent="narrow"),
    _actor("uma", "umbra", "heal", 3),
    _actor("uma", "umbra", "tidy", 2, roles=("operator", "approver"), is_tainted=True),
    _actor("val", "umbra", "tidy", 4, stage="shadow"),
    _actor("val", "acme", "look", 5, roles=_VIEW),
)
"""Whose runs there are; when the budget of one is gone, it begins another."""

PEOPLE: tuple[Principal, ...] = (
    Principal(user="bob", tenant="acme", roles=("approver",)),
    Principal(user="cyd", tenant="acme", roles=("approver", "admin")),
    Principal(user="ann", tenant="acme", roles=("operator", "approver")),
    Principal(user="dot", tenant="acme", roles=("operator",)),
    Principal(user="vic", tenant="umbra", roles=("approver",)),
    Principal(user="wes", tenant="umbra", roles=("approver", "admin")),
    Principal(user="uma", tenant="umbra", roles=("operator", "approver")),
)
ADMINS = {"acme": PEOPLE[1], "umbra": PEOPLE[5]}


@dataclass(slots=True, kw_only=True)
class Wish:
    """What a model asked for once."""

    call: str
    tool: str
    arguments: dict[str, object] | str
    approval: str = ""


@dataclass(slots=True, kw_only=True)
class Mind:
    """One run's model: what it remembers."""

    actor: told.Actor
    wishes: list[Wish] = field(default_factory=list)
    plan: list[Wish] = field(default_factory=list)
    """What is left of a plan that people were asked about, in its order."""
    before: list[tuple[Fence, Authority]] = field(default_factory=list)
    """Rights of workers that held the run, and where; none of them knows that it is over."""
    refused: int = 0
