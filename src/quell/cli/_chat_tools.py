"""The tools that `quell chat` carries out itself, on the machine and with the rights of whoever sits there."""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias

from quell.cli._chat_permit import Permit, add_rule
from quell.cli._chat_process import run_program
from quell.domain import CallWanted, QuellError, ToolSpec

_RESULT_CHARS_MAX = 50_000
_FILE_BYTES_MAX = 5_000_000
_ENTRIES_MAX = 1_000
_MATCHES_MAX = 300
_PATTERN_CHARS_MAX, _SEARCH_S = 512, 20.0
_SHELL_S, _SHELL_MAX_S = 120.0, 600.0
_LEFT_OUT = frozenset({".git", "node_modules", ".venv", "__pycache__"})

Arguments: TypeAlias = Mapping[str, object]
Question: TypeAlias = Callable[[str, str], Awaitable[Literal["yes", "no", "always", "never"]]]
"""Shows a person the tool with the whole of what it would do, and returns the answer."""


class ToolFailedError(Exception):
    """A tool could not do what it was called for; the model is told why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Local:
    """One tool: what the model is told, which argument rules look at, and what does it."""

    spec: ToolSpec
    main: str
    work: Callable[[Arguments, Permit], Awaitable[str]]
    preview: Callable[[Arguments, Path], str]


class ClientTools:
    """Judges a call by the rules, asks the person where none decides, and does it."""

    def __init__(self, permit: Permit, *, ask: Question) -> None:
        self._permit = permit
        self._ask = ask

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """Return the tools as a model is told of them."""
        return tuple(each.spec for each in _TOOLS.values())

    async def carry_out(self, call: CallWanted) -> str:
        """Do what a model wants done, or say why not."""
        tool = _TOOLS.get(call.name)
        if tool is None:
            return f"error: there is no tool {call.name!r} here"
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError as error:
            return f"error: the arguments are no JSON: {error}"
        if not isinstance(arguments, dict):
            return "error: the arguments must be an object"
        try:
            main = _text(arguments, tool.main, default="." if tool.main == "path" else None)
            if not await self._may(tool, main, arguments):
                return "denied: the person who sits there does not allow this"
            done = await tool.work(arguments, self._permit)
        except (ToolFailedError, OSError, TimeoutError, QuellError) as error:
            return f"error: {error or type(error).__name__}"
        if len(done) > _RESULT_CHARS_MAX:
            done = f"{done[:_RESULT_CHARS_MAX]}\n[cut: {len(done)} characters in all]"
        return done or "(nothing)"

    async def _may(self, tool: _Local, main: str, arguments: Arguments) -> bool:
        judged = self._permit.judge(tool.spec.name, main)
        if judged != "ask":
            return judged == "allow"
        answer = await self._ask(tool.spec.name, tool.preview(arguments, self._permit.directory))
        if answer in {"always", "never"}:
            to: Literal["allow", "deny"] = "allow" if answer == "always" else "deny"
            rule = add_rule(self._permit.directory, tool.spec.name, main, to=to)
            kept = {to: (*getattr(self._permit, to), rule)}
            self._permit = Permit(
                allow=kept.get("allow", self._permit.allow),
                deny=kept.get("deny", self._permit.deny),
                directory=self._permit.directory,
            )
        return answer in {"yes", "always"}


async def _shell(arguments: Arguments, permit: Permit) -> str:
    wanted = arguments.get("timeout_s")
    timeout_s = min(float(wanted), _SHELL_MAX_S) if isinstance(wanted, int | float) and wanted > 0 else _SHELL_S
    ran = await run_program(
        ["/bin/sh", "-c", _text(arguments, "command")],
        env=os.environ,
        timeout_s=timeout_s,
        directory=str(permit.directory),
    )
    parts = [ran.out, f"[stderr]\n{ran.err}" if ran.err else "", f"[exit {ran.code}]"]
    return "\n".join(part for part in parts if part)


def _off(work: Callable[[Arguments, Path], str]) -> Callable[[Arguments, Permit], Awaitable[str]]:
    """Do what blocks in a thread."""

    async def done(arguments: Arguments, permit: Permit) -> str:
        return await asyncio.to_thread(work, arguments, permit.directory)

    return done


def _among(work: Callable[[Arguments, Permit], str]) -> Callable[[Arguments, Permit], Awaitable[str]]:
    """Do in a thread what goes through many files, each of which a rule may keep back."""

    async def done(arguments: Arguments, permit: Permit) -> str:
        return await asyncio.to_thread(work, arguments, permit)

    return done


def _read(arguments: Arguments, directory: Path) -> str:
    lines = _content(_path(arguments, directory)).splitlines()
    first, count = _number(arguments, "first_line", 1), _number(arguments, "lines_max", 2_000)
    shown = lines[max(0, first - 1) : max(0, first - 1) + count]
    rest = len(lines) - (first - 1) - len(shown)
    return "\n".join(shown) + (f"\n[{rest} more lines]" if rest > 0 else "")


def _list_files(arguments: Arguments, directory: Path) -> str:
    path = _path(arguments, directory)
    entries = sorted(path.iterdir())
    told = [f"{each.name}/" if each.is_dir() else f"{each.name} {each.lstat().st_size}" for each in entries]
    return "\n".join(told[:_ENTRIES_MAX]) + (f"\n[{len(told) - _ENTRIES_MAX} more]" if len(told) > _ENTRIES_MAX else "")


def _find_files(arguments: Arguments, permit: Permit) -> str:
    root, glob = _path(arguments, permit.directory), _text(arguments, "pattern")
    found = [
        name
        for each in _below(root)
        if (fnmatchcase(name := each.relative_to(root).as_posix(), glob) or fnmatchcase(each.name, glob))
        and permit.judge("FindFiles", str(each)) != "deny"
    ]
    return "\n".join(found[:_ENTRIES_MAX]) + (
        f"\n[{len(found) - _ENTRIES_MAX} more]" if len(found) > _ENTRIES_MAX else ""
    )


def _search_files(arguments: Arguments, permit: Permit) -> str:
    """Tell the lines that match; of a file that may not be read, or searched, none."""
    directory = permit.directory
    root, matches = _path(arguments, directory), _matcher(_text(arguments, "pattern"))
    until_s = time.monotonic() + _SEARCH_S
    found: list[str] = []
    for path in [root] if root.is_file() else _below(root):
        if "deny" in {permit.judge(tool, str(path)) for tool in ("SearchFiles", "Read")}:
            continue
        with suppress(ToolFailedError, OSError):
            for number, line in enumerate(_content(path).splitlines(), start=1):
                if time.monotonic() > until_s:
                    break
                if matches(line[:2_000]):
                    found.append(f"{os.path.relpath(path, directory)}:{number}: {line[:300]}")
        if len(found) >= _MATCHES_MAX:
            return "\n".join(found[:_MATCHES_MAX]) + "\n[there are more]"
        if time.monotonic() > until_s:
            found.append(
                f"[stopped after {_SEARCH_S:g} s in {path}: search a smaller directory, or for something simpler]"
            )
            break
    return "\n".join(found)


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Compile a model's expression for an engine of linear time, Rust's regex crate: Python's own could hold the chat for ever."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    if len(pattern) > _PATTERN_CHARS_MAX:
        raise ToolFailedError(f"the pattern is longer than {_PATTERN_CHARS_MAX} characters")
    try:
        schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
        return SchemaValidator(schema).isinstance_python
    except SchemaError as error:
        told = str(error).strip().splitlines()[-1].removeprefix("error: ")
        raise ToolFailedError(
            f"the pattern cannot be used: {told} (look-around and back-references neither)"
        ) from error


def _file_info(arguments: Arguments, directory: Path) -> str:
    path = _path(arguments, directory)
    told = path.lstat()
    kind = "link" if path.is_symlink() else "directory" if path.is_dir() else "file"
    return json.dumps({"path": str(path), "kind": kind, "bytes": told.st_size, "modified_s": int(told.st_mtime)})


def _update(arguments: Arguments, directory: Path) -> str:
    path, before, after = _changed(arguments, directory)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    scratch.write_text(after, encoding="utf-8")
    scratch.chmod(mode)
    scratch.replace(path)
    return f"{path}: {'changed' if before is not None else 'made'}"


def _changed(arguments: Arguments, directory: Path) -> tuple[Path, str | None, str]:
    """Return a file with its text before and after."""
    path, new = Path(os.path.realpath(_path(arguments, directory))), _text(arguments, "new_text")
    old = arguments.get("old_text")
    if not isinstance(old, str) or not old:
        if path.exists():
            raise ToolFailedError("the file is there: say in `old_text` what is to be replaced")
        return path, None, new
    text = _content(path)
    if text.count(old) != 1:
        raise ToolFailedError(f"`old_text` stands there {text.count(old)} times; it must stand there once")
    return path, text, text.replace(old, new)


def _diff(arguments: Arguments, directory: Path) -> str:
    path, before, after = _changed(arguments, directory)
    lines = difflib.unified_diff((before or "").splitlines(), after.splitlines(), "before", "after", lineterm="")
    return f"{path}\n" + "\n".join(lines)


def _whole(arguments: Arguments, _directory: Path) -> str:
    return json.dumps(arguments, ensure_ascii=False, indent=2)


def _content(path: Path) -> str:
    if not path.is_file():
        raise ToolFailedError(f"{path} is no file")  # to open a pipe would wait for whoever writes it
    with path.open("rb") as opened:
        raw = opened.read(_FILE_BYTES_MAX + 1)
    if len(raw) > _FILE_BYTES_MAX:
        raise ToolFailedError(f"{path} is larger than {_FILE_BYTES_MAX // 1_000_000} MB")
    if b"\0" in raw[:8_000]:
        raise ToolFailedError(f"{path} is no text")
    return raw.decode("utf-8", errors="replace")


def _below(root: Path) -> Iterator[Path]:
    for at, directories, names in os.walk(root):
        directories[:] = sorted(each for each in directories if each not in _LEFT_OUT)
        yield from (Path(at) / name for name in sorted(names))


def _path(arguments: Arguments, directory: Path) -> Path:
    return directory / _text(arguments, "path", default=".")


def _text(arguments: Arguments, name: str, *, default: str | None = None) -> str:
    value = arguments.get(name, default)
    if not isinstance(value, str):
        raise ToolFailedError(f"the argument `{name}` must be text")
    return value


def _number(arguments: Arguments, name: str, default: int) -> int:
    value = arguments.get(name)
    return value if isinstance(value, int) and value > 0 else default


def _spec(name: str, description: str, *required: str, **properties: str) -> ToolSpec:
    numbers = {"timeout_s": "number", "first_line": "integer", "lines_max": "integer"}
    told = {key: {"type": numbers.get(key, "string"), "description": text} for key, text in properties.items()}
    schema = {"type": "object", "properties": told, "required": list(required), "additionalProperties": False}
    return ToolSpec(name=name, description=description, parameters=json.dumps(schema))


_WHERE = "relative to the directory of the conversation"
_TOOLS: Mapping[str, _Local] = {
    each.spec.name: each
    for each in (
        _Local(
            spec=_spec("Shell", "Run a command with sh on the user's machine.", "command", command="the command", timeout_s="most seconds"),
            main="command", work=_shell, preview=_whole,
        ),
        _Local(
            spec=_spec("Read", "Read a text file of the user's machine.", "path", path=_WHERE, first_line="from 1", lines_max="most lines"),
            main="path", work=_off(_read), preview=_whole,
        ),
        _Local(spec=_spec("ListFiles", "List a directory.", path=_WHERE), main="path", work=_off(_list_files), preview=_whole),
        _Local(
            spec=_spec("SearchFiles", "Search files for a regular expression.", "pattern", pattern="regular expression, without look-around", path=_WHERE),
            main="path", work=_among(_search_files), preview=_whole,
        ),
        _Local(
            spec=_spec("FindFiles", "Find files by name.", "pattern", pattern="glob of the name or path", path=_WHERE),
            main="path", work=_among(_find_files), preview=_whole,
        ),
        _Local(spec=_spec("FileInfo", "Tell size, kind and age of a file.", "path", path=_WHERE), main="path", work=_off(_file_info), preview=_whole),
        _Local(
            spec=_spec("Update", "Replace one passage of a file, or make a new file.", "path", "new_text", path=_WHERE, old_text="exactly what is replaced; left out: a new file", new_text="what stands there instead"),
            main="path", work=_off(_update), preview=_diff,
        ),
    )
}  # fmt: skip
