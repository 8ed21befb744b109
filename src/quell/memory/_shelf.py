"""A store of the library, as agents are given one."""

from __future__ import annotations

import asyncio

from quell.memory._library import Library
from quell.memory._passage import Audience, Passage


class Shelf:
    """The documents that were taken in under one name; searched in a thread, so that nothing else waits."""

    def __init__(self, library: Library, *, name: str) -> None:
        self._library = library
        self._name = name

    @property
    def name(self) -> str:
        """Return its name."""
        return self._name

    async def search(self, question: str, *, audience: Audience, passages_max: int) -> tuple[Passage, ...]:
        """Return the passages that fit best. Raises SourceError when the library cannot be used."""
        return await asyncio.to_thread(
            self._library.search, question, store=self._name, audience=audience, passages_max=passages_max
        )

    async def close(self) -> None:
        """Do nothing: a connection lives as long as a search."""
