"""What the types of settings cannot say: ranges, formats, and what must stand together."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from quell.config._keys import Key, keys, pattern_of
from quell.config._template import Toml
from quell.domain import Problem

_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(?:[./][A-Za-z0-9_-]+)*(?<!\.lock)")
_SERVER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_CLIENT = "client"
"""Stands for the tools that chat clients bring along; no server may have its name."""
_SCOPES = ("run", "agent", "feature", "tenant", "day")

Where = Callable[[str], str]
"""Names the source of a key."""


def rules(tree: Mapping[str, Toml], *, where: Where) -> Iterator[Problem]:
    """Yield what the types cannot say: ranges, formats, and what must stand together."""
    for path, value in leaves(tree):
        key = keys().get(pattern_of(path))
        if key is None:
            continue
        if key.range is not None and _is_number(value, key) and not key.range.has(float(str(value))):
            hint = f"the default is {key.default}" if key.default is not None else ""
            yield Problem(path=path, reason=f"must be {key.range}", hint=hint, source=where(path))
        rule = _VALUE_RULES.get(key.path)
        told = rule(value) if rule is not None and isinstance(value, str) else None
        if told is not None:
            yield Problem(path=path, reason=told[0], hint=told[1], source=where(path))
    yield from _server_rules(tree, where=where)
    yield from _prometheus_rules(tree.get("prometheus"), where=where)
    yield from _anchor_rules(tree.get("governance"), where=where)
    mcp = tree.get("mcp")
    named = mcp.get("servers") if isinstance(mcp, dict) else None
    servers = named if isinstance(named, dict) else {}
    for name, server in servers.items():
        yield from _mcp_server_rules(name, server, where=where)
        yield from _stands_for_rules(name, server, servers=servers, where=where)
    yield from _tool_rules(tree.get("tool"), servers=servers, where=where)
    yield from _cap_rules(tree.get("cap"), where=where)
    yield from _pack_rules(tree.get("governance"), where=where)


def _prometheus_rules(sources: Toml, *, where: Where) -> Iterator[Problem]:
    if not isinstance(sources, list):
        return
    first: dict[str, int] = {}
    for index, source in enumerate(sources):
        if not isinstance(source, dict):
            continue
        name, path = source.get("name"), f"prometheus.{index}.name"
        if isinstance(name, str) and name in first:
            reason = f"the name {name!r} is taken by prometheus.{first[name]}"
            yield Problem(
                path=path, reason=reason, hint="names appear in evidence: make them distinct", source=where(path)
            )
        elif isinstance(name, str):
            first[name] = index
        patterns = source.get("metrics")
        for number, pattern in enumerate(patterns if isinstance(patterns, list) else ()):
            try:
                re.compile(pattern) if isinstance(pattern, str) else None
            except re.error as error:
                at = f"prometheus.{index}.metrics.{number}"
                yield Problem(path=at, reason=f"not a regular expression: {error}", hint="", source=where(at))


def _server_rules(tree: Mapping[str, Toml], *, where: Where) -> Iterator[Problem]:
    """Refuse to listen beyond this machine while nobody could be told from anybody."""
    server, identity = tree.get("server"), tree.get("identity")
    host = server.get("host") if isinstance(server, dict) else None
    ways = identity if isinstance(identity, dict) else {}
    if not isinstance(host, str) or _is_loopback(host) or any(ways.get(way) for way in ("api_keys", "oidc", "proxy")):
        return
    yield Problem(
        path="server.host",
        reason="must be a loopback address while nobody is asked who they are",
        hint='keep "127.0.0.1", or configure [identity]: API keys, an OIDC issuer or a trusted proxy',
        source=where("server.host"),
    )


def _anchor_rules(governance: Toml, *, where: Where) -> Iterator[Problem]:
    if isinstance(governance, dict) and governance.get("anchor_git_remote") and not governance.get("anchor_git"):
        path = "governance.anchor_git_remote"
        hint = "set governance.anchor_git to a directory for a repository of its own"
        yield Problem(path=path, reason="has no repository to push from", hint=hint, source=where(path))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _http_url(value: str) -> tuple[str, str] | None:
    if value and not _is_url(value, schemes=("http", "https")):
        return "must be a URL such as http://127.0.0.1:9090", "start it with http:// or https:// and name a host"
    if "@" in urlsplit(value).netloc:
        return "must not carry a user or a password: a URL is shown, a secret is not", "use the keys made for them"
    return None


def _git_remote(value: str) -> tuple[str, str] | None:
    try:
        parts = urlsplit(value)
        holds_secret = parts.password is not None or (parts.scheme in {"http", "https"} and "@" in parts.netloc)
    except ValueError:
        return "must be a git remote such as ssh://git@host/audit.git", ""
    if holds_secret:
        return "must not carry a password: it is shown", "use an ssh key, or a credential helper of git"
    return _single_line(value)


def _single_line(value: str) -> tuple[str, str] | None:
    return None if value.isprintable() else ("must not hold control characters", "")


def _branch(value: str) -> tuple[str, str] | None:
    if _BRANCH.fullmatch(value):
        return None
    return "must be the name of a branch", "letters, digits, `_` and `-`, parts separated by `/` or `.`"


def _needed_http_url(value: str) -> tuple[str, str] | None:
    return _http_url(value or "-")


def _journal_url(value: str) -> tuple[str, str] | None:
    # The value is a secret: it is judged and never shown.
    if value and not _is_url(value, schemes=("postgresql", "postgres", "postgresql+psycopg")):
        return "must be a postgresql:// URL", "leave it out to keep the journal in SQLite in the state directory"
    if urlsplit(value).netloc.count("@") > 1:
        # The rest of such a password would be taken for the host, and hosts are shown.
        return "the user or the password holds a bare `@`", "write %40 for it, and %3A for `:`, %2F for `/`"
    return None


def _source_name(value: str) -> tuple[str, str] | None:
    if _SOURCE_NAME.fullmatch(value):
        return None
    return "must be 1 to 64 letters, digits, `_`, `.` or `-`", "it names the source in evidence and gaps"


def _not_empty(value: str) -> tuple[str, str] | None:
    if "\0" in value:
        return "must not hold the character NUL", ""
    return None if value.strip() else ("must not be empty", "")


_VALUE_RULES: Mapping[str, Callable[[str], tuple[str, str] | None]] = {
    "approvals.webhook_url": _http_url,
    "approvals.slack_url": _http_url,
    "approvals.link_url": _http_url,
    "approvals.webhook_user": _not_empty,
    "governance.anchor_git": _single_line,
    "governance.anchor_git_remote": _git_remote,
    "governance.anchor_git_branch": _branch,
    "identity.oidc.issuer": _not_empty,
    "identity.oidc.audience": _not_empty,
    "identity.oidc.jwks_url": _needed_http_url,
    "store.url": _http_url,
    "store.database": _not_empty,
    "journal.url": _journal_url,
    "prometheus.url": _needed_http_url,
    "prometheus.name": _source_name,
    "state_dir": _not_empty,
}


def _is_url(value: str, *, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in schemes and bool(parts.hostname or parts.scheme.startswith("postgres")) and parts.port != 0
        )
    except ValueError:
        return False


def _is_number(value: Toml, key: Key) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value and (isinstance(value, int) or key.type_name == "number")  # noqa: PLR0124 - NaN has its own error


def leaves(tree: Toml, prefix: str = "") -> Iterator[tuple[str, Toml]]:
    """Yield every value of a tree with its path; items of a list of tables have their number in it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{prefix}.{index}")
    else:
        yield prefix, tree


