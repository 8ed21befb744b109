"""Freeze a call: strict arguments, what it acts on, and one digest over all of it; and pin what a tool is."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, fields

from quell.domain import FrozenCall, RefusedError, Resource, Tool
from quell.governance._arguments_host import host_of
from quell.governance._canonical import Json, canonical, parse

_UNPINNED = frozenset({"pin", "stands_for", "also"})
_NAME_MAX_CHARS = 253
_DEFINITION_DEPTH_MAX = 80
_DEFINITION_VALUES_MAX = 200_000


def freeze(
    tool: Tool, *, run: str, call: str, arguments: str | bytes | Mapping[str, object], environment: str = "default"
) -> FrozenCall:
    """Make a call whose bytes no longer change: parsed strictly, judged by the tool's schema, bound by one digest.

    `environment` is the deployment's, for tools whose arguments name none.
    Raises RefusedError that says all that is wrong with the arguments and what is allowed.
    """
    if not isinstance(arguments, str | bytes):
        arguments = canonical(dict(arguments))
    value = parse(arguments)
    if not isinstance(value, dict):
        raise RefusedError(
            f"the arguments of `{tool.name}` are no JSON object", hint='send an object such as {"key": 1}'
        )
    text = canonical(value)
    from quell.governance._schema import compiled  # noqa: PLC0415 - what judges schemas is large; many never call

    schema = compiled(tool.input_schema)
    if not schema.fits(text, value):
        mistakes = schema.mistakes(value)
        raise RefusedError(
            f"the arguments of `{tool.name}` are refused: {'; '.join(mistakes)}",
            hint="call it again with these put right; nothing was done",
        )
    resource = resource_of(tool, value, environment=environment)
    digest = digest_of(tool=tool.name, pin=tool.pin, arguments=text, resource=resource)
    return FrozenCall(run=run, id=call, tool=tool.name, pin=tool.pin, arguments=text, resource=resource, digest=digest)


def digest_of(*, tool: str, pin: str, arguments: str, resource: Resource) -> str:
    """Compute the SHA-256, in hex, that binds a call to its tool, pin, arguments and resource."""
    bound = {"tool": tool, "pin": pin, "arguments": arguments, "resource": _fields_of(resource)}
    # The arguments stand in it as escaped text, which may double them.
    return hashlib.sha256(canonical(bound, size_max_bytes=1 << 23).encode()).hexdigest()


def _fields_of(resource: Resource) -> dict[str, object]:
    return {part.name: getattr(resource, part.name) for part in fields(resource)}


def resource_of(tool: Tool, arguments: Json, *, environment: str) -> Resource:
    """Derive what a call acts on from its arguments and the operator's rule alone.

    Raises RefusedError when a pointer of the rule leads nowhere or to something else than it should.
    """
    rule = tool.resource
    destination = _text_at(arguments, rule.destination, "destination", tool)
    name = _text_at(arguments, rule.name, "name", tool)
    units = _at(arguments, rule.units, "units", tool) if rule.units else 1
    if not isinstance(units, int) or isinstance(units, bool) or units < 0:
        raise _unfit(tool, "units", rule.units, "is no integer from zero upwards")
    return Resource(
        kind=rule.kind if rule.name else "Server",
        name=_judged(name, tool, rule.name) if rule.name else tool.server or "quell",
        environment=_judged(_text_at(arguments, rule.environment, "environment", tool), tool, rule.environment)
        if rule.environment
        else environment,
        units=units,
        host=host_of(destination) if rule.destination else "",
    )


def _text_at(arguments: Json, pointer: str, what: str, tool: Tool) -> str:
    if not pointer:
        return ""
    found = _at(arguments, pointer, what, tool)
    if not isinstance(found, str):
        raise _unfit(tool, what, pointer, "is no text")
    return found


def _at(arguments: Json, pointer: str, what: str, tool: Tool) -> Json:
    """Follow a JSON pointer (RFC 6901). Raises RefusedError when it leads nowhere."""
    at = arguments
    for token in pointer.removeprefix("/").split("/"):
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict) and key in at:
            at = at[key]
        elif isinstance(at, list) and key.isascii() and key.isdigit() and len(key) <= 6 and int(key) < len(at):
            at = at[int(key)]
        else:
            raise _unfit(tool, what, pointer, "is missing")
    return at


def _judged(name: str, tool: Tool, pointer: str) -> str:
    """Refuse names that look like other names: a policy compares letters, a reader sees shapes."""
    if not name or len(name) > _NAME_MAX_CHARS:
        raise _unfit(tool, "name", pointer, f"is empty or longer than {_NAME_MAX_CHARS} characters")
    odd = name != name.strip() or any(unicodedata.category(letter)[0] == "C" for letter in name)
    if odd or (not name.isascii() and unicodedata.normalize("NFKC", name) != name):
        raise _unfit(tool, "name", pointer, "holds spaces at its ends, hidden letters or letters with a plainer form")
    return name


def _unfit(tool: Tool, what: str, pointer: str, why: str) -> RefusedError:
    return RefusedError(
        f"what `{tool.name}` would act on is not certain: {pointer} ({what} of the resource) {why}",
        hint=f"give {pointer} in the arguments; the policy decides by it",
    )


def pin_of(
    definition: Mapping[str, object],
    *,
    tool: Tool,
    server: Mapping[str, object] | None = None,
) -> str:
    """Compute the `sha256:` pin of a tool: its raw definition on the wire, its server, and all that people set.

    `definition` is the wire object whole (name, description, schemas, annotations, and what a server adds);
    `server` what else decides who answers (instructions, command, URL). `tool.pin` itself is left out, and so is what
    the tool would be called beside others: it changes with them, and makes what is judged stricter only.
    Raises RefusedError when the definition is no strict JSON.
    """
    said = {part.name: getattr(tool, part.name) for part in fields(tool) if part.name not in _UNPINNED}
    said |= {"resource": asdict(tool.resource), "timeout_s": float(tool.timeout_s)}
    parts = {"format": 1, "definition": dict(definition), "server": dict(server or {}), "tool": said}
    text = canonical(parts, depth_max=_DEFINITION_DEPTH_MAX, size_max_bytes=1 << 23, values_max=_DEFINITION_VALUES_MAX)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
