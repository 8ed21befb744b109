"""A stop at every step of calls in flight, through the whole path: registry, policy, approvals, budgets, ledger, audit."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from proofs import _oracle as told
from proofs._cast import ACTORS, ADMINS, PEOPLE
from proofs._proof import Scale
from proofs._virtual_time import run_virtually
from proofs._world import ASKED, Stopping, World, small_world
from quell.domain import Parked, Principal, ToolCall

_WAYS: tuple[Stopping, ...] = ("kill here", "kill elsewhere", "freeze")
_AT: dict[str, object] = {"service": "pay", "environment": "production"}
_CALLS: dict[str, dict[str, object]] = {
    "restart": _AT,
    "scale": {**_AT, "replicas": 3},
    "nudge": _AT,
    "flip_flag": _AT,
    "delete_volume": {**_AT, "volume": "v1"},
    "page_vendor": {"service": "pay", "message": "help"},
    "fetch_page": {"url": "https://vendor.example/1"},
    "big_report": {"service": "pay"},
}
"""One tool of each class and recovery, and a call of it that goes well when nobody stops it."""
_BYSTANDER: dict[str, object] = {"service": "web", "environment": "staging"}
_MOMENTS_MAX = 60


def stopped_at_every_step(scale: Scale, seed: int) -> tuple[int, list[str]]:
    """Stop each call before each of its transactions and on its way to the tool; return cases and what broke."""
    cases, failures = 0, list[str]()
    for tool, way, processes in _shapes(scale):
        for moment in range(_MOMENTS_MAX):
            wrong, is_reached = run_virtually(_stopped(tool, way, moment, seed=seed, processes=processes))
            if not is_reached:
                if moment < 3:
                    failures.append(f"{tool}: only {moment} steps were seen")
                break
            cases += 1
            failures += [f"{tool}, {way} at step {moment}, seed {seed}: {each}" for each in wrong]
        else:
            failures.append(f"{tool}: more than {_MOMENTS_MAX} steps")
    return cases, failures


def _shapes(scale: Scale) -> Iterator[tuple[str, Stopping, int]]:
    ways: Sequence[Stopping] = _WAYS if scale == "full" else _WAYS[1:2]
    for tool in _CALLS if scale == "full" else ("restart", "fetch_page"):
        for way in ways:
            for processes in (1, 2) if scale == "full" else (1,):
                yield tool, way, processes


async def _stopped(tool: str, way: Stopping, moment: int, *, seed: int, processes: int) -> tuple[list[str], bool]:
    """Let a call and a bystander go at once, and stop at one moment; tell what broke, and whether it came to that."""
    rng = random.Random(f"{seed} {tool} {way} {moment}")
    async with small_world(rng, is_earned=False, processes=processes) as world:
        world.asking = 0
        actor = world.new_run(replace(ACTORS[1], user="gus"))
        steps = 0

        def step() -> None:
            nonlocal steps
            if steps == moment:
                world.stop(way, by=ADMINS["acme"], tool="*", environment="*")
            steps += 1

        first = await _call(world, actor, tool, _CALLS[tool], number=1)
        if isinstance(first, Parked):
            for by in PEOPLE[: first.quorum]:
                _approve(world, first, by)
        elif tool not in {"restart", "scale", "big_report"}:
            return [f"{first}"], True
        world.course.between = world.course.on_its_way = step
        await asyncio.gather(
            _call(world, actor, tool, _CALLS[tool], number=2, call="one" if isinstance(first, Parked) else "two"),
            _call(world, actor, "restart", _BYSTANDER, number=3, call="beside"),
        )
        world.course.between = world.course.on_its_way = lambda: None
        if steps > moment:
            await _call(world, actor, "restart", _BYSTANDER, number=4, call="late")
        world.check_audit()
        return world.oracle.violations, steps > moment


async def _call(
    world: World, actor: told.Actor, tool: str, arguments: dict[str, object], *, number: int, call: str = "one"
) -> object:
    ASKED.set((number, world.clock.now_s))
    authority = world.authorities[world.homes[actor.run]]
    wanted = ToolCall(id=call, tool=tool, arguments=json.dumps(arguments))
    # A task of its own: each wish is told from the others by the context that it runs in.
    return await asyncio.ensure_future(authority.toolbox.call(wanted, caller=world.caller(actor)))


def _approve(world: World, parked: Parked, by: Principal) -> None:
    with world.database.writing() as connection:
        guard = world.authority.guard
        decided = guard.approvals.decide(
            connection, parked.approval, by=by, verdict="approve", digest_seen=parked.digest
        )
    asked = decided.approval.terms.calls[0].call
    world.counts["yes"] += 1
    world.oracle.see(
        told.Yes(
            number=world.counts["yes"],
            at_s=world.clock.now_s,
            by=by.user,
            tenant=by.tenant,
            roles=by.roles,
            run=asked.run,
            call=asked.id,
            tool=asked.tool,
            arguments=asked.arguments,
            asked_at_s=world.clock.of(decided.approval.terms.requested_at),
        )
    )
