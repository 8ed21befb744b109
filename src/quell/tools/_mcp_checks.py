"""What is wrong with the settings of tool servers, all of it at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from quell.domain import ConfigError, Problem, ToolServer, is_transport_header

CLIENT = "client"
"""Stands where the name of a server stands, for the tools that chat clients bring along; no server may have it."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LINE_BREAK = re.compile(r"[\r\n\0]")


def check_servers(servers: Sequence[ToolServer]) -> None:
    """Raise ConfigError with every mistake in the settings."""
    problems = [problem for server in servers for problem in _problems(server)]
    seen: set[str] = set()
    for server in servers:
        if server.name in seen:
            problems.append(_problem(server, "name", "two servers have it", "give each its own"))
        seen.add(server.name)
    if problems:
        raise ConfigError(f"{len(problems)} mistakes in the tool servers", problems=tuple(problems))


def _problems(server: ToolServer) -> Iterator[Problem]:
    if not _NAME.fullmatch(server.name):
        yield _problem(server, "name", f"{server.name!r} is no name", "use up to 32 of a-z, 0-9 and -")
    if server.name == CLIENT:
        yield _problem(server, "name", "stands for the tools of chat clients", "give the server another name")
    is_stdio, url = server.transport == "stdio", urlsplit(server.url)
    if is_stdio and (not server.command or server.url):
        yield _problem(server, "command", "a stdio server has a command and no url", "set command alone")
    if is_stdio and (server.headers or server.forward_headers or server.headers_from_request):
        yield _problem(server, "headers", "a stdio server takes no headers", "pass secrets in env")
    if not is_stdio and (server.command or url.scheme not in {"http", "https"} or not url.hostname):
        yield _problem(server, "url", "an HTTP server has an http or https URL and no command", "set url alone")
    yield from _header_problems(server)
    for name in ("connect_timeout_s", "call_timeout_s", "result_max_bytes", "offers_fresh_s", "offers_max"):
        if not getattr(server, name) > 0:
            yield _problem(server, name, "is not above zero", "set a bound")


def _header_problems(server: ToolServer) -> Iterator[Problem]:
    for header in (*server.headers, *server.forward_headers, *server.headers_from_request):
        if not _HEADER.fullmatch(header) or is_transport_header(header):
            yield _problem(
                server, "headers", f"{header!r} may not be set", "it belongs to the transport or is no header"
            )
    for header, value in server.headers.items():
        if _LINE_BREAK.search(value):
            yield _problem(server, "headers", f"the value of {header} holds a line break", "remove it")


def _problem(server: ToolServer, key: str, reason: str, hint: str) -> Problem:
    return Problem(path=f"mcp.servers.{server.name}.{key}", reason=reason, hint=hint, source="tool servers")
