"""Check a whole tree of settings at once: unknown keys, types, ranges, and what the types cannot say."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping

from quell.config._keys import Key, keys, pattern_of, tables
from quell.config._rules import Where, rules
from quell.config._settings import Settings
from quell.config._tables import read_tables
from quell.config._template import Missing, Toml
from quell.domain import Problem

_TYPE_REASONS: Mapping[str, str] = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path, as text",
    "tuple_type": "must be a list",
    "dataclass_type": "must be a table",
    "dataclass_exact_type": "must be a table",
}
_PLAIN_VALUE = re.compile(r"[+-]?\d[\d_]*(\.\d+)?([eE][+-]?\d+)?|true|false")


def check_tree(tree: Mapping[str, Toml], *, where: Where, is_whole: bool) -> tuple[Settings | None, list[Problem]]:
    """Return the settings, or every mistake. `is_whole` is false when syntax errors hid a part of the tree."""
    known, holes = _without_missing(tree)
    settings, mistakes = read_tables(Settings, known)
    problems: list[Problem] = []
    for each in mistakes:
        if each.kind == "missing" and (not is_whole or each.path in holes):
            continue
        problems.append(_problem_of(each.kind, each.message, each.path, tree=known, source=where(each.path)))
    problems.extend(rules(known, where=where))
    return settings, problems


def _problem_of(kind: str, message: str, path: str, *, tree: Mapping[str, Toml], source: str) -> Problem:
    found = keys().get(pattern_of(path))
    if kind == "unexpected_keyword_argument":
        return Problem(path=path, reason="unknown key", hint=did_you_mean(path), source=source)
    if kind == "missing":
        name = path.rpartition(".")[2]
        return Problem(path=path, reason="required and not there", hint=f"add `{name} = …`", source=source)
    value = _at(tree, path)
    if kind == "literal_error" and found is not None:
        near = difflib.get_close_matches(str(value), found.choices, n=1)
        hint = f'did you mean "{near[0]}"?' if near and isinstance(value, str) else ""
        return Problem(path=path, reason=f"must be {found.type_name}", hint=hint, source=source)
    reason = _TYPE_REASONS.get(kind, message[:1].lower() + message[1:])
    hint = "" if source == "flag" or source.startswith("env ") else _type_hint(found, value)
    told = reason if kind == "finite_number" else f"{reason}, not {_kind_of(value)}"
    return Problem(path=path, reason=told, hint=hint, source=source)


def _type_hint(key: Key | None, value: Toml) -> str:
    if key is None:
        return ""
    name = key.path.rpartition(".")[2]
    if isinstance(value, str) and key.type_name in {"whole number", "number", "true or false"}:
        # A variable that holds something else gets here too, and stands without quotes already.
        is_quoted = bool(_PLAIN_VALUE.fullmatch(value.strip()))
        return f"write it without quotes: {name} = …" if is_quoted else f"such as {name} = {json.dumps(key.default)}"
    if key.type_name in {"text", "path", "secret"} and isinstance(value, int | float):
        return f'write it in quotes: {name} = "…"'
    if key.type_name == "list of text" and isinstance(value, str):
        return f'write it in brackets: {name} = ["…"]'
    if key.type_name == "whole number" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return ""


def did_you_mean(path: str) -> str:
    """Suggest the key that `path` was probably meant to be; empty when nothing is near."""
    plain = pattern_of(path)
    table, _, name = plain.rpartition(".")
    siblings = [key.path.rpartition(".")[2] for each in tables() if each.path == table for key in each.keys]
    if not table:
        siblings += [each.path for each in tables() if each.path]
    if near := difflib.get_close_matches(name, siblings, n=1, cutoff=0.6):
        return f"did you mean `{table + '.' if table else ''}{near[0]}`?"
    elsewhere = [key for key in keys() if key.rpartition(".")[2] == name and name]
    if elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    near = difflib.get_close_matches(plain, list(keys()), n=1, cutoff=0.7)
    return f"did you mean `{near[0]}`?" if near else ""


def _without_missing(tree: Mapping[str, Toml]) -> tuple[dict[str, Toml], set[str]]:
    """Take out what a variable that is not set left open; that was reported already."""
    holes: set[str] = set()

    def kept(value: Toml, path: str) -> Toml:
        if isinstance(value, dict):
            pairs = {key: kept(item, f"{path}.{key}" if path else key) for key, item in value.items()}
            return {key: item for key, item in pairs.items() if not isinstance(item, Missing)}
        if isinstance(value, list):
            items = [kept(item, f"{path}.{index}") for index, item in enumerate(value)]
            return [item for item in items if not isinstance(item, Missing)]
        if isinstance(value, Missing):
            holes.add(path)
        return value

    known = kept(dict(tree), "")
    assert isinstance(known, dict)
    return known, holes


def _at(tree: Toml, path: str) -> Toml:
    for part in path.split("."):
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return None
    return tree


def _kind_of(value: Toml) -> str:
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (str, "text"),
        (int, "a whole number"),
        (float, "a number"),
        (dict, "a table"),
        (list, "a list"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "a date or time")
