"""Conversations as `ask --session` and `chat --resume` go on with them: one file each, in the state directory."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from quell.domain import ConfigError, Message, UsageError, new_id

_BYTES_MAX = 8_000_000
_TURNS_MAX = 400
"""Messages that are kept of one conversation; the oldest go first."""
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What was said, and by which runs."""

    id: str
    name: str = ""
    agent: str = ""
    where: str = ""
    """`this process` or the address of the server."""
    created_at: datetime
    updated_at: datetime
    messages: tuple[Message, ...] = ()
    run: str = ""
    """The newest run."""
    is_open: bool = False
    """Whether its newest question has no answer yet."""

    @property
    def title(self) -> str:
        """Return its name, or how it began."""
        first = next((each.text for each in self.messages if each.role == "user"), "")
        return self.name or " ".join(first.split())[:60]


class Book:
    """Reads and writes conversations of one state directory."""

    def __init__(self, state_dir: Path, *, clock: Callable[[], datetime], clean: Callable[[str], str]) -> None:
        self._directory = state_dir / "conversations"
        self._clock = clock
        self._clean = clean

    def begin(self, *, agent: str, where: str, identifier: str = "") -> Conversation:
        """Return a new conversation; nothing is written before something was said."""
        now = self._clock()
        identifier = identifier or new_id("conv", at=now, entropy=os.urandom(10))
        return Conversation(id=identifier, agent=agent, where=where, created_at=now, updated_at=now)

    def asked(self, old: Conversation, messages: Sequence[Message], *, run: str) -> Conversation:
        """Keep what was asked, before its answer is there."""
        return self._kept(old, messages, run=run, is_open=True)

    def said(self, old: Conversation, message: Message) -> Conversation:
        """Keep what an agent wants of us before it goes on."""
        return self._kept(old, (message,), run=old.run, is_open=True)

    def answered(self, old: Conversation, text: str) -> Conversation:
        """Keep an answer."""
        return self._kept(old, (Message(role="assistant", text=text),), run=old.run, is_open=False)

    def unanswered(self, old: Conversation) -> Conversation:
        """Keep that a question will have no answer: the next one does not stand beside it."""
        messages = old.messages
        while messages and (messages[-1].role != "assistant" or messages[-1].calls):
            messages = messages[:-1]
        return self._written(replace(old, messages=messages, is_open=False, updated_at=self._clock()))

    def renamed(self, old: Conversation, name: str) -> Conversation:
        """Give a conversation a name. Raises UsageError when another has it."""
        name = " ".join(self._clean(name).split())[:80]
        if any(each.name == name and each.id != old.id for each in self.listed()):
            raise UsageError(f"another conversation is called {name!r}", hint="/conversations lists them")
        return self._written(replace(old, name=name))

    def find(self, wanted: str) -> Conversation:
        """Return a conversation by its id, a unique beginning of it, or its name. Raises UsageError."""
        listed = self.listed()
        found = [each for each in listed if wanted in {each.id, each.name}]
        found = found or [each for each in listed if wanted and each.id.startswith(wanted)]
        if len(found) == 1 and not wanted.endswith("_"):
            return found[0]
        if found:
            raise UsageError(f"{wanted!r} does not name one conversation of {len(found)}", hint="write more of it")
        raise UsageError(f"there is no conversation {wanted!r}", hint="`/conversations` in `quell chat` lists them")

    def of_session(self, session: str) -> Conversation | None:
        """Return the conversation of exactly this id."""
        return self._read(self._path(session))

    def listed(self) -> Sequence[Conversation]:
        """Return all, the newest first."""
        paths = self._directory.glob("*.json") if self._directory.is_dir() else ()
        found = [each for each in map(self._read, paths) if each is not None]
        return sorted(found, key=lambda each: each.updated_at, reverse=True)

    def forget_old(self, *, kept_for: timedelta) -> None:
        """Remove what was not touched for so long."""
        before = self._clock() - kept_for
        for each in self.listed():
            if each.updated_at < before:
                with suppress(OSError):
                    self._path(each.id).unlink()

    def _kept(self, old: Conversation, messages: Sequence[Message], *, run: str, is_open: bool) -> Conversation:
        clean = tuple(replace(each, text=self._clean(each.text)) for each in messages)
        kept = (*old.messages, *clean)[-_TURNS_MAX:]
        return self._written(replace(old, messages=kept, run=run, is_open=is_open, updated_at=self._clock()))

    def _written(self, new: Conversation) -> Conversation:
        path = self._path(new.id)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = path.with_suffix(f".{os.getpid()}.new")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(msgspec.json.encode(new))
        scratch.replace(path)
        return new

    def _path(self, identifier: str) -> Path:
        # An id of a caller's own making may hold anything; its file has a name of ours.
        is_safe = _SAFE.fullmatch(identifier) is not None
        name = identifier if is_safe else hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).hexdigest()[:40]
        return self._directory / f"{name}.json"

    @staticmethod
    def _read(path: Path) -> Conversation | None:
        try:
            if path.stat().st_size > _BYTES_MAX:
                return None
            return msgspec.json.decode(path.read_bytes(), type=Conversation)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{path} is no conversation: {error}", hint="move it away") from error