def _mcp_server_rules(name: str, server: Toml, *, where: Where) -> Iterator[Problem]:
    path = f"mcp.servers.{name}"
    if not _SERVER_NAME.fullmatch(name):
        reason = "a server's name is 1 to 32 lower-case letters, digits and `-`"
        yield Problem(path=path, reason=reason, hint="it qualifies the names of its tools", source=where(path))
    if name == _CLIENT:
        reason = "`client` stands for the tools that chat clients bring along"
        yield Problem(path=path, reason=reason, hint="give the server another name", source=where(path))
    if not isinstance(server, dict):
        return
    transport = server.get("transport")
    wanted, other = ("cmd", "url") if transport == "stdio" else ("url", "cmd")
    if transport in {"stdio", "http_streamable", "sse"}:
        if not server.get(wanted):
            told = f"a server over {transport} needs `{wanted}`"
            yield Problem(path=f"{path}.{wanted}", reason=told, hint="", source=where(path))
        if server.get(other):
            told = f"a server over {transport} has no `{other}`"
            yield Problem(path=f"{path}.{other}", reason=told, hint="take it out", source=where(f"{path}.{other}"))


def _stands_for_rules(name: str, server: Toml, *, servers: Mapping[str, Toml], where: Where) -> Iterator[Problem]:
    other = server.get("stands_for") if isinstance(server, dict) else None
    if isinstance(other, str) and other and (other == name or other not in servers):
        path = f"mcp.servers.{name}.stands_for"
        others = ", ".join(each for each in servers if each != name)
        hint = f"the other servers are: {others}" if others else "leave it out"
        yield Problem(path=path, reason=f"there is no other server {other!r}", hint=hint, source=where(path))


