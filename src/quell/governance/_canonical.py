"""Strict JSON: one text for one value, and a reader that no text can surprise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeAlias

from quell.domain import RefusedError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

INTEGER_MAX = 2**53
"""Beyond it a JSON number does not survive readers that use doubles, and Cedar's arithmetic could overflow."""
DEPTH_MAX = 32
SIZE_MAX_BYTES = 1 << 20
VALUES_MAX = 20_000
KEY_MAX_CHARS = 1_024


def canonical(
    value: object, *, depth_max: int = DEPTH_MAX, size_max_bytes: int = SIZE_MAX_BYTES, values_max: int = VALUES_MAX
) -> str:
    """Write a value as the one JSON text that stands for it: sorted keys, no spaces, texts as they came.

    Raises RefusedError for what strict JSON cannot carry: numbers that are not finite, integers beyond 2^53,
    keys that are no texts, lone surrogates, other types, too deep, too many, too large.
    """
    plain, _ = _plain(value, "", depth_max, values_max)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise RefusedError(
            "a text holds half of a surrogate pair", hint="send texts that are valid Unicode; escape no halves"
        ) from None
    if size_bytes > size_max_bytes:
        raise _too_large(size_bytes, size_max_bytes)
    return text


def parse(text: str | bytes, *, depth_max: int = DEPTH_MAX, size_max_bytes: int = SIZE_MAX_BYTES) -> Json:
    """Read JSON strictly: the size is judged before reading; a key that comes twice, NaN and huge numbers are refused.

    The depth and the rest of what `canonical` judges is left to it, except nesting that no reader survives.
    Raises RefusedError.
    """
    if len(text) > size_max_bytes:
        raise _too_large(len(text), size_max_bytes)
    try:
        value: Json = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except RecursionError:
        raise _too_deep("", depth_max) from None
    except UnicodeDecodeError:
        raise RefusedError("the JSON is not UTF-8", hint="send UTF-8") from None
    except json.JSONDecodeError as error:
        raise RefusedError(
            f"this is not JSON: {error.msg} at character {error.pos}", hint="send one JSON object"
        ) from None
    return value


def _too_large(size_bytes: int, size_max_bytes: int) -> RefusedError:
    return RefusedError(
        f"the JSON has {size_bytes:,} bytes; at most {size_max_bytes:,} are read",
        hint="send less; pass a handle of a stored result instead of its content",
    )


def _too_deep(path: str, depth_max: int) -> RefusedError:
    where = f" at {_shown(path)}" if path else ""
    return RefusedError(f"the JSON is nested deeper than {depth_max} levels{where}", hint="send a flatter value")


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None: the idiom
        raise RefusedError(f"the key {_shown(twice)} comes twice in one object", hint="send each key once")
    return found


def _constant(name: str) -> Json:
    raise RefusedError(f"{name} is no JSON number", hint="send a finite number, or null where that is allowed")


def _integer(digits: str) -> Json:
    # Seventeen characters hold every allowed integer; longer ones are not even turned into a number.
    if len(digits) > 17 or abs(int(digits)) > INTEGER_MAX:
        raise _beyond(digits)
    return int(digits)


def _beyond(digits: str) -> RefusedError:
    return RefusedError(
        f"the integer {_shown(digits)} is beyond plus or minus 2^53", hint="send it as text, or in a larger unit"
    )


def _float(digits: str) -> Json:
    number = float(digits)
    if number in {float("inf"), float("-inf")}:
        raise RefusedError(f"the number {_shown(digits)} is too large", hint="send a finite number")
    return number


def _shown(text: str) -> str:
    """Quote a text of a stranger in a message: escaped and cut."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _plain(value: object, path: str, depth: int, left: int) -> tuple[Json, int]:
    """Copy a value as strict JSON, and say how many values may still come."""
    left -= 1
    if left < 0:
        raise RefusedError("the JSON holds too many values", hint="send less; pass a handle of a stored result instead")
    if value is None or isinstance(value, bool | str):
        return value, left
    if isinstance(value, int | float):
        return _number(value, path), left
    if depth == 0:
        raise _too_deep(path, path.count("/"))
    if isinstance(value, dict):
        return _each_key(value, path, depth, left)
    if isinstance(value, list | tuple):
        return _each_item(value, path, depth, left)
    raise RefusedError(f"{type(value).__name__} at {_shown(path)} is no JSON", hint="send JSON values only")


def _number(value: float, path: str) -> Json:
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise _beyond(f"at {path or 'the top'}")
        return int(value)
    if value != value or value in {float("inf"), float("-inf")}:  # noqa: PLR0124  # NaN is the one that differs from itself
        raise RefusedError(f"the number at {_shown(path)} is not finite", hint="send a finite number")
    return float(value)


def _each_key(value: dict[object, object], path: str, depth: int, left: int) -> tuple[Json, int]:
    copied: dict[str, Json] = {}
    for key, part in value.items():
        if not isinstance(key, str):
            raise RefusedError(
                f"the key {key!r:.60} at {_shown(path)} is no text", hint="keys of JSON objects are texts"
            )
        if len(key) > KEY_MAX_CHARS:
            raise RefusedError(f"the key {_shown(key)} is longer than {KEY_MAX_CHARS} characters", hint="shorten it")
        copied[key], left = _plain(part, f"{path}/{key}", depth - 1, left)
    return copied, left


def _each_item(value: Sequence[object], path: str, depth: int, left: int) -> tuple[Json, int]:
    copied: list[Json] = []
    for index, part in enumerate(value):
        plain, left = _plain(part, f"{path}/{index}", depth - 1, left)
        copied.append(plain)
    return copied, left
