"""Who may talk to the server: this machine, by its own name, and no page of another site."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from quell.domain import ConfigError
from quell.server._errors import WireError, error_response

_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


def check_host(host: str) -> None:
    """Raise ConfigError unless `host` is loopback: there are no identities yet, so nobody else may be let in."""
    if not is_local(host):
        raise ConfigError(
            f"server.host is {host!r}, and only loopback is accepted until identities are configured",
            hint="use 127.0.0.1 or ::1, and a proxy with authentication in front of it",
        )


def is_local(name: str) -> bool:
    """Tell whether a host name means this machine without asking any name server."""
    bare = name.strip("[]").lower()
    if bare in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


class LocalOnly:
    """Refuses requests that carry another host's name, or come from a page of another origin.

    A page that a browser shows can reach loopback by a name of its own (DNS rebinding) or by a blind POST.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal([(key, value.decode("latin-1")) for key, value in scope["headers"]])
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)


def _refusal(headers: Sequence[tuple[bytes, str]]) -> WireError | None:
    hosts = [value for key, value in headers if key == b"host"]
    host = hosts[0] if len(hosts) == 1 else ""
    name = _name_of(host)
    if name is None or not is_local(name):
        return WireError(421, "RefusedError", "this server answers to loopback names only", hint="use http://127.0.0.1")
    if any(_netloc_of(value) != host.lower() for key, value in headers if key == b"origin"):
        return WireError(403, "RefusedError", "requests of other sites are refused", hint="send it without Origin")
    return None


def _name_of(host: str) -> str | None:
    """Return the name in a `Host` header; None when it holds none that could be ours."""
    if not host or set(host) & set("/@\\ \t?#"):
        return None
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
