"""Every key that exists: its type, default, range and meaning, read from the settings classes themselves."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Literal

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
    "server.chats_max": Range(low=1, high=100_000),
    "server.chats_per_minute": Range(low=0, high=1_000_000),
    "server.aura.tool_result_max_length": Range(low=0, high=100_000_000),
    "server.aura.first_chunk_timeout_s": Range(low=0, high=86_400),
    "server.aura.streaming_timeout_s": Range(low=0, high=86_400),
    "server.aura.stream_inactivity_timeout_s": Range(low=0, high=86_400),
    "server.aura.heartbeat_s": _above(0, to=600),
    "server.aura.shutdown_timeout_s": Range(low=0, high=3_600),
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
    "governance.services": Range(low=0, high=1_000_000),
    "governance.approval_minutes": _above(0, to=10_080),
    "governance.body_retention_days": _above(0, to=3_650),
    "approvals.tolerance_s": Range(low=1, high=86_400),
    "approvals.timeout_s": _above(0, to=3_600),
    "identity.oidc.skew_s": Range(low=0, high=600),
    "budgets.run_usd": Range(low=0, high=1_000_000),
    "budgets.run_tokens": Range(low=0, high=1_000_000_000),
    "budgets.run_calls": Range(low=0, high=1_000_000),
    "budgets.run_minutes": Range(low=0, high=100_000),
    "budgets.run_bytes": Range(low=0, high=1_000_000_000_000),
    "budgets.run_units": Range(low=0, high=1_000_000),
    "budgets.day_usd": Range(low=0, high=10_000_000),
    "cap.limit": Range(low=0, high=1_000_000_000_000),
    "budgets.day_calls": Range(low=0, high=1_000_000_000),
    "mcp.servers.*.connect_timeout_s": _above(0, to=600),
    "mcp.servers.*.call_timeout_s": _above(0, to=3_600),
    "tool.timeout_s": _above(0, to=3_600),
    "telemetry.log_file_max_mb": Range(low=0.01, high=10_240),
    "telemetry.content_max_chars": Range(low=1, high=65_536),
}
"""One row for every number that can be configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a `quell.toml`."""

    path: str
    """Such as `server.port`; without a number for keys of a list of tables, with `*` for the name of a named table."""
    owner: str
    """Class that has it as a field."""
    type_name: str
    """For people: `text`, `whole number`, `number`, `true or false`, `one of a, b`, `secret`, `path`, `list of text`,
    `table of text`, `table of secrets`."""
    default: object
    """The default, or None when the key is required."""
    is_required: bool
    unit: str
    """Empty when there is none."""
    range: Range | None
    choices: tuple[str, ...]
    is_repeated: bool
    """Of a table that may be given many times: it has no value of its own."""
    annotation: object

    @property
    def meaning(self) -> str:
        """What it means, for people; only who asks pays for reading the source."""
        return _docstrings()[self.owner].get(self.path.rpartition(".")[2], "")

    @property
    def variable(self) -> str:
        """Name of the environment variable that sets it; empty for keys of a table that may be given many times."""
        return "" if self.is_repeated else "QUELL_" + self.path.replace(".", "__").upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of a `quell.toml`."""

    path: str
    """With `*` for the name where `kind` is `named`."""
    meaning: str
    kind: Literal["one", "list", "named"]
    keys: tuple[Key, ...]


@cache
def tables() -> tuple[Table, ...]:
    """Return every table with its keys, the top level first, under the path ''."""
    return tuple(_tables_of(Settings, path="", kind="one", is_repeated=False))


@cache
def keys() -> Mapping[str, Key]:
    """Return every key by its path."""
    return {key.path: key for table in tables() for key in table.keys}


def pattern_of(path: str) -> str:
    """Return the path of a value as a key has it: without numbers of lists, with `*` for names of named tables."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    for table in tables():
        above = table.path.split(".")
        if table.kind == "named" and parts[: len(above) - 1] == above[:-1] and len(parts) >= len(above):
            parts[len(above) - 1] = "*"
    pattern = ".".join(parts)
    parent = ".".join(parts[:-1])
    # The entries of a table of text are values of the key that the table is.
    return parent if parent in keys() and pattern not in keys() else pattern


def _tables_of(owner: type, *, path: str, kind: Literal["one", "list", "named"], is_repeated: bool) -> Iterator[Table]:
    prefix = f"{path}." if path else ""
    hints = typing.get_type_hints(owner)
    own: list[Key] = []
    below: list[Table] = []
    for each in fields(owner):
        hint = hints[each.name]
        item, kind_below = _item_of(hint)
        if not is_dataclass(item):
            own.append(_key_of(each, hint, owner=owner, prefix=prefix, is_repeated=is_repeated))
            continue
        path_below = prefix + each.name + (".*" if kind_below == "named" else "")
        repeated_below = is_repeated or kind_below != "one"
        below += _tables_of(item, path=path_below, kind=kind_below, is_repeated=repeated_below)
    yield Table(path=path, meaning=_first(inspect.getdoc(owner)), kind=kind, keys=tuple(own))
    yield from below


def _item_of(hint: object) -> tuple[type, Literal["one", "list", "named"]]:
    """Return what a table holds, and how often; a value's own type where it is no table."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and is_dataclass(inside[0]):
        return typing.cast("type", inside[0]), "list"
    if origin is Mapping and is_dataclass(inside[1]):
        return typing.cast("type", inside[1]), "named"
    return typing.cast("type", hint), "one"


def _key_of(each: Field[object], hint: object, *, owner: type, prefix: str, is_repeated: bool) -> Key:
    path = prefix + each.name
    is_required = each.default is MISSING and each.default_factory is MISSING
    default = each.default if each.default is not MISSING else None
    if each.default_factory is not MISSING:
        default = each.default_factory()
    choices = tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()
    return Key(
        path=path,
        owner=owner.__name__,
        type_name=_type_name(hint, choices),
        default=default,
        is_required=is_required,
        unit=next((unit for suffix, unit in _UNITS if each.name.endswith(suffix) and path in RANGES), ""),
        range=RANGES.get(path),
        choices=choices,
        is_repeated=is_repeated,
        annotation=hint,
    )


def _type_name(hint: object, choices: tuple[str, ...]) -> str:
    if choices:
        return "one of " + ", ".join(choices)
    if typing.get_origin(hint) is tuple:
        return "list of text"
    if typing.get_origin(hint) is Mapping:
        return "table of secrets" if typing.get_args(hint)[1] is Secret else "table of text"
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
