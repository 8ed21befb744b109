"""A form that a tool server wants filled in by people: read narrowly, filled in strictly, whole or not at all.

The form is the server's: nothing of it but flat fields is taken over, and its words are shown as what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from quell.domain import Ask, AskedCall, RefusedError, UsageError
from quell.governance._canonical import canonical

_KINDS = frozenset({"string", "number", "integer", "boolean"})
_WORDS = frozenset(
    {
        "type",
        "title",
        "description",
        "default",
        "enum",
        "enumNames",
        "format",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
    }
)
_ANSWERS_MAX_CHARS = 16_000


def form_of(asks: Iterable[Ask]) -> str | None:
    """Return the fields of all questions as one closed schema; empty without fields, None where people cannot answer.

    Fields are texts, numbers, yes or no, and choices among texts (the forms of MCP 2025-06-18).
    """
    fields: dict[str, object] = {}
    wanted: list[str] = []
    for ask in asks:
        schema = json.loads(ask.schema) if ask.schema else {}
        own, needed = schema.get("properties") or {}, schema.get("required") or []
        if not isinstance(own, dict) or not isinstance(needed, list) or not set(needed) <= set(own):
            return None
        plain = {name: field for name, field in own.items() if _is_plain(field)}
        if not set(needed) <= set(plain) or not fields.keys().isdisjoint(plain):
            return None
        fields |= plain
        wanted += needed
    if not fields:
        return ""
    form = canonical({"type": "object", "properties": fields, "required": wanted, "additionalProperties": False})
    # What judges forms is loaded where there is one: who lists requests waits for no judge of schemas.
    from quell.governance._schema import compiled  # noqa: PLC0415

    try:
        compiled(form)
    except RefusedError:
        return None
    return form


def filled(calls: Sequence[AskedCall], answers: Mapping[str, object]) -> str:
    """Return what an approver fills in, canonical; a yes alone says yes to every field of yes or no that is required.

    Raises UsageError when it does not fit the form, or there is none.
    """
    form = next((asked.form for asked in calls if asked.form), "")
    if not form:
        if answers:
            raise UsageError("nothing is to be filled in here", hint="approve or reject it without answers")
        return ""
    schema = json.loads(form)
    fields = schema["properties"]
    yes = {name: True for name in schema["required"] if fields[name].get("type") == "boolean"}
    told = canonical({**yes, **answers})
    if len(told) > _ANSWERS_MAX_CHARS:
        raise UsageError(f"the answers are longer than {_ANSWERS_MAX_CHARS} characters", hint="say less")
    from quell.governance._schema import compiled  # noqa: PLC0415 - as above

    if mistakes := compiled(form).mistakes(json.loads(told)):
        raise UsageError(
            f"the form of the server is not filled in: {'; '.join(mistakes)}",
            hint="answer each field of it (`--answer NAME=VALUE`), or reject it",
        )
    return told


def lines_of(form: str) -> Iterator[str]:
    """Describe each field of a form for people."""
    schema = json.loads(form)
    for name, field in schema["properties"].items():
        need = "required" if name in schema["required"] else "optional"
        about = ", ".join(str(field[word]) for word in ("title", "description") if field.get(word))
        rules = {word: field[word] for word in sorted(field) if word not in {"type", "title", "description", "default"}}
        told = f" {json.dumps(rules, ensure_ascii=False, sort_keys=True)}" if rules else ""
        yield f"{name} ({field['type']}, {need}){told}: {about or '-'}"


def wanted_of(form: str) -> list[str]:
    """Return the fields that a yes alone does not answer."""
    schema = json.loads(form)
    return [name for name in schema["required"] if schema["properties"][name].get("type") != "boolean"]


def _is_plain(field: Any) -> bool:
    return isinstance(field, dict) and field.get("type") in _KINDS and field.keys() <= _WORDS
