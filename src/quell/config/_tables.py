"""Read the tables of a file into their classes, each by itself: what a file does not have costs nothing."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, TypeVar, cast

from quell.config._settings import STRICT
from quell.config._template import Toml

if typing.TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """What is wrong at one place; nothing of the input is repeated, as it may hold a secret."""

    kind: str
    """As pydantic names it."""
    message: str
    path: str


def read_tables(owner: type[T], tree: Mapping[str, Toml]) -> tuple[T | None, list[Mistake]]:
    """Return what a tree says as `owner`, or every mistake in it."""
    # pydantic costs 50 ms of CPU: the settings classes are free of it, and only reading a configuration pays.
    from pydantic import ValidationError  # noqa: PLC0415

    found: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for each in fields(owner):  # type: ignore[arg-type]  # a dataclass, as every class of settings is
        if each.name in tree:
            try:
                found[each.name] = _adapter(cast("type", owner), each.name).validate_json(
                    json.dumps(tree[each.name], default=_as_table)
                )
            except ValidationError as error:
                for told in error.errors(include_url=False, include_input=False, include_context=False):
                    path = ".".join(map(str, (each.name, *told["loc"])))
                    mistakes.append(Mistake(kind=told["type"], message=told["msg"], path=path))
        elif each.default is MISSING and each.default_factory is MISSING:
            mistakes.append(Mistake(kind="missing", message="Field required", path=each.name))
    unknown = "unexpected_keyword_argument", "Unexpected keyword argument"
    mistakes += [
        Mistake(kind=unknown[0], message=unknown[1], path=name)
        for name in tree
        if name not in _hints(cast("type", owner))
    ]
    return (owner(**found) if not mistakes else None), mistakes


@cache
def _adapter(owner: type, name: str) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415 - as above

    hint = _hints(owner)[name]
    # A class of settings says itself how strict it is.
    return TypeAdapter(hint) if hasattr(hint, "__pydantic_config__") else TypeAdapter(hint, config=cast("Any", STRICT))


@cache
def _hints(owner: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(owner)
    return {each.name: hints[each.name] for each in fields(owner)}


def _as_table(value: object) -> dict[str, str]:
    """Stand in for a TOML date: no setting is a date, and a table is refused everywhere with a clear type."""
    return {"date": str(value)}
