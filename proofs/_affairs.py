"""What people and machines do around the models: pins, emergencies, plans, workers that take over, levels that fall.

Each affair is done through the real thing, and the oracle is told what was done, never what it means.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from proofs import _oracle as told
from proofs._cast import ADMINS, Mind, Wish
from proofs._world import BY_NAME, SERVED, World
from quell.domain import (
    ApprovalRequest,
    AskedCall,
    AutonomyScope,
    Level,
    Principal,
    QuellError,
    ToolClass,
    Verdict,
)
from quell.governance import freeze

KINDS = ("repin", "glass", "plan", "take over", "demote")


@dataclass(slots=True, kw_only=True)
class Affairs:
    """What goes on in one story beside the calls."""

    world: World
    rng: random.Random
    minds: list[Mind]
    asked: Callable[[], int]
    """How many wishes the models have made."""
    name_call: Callable[[], str]
    make_wish: Callable[[Mind], Wish]
    seen_at_s: dict[str, float]
    """When an approval was first heard of, by its id."""
    plans: dict[str, tuple[Wish, ...]] = field(default_factory=dict)
    """What people were asked about together, by the id of the approval."""

    def happen(self, kind: str) -> None:
        """Do one of them."""
        mind = self.rng.choice(self.minds)
        match kind:
            case "repin":
                self._repin()
            case "glass":
                self._break_glass(mind)
            case "plan":
                self._plan(mind)
            case "take over":
                self._take_over(mind)
            case "demote":
                self._demote(mind)

    def _repin(self) -> None:
        """Pin another definition of a tool, or none, or again what was there at first."""
        changed = [each for each, pin in self.world.pins.items() if pin != BY_NAME[each].pin]
        # One tool is changed at a time: every mix of pins has policies of its own, which have to be loaded.
        name = changed[0] if changed else self.rng.choice(SERVED)
        first = BY_NAME[name].pin
        self.world.counts["repinned"] += 1
        self.world.repin(name, first if changed else self.rng.choice((f"{first}.2", "")), asked=self.asked())

    def _break_glass(self, mind: Mind) -> None:
        """Say that there is an emergency: whoever it is, for whichever run; those who may not are to be refused."""
        rng, actor = self.rng, mind.actor
        by = Principal(
            user=actor.user if rng.random() < 0.8 else rng.choice(("bob", "dot", "uma")),
            tenant=actor.tenant,
            roles=(*actor.roles, "break-glass") if rng.random() < 0.5 else actor.roles,
            agent="sre" if rng.random() < 0.2 else "",
        )
        run = rng.choice((actor.run, actor.run, "", rng.choice(self.minds).actor.run))
        breaking = self.world.authority.guard.approvals.break_glass
        with suppress(QuellError):
            with self.world.database.writing() as connection:
                breaking.open(connection, by=by, reason="it burns", run=run)
            self.world.counts["glass"] += 1
            self.world.oracle.see(
                told.Glass(
                    at_s=self.world.clock.now_s,
                    user=by.user,
                    tenant=by.tenant,
                    roles=by.roles,
                    agent=by.agent,
                    run=run,
                )
            )

    def _plan(self, mind: Mind) -> None:
        """Ask people about several calls together."""
        world, rng, actor = self.world, self.rng, mind.actor
        authority = world.authorities[world.homes[actor.run]]
        is_free = actor.level >= 3 and actor.stage == "stable" and not actor.is_tainted
        wishes: list[Wish] = []
        calls: list[AskedCall] = []
        for _ in range(24):
            wish = self.make_wish(mind)
            tool = BY_NAME[wish.tool]
            goes_alone = is_free and tool.tool_class is ToolClass.REVERSIBLE and not told.MEANS[tool.name].is_blind
            if len(wishes) == 3 or not tool.tool_class.is_effect or (goes_alone and rng.random() < 0.9):
                continue
            wish.call = self.name_call()
            with suppress(QuellError):
                entry = authority.registry.find(wish.tool).tool
                call = freeze(entry, run=actor.run, call=wish.call, arguments=_sent(wish), environment="production")
                back = [{"tool": entry.revert, "arguments": json.loads(call.arguments)}] if entry.revert else []
                plan = json.dumps(back, sort_keys=True, separators=(",", ":"))
                calls.append(AskedCall(call=call, tool_class=entry.tool_class, diff="", revert_plan=plan, facts=()))
                wishes.append(wish)
        if len(wishes) < 2:
            return
        verdict = Verdict(
            decision="ask",
            policies=("own.plan",),
            reason="it is a plan",
            approver_roles=("approver", "admin"),
            quorum=1,
            policy_digest=authority.guard.policy.digest,
        )
        request = ApprovalRequest(
            principal=world.caller(actor).principal,
            calls=tuple(calls),
            verdict=verdict,
            evidence_digest="",
            explanation="",
        )
        with suppress(QuellError):
            with world.database.writing() as connection:
                approval = authority.guard.approvals.ask(connection, request)
            world.counts["plans"] += 1
            self.seen_at_s.setdefault(approval.id, world.clock.now_s)
            self.plans[approval.id] = tuple(wishes)
            for wish in wishes:
                wish.approval = approval.id
            mind.plan = list(wishes)

    def stray(self, run: str, wish: Wish, approval: str) -> None:
        """Tell the oracle when a call of a plan became a question of its own, so that the plan was left."""
        for identifier, wishes in self.plans.items():
            if identifier != approval and any(each.call == wish.call for each in wishes) and self._is_of(run, wishes):
                plan = tuple(each.call for each in wishes)
                self.world.oracle.see(told.Strayed(run=run, plan=plan, number=self.world.course.number))

    def _is_of(self, run: str, wishes: tuple[Wish, ...]) -> bool:
        return any(mind.actor.run == run and wishes[0] in (*mind.plan, *wishes) for mind in self.minds)

    def _take_over(self, mind: Mind) -> None:
        """Let another worker take a run, while the one before goes on as if nothing had happened."""
        mind.before = [*mind.before[-2:], self.world.take_over(mind.actor.run)]
        self.world.counts["taken over"] += 1

    def _demote(self, mind: Mind) -> None:
        """Lower a level by a person's word."""
        world, actor = self.world, mind.actor
        if not world.is_earned:
            return
        kind, place = (
            self.rng.choice((ToolClass.REVERSIBLE, ToolClass.IRREVERSIBLE)),
            self.rng.choice(("staging", "production")),
        )
        scope = AutonomyScope(tenant=actor.tenant, workflow_digest=actor.digest, action_class=kind, environment=place)
        to = Level(self.rng.choice((1, 2, 3)))
        with suppress(QuellError):
            with world.database.writing() as connection:
                world.authority.guard.autonomy.demote(
                    connection, scope, to=to, by=ADMINS[actor.tenant], reason="it went wrong"
                )
            world.counts["demoted"] += 1
            world.oracle.see(
                told.Earned(
                    digest=actor.digest, kind=kind.value, environment=place, level=to, number=world.course.number
                )
            )


def _sent(wish: Wish) -> str:
    return json.dumps(wish.arguments)
