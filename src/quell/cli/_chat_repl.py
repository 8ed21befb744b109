"""The conversation itself: lines come in, answers come as they are said, and commands act at once."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from quell.cli._chat_view import Reply, stage_of
from quell.cli._chat_words import Word, help_text, read_word
from quell.cli._exit import ExitCode
from quell.domain import CallWanted, ChatAsk, Heard, Message, QuellError, UsageError

if TYPE_CHECKING:
    from quell.cli._chat_book import Book, Conversation
    from quell.cli._chat_door import Asked, ChatDoor
    from quell.cli._chat_lines import Lines
    from quell.cli._chat_screen import Screen
    from quell.cli._chat_tools import ClientTools

_CANCEL_S = 5.0
_ROUNDS_MAX = 50
"""Times that an agent may have tools carried out here for one question."""
_LISTED_MAX = 20
_URGENT = frozenset({"cancel", "quit", "exit", "queue", "approval", "help"})
"""Commands that act at once, even in a script."""
RunVerb = Callable[[Word], Awaitable[str]]
"""Does a command of `quell` itself, and returns what it says."""


@dataclass(slots=True, kw_only=True)
class Repl:
    """One person's conversation."""

    door: ChatDoor
    screen: Screen
    book: Book
    talk: Conversation
    verb: RunVerb
    tools: ClientTools | None = None
    """What is carried out here; None: nothing is."""
    is_streaming: bool = True
    lines: Lines | None = None
    queue: deque[str] = field(default_factory=deque)
    _answering: asyncio.Task[None] | None = None
    _reply: Reply | None = None
    _open: dict[str, Asked] = field(default_factory=dict)
    """Questions to people that were shown whole and have no answer."""
    _typed: asyncio.Future[str] | None = None
    """Who waits for the next line, in the middle of something."""
    _interrupts: int = 0
    _leaving: asyncio.Event = field(default_factory=asyncio.Event)
    _cancelling: asyncio.Task[None] | None = None

    async def run(self, lines: Lines) -> int:
        """Take lines until there are no more, and what was asked is answered."""
        self.lines = lines
        loop = asyncio.get_running_loop()
        with suppress(RuntimeError):
            loop.add_signal_handler(signal.SIGINT, self.interrupt)
        if self.talk.is_open and self.talk.run:
            self._answering = loop.create_task(self._answered(None))
        reading: asyncio.Task[str | None] | None = loop.create_task(lines.next())
        leaving = loop.create_task(self._leaving.wait())
        try:
            while not self._leaving.is_set() and (reading is not None or self._answering is not None or self.queue):
                self._begin_next()
                waited = {each for each in (reading, self._answering, leaving) if each is not None}
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if self._answering in done:
                    self._ended()
                if reading in done:
                    assert reading is not None
                    line = reading.result()
                    reading = None if line is None else loop.create_task(lines.next())
                    await self._line(line)
        finally:
            await self._stop([reading, leaving])
        return ExitCode.INTERRUPTED if self._interrupts > 1 else ExitCode.DONE

    @property
    def words(self) -> str:
        """Return what stands before the input."""
        if self._open:
            return "approve? "
        return "... " if self._answering is not None else "> "

    def interrupt(self) -> None:
        """Ctrl-C: once stops the answer for good, twice leaves."""
        self._interrupts += 1
        if self._interrupts > 1:
            self._leaving.set()
            return
        if self._answering is None:
            self.screen.tell("Ctrl-C once more leaves; /quit as well")
            return
        self.screen.tell("stopping ... (Ctrl-C once more leaves)")
        self._spawn_cancel()

    # -- lines --------------------------------------------------------------------------------------------------------

    async def _line(self, line: str | None) -> None:
        if line is None:
            if self._typed is not None and not self._typed.done():
                self._typed.set_result("")
            return
        text = line.strip()
        self._interrupts = 0
        if self._typed is not None and not self._typed.done() and not text.startswith("/"):
            self._typed.set_result(text)
        elif text.startswith("/") and not self._waits(text):
            await self._guarded(self._word(text))
        elif self._open and await self._guarded(self._decided(text)):
            return
        elif text:
            self.queue.append(text)
            if self._answering is not None and self.screen.is_terminal:
                self.screen.tell(f"queued ({len(self.queue)} waiting)")

    def _waits(self, text: str) -> bool:
        """Tell whether a command waits for its turn: in a script it is about the answer before it."""
        is_urgent = text[1:].partition(" ")[0].lower() in _URGENT
        return not self.screen.is_terminal and self._answering is not None and not is_urgent

    async def _guarded(self, work: Awaitable[bool]) -> bool:
        """Do what a line wants; what cannot be is told, and the conversation goes on."""
        try:
            return await work
        except QuellError as error:
            self.screen.tell(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
            return True
        except OSError as error:
            self.screen.tell(f"error: {error}")
            return True

    async def asked_person(self, shown: str, question: str) -> str:
        """Show something whole, page by page where somebody sits, and return what is typed about it."""
        if not await self._paged(shown):
            return ""
        return await self._typed_next(question)

    async def _paged(self, text: str) -> bool:
        """Print a text page by page; False when it was not read to its end."""
        lines, size = text.rstrip("\n").split("\n"), self.screen.page_lines
        while lines:
            page, lines = (lines[:size], lines[size:]) if size else (lines, [])
            self.screen.put("\n".join(page))
            if lines and await self._typed_next(f"-- {len(lines)} more lines: Enter shows them, q leaves it --") == "q":
                return False
        return True

    async def _typed_next(self, question: str) -> str:
        """Ask for a line in the middle of something."""
        self.screen.tell(question)
        self._typed = asyncio.get_running_loop().create_future()
        try:
            return await self._typed
        finally:
            self._typed = None

    # -- answers ------------------------------------------------------------------------------------------------------

    def _begin_next(self) -> None:
        if self._answering is None and self.queue:
            text = self.queue.popleft()
            work = self._worded(text) if text.startswith("/") else self._answered(text)
            self._answering = asyncio.get_running_loop().create_task(work)

    async def _worded(self, text: str) -> None:
        """Do a command that waited for its turn."""
        self._answering = None
        await self._guarded(self._word(text))

    async def _answered(self, question: str | None) -> None:
        """Ask, or take up what was asked before, and print what comes until it is answered."""
        asked: tuple[Message, ...] = () if question is None else (Message(role="user", text=question),)
        for _ in range(_ROUNDS_MAX):
            wanted = await self._round(asked)
            if not wanted:
                return
            asked = await self._carried_out(wanted)
        self.screen.tell(f"the agent wanted tools carried out here {_ROUNDS_MAX} times; ask it to go on")

    async def _round(self, asked: Sequence[Message]) -> tuple[CallWanted, ...]:
        """Let one run answer; return what it wants carried out here."""
        if asked:
            ask = ChatAsk(
                messages=(*self.talk.messages, *asked),
                agent=self.talk.agent,
                session=self.talk.id,
                client_tools=self.tools.specs if self.tools is not None else (),
            )
            run = await self.door.begin(ask)
            self.talk = self.book.asked(self.talk, asked, run=run)
        reply = self._reply = Reply(run=self.talk.run)
        async with aclosing(self.door.hear(reply.run)) as heard:
            async for each in heard:
                await self._heard(each, reply)
        self.screen.end_line()
        wanted = _client_calls(reply.body)
        if wanted and self.tools is not None:
            self.talk = self.book.said(self.talk, Message(role="assistant", text=reply.text, calls=wanted))
            return wanted
        self._told(reply)
        return ()

    async def _heard(self, heard: Heard, reply: Reply) -> None:
        reply.take(heard)
        if heard.name == "text" and not heard.body.get("task") and self.is_streaming:
            self.screen.say(str(heard.body.get("text", "")))
        elif heard.name == "void" and not heard.body.get("task") and self.is_streaming:
            self.screen.tell("(that try broke off; what follows counts)")
        elif (stage := stage_of(heard, reply)) is not None and not stage.is_passing:
            self.screen.stage(stage)
        if heard.name == "agent.call_parked":
            await self._show(str(heard.body.get("approval", "")))
        elif heard.name == "agent.call_ended":
            self._open.clear()  # one that waited was decided, here or elsewhere

    def _told(self, reply: Reply) -> None:
        """Say how it ended, and keep it."""
        if reply.ended == "cancelled":
            self.talk = self.book.unanswered(self.talk)
            self.screen.tell(f"cancelled {reply.run}; /run trace {reply.run} shows what it did")
        elif reply.ended == "failed" or not reply.body:
            self.talk = self.book.unanswered(self.talk)
            self.screen.tell(f"error: {reply.error or 'the run ended without an answer'}\nhint: /run trace {reply.run}")
        else:
            if not self.is_streaming:
                self.screen.put(reply.text)
            self.talk = self.book.answered(self.talk, reply.text)
            if reply.stop == "model":
                self.screen.tell(
                    f"error: the model did not answer: {reply.body.get('fault', '')}\nhint: /model builtin"
                )
            if footer := _footer(reply):
                self.screen.tell(footer)

    async def _carried_out(self, wanted: Sequence[CallWanted]) -> tuple[Message, ...]:
        assert self.tools is not None
        told: list[Message] = []
        for call in wanted:
            text = await self.tools.carry_out(call)
            first = text.splitlines()[0] if text else ""
            self.screen.tell(f"here   {call.name} {first[:100]}")
            told.append(Message(role="tool", call=call.id, tool=call.name, text=text))
        return tuple(told)

    def _ended(self) -> None:
        task, self._answering = self._answering, None
        self._open.clear()
        self._interrupts = 0
        assert task is not None
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        self.talk = self.book.unanswered(self.talk)
        if not isinstance(error, QuellError | OSError):
            raise error
        hint = getattr(error, "hint", "")
        self.screen.tell(f"error: {error}" + (f"\nhint: {hint}" if hint else ""))

    def _spawn_cancel(self) -> None:
        run = self._reply.run if self._reply is not None else ""

        async def cancel() -> None:
            with suppress(Exception):
                await asyncio.wait_for(self.door.cancel(run), timeout=_CANCEL_S)

        if self._typed is not None and not self._typed.done():
            self._typed.set_result("")
        if run:
            self._cancelling = asyncio.get_running_loop().create_task(cancel())

    async def _stop(self, tasks: Sequence[asyncio.Task[object] | None]) -> None:
        if self._answering is not None:
            if self._reply is not None and self._reply.run:
                self._spawn_cancel()
            self._answering.cancel()
        for each in (*tasks, self._answering):
            if each is not None:
                each.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await each
        if self._cancelling is not None:
            with suppress(asyncio.CancelledError):
                await self._cancelling

    # -- people -------------------------------------------------------------------------------------------------------

    async def _show(self, identifier: str) -> None:
        """Show a question whole, page by page where somebody sits; only what was shown can be answered."""
        try:
            asked = await self.door.approval(identifier)
        except QuellError as error:
            self.screen.tell(f"people are asked: {identifier}; it cannot be shown here: {error}")
            return
        if not await self._paged(asked.text):
            self.screen.tell(f"not shown to its end; /approval show {asked.id}")
            return
        self._open[asked.id] = asked
        self.screen.tell(
            f"{asked.id} waits for people until {asked.ends}.\n"
            "Type `a` and Enter to approve exactly this, `r REASON` to reject it, `e JSON` to ask for other arguments."
        )

    async def _decided(self, text: str) -> bool:
        """Take a line as an answer to what was shown last; False when it is none."""
        word, _, rest = text.partition(" ")
        word, rest, asked = word.lower(), rest.strip(), list(self._open.values())[-1]
        if word in {"a", "approve"} and not rest:
            told = await self.door.decide(asked, verdict="approve", reason="")
        elif word in {"r", "reject"}:
            if not rest:
                raise UsageError("a rejection needs a reason", hint="r REASON; it is told to whoever asked")
            told = await self.door.decide(asked, verdict="reject", reason=rest)
        elif word in {"e", "edit"}:
            if not rest:
                raise UsageError("an edit needs all arguments", hint='e {"service": "web"}')
            told = await self.door.edit(asked, arguments=rest)
        else:
            return False
        self._open.pop(asked.id, None)
        self.screen.tell(f"{asked.id}: {told}")
        return True

    # -- commands -----------------------------------------------------------------------------------------------------

    async def _word(self, line: str) -> bool:
        word = read_word(line)
        own: Mapping[str, Callable[[Word], Awaitable[None]]] = {
            "help": self._help,
            "clear": self._clear,
            "expand": self._expand,
            "stream": self._stream,
            "conversations": self._conversations,
            "resume": self._resume,
            "rename": self._rename,
            "model": self._model,
            "agents": self._agents,
            "cancel": self._cancel_word,
            "queue": self._queue,
            "quit": self._quit,
        }
        if word.is_verb:
            self.screen.put(await self.verb(word) or "(nothing)")
        else:
            await own[word.name](word)
        return True

    async def _help(self, _word: Word) -> None:
        self.screen.put(help_text())

    async def _clear(self, _word: Word) -> None:
        self._idle("/clear")
        self.talk = self.book.begin(agent=self.talk.agent, where=self.door.where)
        self.screen.tell("a new conversation")

    async def _expand(self, word: Word) -> None:
        calls = list(self._reply.calls.values()) if self._reply is not None else []
        ended = [each for each in calls if each.outcome]
        wanted = word.arguments[0].strip("[]") if word.arguments else ""
        found = [each for each in ended if wanted in {"", each.evidence, each.tool}]
        if not found:
            raise UsageError(
                f"there is no result {wanted!r} of the newest question" if wanted else "no tool was called yet",
                hint="one of: " + (", ".join(each.evidence for each in ended) or "none"),
            )
        call = found[-1]
        self.screen.put(f"[{call.evidence}] {call.tool} {call.arguments}\n{call.outcome} {call.detail}\n{call.content}")

    async def _stream(self, word: Word) -> None:
        if word.rest not in {"on", "off", ""}:
            raise UsageError(f"/stream {word.rest} means nothing", hint="/stream on, or /stream off")
        self.is_streaming = word.rest == "on" if word.rest else not self.is_streaming
        self.screen.tell(f"answers are printed {'as they come' if self.is_streaming else 'at their end'}")

    async def _conversations(self, _word: Word) -> None:
        found = self.book.listed()
        rows = [
            f"{'*' if each.id == self.talk.id else ' '} {each.id}  {each.updated_at:%Y-%m-%d %H:%M}Z  "
            f"{len(each.messages):3}  {each.title}"
            for each in found[:_LISTED_MAX]
        ]
        more = f"\nand {len(found) - _LISTED_MAX} more" if len(found) > _LISTED_MAX else ""
        self.screen.put("\n".join(rows) + more if rows else "no conversation yet")

    async def _resume(self, word: Word) -> None:
        self._idle("/resume")
        if not word.rest:
            raise UsageError("which one?", hint="/conversations lists them; /resume ID or NAME")
        self.talk = await taken_up(self.book, self.door, word.rest)
        self.screen.tell(f"{self.talk.id}: {self.talk.title} ({len(self.talk.messages)} messages)")
        for message in self.talk.messages[-2:]:
            self.screen.put(f"{'> ' if message.role == 'user' else ''}{message.text}")
        if self.talk.is_open and self.talk.run:
            self._answering = asyncio.get_running_loop().create_task(self._answered(None))

    async def _rename(self, word: Word) -> None:
        if not word.rest:
            raise UsageError("a name is missing", hint="/rename NAME")
        self.talk = self.book.renamed(self.talk, word.rest)
        self.screen.tell(f"this conversation is called {self.talk.name!r}")

    async def _model(self, word: Word) -> None:
        if not word.rest:
            cards = {card.id: card for card in await self.door.cards()}
            card = cards.get(self.talk.agent) or next(iter(cards.values()), None)
            self.screen.tell(f"{card.id}: {card.model}" if card else "no agent is listed")
            return
        self._idle("/model")
        await self.door.use_model(word.rest)
        self.screen.tell(f"from now on: {word.rest}")

    async def _agents(self, word: Word) -> None:
        cards = await self.door.cards()
        if not word.rest:
            now = self.talk.agent or (cards[0].id if len(cards) == 1 else "")
            rows = [f"{'*' if each.id == now else ' '} {each.id}  {each.model}  {each.description}" for each in cards]
            self.screen.put("\n".join(rows) or "no agent is listed")
            return
        found = [each.id for each in cards if each.id.startswith(word.rest)]
        if word.rest not in found and len(found) != 1:
            raise UsageError(f"there is no agent {word.rest!r}", hint="/agents lists them")
        name = word.rest if word.rest in found else found[0]
        self.talk = replace(self.talk, agent=name)
        self.screen.tell(f"from now on: {name}")

    async def _cancel_word(self, _word: Word) -> None:
        if self._answering is None:
            raise UsageError("nothing is being answered", hint="/run cancel ID cancels another run")
        self.screen.tell("stopping ...")
        self._spawn_cancel()

    async def _queue(self, word: Word) -> None:
        if word.rest == "clear":
            self.queue.clear()
        self.screen.put("\n".join(f"{n}. {text}" for n, text in enumerate(self.queue, start=1)) or "nothing waits")

    async def _quit(self, _word: Word) -> None:
        self._leaving.set()

    def _idle(self, what: str) -> None:
        if self._answering is not None:
            raise UsageError(f"{what} waits until this is answered", hint="/cancel stops the answer")


async def taken_up(book: Book, door: ChatDoor, wanted: str) -> Conversation:
    """Return a conversation to go on with: one of ours, or one that this person had by another protocol.

    Raises UsageError when nobody knows it.
    """
    try:
        found = book.find(wanted)
    except UsageError:
        if not (messages := await door.history(wanted)):
            raise
        return replace(book.begin(agent="", where=door.where, identifier=wanted), messages=messages)
    # A question that is still being answered elsewhere is not heard here.
    return found if found.where == door.where else replace(found, is_open=False, where=door.where)


def _client_calls(body: Mapping[str, object]) -> tuple[CallWanted, ...]:
    """Return what the client is to carry out, as an answer tells it."""
    import msgspec

    return msgspec.convert(body.get("client_calls") or (), type=tuple[CallWanted, ...])


def _footer(reply: Reply) -> str:
    """Return a line on what bears the answer, when there is something to say."""
    body = reply.body
    parts: list[str] = []
    cited = body.get("cited")
    if isinstance(cited, list | tuple) and cited:
        parts.append(f"evidence {', '.join(map(str, cited))} (/expand ID)")
    if body.get("confidence") not in {None, "", "none"}:
        parts.append(f"confidence {body['confidence']}")
    if body.get("unverified"):
        parts.append(f"{body['unverified']} claims that nothing bears out")
    return "; ".join(parts)
