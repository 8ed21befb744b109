"""What the client's own tools may do without asking: `.quell/permissions.json`, and AURA's beside it; deny comes first."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from quell.domain import ConfigError

FILES = (Path(".quell/permissions.json"), Path(".aura/permissions.json"))
_RULE = re.compile(r"([A-Za-z]+)(?:\((.*)\))?", re.DOTALL)
_SEPARATORS = re.compile(r"[;&|\n]+|\$\(|`|<\(|>\(")
"""Where one shell command may hold another."""
_META = re.compile(r"[;&|\n`<>]|\$\(")
_BYTES_MAX = 1_000_000
Answer = Literal["allow", "deny", "ask"]


@dataclass(frozen=True, slots=True)
class Rule:
    """`Tool(glob)`: the tool, and what its main argument looks like."""

    tool: str
    glob: str

    def __str__(self) -> str:
        """Write it as it stands in the file."""
        return f"{self.tool}({self.glob})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """The rules of one project."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    directory: Path
    """What paths are taken from."""

    def judge(self, tool: str, argument: str) -> Answer:
        """Say whether a call is allowed, denied, or has to be asked about."""
        is_shell = tool == "Shell"
        forms = list(_commands(argument)) if is_shell else list(self._paths(argument))
        if any(rule.tool == tool and fnmatchcase(form, rule.glob) for rule in self.deny for form in forms):
            return "deny"
        for rule in self.allow:
            if rule.tool != tool:
                continue
            if is_shell and _META.search(argument) and rule.glob != argument:
                continue  # `git *` shall not let `git log; rm -rf /` through
            if fnmatchcase(forms[-1] if not is_shell else argument, rule.glob):
                return "allow"
        return "ask"

    def _paths(self, argument: str) -> Iterator[str]:
        """Yield a path as it was written, whole, and last as it lies below the directory, links and dots resolved."""
        real = Path(os.path.realpath(self.directory / argument))
        yield argument
        yield str(real)
        try:
            yield real.relative_to(os.path.realpath(self.directory)).as_posix()
        except ValueError:
            yield str(real)


def read_permit(directory: Path, *, home: Path | None) -> Permit:
    """Read the rules of a directory, or of the nearest one above that has any. Raises ConfigError for what is none."""
    allow: list[Rule] = []
    deny: list[Rule] = []
    for at in (directory, *directory.parents):
        if at == home and at != directory:
            continue  # what lies there is no project's
        found = [at / each for each in FILES if (at / each).is_file()]
        for path in found:
            rules = _read(path)
            allow += rules["allow"]
            deny += rules["deny"]
        if found:
            break
    return Permit(allow=tuple(allow), deny=tuple(deny), directory=directory)


def add_rule(directory: Path, tool: str, argument: str, *, to: Literal["allow", "deny"]) -> Rule:
    """Write a rule for exactly this argument into `.quell/permissions.json`. Raises ConfigError."""
    path = directory / FILES[0]
    rule = Rule(tool, re.sub(r"([*?\[])", r"[\1]", argument))
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        rules = document.setdefault("permissions", {}).setdefault(to, [])
        if str(rule) not in rules:
            rules.append(str(rule))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = path.with_suffix(".json.new")
        scratch.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.chmod(0o600)
        scratch.replace(path)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be written: {error}", hint="see `.quell/permissions.json`") from error
    return rule


def _read(path: Path) -> Mapping[str, Sequence[Rule]]:
    try:
        document = json.loads(path.read_bytes()[:_BYTES_MAX])
        told = document["permissions"]
        return {key: [_rule(text, path) for text in told.get(key, [])] for key in ("allow", "deny")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = 'write {"permissions": {"allow": ["Read(*)"], "deny": ["Shell(rm *)"]}}'
        raise ConfigError(f"{path} is no list of permissions: {error!r}", hint=hint) from error


def _rule(text: str, path: Path) -> Rule:
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{path}: {text[:80]!r} is no rule", hint="write Tool(glob), such as Shell(git status*)")
    return Rule(match.group(1), match.group(2) if match.group(2) is not None else "*")


def _commands(command: str) -> Iterator[str]:
    """Yield a command whole, and every command that it may hold."""
    yield command
    yield command.strip()
    for each in _SEPARATORS.split(command):
        if text := each.strip().strip("()\"'"):
            yield text
