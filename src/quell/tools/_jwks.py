"""Fetching the public keys of an identity provider: protected, bounded in size and in time."""

from __future__ import annotations

import ipaddress
import time

import httpx2

from quell.domain import WorldError
from quell.tools._trust import trusted

_TIMEOUT_S = 5.0
_BODY_MAX_BYTES = 1_000_000
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


def fetch_keys(url: str) -> bytes:
    """Return what stands at an address; blocks. Keys that come unprotected prove nothing, but on this machine.

    Raises:
        WorldError: it is not https, cannot be reached, is too slow or too long, or answers with anything but success.
    """
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise WorldError(f"the address of the keys is none: {error}", hint="write https://host/path") from None
    if target.scheme != "https" and not (target.scheme == "http" and _is_local(target.host)):
        raise WorldError(f"the keys of {target.host} would come unprotected", hint="use https")
    try:
        with httpx2.Client(timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False, verify=trusted()) as client:
            return _read(client, target)
    except (httpx2.HTTPError, OSError) as error:
        raise WorldError(
            f"the keys of {target.host} cannot be had: {type(error).__name__}", hint="is it reachable?"
        ) from None


def _read(client: httpx2.Client, target: httpx2.URL) -> bytes:
    ends_s = time.monotonic() + _TIMEOUT_S
    with client.stream("GET", target, headers={"Accept": "application/json"}) as response:
        if response.status_code != httpx2.codes.OK:
            raise WorldError(f"{target.host} answered {response.status_code}", hint="is jwks_url right?")
        pieces: list[bytes] = []
        size_bytes = 0
        for piece in response.iter_bytes():
            size_bytes += len(piece)
            # Each piece may come in time and the whole of it never.
            if size_bytes > _BODY_MAX_BYTES or time.monotonic() > ends_s:
                raise WorldError(
                    f"the keys of {target.host} are too long, or come too slowly", hint="is it the issuer?"
                )
            pieces.append(piece)
    return b"".join(pieces)


def _is_local(host: str) -> bool:
    try:
        return host in _LOCAL_NAMES or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
