"""Tool calls that weak models write as text: found in four forms, and only where a tool of that name is offered.

The forms: a JSON object, Hermes `<tool_call>` tags, Python calls in brackets, and Qwen's `<function=…>` tags with their
usual mistakes. What is found is a wish like any other: it goes through the same loop and the same guard.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from quell.domain import CallWanted, ModelRequest

_TEXT_MAX_CHARS = 200_000
_CALLS_MAX = 32
_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_QWEN = re.compile(r"<function=([^>\s]{1,200})>(.*?)(?:</function>|(?=<function=)|\Z)", re.DOTALL)
_QWEN_ARGUMENT = re.compile(
    r"<parameter=([^>\s]{1,200})>[ \t]*\n?(.*?)\n?[ \t]*(?:</parameter>|(?=<parameter=)|(?=</function>)|\Z)", re.DOTALL
)
_FENCE = re.compile(r"```(?:json|tool_code|tool_call|python)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NAMES = ("name", "tool", "tool_name", "function", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "action_input", "kwargs")


def calls_in(text: str, request: ModelRequest) -> tuple[CallWanted, ...]:
    """Return the calls that a text holds, in order; ids count from the number of turns before it."""
    offered = {tool.name: tool.parameters for tool in request.tools}
    if not offered or len(text) > _TEXT_MAX_CHARS:
        return ()
    turn = sum(message.role == "assistant" for message in request.messages)
    found: list[CallWanted] = []
    for name, arguments in _found(text, offered):
        if len(found) == _CALLS_MAX:
            break
        found.append(CallWanted(id=f"text_{turn}_{len(found)}", name=name, arguments=arguments))
    return tuple(found)


def _found(text: str, offered: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield names and arguments in the first form that holds any call of a tool that is offered."""
    for form in (_hermes, _qwen, _json, _pythonic):
        calls = [(name, arguments) for name, arguments in form(text, offered) if name in offered]
        if calls:
            yield from calls
            return


def _hermes(text: str, offered: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for match in _HERMES.finditer(text):
        inner = match.group(1)
        if "<function=" in inner:
            yield from _qwen(inner, offered)
            continue
        for found in _objects(inner):
            yield from _of_object(found)


def _qwen(text: str, offered: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for match in _QWEN.finditer(text):
        name = match.group(1).strip("\"'")
        types = _types_of(offered.get(name, ""))
        body = match.group(2)
        pairs = _QWEN_ARGUMENT.findall(body)
        if not pairs and "{" in body:
            for found in _objects(body):
                yield name, json.dumps(found)
                break
            continue
        arguments = {key.strip("\"'"): _typed(value, types.get(key.strip("\"'"), "")) for key, value in pairs}
        yield name, json.dumps(arguments)


def _json(text: str, _offered: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    fenced = [match.group(1) for match in _FENCE.finditer(text)]
    for part in fenced or [text]:
        for found in _objects(part):
            yield from _of_object(found)


def _pythonic(text: str, _offered: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    fenced = [match.group(1) for match in _FENCE.finditer(text)]
    for part in fenced or [text.strip()]:
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            tree = ast.parse(part.strip(), mode="eval").body
            for node in tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]:
                if not isinstance(node, ast.Call) or node.args or any(each.arg is None for each in node.keywords):
                    continue
                arguments = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
                yield ast.unparse(node.func), json.dumps(arguments)


def _objects(text: str) -> Iterator[dict[str, object]]:
    """Yield every JSON object of a text, those in lists too; what is no JSON between them is passed over."""
    decoder, at = json.JSONDecoder(), 0
    misses = 0
    while misses < 64 and (start := text.find("{", at)) >= 0:
        try:
            found, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = start + 1
            misses += 1
            continue
        if isinstance(found, dict):
            yield found


def _of_object(found: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Read name and arguments of an object under any of the keys that models use."""
    calls = found.get("tool_calls")
    if isinstance(calls, list):
        for each in calls:
            if isinstance(each, dict):
                yield from _of_object(each)
        return
    inner = found.get("function")
    if isinstance(inner, dict):
        yield from _of_object(inner)
        return
    name = next((found[key] for key in _NAMES if isinstance(found.get(key), str)), None)
    if name is None:
        return
    arguments = next((found[key] for key in _ARGUMENTS if key in found), {})
    yield str(name), arguments if isinstance(arguments, str) else json.dumps(arguments)


def _types_of(schema: str) -> dict[str, str]:
    with suppress(ValueError, AttributeError):
        properties = json.loads(schema).get("properties", {})
        return {key: str(value.get("type", "")) for key, value in properties.items() if isinstance(value, dict)}
    return {}


def _typed(text: str, kind: str) -> object:
    """Read an argument that was written as text: as what the schema wants, and as text where that cannot be."""
    if kind in {"", "string"}:
        return text
    with suppress(ValueError, RecursionError):
        return json.loads(text.strip())
    return {"true": True, "false": False}.get(text.strip().lower(), text)
