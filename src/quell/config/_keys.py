"""Every key that exists: its type, default, range and meaning, read from the settings classes themselves."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path

from quell.config import _settings
from quell.config._settings import Secret, Settings

_UNITS: tuple[tuple[str, str], ...] = (
    ("_s", "seconds"),
    ("_ms", "milliseconds"),
    ("_minutes", "minutes"),
    ("_hours", "hours"),
    ("_days", "days"),
    ("_mb", "MiB"),
    ("_tokens", "tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a key accepts."""

    low: float
    high: float
    is_low_included: bool = True

    def has(self, value: float) -> bool:
        """Tell whether `value` is accepted."""
        return (self.low <= value if self.is_low_included else self.low < value) and value <= self.high

    def __str__(self) -> str:
        """Write it for people."""
        low = "at least" if self.is_low_included else "more than"
        return f"{low} {_plain(self.low)} and at most {_plain(self.high)}"


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _above(low: float, *, to: float) -> Range:
    return Range(low=low, high=to, is_low_included=False)


RANGES: Mapping[str, Range] = {
    "server.port": Range(low=0, high=65_535),
    "server.body_max_mb": _above(0, to=1024),
    "server.request_timeout_s": _above(0, to=600),
    "server.in_flight_max": Range(low=1, high=10_000),
    "store.memory_max_mb": Range(low=256, high=1_048_576),
    "store.threads_max": Range(low=1, high=256),
    "store.query_timeout_s": _above(0, to=600),
    "store.retention_hours": _above(0, to=87_600),
    "store.rollup_retention_days": _above(0, to=3_650),
    "store.disk_max_mb": Range(low=64, high=104_857_600),
    "journal.lease_s": Range(low=1, high=600),
    "journal.retention_days": _above(0, to=3_650),
    "journal.attempts_max": Range(low=1, high=1_000),
    "prometheus.timeout_s": _above(0, to=600),
    "detection.interval_s": Range(low=0.2, high=3_600),
    "detection.window_s": Range(low=1, high=86_400),
    "detection.baseline_minutes": _above(0, to=10_080),
    "detection.warmup_s": Range(low=0, high=86_400),
    "detection.confirm_looks": Range(low=1, high=1_000),
    "detection.clear_s": Range(low=0, high=86_400),
    "investigation.settle_s": Range(low=0, high=3_600),
    "investigation.window_minutes": _above(0, to=10_080),
    "investigation.baseline_minutes": _above(0, to=43_200),
    "investigation.read_timeout_s": _above(0, to=600),
    "investigation.budget_tokens": Range(low=50, high=1_000_000),
    "investigation.deadline_s": Range(low=1, high=86_400),
    "investigation.group_window_s": Range(low=0, high=86_400),
    "telemetry.log_file_max_mb": Range(low=0.01, high=10_240),
}
"""One row for every number that can be configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a `quell.toml`."""

    path: str
    """Such as `server.port`; without a number for keys of a list of tables."""
    meaning: str
    type_name: str
    """For people: `text`, `whole number`, `number`, `true or false`, `one of a, b`, `secret`, `path`, `list of text`."""
    default: object
    """The default, or None when the key is required."""
    is_required: bool
    unit: str
    """Empty when there is none."""
    range: Range | None
    choices: tuple[str, ...]
    is_list: bool
    """Of a list of tables."""
    annotation: object

    @property
    def variable(self) -> str:
        """Name of the environment variable that sets it; empty for keys of a list of tables."""
        return "" if self.is_list else "QUELL_" + self.path.replace(".", "__").upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of a `quell.toml`."""

    path: str
    meaning: str
    is_list: bool
    keys: tuple[Key, ...]


@cache
def tables() -> tuple[Table, ...]:
    """Return every table with its keys, the top level first, under the path ''."""
    top: list[Key] = []
    below: list[Table] = []
    hints = typing.get_type_hints(Settings)
    for each in fields(Settings):
        hint = hints[each.name]
        item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        if isinstance(item, type) and is_dataclass(item):
            is_list = item is not hint
            keys = tuple(_keys_of(item, prefix=each.name + ".", is_list=is_list))
            below.append(Table(path=each.name, meaning=_first(inspect.getdoc(item)), is_list=is_list, keys=keys))
        else:
            top.append(_key_of(each, hint, owner=Settings, prefix="", is_list=False))
    return (Table(path="", meaning=_first(inspect.getdoc(Settings)), is_list=False, keys=tuple(top)), *below)


@cache
def keys() -> Mapping[str, Key]:
    """Return every key by its path."""
    return {key.path: key for table in tables() for key in table.keys}


def _keys_of(owner: type, *, prefix: str, is_list: bool) -> Iterator[Key]:
    hints = typing.get_type_hints(owner)
    for each in fields(owner):
        yield _key_of(each, hints[each.name], owner=owner, prefix=prefix, is_list=is_list)


def _key_of(each: Field[object], hint: object, *, owner: type, prefix: str, is_list: bool) -> Key:
    path = prefix + each.name
    is_required = each.default is MISSING and each.default_factory is MISSING
    default = each.default if each.default is not MISSING else None
    if each.default_factory is not MISSING:
        default = each.default_factory()
    choices = tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()
    return Key(
        path=path,
        meaning=_docstrings()[owner.__name__].get(each.name, ""),
        type_name=_type_name(hint, choices),
        default=default,
        is_required=is_required,
        unit=next((unit for suffix, unit in _UNITS if each.name.endswith(suffix) and path in RANGES), ""),
        range=RANGES.get(path),
        choices=choices,
        is_list=is_list,
        annotation=hint,
    )


def _type_name(hint: object, choices: tuple[str, ...]) -> str:
    if choices:
        return "one of " + ", ".join(choices)
    if typing.get_origin(hint) is tuple:
        return "list of text"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", Secret: "secret"}
    assert isinstance(hint, type), f"no name for the type {hint!r}"
    return names[hint]


@cache
def _docstrings() -> Mapping[str, Mapping[str, str]]:
    """Read the string that stands under each field; it is part of the source file, and wheels carry that."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(_settings)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = dict(_below_fields(node))
    return found


def _below_fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str() as text)):
                    yield field.target.id, inspect.cleandoc(text)


def _first(doc: str | None) -> str:
    return (doc or "").partition("\n")[0]
