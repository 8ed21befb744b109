"""Judge answers by the output schema that their server wrote: in bounded work, whatever the schema and the answer.

Both come from the server, and a library that backtracks, compares each with each and follows every reference would let
the two of them hold the process for hours. Governance judges arguments by a stricter rule: it closes schemas, which an
answer that says more than was promised would not survive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

from jsonschema import Draft202012Validator, validators
from jsonschema import ValidationError as Mistake
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator
from referencing import Registry
from referencing.exceptions import Unresolvable

SCHEMA_MAX_CHARS = 200_000
STEPS_MIN = 100_000
"""Keywords evaluated and items looked at for one answer; a large answer is worth more work than a small one."""
_STEP_BYTES = 4
_TEXT_MAX_CHARS = 100_000
"""A text longer than that is not matched by a pattern."""
_TEXT_STEP_CHARS = 100

Json: TypeAlias = Any
_Rule: TypeAlias = Callable[[Any, Json, Json, Json], Iterator[Mistake]]
_left: ContextVar[list[int]] = ContextVar("left")


class _TooMuchError(Exception):
    """The schema asks for more work than an answer is worth, or for what is not done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """What a tool says of its structured output."""

    text: str
    """Canonical JSON. It is compiled when it is first needed: most tools of a server are never called."""

    def doubt(self, value: Json, *, size_bytes: int) -> str:
        """Return why a value of that size does not fit, or cannot be judged; empty when it fits. Blocks meanwhile."""
        validator = _compiled(self.text)
        if validator is None:
            return "the tool promises output of a schema that is none, or that is not judged here"
        token = _left.set([STEPS_MIN + size_bytes // _STEP_BYTES])
        try:
            mistake = next(iter(validator.iter_errors(value)), None)
        except _TooMuchError as failure:
            return f"its output schema cannot be used: {failure}"
        except (Unresolvable, RecursionError) as failure:
            return f"its output schema cannot be used: {type(failure).__name__}"
        finally:
            _left.reset(token)
        if mistake is None:
            return ""
        where = "/".join(str(step) for step in mistake.absolute_path)
        return f"the output does not fit its schema at /{where}: {mistake.validator}"


@lru_cache(maxsize=512)
def _compiled(text: str) -> Validator | None:
    """Compile a schema; None for one that is none. It never fetches what it refers to."""
    schema = json.loads(text) if len(text) <= SCHEMA_MAX_CHARS else None
    if not isinstance(schema, dict):
        return None
    if '"unevaluatedProperties":' in text and '"patternProperties":' in text:
        return None  # the library looks for what was evaluated with an engine that backtracks
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except (SchemaError, RecursionError):
        return None
    return _bounded(kind)(schema, registry=Registry())


@lru_cache(maxsize=16)
def _bounded(kind: type[Validator]) -> type[Validator]:
    """Rebuild a draft's validator so that every keyword is counted and none is worse than linear."""
    rules = {name: _metered(cast("_Rule", rule)) for name, rule in kind.VALIDATORS.items()}
    own: dict[str, _Rule] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    rules |= {name: _metered(rule) for name, rule in own.items() if name in rules}
    return cast("type[Validator]", validators.extend(kind, validators=rules))  # type: ignore[no-untyped-call]  # as its stubs


def _metered(rule: _Rule) -> _Rule:
    def judge(validator: object, value: Json, instance: Json, schema: Json) -> Iterator[Mistake]:
        _spend(1 + _size(instance) + (_size(value) if isinstance(value, list) else 0))
        yield from rule(validator, value, instance, schema) or ()

    return judge


def _size(value: Json) -> int:
    return len(cast("Sized", value)) if isinstance(value, list | dict) else 0


def _spend(steps: int) -> None:
    left = _left.get()
    left[0] -= steps
    if left[0] < 0:
        raise _TooMuchError("it costs more work than an answer is worth")


@lru_cache(maxsize=1_024)
def _linear(pattern: str) -> SchemaValidator:
    # The engine behind pydantic runs in time linear in the text, whatever the pattern.
    try:
        return SchemaValidator({"type": "str", "pattern": pattern, "regex_engine": "rust-regex"})
    except PatternError:
        raise _TooMuchError(f"the pattern {ascii(pattern)[:80]} cannot be matched in linear time") from None


def _matches(pattern: str, text: str) -> bool:
    _spend(1 + len(text) // _TEXT_STEP_CHARS)
    if len(text) > _TEXT_MAX_CHARS:
        raise _TooMuchError(f"a text of {len(text):,} characters is not matched by a pattern")
    return _linear(pattern).isinstance_python(text)


def _pattern(_validator: object, value: Json, instance: Json, _schema: Json) -> Iterator[Mistake]:
    if isinstance(instance, str) and not _matches(value, instance):
        yield Mistake("pattern")


def _pattern_properties(validator: Any, value: Json, instance: Json, _schema: Json) -> Iterator[Mistake]:
    if isinstance(instance, dict):
        for pattern, schema in value.items():
            for name in instance:
                if _matches(pattern, name):
                    yield from validator.descend(instance[name], schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, value: Json, instance: Json, schema: Json) -> Iterator[Mistake]:
    if not isinstance(instance, dict):
        return
    named: Mapping[str, Json] = schema.get("properties", {})
    patterns: Mapping[str, Json] = schema.get("patternProperties", {})
    for name in instance:
        if name not in named and not any(_matches(pattern, name) for pattern in patterns):
            yield from validator.descend(instance[name], value, path=name)


def _unique_items(_validator: object, value: Json, instance: Json, _schema: Json) -> Iterator[Mistake]:
    # By text: the library compares each with each when items cannot be sorted.
    if value and isinstance(instance, list):
        told = {json.dumps(item, sort_keys=True) for item in instance}
        if len(told) < len(instance):
            yield Mistake("uniqueItems")
