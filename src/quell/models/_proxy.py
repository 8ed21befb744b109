"""Which proxy stands before a server: by the settings, or as HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say."""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from quell.domain import ConfigError

_DIRECT = "none"
_PORTS: Mapping[str, int] = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy that carries our connections."""

    host: str
    port: int
    is_tls: bool
    """Whether it is itself spoken to by TLS."""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def named(self) -> str:
        """Name it without its credentials."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def url(self) -> str:
        """Return its address without its credentials."""
        return f"{'https' if self.is_tls else 'http'}://{self.named}"

    @property
    def proven_url(self) -> str:
        """Return its address with its credentials, for a client that takes them so."""
        shown = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        return f"{'https' if self.is_tls else 'http'}://{shown}{self.named}"

    @property
    def headers(self) -> Mapping[str, str]:
        """Return what proves to it who we are."""
        if not self.user and not self.password:
            return {}
        shown = b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {shown}"}


def proxy_for(url: str, *, env: Mapping[str, str], wish: str = "") -> Proxy | None:
    """Return the proxy for an address; None: it is reached directly, as this machine itself always is.

    `wish` is what the settings say: an address, `none`, or nothing, and then the environment is asked, small letters
    before capitals as curl does it. Raises ConfigError for a proxy that is none.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if wish == _DIRECT or _is_this_machine(host):
        return None
    if wish:
        return _read(wish, source="`proxy`")
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if env.get(variable):
                port = parts.port or _PORTS.get(parts.scheme, 0)
                return None if _is_excepted(host, port=port, env=env) else _read(env[variable], source=variable)
    return None


def _read(text: str, *, source: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/"):
        # The text itself is not told: it may hold a password.
        raise ConfigError(f"{source} names no proxy that can be used", hint="such as http://proxy.example.com:3128")
    return Proxy(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        is_tls=parts.scheme == "https",
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_excepted(host: str, *, port: int, env: Mapping[str, str]) -> bool:
    """Tell whether NO_PROXY names a host: by `*`, a name and all below it, an address, or a network; with a port or not."""
    said = env.get("no_proxy") or env.get("NO_PROXY", "")
    return any(_matches(entry.strip().lower(), host=host.lower(), port=port) for entry in said.split(","))


def _matches(entry: str, *, host: str, port: int) -> bool:
    if entry in {"", "*"}:
        return entry == "*"
    name, _, wanted = entry.rpartition(":")
    if name and wanted.isdigit() and (":" not in name or name.endswith("]")):
        if int(wanted) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        below = entry.removeprefix("*").removeprefix(".").rstrip(".")
        return bool(below) and (host == below or host.endswith(f".{below}"))
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
