"""Loops: the same call with the same result, told by fingerprints that ignore what changes by itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Literal

from quell.agent._talk import Repeat
from quell.domain import CallWanted, ToolOutcome

FAILURES_NUDGE = 6
FAILURES_MAX = 12
"""So many calls that failed one after the other are a loop as well, whatever their arguments."""
_VOLATILE = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F-]{22}"  # UUIDs
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"  # times
    r"|\b\d{10,19}\b"  # epochs
    r"|\b[0-9a-f]{16,}\b"  # digests and trace ids
    r"|\b\d+(?:\.\d+)?\s?(?:ns|us|µs|ms|s)\b"  # durations
)
_RESULT_MAX_CHARS = 20_000


def counted(repeats: Mapping[str, Repeat], wanted: CallWanted, outcome: ToolOutcome) -> tuple[dict[str, Repeat], int]:
    """Count a call and its result; return the counts and how often this pair has come in a row."""
    key, result = _of_call(wanted), _of_result(outcome)
    before = repeats.get(key)
    count = before.count + 1 if before is not None and before.result == result else 1
    return {**repeats, key: Repeat(result=result, count=count)}, count


def judged(count: int, failures: int, *, nudge: int, most: int) -> Literal["fine", "nudge", "stop"]:
    """Say whether that is a loop."""
    if count >= most or failures >= FAILURES_MAX:
        return "stop"
    return "nudge" if count >= nudge or failures >= FAILURES_NUDGE else "fine"


def _of_call(wanted: CallWanted) -> str:
    try:
        arguments = json.dumps(json.loads(wanted.arguments), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = wanted.arguments
    return _fingerprint(f"{wanted.name}\n{arguments}")


def _of_result(outcome: ToolOutcome) -> str:
    return _fingerprint(f"{outcome.kind}\n{outcome.detail}\n{outcome.content[:_RESULT_MAX_CHARS]}")


def _fingerprint(text: str) -> str:
    return hashlib.sha256(_VOLATILE.sub("#", text).encode("utf-8", "replace")).hexdigest()[:16]
