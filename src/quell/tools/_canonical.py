"""The one JSON text for what strangers sent: sorted, without spaces, and plain ASCII, so that nothing hides in it.

What it is given was read already: unlike the canonical JSON of a call it refuses nothing.
"""

from __future__ import annotations

import json


def canonical(value: object) -> str:
    """Write JSON in one way only; escapes show what is invisible."""
    written = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return written.replace("\x7f", "\\u007f")
