"""The ledger: the one protocol by which anything in the world is changed, and the account of what was.

An entry is written before its effect (intent), once more right before it is sent (started), and after it (done, failed
or unknown). Whoever meets an entry that was started and never ended goes by its class: the same key again, a look, or a
person. After Gray and Reuter, *Transaction Processing* (1992), ch. 10 (testable and idempotent effects); Helland, *Life
beyond Distributed Transactions* (2007).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn, ParamSpec, TypeAlias, TypeVar

from quell.domain import (
    Clock,
    Effect,
    EffectFacts,
    EffectState,
    Ending,
    Fence,
    FrozenCall,
    Happened,
    Intent,
    JournalError,
    NotHappened,
    RefusedError,
    Unclear,
    UsageError,
)
from quell.runs import _effect_table as table
from quell.runs._begun import SupersededError
from quell.runs._database import Connection, Database, Durability
from quell.runs._effect import after_attempt, after_look, is_too_late, key_of, next_move, quiet_left_s

if TYPE_CHECKING:
    from quell.runs._thread import Call

P = ParamSpec("P")
T = TypeVar("T")

Send: TypeAlias = Callable[[str, int], Awaitable[Ending]]
"""Does it once, under this idempotency key and attempt number; any error it raises counts as nobody knows."""
Look: TypeAlias = Callable[[], Awaitable[Ending]]
"""Reads back whether it happened; it changes nothing."""
Joint: TypeAlias = Callable[[Connection, Effect], None]
"""Decides and writes together with the ledger, in its transaction."""

_LAST_WORDS_S = 1.0
_PAUSE_FIRST_S = 0.2
_PAUSE_MAX_S = 5.0
_END_TRIES_MAX = 8
_TOLD_MAX = 500


class Ledger:
    """The account of effects in one journal; one per process.

    Locks are taken in this order: the run, the entry, then whatever `on_intent`, `on_start` and `on_end` lock (or the
    caller of `settle` and `close_abandoned`), and last, right before the commit, the event log.
    """

    TABLES: ClassVar[tuple[str, ...]] = table.EFFECT_TABLES
    """For `Connection.make_tables`."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        call: Call = asyncio.to_thread,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clean: Callable[[str], str] = str,
    ) -> None:
        """Take what it needs; `clean` takes secrets out of what people say of an effect."""
        self._database = database
        self._is_postgres = database.dialect == "postgresql"
        self._clock = clock
        self._call = call
        self._pause = pause
        self._clean = clean
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    async def perform(
        self,
        intent: Intent,
        *,
        send: Send,
        probe: Look | None,
        fence: Fence,
        on_intent: Joint,
        on_start: Joint,
        on_end: Joint,
    ) -> Effect:
        """Bring an effect to an end that is known, or to people; meet it again as often as you like: it happens once.

        A refusal by `on_intent` leaves no entry and is raised; one by `on_start` ends the entry (failed, or unknown when
        an earlier attempt may have happened). `on_start` sees every attempt, told apart by `attempts`; `on_end` must
        not refuse, and is asked again when an unknown effect becomes known. When it is cancelled, what is known by then is
        written before CancelledError goes on.

        Args:
            intent: what is wanted; the same for every worker and every life of the run.
            send: does it once.
            probe: looks whether it happened; None when nothing can tell.
            fence: the right of this worker to act for the run.
            on_intent: joins the transaction that writes the entry.
            on_start: joins each transaction that lets an attempt go.
            on_end: joins the transaction that writes what became of it.

        Raises:
            RefusedError: `on_intent` said no, the call is known with other arguments, or the run belongs to another now.
            JournalError: the database is away; what was started is recovered when the run comes back.
        """
        errand = _Errand(
            ledger=self,
            intent=intent,
            send=send,
            look=probe,
            fence=fence,
            on_intent=on_intent,
            on_start=on_start,
            on_end=on_end,
        )
        try:
            async with self._turn(key_of(intent.call)):
                effect = await errand.meet()
                while (move := errand.next_move(effect)) != "stop":
                    match move:
                        case "send":
                            effect = await errand.attempt(effect)
                        case "look":
                            effect = await errand.look_back(effect)
                        case "give up":
                            effect = await errand.give_up(effect)
                return effect
        except (SupersededError, JournalError) as error:
            errand.stop(error)

    # -- inside a transaction of the caller ---------------------------------------------------------------------

    def settle(
        self,
        connection: Connection,
        key: str,
        *,
        by: str,
        verdict: Literal["done", "failed", "reverted"],
        reason: str,
    ) -> Effect:
        """Write what a person found out about an effect that nobody knew about.

        Raises:
            RefusedError: the entry is not unknown.
            UsageError: there is no such entry, or nobody or nothing stands behind the verdict.
        """
        if not by.strip() or not reason.strip():
            raise UsageError("a verdict needs a person and a reason", hint="say who looked, and what was seen")
        now = table.locked_by_key(connection, self._database, key=key)
        if now is None:
            raise UsageError(f"there is no effect {key!r}", hint="list the unknown ones first")
        at = self._clock()
        settled = replace(now, state=EffectState(verdict), reason="settled", settled_by=by, ended_at=at)
        settled = table.with_detail(settled, self._clean(reason))
        table.end(connection, now, settled)
        self._tell(connection, settled, "effect.settled", at=at)
        return settled

    def close_abandoned(self, connection: Connection, *, before: datetime, rows_max: int = 100) -> list[Effect]:
        """End the entries of runs that ended without them, and return them: one that was started becomes unknown.

        `before` leaves those alone that a worker may still be busy with.
        """
        at, closed = self._clock(), []
        for now in table.abandoned(connection, is_postgres=self._is_postgres, before=before, rows_max=rows_max):
            was_sent = now.state is EffectState.STARTED
            then = replace(
                now,
                state=EffectState.UNKNOWN if was_sent else EffectState.FAILED,
                reason="abandoned",
                detail="its run ended before it was known" if was_sent else "its run ended before it was sent",
                ended_at=at,
            )
            table.end(connection, now, then)
            self._tell_end(connection, then, at=at)
            closed.append(then)
        return closed

    def facts(
        self, connection: Connection, *, call: FrozenCall, workflow_digest: str, tenant: str, since: datetime
    ) -> EffectFacts:
        """Count a tenant's effects of a workflow version since then and those in flight, for a decision on this call."""
        return table.facts(connection, call=call, workflow_digest=workflow_digest, tenant=tenant, since=since)

    @staticmethod
    def key_of(call: FrozenCall) -> str:
        """Return the key under which a call is kept and sent."""
        return key_of(call)

    def find(self, connection: Connection, key: str) -> Effect | None:
        """Return the entry of a key, if there is one."""
        return table.find(connection, key)

    def find_call(self, connection: Connection, *, run: str, call: str) -> Effect | None:
        """Return the entry of a call id of a run, whatever its arguments, if there is one."""
        return table.find_call(connection, run=run, call=call)

    def entries(
        self,
        connection: Connection,
        *,
        run: str | None = None,
        state: EffectState | None = None,
        tenant: str | None = None,
        rows_max: int = 100,
    ) -> list[Effect]:
        """Return the newest entries first; those that are `unknown` wait for people."""
        return table.entries(connection, run=run, state=state, tenant=tenant, rows_max=rows_max)

    def retain(self, connection: Connection, *, before: datetime) -> int:
        """Delete settled entries that ended before then and whose run can not come back; return how many.

        What is open or unknown stays for ever: it is somebody's work.
        """
        return table.delete_ended(connection, before=before)

    # -- the three transactions ---------------------------------------------------------------------------------

    def _meet(self, intent: Intent, fence: Fence, on_intent: Joint) -> Effect:
        """Write the entry, or take over the one that is there.

        It costs no flush: nothing was sent, and the flush of the start carries it.
        """
        if fence.run != intent.call.run:
            raise RefusedError(f"the fence is of {fence.run}, the call of {intent.call.run}", hint="hand in its own")
        with self._writing(durability="written") as connection:
            table.hold(connection, fence, is_postgres=self._is_postgres)
            at = self._clock()
            new = table.insert(connection, intent, fence=fence, at=at)
            if new is not None:
                on_intent(connection, new)
                self._tell(connection, new, "effect.intended", at=at)
                return new
            known = table.locked(connection, self._database, run=intent.call.run, call=intent.call.id)
            table.refuse_another(known, intent)
            return table.claim(connection, known, fence=fence)

    def _start(self, effect: Effect, fence: Fence, on_start: Joint, *, is_in_doubt: bool) -> Effect:
        """Write that an attempt goes out now, if the run is still held and nobody says no."""
        with self._writing() as connection:
            table.hold(connection, fence, is_postgres=self._is_postgres)
            at = self._clock()
            started = table.start(connection, effect, fence=fence, at=at, is_in_doubt=is_in_doubt)
            try:
                on_start(connection, started)
            except RefusedError as error:
                raise _NotAllowedError from error
            self._tell(connection, started, "effect.started", at=at)
            return started

    def _end(self, before: Effect, after: Effect, on_end: Joint) -> Effect:
        """Write what is known; only the fence that the entry was met with may do it, also after its run was cancelled.

        What stands there already is returned: a connection that is lost in the commit tells nobody that it was kept.
        """
        with self._writing() as connection:
            at = self._clock()
            after = replace(after, ended_at=at)
            try:
                table.end(connection, before, after)
            except SupersededError:
                kept = table.find(connection, before.key)
                if kept is None or replace(kept, ended_at=at) != after:
                    raise
                return kept
            on_end(connection, after)
            self._tell_end(connection, after, at=at)
            return after

    def _writing(self, *, durability: Durability = "flushed") -> AbstractContextManager[Connection]:
        return self._database.writing(durability=durability)

    def _tell(self, connection: Connection, effect: Effect, name: str, *, at: datetime) -> None:
        table.tell(connection, effect, name, is_postgres=self._is_postgres, at=at)

    def _tell_end(self, connection: Connection, effect: Effect, *, at: datetime) -> None:
        name = "effect.unknown" if effect.state is EffectState.UNKNOWN else "effect.ended"
        self._tell(connection, effect, name, at=at)

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncIterator[None]:
        """Let one task of this process after the other work on one effect."""
        lock, waiting = self._turns.get(key, (asyncio.Lock(), 0))
        self._turns[key] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._turns[key]
            if waiting == 1:
                del self._turns[key]
            else:
                self._turns[key] = (lock, waiting - 1)


