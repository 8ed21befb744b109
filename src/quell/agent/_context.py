"""What goes into a request: the preamble, the conversation, and as much of the results as the window has room for.

Where there is too much, each section first gives back what it has beyond its share, the oldest first, and then all give.
What is asked, what binds (the preamble, skills, what people said and decided), and calls that wait stay. Turns that leave
are told of by a digest that code writes, and what was left out is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from quell.agent._render import SKILLS, digest_text, dropped_text, house_rules
from quell.agent._talk import Digest, Exhibit, Role, Talk
from quell.domain import Message, ModelRequest, ToolSpec
from quell.models import TokenCounter

_KEPT_TURNS = 2
"""Results of the newest turns stay as long as anything else can go."""
_ANSWER_TOKENS = 1_024
_AIM_SHARE = 0.75
"""Once something has to go, so much is left: the next turn has room, and its prompt begins like this one."""
_RESULT_MIN_CHARS = 400
_BRIEFING = "brief"
_ARGUMENTS_MAX_CHARS, _ANSWER_MAX_CHARS, _QUESTION_MAX_CHARS = 100, 160, 320

Section = Literal["results", "briefing", "history", "turns", "skills"]
_SHARES: Mapping[Section, float] = {"results": 0.50, "briefing": 0.15, "history": 0.35}
"""Of what the preamble and the schemas leave; beyond it they give first, in this order."""
_ORDER: tuple[Section, ...] = ("results", "briefing", "history", "turns", "skills", "turns")
"""In which all give where that was not enough; a turn that loaded a skill leaves after the skill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What was left out of a request."""

    dropped: Mapping[str, int]
    """By section, this time."""
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A conversation as it goes out."""

    talk: Talk
    fits: bool
    compacted: Compacted | None = None


def request_of(talk: Talk, role: Role, *, tools: Sequence[ToolSpec], notice: str = "") -> ModelRequest:
    """Return the request of the next turn."""
    rules = house_rules(talk.fence) if tools or talk.exhibits else ""
    preamble = "\n\n".join(part for part in (role.preamble, rules, notice) if part)
    return ModelRequest(
        messages=(Message(role="system", text=preamble), *_with_digest(talk)),
        tools=tuple(tools),
        choice=role.choice if tools and talk.turn == 0 else "auto",
        answer_schema=role.answer_schema,
        output_max_tokens=role.output_max_tokens,
        temperature=role.temperature,
        top_p=role.top_p,
        seed=role.seed,
        stop=role.stop,
        effort=role.effort,
        extra=role.extra,
    )


def room_of(role: Role, window: int) -> int:
    """Return how many tokens a request may have in a window."""
    return int(window * (1 - role.window_margin)) - (role.output_max_tokens or _ANSWER_TOKENS)


def fitted(talk: Talk, role: Role, *, tools: Sequence[ToolSpec], room: int | None, counter: TokenCounter) -> Fit:
    """Make a conversation fit; None: there is no bound. What does not fit even so is said to."""
    if room is None:
        return Fit(talk=talk, fits=True)

    def count(of: Talk) -> int:
        return counter.count(request_of(of, role, tools=tools))

    before = count(talk)
    if before <= room:
        return Fit(talk=talk, fits=True)
    fixed = counter.count(request_of(replace(talk, messages=(), digest=Digest()), role, tools=tools))
    packing = _Packing(talk=talk, counter=counter, aim=int(room * _AIM_SHARE), total=before, count=count)
    for section, share in _SHARES.items():
        packing.shrink(section, share=int(share * max(room - fixed, 0)))
    for section in _ORDER:
        packing.shrink(section, share=0)
    packing.cut_newest(room)
    after = count(packing.talk)
    told = Compacted(dropped=dict(packing.dropped), tokens_before=before, tokens_after=after)
    return Fit(talk=packing.talk, fits=after <= room, compacted=told if packing.dropped else None)


@dataclass(slots=True, kw_only=True)
class _Packing:
    """A conversation while it is being made smaller."""

    talk: Talk
    counter: TokenCounter
    aim: int
    total: int
    count: Callable[[Talk], int]
    dropped: dict[str, int] = field(default_factory=dict)

    def shrink(self, section: Section, *, share: int) -> None:
        """Let a section give until it has its share, or all is small enough."""
        # More than once: what leaves is told of by the digest, which takes some of the room.
        while self.total > self.aim:
            units, before = _units(self.talk, section), self.total
            held = sum(self._tokens(self.talk.messages[at]) for unit in units for at in unit)
            wanted = min(self.total - self.aim, held - share)
            if wanted <= 0:
                return
            self._give(section, units, wanted)
            self.total = self.count(self.talk)
            if self.total >= before:
                return

    def cut_newest(self, room: int) -> None:
        """Cut what is left of results, the longest first: better the head of each than none."""
        while self.total > room:
            long = [at for at, each in enumerate(self.talk.messages) if each.role == "tool" and _is_long(each.text)]
            if not long:
                return
            at = max(long, key=lambda each: len(self.talk.messages[each].text))
            message = self.talk.messages[at]
            shorter = replace(message, text=_cut(message.text))
            messages = (*self.talk.messages[:at], shorter, *self.talk.messages[at + 1 :])
            self.talk = replace(self.talk, messages=messages)
            self.dropped["cut"] = self.dropped.get("cut", 0) + 1
            self.total = self.count(self.talk)

    def _tokens(self, message: Message) -> int:
        return self.counter.count(ModelRequest(messages=(message,)))

    def _give(self, section: Section, units: Sequence[range], wanted: int) -> None:
        """Leave out the oldest of a section, until so many tokens are free."""
        before, freed = self.talk, 0
        messages: list[Message | None] = list(before.messages)
        lines: list[str] = []
        gone: list[str] = []
        for unit in units:
            if freed >= wanted:
                break
            if section in {"history", "turns"}:
                freed += sum(self._tokens(before.messages[at]) for at in unit)
                self.dropped[section] = self.dropped.get(section, 0) + 1
                lines += [line for at in unit if (line := _line(before, before.messages[at]))]
                messages[unit.start : unit.stop] = [None] * len(unit)
                continue
            message = before.messages[unit.start]
            exhibit = _exhibit(before, message.call)
            shorter = replace(message, text=dropped_text(exhibit, key=before.fence))
            if (net := self._tokens(message) - self._tokens(shorter)) > 0:
                freed += net
                self.dropped[section] = self.dropped.get(section, 0) + 1
                gone.append(exhibit.id)
                messages[unit.start] = shorter
        left = tuple(message for message in messages if message is not None)
        digest = before.digest.with_lines(lines, messages=len(before.messages) - len(left))
        self.talk = replace(before, messages=left, digest=digest, dropped=(*before.dropped, *gone))


