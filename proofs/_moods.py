"""What stories are about: many lopsided mixes of moves find more than one even mix."""

from __future__ import annotations

import random
from dataclasses import dataclass

from proofs._affairs import KINDS as AFFAIRS
from proofs._world import BY_NAME


@dataclass(slots=True)
class Mood:
    """What one story is mostly about: each leaves something out and overdoes something else.

    After Groce, Zhang, Eide, Chen and Regehr, *Swarm Testing* (2012): many lopsided mixes find more than one even mix.
    """

    tools: list[str]
    """What is asked for, the likelier the more often it stands here."""
    kinds: list[float]
    burst: float
    """Share of rounds in which several things are asked for at once."""
    same: float
    """Share of bursts that ask for one thing many times."""
    meddling: float
    """Chance that people stop or lift something before a transaction."""
    interrupts: float
    votes: float
    haste: float
    """How much of the usual time passes between rounds."""
    affairs: float = 0.0
    """Chance that something of `liked` happens before a transaction."""
    liked: tuple[str, ...] = AFFAIRS
    asking: float | None = None
    """How often tools that may ask people do so; None: as the world drew it."""
    is_earned: bool | None = None
    """Whether levels are those that were earned; None: as the world drew it."""
    fates: tuple[float, ...] = ()
    """How often tools answer well, get nothing, do it and say nothing, or fail; none: as it was drawn."""

    @classmethod
    def drawn(cls, rng: random.Random) -> Mood:
        """Draw a mix."""
        names = list(BY_NAME)
        liked = rng.sample(names, rng.choice((1, 3, 5))) if rng.random() < 0.6 else names
        kinds = [weight * rng.choice((0, 1, 1, 3)) for weight in (12, 10, 4, 3, 4)]
        noise = rng.choice((2, 6, 14))
        return cls(
            tools=liked * 4 + names,
            kinds=[kinds[0] + 6, *kinds[1:], 12 * noise, 16 * noise, rng.choice((0, 3)), rng.choice((0, 4, 12))],
            burst=rng.choice((0.03, 0.1, 0.4)),
            same=rng.choice((0.1, 0.3, 0.9)),
            meddling=rng.choice((0, 0.004, 0.03, 0.15)),
            interrupts=rng.choice((0, 0.02, 0.3)),
            votes=rng.choice((0.02, 0.08, 0.4)),
            haste=rng.choice((0.1, 1, 1, 4)),
            affairs=rng.choice((0, 0.002, 0.01, 0.05)),
            liked=tuple(rng.sample(AFFAIRS, rng.choice((1, 2, 5)))),
        )


_EFFECTS = ["restart", "drain", "set_config"]
MOODS: dict[str, Mood] = {
    "storm": Mood(
        tools=_EFFECTS,
        kinds=[9, 6, 1, 1, 1, 1, 1, 0, 0],
        burst=0.4,
        same=0.2,
        meddling=0.15,
        interrupts=0.0,
        votes=0.4,
        haste=4,
    ),
    "siege": Mood(
        tools=["logs_search", "logs_search", "big_report", "fetch_page", *_EFFECTS],
        kinds=[9, 9, 1, 1, 1, 1, 1, 1, 0],
        burst=0.4,
        same=0.8,
        meddling=0.0,
        interrupts=0.0,
        votes=0.1,
        haste=1,
    ),
    "cuts": Mood(
        tools=[*_EFFECTS, "drain", "flip_flag"],
        kinds=[9, 9, 14, 1, 1, 1, 1, 0, 0],
        burst=0.05,
        same=0.2,
        meddling=0.004,
        interrupts=0.6,
        votes=0.4,
        haste=4,
    ),
    "watch": Mood(
        tools=["big_report", "big_report", "fetch_page", "read_url"],
        kinds=[9, 3, 1, 1, 1, 1, 1, 6, 0],
        burst=0.05,
        same=0.2,
        meddling=0.02,
        interrupts=0.0,
        votes=0.1,
        haste=4,
    ),
    "still": Mood(
        tools=["fetch_page", "read_url"] * 20,
        kinds=[9, 3, 1, 1, 1, 0.5, 0.5, 0, 0],
        burst=0.05,
        same=0.2,
        meddling=0.05,
        interrupts=0.0,
        votes=0.1,
        haste=0.05,
    ),
    "asks": Mood(
        tools=["fetch_page", "read_url", "delete_volume", "page_vendor", "nudge", "drain", "flip_flag", "restart"],
        kinds=[9, 14, 6, 4, 9, 1, 1, 0, 0],
        burst=0.05,
        same=0.3,
        meddling=0.004,
        interrupts=0.0,
        votes=0.4,
        haste=1,
    ),
    "pins": Mood(
        tools=["restart", "restart", "set_config"],
        kinds=[12, 4, 1, 1, 1, 0, 0, 0, 0],
        affairs=0.15,
        liked=("repin",),
        burst=0.2,
        same=0.2,
        meddling=0.0,
        interrupts=0.0,
        votes=0.6,
        haste=1.0,
    ),
    "emergency": Mood(
        tools=["drain"] * 60,
        kinds=[12, 4, 1, 1, 1, 0, 0, 0, 0],
        affairs=0.15,
        liked=("glass",),
        burst=0.2,
        same=0.2,
        meddling=0.01,
        interrupts=0.0,
        votes=0.6,
        haste=4.0,
    ),
    "plans": Mood(
        tools=["nudge", "nudge", "flip_flag", "restart", "set_config", "drain"] * 6,
        kinds=[0.5, 0.5, 0.5, 0, 1, 0, 0, 0, 20],
        affairs=0.03,
        liked=("plan",),
        fates=(70, 2, 3, 25),
        burst=0.05,
        same=0.2,
        meddling=0.0,
        interrupts=0.0,
        votes=0.6,
        haste=1.0,
    ),
    "workers": Mood(
        tools=[*_EFFECTS, "nudge"],
        kinds=[12, 8, 1, 1, 1, 0, 0, 0, 0],
        affairs=0.08,
        liked=("take over",),
        burst=0.4,
        same=0.2,
        meddling=0.0,
        interrupts=0.0,
        votes=0.6,
        haste=1.0,
    ),
    "shifts": Mood(
        tools=["logs_search"] * 60,
        kinds=[20, 4, 0, 0, 0, 0, 0, 0, 0],
        affairs=0.01,
        liked=("take over",),
        burst=0.4,
        same=0.2,
        meddling=0.0,
        interrupts=0.0,
        votes=0.6,
        haste=1.0,
    ),
    "ladder": Mood(
        tools=_EFFECTS,
        kinds=[12, 4, 1, 1, 1, 0, 0, 0, 0],
        affairs=0.03,
        liked=("demote",),
        is_earned=True,
        burst=0.2,
        same=0.2,
        meddling=0.0,
        interrupts=0.0,
        votes=0.6,
        haste=1.0,
    ),
    "questions": Mood(
        tools=["restart", "restart", "scale", "flip_flag"] * 6,
        kinds=[6, 14, 1, 1, 1, 0, 0, 0, 0],
        asking=0.9,
        burst=0.05,
        same=0.2,
        meddling=0.0,
        interrupts=0.0,
        votes=0.4,
        haste=1.0,
    ),
}
"""Mixes that suit holes which show only in bursts, near caps, where workers are interrupted, or where people answer a lot."""
