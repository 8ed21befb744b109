"""Files as `quell init` would leave them: planned whole, shown, and then written at once or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_SECRET_MODE, _MODE = 0o600, 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One file, before and after."""

    path: Path
    before: str | None
    """None: there is none yet."""
    after: str
    is_secret: bool = False

    @property
    def change(self) -> Literal["new", "changed", "replaced", "same"]:
        """Return what would become of it."""
        if self.before is None:
            return "new"
        if self.before == self.after:
            return "same"
        return "changed" if all(line in self.after for line in self.before.splitlines()) else "replaced"

    def lines(self) -> Iterator[str]:
        """Yield what would be written, as a diff where something is there already; of secrets only the names."""
        import difflib

        after = [*map(_hidden, self.after.splitlines())] if self.is_secret else self.after.splitlines()
        if self.before is None:
            yield from after
            return
        before = [*map(_hidden, self.before.splitlines())] if self.is_secret else self.before.splitlines()
        if self.is_secret:
            yield from (f"+{line}" for line in after[len(before) :])
            return
        yield from list(difflib.unified_diff(before, after, lineterm="", n=2))[2:]


def planned(path: Path, after: str, *, is_secret: bool = False) -> Planned:
    """Return what writing this text would do. Raises UsageError for a file that cannot be read."""
    return Planned(path=path, before=text_of(path), after=after, is_secret=is_secret)


def text_of(path: Path) -> str | None:
    """Return what stands in a file; None where there is none. Raises UsageError for one that cannot be read."""
    from quell.domain import UsageError

    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is there and cannot be read: {error}", hint="move it away") from error


def write_all(files: Sequence[Planned]) -> None:
    """Write every file beside its place first, and put them there when all are written. Raises OSError."""
    scratches: list[tuple[Path, Path]] = []
    try:
        for file in files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            target = file.path.resolve()  # a link stays one
            scratch = target.with_name(f".{target.name}.{os.getpid()}.new")
            mode = _SECRET_MODE if file.is_secret else _MODE
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            scratches.append((scratch, target))
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                opened.write(file.after)
                opened.flush()
                os.fsync(descriptor)
        while scratches:
            scratch, target = scratches[0]
            scratch.replace(target)
            scratches.pop(0)
    finally:
        for scratch, _ in scratches:
            with suppress(OSError):
                scratch.unlink()


def _hidden(line: str) -> str:
    name, equals, _ = line.partition("=")
    return f"{name}{equals}********" if equals else line
