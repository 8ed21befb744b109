"""The `.env` beside the configuration: variables that the environment itself does not set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

NAME = Path(".env")
_BYTES_MAX = 1_000_000
_LINE = re.compile(
    r"""^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|([^#]*?))\s*(?:\#.*)?$"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def read_dotenv(directory: Path) -> Mapping[str, str]:
    """Return what the `.env` of a directory sets; nothing where there is none. Raises ConfigError for one that is none."""
    from quell.domain import ConfigError, Problem

    path = directory / NAME
    try:
        raw = path.read_bytes()[:_BYTES_MAX]
        lines = raw.decode("utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="save it as UTF-8, readable by you") from error
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (match := _LINE.match(line)) is None:
            # What stands there is not repeated: it is probably a key.
            problems.append(Problem(path="", reason="is no NAME=value", hint="", source=f"{path}:{number}"))
            continue
        name, single, double, bare = match.groups()
        found[name] = single if single is not None else bare if double is None else _unescaped(double)
    if problems:
        raise ConfigError(f"{path} has lines that are no settings", hint="write NAME=value", problems=tuple(problems))
    return found


def line_of(name: str, value: str) -> str:
    """Return the line that sets a variable, whatever its value holds."""
    if re.fullmatch(r"[A-Za-z0-9_.:/+@%=-]+", value):
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'


def with_lines(text: str, variables: Mapping[str, str]) -> str:
    """Return the text of a `.env` that sets these variables too, each once; everything else stays as it is."""
    left = {name: f"{line_of(name, value)}\n" for name, value in variables.items()}
    kept = []
    for line in text.splitlines(keepends=True):
        name = _name_of(line)
        # Where it stood; of one that stood twice the first is enough.
        kept.append(left.pop(name, "") if name in variables else line)
    if kept and left and not kept[-1].endswith("\n"):
        kept.append("\n")
    return "".join((*kept, *left.values()))


def _name_of(line: str) -> str:
    return line.strip().removeprefix("export ").partition("=")[0].strip()


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found.group(1), found.group(1)), text)