def _units(talk: Talk, section: Section) -> list[range]:
    """Return where the parts of a section stand that may leave, the oldest first; a call never leaves without its result."""
    question, newest = _question(talk.messages), _newest(talk.messages)
    if section in {"history", "turns"}:
        first, end = (0, question) if section == "history" else (question + 1, newest)
        starts = [at for at in range(first, end) if talk.messages[at].role not in {"system", "tool"}]
        skills = {each.call for each in talk.exhibits if each.tool in SKILLS and each.id not in talk.dropped}
        blocks = [_block(talk.messages, at) for at in starts]
        return [block for block in blocks if not any(talk.messages[at].call in skills for at in block)]
    by_call = {exhibit.call: exhibit for exhibit in talk.exhibits if exhibit.id not in talk.dropped}
    return [
        range(at, at + 1)
        for at, message in enumerate(talk.messages[:newest])
        if message.role == "tool" and message.call in by_call and _section(message.tool) == section
    ]


def _section(tool: str) -> Section:
    return "skills" if tool in SKILLS else "briefing" if tool == _BRIEFING else "results"


def _question(messages: Sequence[Message]) -> int:
    """Return where the newest question stands."""
    return max((at for at, message in enumerate(messages) if message.role == "user"), default=0)


def _newest(messages: Sequence[Message]) -> int:
    """Return where the newest turns begin, which stay."""
    question = _question(messages)
    turns = [at for at, each in enumerate(messages) if at > question and each.role == "assistant" and each.calls]
    return turns[-_KEPT_TURNS] if len(turns) >= _KEPT_TURNS else question


def _block(messages: Sequence[Message], at: int) -> range:
    """Return a message with what belongs to it: a call never stands without its result."""
    end = at + 1
    while end < len(messages) and messages[end].role == "tool":
        end += 1
    return range(at, end)


def _line(talk: Talk, message: Message) -> str:
    """Tell of a message in one line; results are told of by the calls that brought them."""
    if message.role == "user":
        return f"asked: {_short(message.text, _QUESTION_MAX_CHARS)}"
    if message.role != "assistant":
        return ""
    by_call = {exhibit.call: exhibit for exhibit in talk.exhibits}
    calls = [
        f"{call.name}({_short(call.arguments, _ARGUMENTS_MAX_CHARS)}) {_ended(by_call.get(call.id))}"
        for call in message.calls
    ]
    said = f"said: {_short(message.text, _ANSWER_MAX_CHARS)}" if message.text.strip() else ""
    return "; ".join(part for part in (said, *calls) if part)


def _ended(exhibit: Exhibit | None) -> str:
    if exhibit is None:
        return "-> (no result)"
    detail = f": {_short(exhibit.detail, _ANSWER_MAX_CHARS)}" if exhibit.detail else ""
    return f"-> [{exhibit.id}] {exhibit.kind.value}{detail}"


def _with_digest(talk: Talk) -> tuple[Message, ...]:
    if not talk.digest.messages:
        return talk.messages
    told = Message(role="user", text=digest_text(talk.digest.text, key=talk.fence))
    at = next((at for at, message in enumerate(talk.messages) if message.role != "system"), 0)
    return (*talk.messages[:at], told, *talk.messages[at:])


def _exhibit(talk: Talk, call: str) -> Exhibit:
    return next(exhibit for exhibit in talk.exhibits if exhibit.call == call)


def _is_long(text: str) -> bool:
    return len(text) > _RESULT_MIN_CHARS * 2


def _cut(text: str) -> str:
    """Halve a result; its fence and what comes after it stay."""
    half = max(len(text) // 2, _RESULT_MIN_CHARS)
    tail = text[-_RESULT_MIN_CHARS // 2 :]
    return f"{text[: half - len(tail)]}\n(cut to make room)\n{tail}"


def _short(text: str, chars_max: int) -> str:
    line = " ".join(text[: chars_max * 2].split())
    return line if len(line) <= chars_max else f"{line[:chars_max]}…"
