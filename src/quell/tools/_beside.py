"""What people are shown beside a call that they decide about: the dry run of it, and what the inventory knows.

It never leaves a gap blank: what could not be learned is said in so many words, and stands in what people sign.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from quell.domain import Inventory, OutcomeKind, Parked, Resource, ToolOutcome

Fact: TypeAlias = tuple[str, str]

DIFF_MAX_CHARS = 16_000
_FACTS_MAX = 24
_NAME_MAX_CHARS = 60
_VALUE_MAX_CHARS = 500
_INVENTORY_TIMEOUT_S = 3.0
_UNKNOWN = "NOT KNOWN: "


def diff_of(tool: str, seen: ToolOutcome | Parked) -> str:
    """Write what a dry run brought; the same outcome gives the same text, for people sign it and drift is refused."""
    if isinstance(seen, Parked):
        return f"{_UNKNOWN}the dry run `{tool}` waits for people itself; decide about it first, or without it"
    match seen.kind:
        case OutcomeKind.OK:
            return _whole(seen)
        case OutcomeKind.STALE:
            return f"STALE, of {seen.as_of.isoformat() if seen.as_of else 'no known time'}:\n{_whole(seen)}"
        case OutcomeKind.EMPTY:
            return f"the dry run `{tool}` brought nothing"
        case kind:
            return f"{_UNKNOWN}the dry run `{tool}` failed ({kind}); what would change was not seen"


def no_dry_run(tool: str) -> str:
    """Say that the operator named something as a dry run that is none."""
    return f"{_UNKNOWN}`{tool}` stands as the dry run and is no tool that only reads; it was not called"


async def facts_of(resource: Resource, *, inventory: Inventory, clean: Callable[[str], str]) -> tuple[Fact, ...]:
    """Ask the inventory, in bounded time, for a bounded answer without secrets."""
    try:
        async with asyncio.timeout(_INVENTORY_TIMEOUT_S):
            told = list(await inventory(resource))
    except TimeoutError:
        return (("inventory", f"{_UNKNOWN}it did not answer within {_INVENTORY_TIMEOUT_S:g} s"),)
    except Exception as error:  # noqa: BLE001 - whatever it raises, people are told that nothing is known
        return (("inventory", f"{_UNKNOWN}it failed ({type(error).__name__})"),)
    facts = [(_cut(clean(name), _NAME_MAX_CHARS), _cut(clean(value), _VALUE_MAX_CHARS)) for name, value in told]
    if len(facts) > _FACTS_MAX:
        left_out = len(facts) - _FACTS_MAX + 1
        facts = [*facts[: _FACTS_MAX - 1], ("left out", f"{left_out} more facts")]
    return tuple(facts)


def _whole(seen: ToolOutcome) -> str:
    """Return all of a result, or its beginning and what binds the rest."""
    if not seen.handle and len(seen.content) <= DIFF_MAX_CHARS:
        return seen.content
    told = f"CUT HERE: the whole has {seen.size_bytes:,} bytes, SHA-256 {seen.digest}"
    return f"{seen.content[:DIFF_MAX_CHARS]}\n{told}"


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