def _tool_rules(tools: Toml, *, servers: Mapping[str, Toml], where: Where) -> Iterator[Problem]:
    if not isinstance(tools, list):
        return
    first: dict[tuple[object, object], int] = {}
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            continue
        path = f"tool.{index}"
        server, name = tool.get("server"), tool.get("name")
        if isinstance(server, str) and server not in servers and server != _CLIENT:
            hint = f"the servers are: {', '.join(servers)}" if servers else "add it under [mcp.servers.NAME]"
            yield Problem(path=f"{path}.server", reason=f"there is no server {server!r}", hint=hint, source=where(path))
        if first.setdefault((server, name), index) != index:
            reason = f"the same tool as tool.{first[server, name]}"
            yield Problem(path=path, reason=reason, hint="say it once", source=where(path))
        yield from _term_rules(tool, path, where=where)


def _term_rules(tool: Mapping[str, Toml], path: str, *, where: Where) -> Iterator[Problem]:
    if tool.get("recovery") == "probeable" and not tool.get("probe"):
        reason = "a probeable tool needs `probe`"
        yield Problem(path=f"{path}.probe", reason=reason, hint="name the read tool that tells", source=where(path))
    if tool.get("dry_run") and tool.get("effect") in {"read", "egress"}:
        reason = "a read changes nothing that a dry run could tell"
        yield Problem(path=f"{path}.dry_run", reason=reason, hint="leave it out", source=where(path))
    if tool.get("destination") and tool.get("effect") == "read":
        reason = "a read whose arguments name a destination is egress"
        yield Problem(path=f"{path}.effect", reason=reason, hint='write effect = "egress"', source=where(path))
    for key in ("resource", "environment", "units", "destination"):
        pointer = tool.get(key)
        if isinstance(pointer, str) and pointer and not pointer.startswith("/"):
            at = f"{path}.{key}"
            yield Problem(path=at, reason="must be a JSON pointer", hint=f'such as "/{pointer}"', source=where(at))


def _cap_rules(caps: Toml, *, where: Where) -> Iterator[Problem]:
    for index, cap in enumerate(caps if isinstance(caps, list) else ()):
        per = cap.get("per") if isinstance(cap, dict) else None
        for number, scope in enumerate(per if isinstance(per, list) else ()):
            if scope not in _SCOPES:
                at = f"cap.{index}.per.{number}"
                hint = f"one of {', '.join(_SCOPES)}"
                yield Problem(path=at, reason="tells no accounts apart", hint=hint, source=where(at))


def _pack_rules(governance: Toml, *, where: Where) -> Iterator[Problem]:
    if not isinstance(governance, dict) or governance.get("services"):
        return
    pack = governance.get("pack", "copilot")
    if pack in {"reversible-auto", "dark-factory"}:
        path = "governance.services"
        reason = f"the pack {pack} lets calls go by themselves by the share of services that they touch"
        hint = "say how many services there are in production"
        yield Problem(path=path, reason=reason, hint=hint, source=where("governance.pack"))
