"""By which names the server is reached, and that no page of another site reaches it; who calls is asked later."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from quell.server._errors import WireError, error_response

_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


def is_local(name: str) -> bool:
    """Tell whether a host name means this machine without asking any name server."""
    bare = name.strip("[]").lower()
    if bare in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


class KnownNames:
    """Refuses requests that carry another host's name, or come from a page of another origin.

    A page that a browser shows can reach a server by a name of its own (DNS rebinding) or by a blind POST. An address is
    nobody's own name: one that listens beyond loopback is reached by any address, and by the names it was given.
    """

    def __init__(self, app: ASGIApp, *, names: Sequence[str], reach: Literal["loopback", "network"]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._reach = reach

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal([(key, value.decode("latin-1")) for key, value in scope["headers"]])
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _refusal(self, headers: Sequence[tuple[bytes, str]]) -> WireError | None:
        hosts = [value for key, value in headers if key == b"host"]
        host = hosts[0] if len(hosts) == 1 else ""
        name = _name_of(host)
        if name is None or not self._is_ours(name):
            said = "this server answers to loopback names only"
            if self._names or self._reach == "network":
                said = "this server does not answer to that name"
            return WireError(421, "RefusedError", said, hint="use http://127.0.0.1, or add the name to server.names")
        if any(_netloc_of(value) != host.lower() for key, value in headers if key == b"origin"):
            return WireError(403, "RefusedError", "requests of other sites are refused", hint="send it without Origin")
        if _is_embedded(dict(headers)):
            return WireError(
                403, "RefusedError", "requests of other sites are refused", hint="open it in a tab of its own"
            )
        return None

    def _is_ours(self, name: str) -> bool:
        return is_local(name) or name.lower() in self._names or (self._reach == "network" and _is_address(name))


def _is_embedded(headers: Mapping[bytes, str]) -> bool:
    """Tell whether a page of another site asks for something itself: an image or a frame carries no `Origin`.

    Browsers say so (Fetch Metadata, W3C 2021). A link that a person follows, such as one in a chat, is none.
    """
    is_followed = headers.get(b"sec-fetch-mode") == "navigate" and headers.get(b"sec-fetch-dest") == "document"
    return headers.get(b"sec-fetch-site", "none") not in {"same-origin", "none"} and not is_followed


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


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