class _NotAllowedError(Exception):
    """`on_start` said no; the reason is its cause."""


@dataclass(slots=True, kw_only=True)
class _Errand:
    """One worker's way through the protocol for one effect."""

    ledger: Ledger
    intent: Intent
    send: Send
    look: Look | None
    fence: Fence
    on_intent: Joint
    on_start: Joint
    on_end: Joint
    has_sent: bool = False
    has_looked: bool = False
    is_absent: bool = False
    """A look found, after the quiet time, that no attempt has happened."""
    is_cancelled: bool = False
    doubt: str = ""
    """Why nobody knows how the last attempt ended."""

    def next_move(self, effect: Effect) -> Literal["send", "look", "give up", "stop"]:
        """Say what to do now. Raises CancelledError where the way ends for a task that was cancelled."""
        move = next_move(
            effect,
            intent=self.intent,
            now=self.ledger._clock(),  # noqa: SLF001 - one thing in two classes
            can_look=self.look is not None,
        )
        if self.is_absent and effect.state is EffectState.STARTED:
            move = "send"
        if effect.state is EffectState.UNKNOWN and self.has_looked:
            move = "stop"
        if self.is_cancelled and move != "give up":
            raise asyncio.CancelledError
        return move

    def stop(self, error: SupersededError | JournalError) -> NoReturn:
        """Say why the way ends here: a task that was cancelled anyway stays cancelled."""
        if self.is_cancelled:
            raise asyncio.CancelledError from error
        if isinstance(error, JournalError):
            raise error
        raise RefusedError(
            f"run {self.intent.call.run} is not held by this worker any more",
            hint="it was cancelled or taken over; whoever holds it goes on with its effects",
        ) from None

    async def meet(self) -> Effect:
        """Write the intent, or take over what is there."""
        return await self._whole(self.ledger._meet, self.intent, self.fence, self.on_intent)  # noqa: SLF001

    async def attempt(self, effect: Effect) -> Effect:
        """Start it, send it, and write the end if this attempt tells one."""
        ledger = self.ledger
        if self.has_sent:
            await ledger._pause(min(_PAUSE_FIRST_S * 2 ** (effect.attempts - 1), _PAUSE_MAX_S))  # noqa: SLF001
        is_in_doubt = effect.state is EffectState.STARTED and not self.is_absent
        try:
            started = await self._whole(
                ledger._start,  # noqa: SLF001
                effect,
                self.fence,
                self.on_start,
                is_in_doubt=is_in_doubt,
            )
        except _NotAllowedError as error:
            then = EffectState.UNKNOWN if is_in_doubt else EffectState.FAILED
            return await self.end(effect, then, reason="refused", detail=str(error.__cause__))
        self.is_absent = False
        if self.is_cancelled:
            ending: Ending = NotHappened(detail="interrupted before it was sent")
        elif is_too_late(started, intent=self.intent, now=ledger._clock()):  # noqa: SLF001
            ending = NotHappened(detail="the start took too long to be written; nothing was sent")
        else:
            self.has_sent = True
            ending = await self._told(self.send(started.key, started.attempts))
        return await self._learn(started, ending, after_attempt(started, ending))

    async def look_back(self, effect: Effect) -> Effect:
        """Look whether it happened; that it did not is believed only when nothing can be on its way any more."""
        assert self.look is not None, "there is a way to look"
        ledger, self.has_looked = self.ledger, True
        seen = await self._told(self.look())
        left_s = quiet_left_s(effect, intent=self.intent, now=ledger._clock())  # noqa: SLF001
        if isinstance(seen, NotHappened) and left_s > 0 and not self.is_cancelled:
            await ledger._pause(left_s)  # noqa: SLF001
            seen = await self._told(self.look())
        if self.is_cancelled:
            return effect
        then = after_look(effect, seen, intent=self.intent)
        if then is None:
            self.is_absent = True
        elif then is EffectState.UNKNOWN and effect.state is EffectState.UNKNOWN:
            return effect
        return await self._learn(effect, seen, then, is_probed=True)

    async def give_up(self, effect: Effect) -> Effect:
        """Leave it to people."""
        doubt = self.doubt or f"nobody saw how attempt {effect.attempts} ended"
        return await self.end(effect, EffectState.UNKNOWN, reason="unclear", detail=doubt)

    async def end(
        self,
        effect: Effect,
        state: EffectState,
        *,
        reason: Literal["", "refused", "failed", "unclear", "probed"],
        detail: str = "",
        result: str | None = None,
        settled_by: str = "",
    ) -> Effect:
        """Write an end until it is written: what was learned is not given up because a database blinks."""
        ledger = self.ledger
        after = table.with_detail(replace(effect, state=state, reason=reason, settled_by=settled_by), detail)
        if result is not None:
            after = table.with_result(after, result)
        for tried in range(_END_TRIES_MAX):
            try:
                return await self._whole(ledger._end, effect, after, self.on_end)  # noqa: SLF001
            except JournalError:
                if tried == _END_TRIES_MAX - 1 or self.is_cancelled:
                    raise
                await ledger._pause(min(_PAUSE_FIRST_S * 2**tried, _PAUSE_MAX_S))  # noqa: SLF001
        raise AssertionError("unreachable: the last try returns or raises")

    async def _learn(
        self, effect: Effect, ending: Ending, then: EffectState | None, *, is_probed: bool = False
    ) -> Effect:
        if then is None:
            self.doubt = "" if isinstance(ending, Happened) else ending.detail
            return effect
        by = "probe" if is_probed and effect.state is EffectState.UNKNOWN else ""
        match ending:
            case Happened(result=result):
                return await self.end(effect, then, reason="probed" if is_probed else "", result=result, settled_by=by)
            case NotHappened(detail=detail):
                reason: Literal["probed", "failed"] = "probed" if is_probed else "failed"
                return await self.end(effect, then, reason=reason, detail=detail, settled_by=by)
            case Unclear(detail=detail):
                return await self.end(effect, then, reason="unclear", detail=detail)

    async def _told(self, asked: Awaitable[Ending]) -> Ending:
        """Return what the other side told; that it raised, was too slow or was interrupted tells nothing."""
        try:
            async with asyncio.timeout(self.intent.timeout_s):
                return await asked
        except asyncio.CancelledError:
            self.is_cancelled = True
            return Unclear(detail="interrupted")
        except TimeoutError:
            return Unclear(detail=f"no answer within {self.intent.timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever it raises, nobody knows what it did
            return Unclear(detail=f"{type(error).__name__}: {error}"[:_TOLD_MAX])

    async def _whole(self, write: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Let a transaction end even if this task is cancelled meanwhile, for a while; the caller then stops."""
        loop = asyncio.get_running_loop()
        writing = asyncio.ensure_future(self.ledger._call(write, *args, **kwargs))  # noqa: SLF001
        until_s = loop.time() + _LAST_WORDS_S if self.is_cancelled else None
        while not writing.done():
            try:
                await asyncio.wait({writing}, timeout=None if until_s is None else until_s - loop.time())
            except asyncio.CancelledError:
                self.is_cancelled = True
                until_s = until_s or loop.time() + _LAST_WORDS_S
            if until_s is not None and loop.time() >= until_s:
                writing.add_done_callback(_retrieve)
                raise asyncio.CancelledError
        return writing.result()


def _retrieve(writing: asyncio.Future[T]) -> None:
    """Take the outcome of a transaction that nobody waits for, so that nobody reports it as forgotten."""
    if not writing.cancelled():
        writing.exception()
