"""Judge arguments by a tool's JSON Schema, closed where it leaves doors open, within bounds that no schema can break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import cast

from jsonschema import Draft202012Validator, FormatChecker, validators
from jsonschema import SchemaError as InvalidSchemaError
from jsonschema import ValidationError as Mistake
from pydantic_core import SchemaValidator
from referencing import Registry
from referencing.exceptions import Unresolvable

from quell.domain import BoundExceededError, RefusedError
from quell.governance._canonical import Json, canonical, parse
from quell.governance._schema_close import SCHEMA_DEPTH_MAX, close, linear_pattern
from quell.governance._schema_words import words_of

_STEPS_MAX = 100_000
"""Keywords evaluated for one value: a schema that doubles its work at every level stops here."""
_MISTAKES_MAX = 20
_left: ContextVar[list[int]] = ContextVar("left")

_Rule = Callable[[object, object, object, object], Iterator[Mistake]]


def _metered(rule: _Rule) -> _Rule:
    """Wrap a keyword so that each evaluation of it costs a step, and one more for each item. Raises BoundExceededError when none is left."""

    def judge(validator: object, value: object, instance: object, schema: object) -> Iterator[Mistake]:
        left = _left.get()
        left[0] -= 1 + (len(instance) if isinstance(instance, list) else 0)
        if left[0] < 0:
            raise BoundExceededError("the evaluation of a tool's schema", limit=_STEPS_MAX, hint="simplify the schema")
        yield from rule(validator, value, instance, schema) or ()

    return judge


@lru_cache(maxsize=2_048)
def _pattern(text: str) -> SchemaValidator:
    # The engine behind pydantic runs in time linear in the text, whatever the pattern.
    return SchemaValidator({"type": "str", "pattern": linear_pattern(text), "regex_engine": "rust-regex"})


def _match(_validator: object, value: object, instance: object, _schema: object) -> Iterator[Mistake]:
    if isinstance(instance, str) and not _pattern(str(value)).isinstance_python(instance):
        yield Mistake("pattern")


def _unique(_validator: object, value: object, instance: object, _schema: object) -> Iterator[Mistake]:
    # By canonical text: the library compares each with each when items cannot be sorted.
    if value and isinstance(instance, list) and len({canonical(item) for item in instance}) < len(instance):
        yield Mistake("uniqueItems")


def _is_integer(_checker: object, instance: object) -> bool:
    return isinstance(instance, int) and not isinstance(instance, bool)


_REMEMBERED_MAX, _REMEMBERED_MAX_CHARS = 256, 4_096
_METERED: tuple[str, ...] = (
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "properties",
    "items",
    "prefixItems",
    "contains",
)
_METERED += (
    "additionalProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
    "dependentSchemas",
    "patternProperties",
)
_Strict = validators.extend(  # type: ignore[no-untyped-call]  # the stubs leave it untyped
    Draft202012Validator,
    validators={
        **{name: _metered(cast("_Rule", Draft202012Validator.VALIDATORS[name])) for name in _METERED},
        "pattern": _match,
        "uniqueItems": _unique,
    },
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
    format_checker=FormatChecker(formats=()),
)


class ArgumentSchema:
    """One compiled schema: closed, local, bounded."""

    __slots__ = ("_fitted", "_validator", "closed")

    def __init__(self, text: str) -> None:
        """Compile a JSON Schema text. Raises RefusedError when it is none, or more than is judged here."""
        raw = parse(text, depth_max=SCHEMA_DEPTH_MAX)
        canonical(raw, depth_max=SCHEMA_DEPTH_MAX, values_max=200_000)
        if not isinstance(raw, dict):
            raise RefusedError("the schema of the arguments is no object", hint="give a JSON Schema of type object")
        self.closed = close(raw)
        """The schema with every door closed that it does not open itself."""
        try:
            Draft202012Validator.check_schema(self.closed)
        except (InvalidSchemaError, RecursionError) as error:
            why = error.message if isinstance(error, InvalidSchemaError) else "it nests without end"
            raise RefusedError(f"the schema of the arguments is invalid: {why[:200]}", hint="fix the schema") from None
        self._validator = _Strict(self.closed, registry=Registry())
        self._fitted: set[str] = set()

    def fits(self, text: str, value: Json) -> bool:
        """Tell whether arguments fit; what fitted a moment ago, letter by letter, is not judged again.

        A call is decided several times on its way. Only what fits is remembered. Raises as `mistakes` does.
        """
        if text in self._fitted:
            return True
        if self.mistakes(value):
            return False
        if len(text) <= _REMEMBERED_MAX_CHARS:
            if len(self._fitted) >= _REMEMBERED_MAX:
                self._fitted.clear()
            self._fitted.add(text)
        return True

    def mistakes(self, value: Json) -> tuple[str, ...]:
        """Say in plain words all that is wrong with the arguments (the first twenty, and that there are more).

        Raises RefusedError when judging them takes more work than a schema may cost.
        """
        token = _left.set([_STEPS_MAX])
        try:
            found = list(islice(self._validator.iter_errors(value), _MISTAKES_MAX + 1))
        except (RecursionError, BoundExceededError):
            raise RefusedError(
                "the schema of the tool costs more work than any value is worth", hint="simplify the schema of the tool"
            ) from None
        except Unresolvable as error:
            raise RefusedError(
                f"the schema of the tool refers to {ascii(error.ref)[:80]}, which it does not hold",
                hint="fix the schema of the tool",
            ) from None
        finally:
            _left.reset(token)
        # The library tells of each missing argument by itself, and our words name them all.
        told = dict.fromkeys(words_of(mistake) for mistake in found[:_MISTAKES_MAX])
        return (*told, "and more") if len(found) > _MISTAKES_MAX else tuple(told)


@lru_cache(maxsize=4_096)
def compiled(text: str) -> ArgumentSchema:
    """Compile a schema once; a pin names one text, so that this is once per pin. Raises RefusedError."""
    return ArgumentSchema(text)
