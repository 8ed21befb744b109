"""People whom a trusted proxy names in a header: believed from its own addresses, and refused from everywhere else."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

from quell.domain import Caller, Principal, TrustedProxy
from quell.governance._credential import UnprovenError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The proxies that are trusted."""

    def __init__(self, trusted: Sequence[TrustedProxy]) -> None:
        self._trusted = [(proxy, [ipaddress.ip_network(text) for text in proxy.networks]) for proxy in trusted]
        self._names = {name.lower() for proxy in trusted for name in (proxy.user_header, proxy.roles_header) if name}

    def shown(self, caller: Caller) -> dict[str, list[str]]:
        """Return the headers that would name a person, however they are spelled, with all their values."""
        found: dict[str, list[str]] = {}
        for name, value in caller.headers:
            # Some servers take `_` and `-` for the same; a proxy strips only the spelling that it knows.
            if name.lower().replace("_", "-") in {known.replace("_", "-") for known in self._names}:
                found.setdefault(name.lower(), []).append(value)
        return found

    def prove(self, caller: Caller) -> Principal:
        """Return whom the proxy names. Raises UnprovenError when it is no trusted one, or says it unclearly."""
        peer = address_of(caller.peer)
        proxy = next(
            (proxy for proxy, networks in self._trusted if peer and any(peer in network for network in networks)), None
        )
        if proxy is None:
            raise UnprovenError("proxy", f"{caller.peer or 'nobody'} names a person and is no trusted proxy")
        shown = self.shown(caller)
        if not set(shown) <= {proxy.user_header.lower(), proxy.roles_header.lower()}:
            raise UnprovenError("proxy", "a header that names a person came in a spelling that the proxy does not use")
        if any(len(values) > 1 for values in shown.values()):
            raise UnprovenError("proxy", "a header that names a person came twice")
        user = shown.get(proxy.user_header.lower(), [""])[0]
        if not user or "," in user:
            raise UnprovenError("proxy", "the proxy names no person, or several")
        told = shown.get(proxy.roles_header.lower(), [""])[0].split(",") if proxy.roles_header else []
        groups = {group.strip() for group in told}
        roles = {role for group, role in proxy.roles if group in groups} | set(proxy.default_roles)
        return Principal(user=proxy.user_prefix + user, tenant=proxy.tenant, roles=tuple(sorted(roles)))


def address_of(peer: str) -> Address | None:
    """Read the address of a peer; one of IPv4 inside IPv6 is the one inside."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
