"""One file of settings: read, parsed, references filled in, with the line of every key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quell.config._template import Missing, Template, Toml, templated
from quell.domain import Problem

_FILE_BYTES_MAX = 1_000_000
_SYNTAX_ERRORS_MAX = 20
_WHERE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_AT_END = re.compile(r" \(at end of document\)$")
_HEADER = re.compile(r"^\s*\[(\[)?\s*([A-Za-z0-9_.\-\s\"']+?)\s*\]\]?\s*(?:#.*)?$")
_ENTRY = re.compile(r"^\s*([A-Za-z0-9_\-\"'.\s]+?)\s*=")


@dataclass(frozen=True, slots=True, kw_only=True)
class TomlFile:
    """What one file says, and what is wrong with it."""

    name: str
    """As the caller wrote it, for messages."""
    tree: dict[str, Toml]
    lines: Mapping[str, int]
    """Line of a key or table, by its path; best effort."""
    problems: tuple[Problem, ...]
    is_whole: bool
    """False when syntax errors hid a part of it: then nothing can be said about what is missing."""

    def source(self, path: str) -> str:
        """Name the place of a key, as precisely as it is known."""
        while path:
            if path in self.lines:
                return f"{self.name}:{self.lines[path]}"
            path = path.rpartition(".")[0]
        return self.name


def read_toml(path: Path, *, env: Mapping[str, str]) -> TomlFile:
    """Read one file; every mistake becomes a Problem."""
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
        if len(raw) > _FILE_BYTES_MAX:
            return _unreadable(name, "the file is larger than 1 MB", "a quell.toml is a few hundred lines")
        return parse_toml(raw.decode("utf-8-sig"), name=name, env=env)
    except FileNotFoundError:
        return _unreadable(
            name, "there is no such file", "--config takes a quell.toml, or a file or a directory of agents"
        )
    except UnicodeDecodeError as error:
        return _unreadable(name, f"not UTF-8 at byte {error.start}", "save the file as UTF-8")
    except OSError as error:
        return _unreadable(name, f"cannot be read: {error.strerror}", "check the path and its permissions")


def parse_toml(text: str, *, name: str, env: Mapping[str, str]) -> TomlFile:
    """Parse a text as `read_toml` does."""
    template = templated(text)
    tree, problems = _parse_all(template.text, name=name)
    problems.extend(
        Problem(
            path="",
            reason=f"{bad.text} is no reference",
            hint="write {{ env.NAME }} or {{ env.NAME | default: 'x' }}; NAME is capitals, digits and _",
            source=f"{name}:{bad.line}",
        )
        for bad in template.malformed
    )
    lines = _lines_of(template.text)
    filled: dict[str, Toml] = {}
    file = TomlFile(name=name, tree=filled, lines=lines, problems=(), is_whole=not problems)
    problems.extend(_marked_keys(tree, template, file, prefix=""))
    for key, value in tree.items():
        if not template.has_mark(key):
            filled[key] = template.fill(value, env)
    if not file.is_whole:
        problems.extend(_unset(template, env, name))
    else:
        problems.extend(_missing(filled, file, prefix=""))
    return TomlFile(name=name, tree=filled, lines=lines, problems=tuple(problems), is_whole=file.is_whole)


def _unreadable(name: str, reason: str, hint: str) -> TomlFile:
    problem = Problem(path="", reason=reason, hint=hint, source=name)
    return TomlFile(name=name, tree={}, lines={}, problems=(problem,), is_whole=False)


def _parse_all(text: str, *, name: str) -> tuple[dict[str, Toml], list[Problem]]:
    """Parse; after a syntax error blank its line and go on, so that one mistake does not hide the others."""
    problems: list[Problem] = []
    lines = text.split("\n")
    for _ in range(_SYNTAX_ERRORS_MAX):
        try:
            return tomllib.loads("\n".join(lines)), problems
        except tomllib.TOMLDecodeError as error:
            message = str(error)
            where = _WHERE.search(message)
            number = int(where.group(1)) if where else len(lines)
            at_end = " (the file ends inside it)" if not message.startswith("Cannot") else ""
            reason = _AT_END.sub(at_end, _WHERE.sub("", message))
            at = f"{name}:{number}" + (f":{where.group(2)}" if where else "")
            is_open = where is None and not message.startswith("Cannot")
            hint = "a quote or bracket is not closed" if is_open else ""
            problems.append(Problem(path="", reason=f"TOML syntax: {reason}", hint=hint, source=at))
            number = min(number, len(lines))
            if not where or not lines[number - 1].strip():
                break
            _blank(lines, number - 1)
        except RecursionError:
            problems.append(Problem(path="", reason="TOML syntax: nested too deeply", hint="", source=name))
            break
    return {}, problems


def _blank(lines: list[str], index: int) -> None:
    """Empty a broken line; below a broken table header empty the table too, or its keys would seem to be others."""
    is_header = lines[index].lstrip().startswith("[")
    lines[index] = ""
    while is_header and index + 1 < len(lines) and not lines[index + 1].lstrip().startswith("["):
        index += 1
        lines[index] = ""


def _marked_keys(tree: Toml, template: Template, file: TomlFile, *, prefix: str) -> list[Problem]:
    found: list[Problem] = []
    if isinstance(tree, dict):
        for key, value in tree.items():
            if template.has_mark(key):
                hint = "write the key out; a reference stands for a value"
                found.append(
                    Problem(
                        path=prefix.rstrip("."), reason="a reference in a key", hint=hint, source=file.source(prefix)
                    )
                )
            found.extend(_marked_keys(value, template, file, prefix=f"{prefix}{key}."))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            found.extend(_marked_keys(value, template, file, prefix=f"{prefix}{index}."))
    return found


def _missing(tree: Toml, file: TomlFile, *, prefix: str) -> list[Problem]:
    if isinstance(tree, Missing):
        path = prefix.rstrip(".")
        return [_not_set(name, path=path, source=file.source(path)) for name in tree.names]
    below: list[tuple[str, Toml]] = []
    if isinstance(tree, dict):
        below = list(tree.items())
    elif isinstance(tree, list):
        below = [(str(index), item) for index, item in enumerate(tree)]
    return [problem for key, value in below for problem in _missing(value, file, prefix=f"{prefix}{key}.")]


def _unset(template: Template, env: Mapping[str, str], name: str) -> list[Problem]:
    """Tell what is not set when the tree is not whole, by line instead of by key."""
    absent = [r for r in template.references if r.default is None and r.name not in env]
    return [_not_set(r.name, path="", source=f"{name}:{r.line}") for r in absent]


def _not_set(variable: str, *, path: str, source: str) -> Problem:
    hint = f"set it, or give a default: {{{{ env.{variable} | default: 'x' }}}}"
    return Problem(path=path, reason=f"the environment variable {variable} is not set", hint=hint, source=source)


def _lines_of(text: str) -> dict[str, int]:
    """Find the line of each key by looking at line starts: good enough for messages, never used to read values."""
    lines: dict[str, int] = {}
    prefix = ""
    counts: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            table = _plain_key(header.group(2))
            if header.group(1):
                counts[table] = counts.get(table, -1) + 1
                table = f"{table}.{counts[table]}"
            lines.setdefault(table, number)
            prefix = table + "."
        elif entry := _ENTRY.match(line):
            lines.setdefault(prefix + _plain_key(entry.group(1)), number)
    return lines


def _plain_key(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))
