"""Say what a key means, what a whole configuration looks like, and which version of it this is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import cast

from quell.config._keys import Key, Table, keys, pattern_of, tables
from quell.config._load import Loaded
from quell.config._settings import Secret, Settings
from quell.domain import UsageError

_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)@")
_URL_KEY = re.compile(
    r"([?&](?:[^\s=&#]{0,64}[_.-])?(?:api)?(?:key|token|secret|sig|signature)=)[^\s&#]+", re.IGNORECASE
)
_VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One key: its value, where that came from, what it means and what else it could be."""

    key: str
    value: object
    """JSON value; a secret shows only whether it is set; None for a key of a list of tables."""
    origin: str
    meaning: str
    type: str
    default: object
    unit: str
    range: str
    variable: str
    """The environment variable that sets it; empty when none does."""


def explain(key: str, *, loaded: Loaded) -> Explanation:
    """Explain one key. Raises UsageError with the nearest keys for one that does not exist."""
    found = keys().get(pattern_of(key))
    values = dict(_values(loaded.settings))
    if found is not None and (key in values or key == found.path):
        return _explained(key, found, values.get(key), loaded)
    # The suggestion of the check is used as it is; it costs pydantic, which is loaded by now.
    from quell.config._check import did_you_mean  # noqa: PLC0415

    inside = [name for name in keys() if name.startswith(f"{key}.")]
    hint = f"its keys: {', '.join(inside)}" if inside else did_you_mean(key)
    raise UsageError(f"there is no key {key}", hint=hint or "`quell config show` lists every key")


def explain_all(loaded: Loaded) -> list[Explanation]:
    """Explain every key that has a value, in the order of the file."""
    values = _values(loaded.settings)
    return [_explained(path, keys()[pattern_of(path)], value, loaded) for path, value in values]


def _explained(path: str, key: Key, value: object, loaded: Loaded) -> Explanation:
    return Explanation(
        key=path,
        value=value,
        origin=loaded.origins.get(path, "default"),
        meaning=key.meaning,
        type=key.type_name,
        default=_shown(key.default) if not key.is_required else "(required)",
        unit=key.unit,
        range=str(key.range) if key.range is not None else "",
        variable=key.variable,
    )


def schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of a `quell.toml`, for editors and for programs."""
    top: dict[str, object] = {}
    for table in tables():
        entries: dict[str, object] = {key.path.rpartition(".")[2]: _schema_of(key) for key in table.keys}
        if not table.path:
            top = {"type": "object", "properties": entries, "additionalProperties": False}
            continue
        required = [key.path.rpartition(".")[2] for key in table.keys if key.is_required]
        one: dict[str, object] = {"type": "object", "properties": entries, "additionalProperties": False}
        one |= {"required": required} if required else {}
        _properties_above(top, table)[table.path.removesuffix(".*").rpartition(".")[2]] = _repeated(one, table)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "quell.toml"} | top


def _properties_above(top: dict[str, object], table: Table) -> dict[str, object]:
    found = top
    for part in table.path.removesuffix(".*").split(".")[:-1]:
        found = cast("dict[str, dict[str, object]]", found["properties"])[part]
    return cast("dict[str, object]", found["properties"])


def _repeated(one: dict[str, object], table: Table) -> dict[str, object]:
    described: dict[str, object] = {"description": table.meaning}
    if table.kind == "list":
        return described | {"type": "array", "items": one}
    return described | ({"type": "object", "additionalProperties": one} if table.kind == "named" else one)


def version_of(settings: Settings) -> str:
    """Name a configuration by its content: 16 hex digits; of a secret only counts whether it is set."""
    text = json.dumps(dict(_values(settings, is_exact=True)), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_VERSION_DIGITS]


def _values(value: object, path: str = "", *, is_exact: bool = False) -> Iterator[tuple[str, object]]:
    """Yield every setting with its path, as JSON values."""
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        for index, item in enumerate(value):
            yield from _values(item, f"{path}.{index}", is_exact=is_exact)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            below = f"{path}.{each.name}" if path else each.name
            if getattr(value, each.name) not in ((), {}) or pattern_of(below) in keys():
                yield from _values(getattr(value, each.name), below, is_exact=is_exact)
    elif isinstance(value, Mapping) and value and any(is_dataclass(item) for item in value.values()):
        for name, item in sorted(value.items()):
            yield from _values(item, f"{path}.{name}", is_exact=is_exact)
    else:
        yield path, (value if is_exact and isinstance(value, str) else _shown(value))


def _shown(value: object) -> object:
    if isinstance(value, Secret):
        return "(set)" if value else "(empty)"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {name: _shown(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    return _URL_KEY.sub(r"\1(hidden)", _URL_PASSWORD.sub(r"\1:(hidden)@", value))


def _schema_of(key: Key) -> Mapping[str, object]:
    types: Mapping[str, Mapping[str, object]] = {
        "whole number": {"type": "integer"},
        "number": {"type": "number"},
        "true or false": {"type": "boolean"},
        "text": {"type": "string"},
        "path": {"type": "string"},
        "secret": {"type": "string", "format": "password", "writeOnly": True},
        "list of text": {"type": "array", "items": {"type": "string"}},
        "table of text": {"type": "object", "additionalProperties": {"type": "string"}},
        "table of secrets": {"type": "object", "additionalProperties": {"type": "string", "writeOnly": True}},
    }
    entry: dict[str, object] = {"description": key.meaning}
    entry |= {"type": "string", "enum": list(key.choices)} if key.choices else types[key.type_name]
    if key.range is not None:
        entry["minimum" if key.range.is_low_included else "exclusiveMinimum"] = key.range.low
        entry["maximum"] = key.range.high
    if not key.is_required and key.type_name != "secret":
        entry["default"] = _shown(key.default)
    return entry
