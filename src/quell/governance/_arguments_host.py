"""Read the host that a URL or a host text names, so strictly that no two readers can differ about it."""

from __future__ import annotations

import ipaddress
import re

from quell.domain import RefusedError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,30}://")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_NUMERIC = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)\Z")
_SCHEMES = frozenset({"http", "https", "ws", "wss", "ftp", "file"})
"""A bare `https:443` is a host and a port to some readers, a URL to others."""
_PORT_MAX = 65_535


def host_of(text: str) -> str:
    """Return the host of a URL or of `host[:port]`: lower case, no trailing dot, addresses in their one form.

    Refused is whatever readers are known to read differently: user info, backslashes, spaces, percent signs and
    letters beyond ASCII in the host, numbers that are no dotted quads, zones. Raises RefusedError.
    """
    scheme = _SCHEME.match(text)
    rest = text[scheme.end() :] if scheme else text
    if "\\" in text or any(not letter.isprintable() or letter.isspace() for letter in text):
        raise _refused(text, "holds a backslash, a space or a control character")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not scheme and (authority != rest or rest.split(":", maxsplit=1)[0].lower() in _SCHEMES):
        raise _refused(text, "is neither a URL with `scheme://` nor a bare host")
    if "@" in authority:
        raise _refused(text, "holds user info before `@`")
    if "%" in authority:
        raise _refused(text, "holds a percent sign in its host")
    return _host(text, authority)


def _host(text: str, authority: str) -> str:
    if authority.startswith("["):
        inside, bracket, port = authority[1:].partition("]")
        if not bracket or not (port == "" or port.startswith(":")):
            raise _refused(text, "holds a broken IPv6 address")
        _judge_port(text, port[1:])
        return _address(text, inside)
    if authority.count(":") > 1:
        return _address(text, authority)
    host, _, port = authority.partition(":")
    _judge_port(text, port)
    if not host.isascii():
        raise _refused(text, "holds letters beyond ASCII in its host; write it in punycode (xn--)")
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMERIC.match(labels[-1]):
        return _address(text, name)
    if len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        raise _refused(text, "has no valid host")
    return name


def _address(text: str, address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise _refused(text, "has a number for a host that is no plain address") from None
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id:
            raise _refused(text, "holds a zone")
        return str(found.ipv4_mapped or found)
    return str(found)


def _judge_port(text: str, port: str) -> None:
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _PORT_MAX):
        raise _refused(text, "has no valid port")


def _refused(text: str, why: str) -> RefusedError:
    shown = ascii(text if len(text) <= 80 else text[:77] + "...")
    return RefusedError(
        f"the destination {shown} {why}", hint="write it as `https://host.example/path` or `host.example`"
    )
