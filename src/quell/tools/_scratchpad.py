"""Large results, put aside: the caller gets a handle and a head, and reads on with eight tools."""

from __future__ import annotations

import asyncio
import hashlib
import json
import mmap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from quell.domain import (
    BoundExceededError,
    Clock,
    Entropy,
    OutcomeKind,
    PadOwner,
    PadReading,
    RefusedError,
    ScratchpadLimits,
    Spilled,
    Tool,
    UsageError,
    WorldError,
)
from quell.tools._reading import NAMES, Opened, answer, arguments_of, definitions
from quell.tools._scratchpad_files import Files, Form, Kept, handle_of
from quell.tools._scratchpad_json import GROWTH_MAX, Pages, lay_out, raw, root_of
from quell.tools._scratchpad_shape import head
from quell.tools._scratchpad_text import TOKEN_BYTES, clip

_HANDLES_SHOWN = 5


class Reader(Protocol):
    """One reading tool."""

    def __call__(
        self, owner: PadOwner, arguments: Mapping[str, object], *, tokens_max: int | None = None
    ) -> Coroutine[None, None, PadReading]:
        """Read results of an owner, with arguments as they came; at most so many tokens, None: as usual."""


class Scratchpad:
    """The results of all sessions of one state directory; several processes may share it."""

    READERS = frozenset(NAMES)
    """Names of the tools that read what was put aside."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        entropy: Entropy,
        limits: ScratchpadLimits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the directory, made with mode 0700 when missing. Raises RefusedError when it is a link or not ours."""
        self.limits = limits or ScratchpadLimits()
        self._clock = clock
        self._monotonic = monotonic
        self._files = Files(root, entropy=entropy)
        self._room = threading.Lock()
        self._total_bytes = sum(kept.size_bytes for kept in self._files.all())

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The definitions of the eight reading tools."""
        return definitions()

    @property
    def readers(self) -> Mapping[str, Reader]:
        """The eight reading tools by name."""
        return {name: partial(self._use, name) for name in NAMES}

    def is_large(self, content: str, *, min_tokens: int | None = None) -> bool:
        """Tell whether a result should be put aside instead of being given whole: from so many tokens on, or as usual."""
        bytes_max = (
            self.limits.inline_tokens * TOKEN_BYTES if min_tokens is None else max(0, min_tokens * TOKEN_BYTES - 1)
        )
        return len(content) > bytes_max or len(content.encode("utf-8", "replace")) > bytes_max

    async def put(self, owner: PadOwner, content: str | bytes, *, head_tokens: int | None = None) -> Spilled:
        """Put a result aside; on disk and synced when this returns. The same content has the same handle.

        `head_tokens` bounds what is told of it; None: as usual. Raises BoundExceededError when it is larger than any result may be, OverloadError when the disk is full.
        """
        tokens = self.limits.head_tokens if head_tokens is None else min(head_tokens, self.limits.head_tokens)
        return await asyncio.to_thread(self._put, owner, content, head_tokens=tokens)

    async def whole(self, owner: PadOwner, handle: str, *, bytes_max: int) -> str:
        """Read all of a result as JSON on one line, a text as a JSON string: for programs, not for a model.

        Raises:
            RefusedError: the owner has no such result, or what lies there is not ours.
            BoundExceededError: it is larger than that.
        """
        return await asyncio.to_thread(self._whole, owner, handle, bytes_max)

    async def sweep(self) -> int:
        """Remove what is too old, then the oldest until all fits; return how many results were removed."""
        return await asyncio.to_thread(self._sweep)

    async def forget(self, owner: PadOwner) -> int:
        """Remove all results of an owner; return how many."""
        return await asyncio.to_thread(lambda: self._remove(self._files.of_owner(owner)))

    def close(self) -> None:
        """Let go of the directory; what is in it stays."""
        self._files.close()

    def _put(self, owner: PadOwner, content: str | bytes, *, head_tokens: int) -> Spilled:
        whole = content.encode("utf-8", "replace") if isinstance(content, str) else content
        if len(whole) > self.limits.result_max_bytes:
            raise BoundExceededError(
                f"a result of {len(whole):,} bytes",
                limit=self.limits.result_max_bytes,
                hint="ask the tool for less: a shorter time range, fewer fields",
            )
        digest = hashlib.sha256(whole).hexdigest()
        laid_out = lay_out(whole)
        form: Form = "text" if laid_out is None else "json"
        kept = whole if laid_out is None else laid_out
        self._make_room(owner, len(kept), stem=digest[:32])
        self._files.write(owner, kept, digest=digest, form=form, at_s=self._clock().timestamp())
        handle = handle_of(digest)
        told = head(kept, form, handle=handle, tokens_max=head_tokens)
        return Spilled(handle=handle, head=_clean(told), form=form, size_bytes=len(whole), digest=digest)

    def _make_room(self, owner: PadOwner, size_bytes: int, *, stem: str) -> None:
        if size_bytes > min(self.limits.session_max_bytes, self.limits.total_max_bytes):
            raise BoundExceededError(f"a result of {size_bytes:,} bytes on disk", limit=self.limits.session_max_bytes)
        with self._room:
            own = self._files.of_owner(owner)
            again = {kept for kept in own if kept.file.startswith(stem)}  # it is replaced, and costs no more room
            self._total_bytes -= sum(kept.size_bytes for kept in again)
            others = [kept for kept in reversed(own) if kept not in again]
            self._remove(_oldest(others, bytes_max=self.limits.session_max_bytes - size_bytes))
            if self._total_bytes + size_bytes > self.limits.total_max_bytes:
                others = [kept for kept in self._files.all() if kept not in again]
                self._remove(_oldest(others, bytes_max=self.limits.total_max_bytes - size_bytes))
            self._total_bytes += size_bytes

    def _sweep(self) -> int:
        now_s = self._clock().timestamp()
        with self._room:
            removed = self._remove([kept for kept in self._files.all() if now_s - kept.at_s > self.limits.keep_s])
            left = self._files.all()
            self._total_bytes = sum(kept.size_bytes for kept in left)
            removed += self._remove(_oldest(left, bytes_max=self.limits.total_max_bytes))
        self._files.tidy(now_s=now_s)
        return removed

    def _remove(self, these: list[Kept]) -> int:
        for kept in these:
            self._files.remove(kept)
            self._total_bytes -= kept.size_bytes
        return len(these)

    async def _use(
        self, tool: str, owner: PadOwner, arguments: Mapping[str, object], *, tokens_max: int | None = None
    ) -> PadReading:
        limits = self.limits if tokens_max is None else replace(self.limits, reading_tokens=tokens_max)
        return await asyncio.to_thread(self._answer, tool, owner, arguments, limits=limits)

    def _answer(
        self, tool: str, owner: PadOwner, arguments: Mapping[str, object], *, limits: ScratchpadLimits
    ) -> PadReading:
        try:
            given = arguments_of(tool, arguments)
            handle = given["handle"]
            assert isinstance(handle, str), "checked by arguments_of"
            with self._files.reading(owner, handle) as (descriptor, form), _pages(descriptor) as pages:
                opened = Opened(pages=pages, form=form, handle=handle, limits=limits, monotonic=self._monotonic)
                reading = answer(tool, opened, given)
        except FileNotFoundError:
            return PadReading(kind=OutcomeKind.DENIED, detail=self._unknown(owner, str(arguments["handle"])))
        except RefusedError as error:
            return PadReading(kind=OutcomeKind.DENIED, detail=f"{error}; {error.hint}")
        except (UsageError, WorldError) as error:
            return PadReading(kind=OutcomeKind.TOOL_ERROR, detail=_clean(str(error)))
        return PadReading(
            kind=reading.kind, content=_clean(reading.content), is_json=reading.is_json, detail=_clean(reading.detail)
        )

    def _whole(self, owner: PadOwner, handle: str, bytes_max: int) -> str:
        try:
            with self._files.reading(owner, handle) as (descriptor, form), _pages(descriptor) as pages:
                # Laid out it takes more room than on one line, but never more than so much.
                if len(pages) > bytes_max * (GROWTH_MAX if form == "json" else 1):
                    raise _too_large(handle, bytes_max=bytes_max)
                content = bytes(pages) if form == "text" else raw(pages, root_of(pages))
        except FileNotFoundError:
            raise RefusedError(
                self._unknown(owner, handle), hint="a handle is good in the session that got it"
            ) from None
        told = content.decode("utf-8", "replace")
        written = told if form == "json" else json.dumps(told, ensure_ascii=False)
        if len(written.encode("utf-8", "replace")) > bytes_max:
            raise _too_large(handle, bytes_max=bytes_max)
        return written

    def _unknown(self, owner: PadOwner, handle: str) -> str:
        """Say the same of a handle that never was, that is somebody else's, and that is none at all."""
        own = [f"pad_{kept.file.partition('.')[0]}" for kept in self._files.of_owner(owner)[:_HANDLES_SHOWN]]
        shown = _clean(clip(repr(handle), bytes_max=80))
        return f"this session has no result {shown}; the newest that it has: {', '.join(own) or 'none'}"


@contextmanager
def _pages(descriptor: int) -> Iterator[Pages]:
    try:
        pages = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        yield b""
        return
    with pages:
        yield pages


def _too_large(handle: str, *, bytes_max: int) -> BoundExceededError:
    return BoundExceededError(f"the whole of {handle}", limit=bytes_max, hint="read it in parts, or ask for less of it")


def _oldest(oldest_first: list[Kept], *, bytes_max: int) -> list[Kept]:
    """Choose what has to go so that the rest fits."""
    excess = sum(kept.size_bytes for kept in oldest_first) - bytes_max
    chosen = []
    for kept in oldest_first:
        if excess <= 0:
            break
        chosen.append(kept)
        excess -= kept.size_bytes
    return chosen


def _clean(text: str) -> str:
    """Replace halves of characters, which JSON can spell and nothing can send."""
    return text.encode("utf-8", "replace").decode("utf-8")
