"""What is read from the query and the headers of a request."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from quell.server._errors import WireError

_LIMIT_MAX = 500
_LIMIT_DIGITS_MAX = 10


def limit_of(request: Request) -> int:
    """Return how many items are wanted. Raises WireError 400."""
    written = request.query_params.get("limit", "50")
    # The length first: Python refuses to read a number of thousands of digits.
    if not written.isdecimal() or len(written) > _LIMIT_DIGITS_MAX or not 1 <= int(written) <= _LIMIT_MAX:
        raise WireError(400, "UsageError", f"limit is {written[:20]!r}", hint=f"a number from 1 to {_LIMIT_MAX}")
    return int(written)


def headers_of(request: Request) -> Mapping[str, str]:
    """Return the headers of a request, names in small letters: for servers that are told to pass some on."""
    return {name.lower(): value for name, value in request.headers.items()}
