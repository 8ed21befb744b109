"""Puts one fault in at a time and takes it back."""

from __future__ import annotations

from quell_lab._clock import system_clock
from quell_lab._truth import Truth, write_truth
from quell_lab.faults._catalogue import DISTURBANCES, FAULTS
from quell_lab.faults._kind import Undo
from quell_lab.host import Supervisor

RECOVERY_TIMEOUT_S = 30.0


class Saboteur:
    """Holds what is broken now."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.active: Truth | None = None
        self._shop = supervisor
        self._undo: Undo | None = None

    async def put_in(self, name: str, *, seed: int) -> Truth:
        """Do what the catalogue says under a name; one at a time."""
        fault = FAULTS.get(name) or DISTURBANCES.get(name)
        if fault is None:
            raise ValueError(f"no fault is called {name}")
        if self.active is not None:
            raise ValueError(f"{self.active.name} is still in; heal it first")
        since = system_clock()
        done = await fault.deed(self._shop, seed)
        self.active = Truth(
            name=name,
            category=fault.category,
            kind=done.kind,
            subject=done.subject,
            since=since,
            seed=seed,
            detail=done.detail,
        )
        self._undo = done.undo
        write_truth(self._shop.layout.truth, self.active)
        return self.active

    async def heal(self) -> Truth | None:
        """Take back what is in, and wait until the shop runs again."""
        healed, undo = self.active, self._undo
        if undo is not None:
            await undo()
            self.active, self._undo = None, None
            write_truth(self._shop.layout.truth, None)
        await self._shop.all_ready(timeout_s=RECOVERY_TIMEOUT_S)
        return healed
