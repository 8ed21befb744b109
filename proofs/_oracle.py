"""What the operator meant, in plain Python, and whether the world was treated so. It shares no code with the guard.

It reads a record in the order in which things happened: what reached the tools, what people said and were shown, when
things were stopped, how the clock went. Of the journal it takes only what the audit says: when an attempt was let go is
the commit that went before it, counted by the harness.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import urlsplit

SERVICES = {"acme": ("web", "api", "pay", "stock"), "umbra": ("mail", "maps")}
LISTED = ("status.example", "docs.example")
ASKED = ("vendor.example",)
APPROVAL_S = 900.0
HOUR_S = 3600.0
DAY_S = 86_400.0
CALLS_1H, SERVICES_1H, UNITS_1H, FAILURES_1H, IN_FLIGHT = 20, 5, 200, 3, 3
SCALED_1H = 60
RUN_CALLS, RUN_UNITS, DAY_CALLS = 60, 90, 900
GLANCE_S = 1.0
GLASS_S = 1800.0
EMERGENCY = "drain"
"""The one tool that emergency authority permits."""
READ_S = 5.0

Arguments = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A run and who stands behind it, as the operator set it up."""

    run: str
    user: str
    tenant: str
    roles: tuple[str, ...]
    agent: str
    tools: tuple[str, ...]
    workflow: str
    digest: str
    stage: str
    level: int
    is_tainted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Something that reached a tool."""

    at_s: float
    tool: str
    arguments: str
    run: str
    call: str
    key: str
    asked: int
    """Which wish of the model it came from, counted by the harness."""
    asked_at_s: float
    begun: int
    """Number of the last transaction that was committed for it before it went out: the one that let it go."""
    begun_at_s: float
    """When that was."""
    pin: str
    """The definition under which it was called."""
    token: str
    """The right under which its worker acted for the run; empty: none was shown."""
    form: Literal["", "yes", "words"]
    """What its server had asked before: nothing, for a yes, or for words of people."""
    words: str
    """The words that it carries to a server that asked for some."""
    is_done: bool
    """Whether the tool did it; otherwise it was lost on its way."""
    audited: int
    """Records that the audit held by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Yes:
    """One person's approval of what was shown to that person."""

    number: int
    """Tells it from all others."""
    at_s: float
    by: str
    tenant: str
    roles: tuple[str, ...]
    run: str
    call: str
    tool: str
    arguments: str
    asked_at_s: float
    plan: tuple[str, ...] = ()
    """The calls that were approved together, in their order; empty for one call alone."""
    words: str = ""
    """What this person wrote for the server that asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A kill or a freeze, once it was committed."""

    id: str
    at_s: float
    number: int
    """How many transactions had been committed by then."""
    kind: Literal["kill", "freeze"]
    tenant: str
    tool: str
    environment: str
    ends_at_s: float
    told: frozenset[str] | None
    """What the kill itself said that it came too late for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lift:
    """The end of a stop."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A tool has answered: well, that it failed, or not so that anybody knows."""

    key: str
    run: str
    asked: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a model got to read."""

    run: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A person pinned another definition of a tool, or took the pin away."""

    tool: str
    pin: str
    """Empty: there is no such tool any more."""
    asked: int
    """How many wishes had been made by then."""
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A worker took a run; whoever held it before may not act for it any more."""

    run: str
    token: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """What a workflow version may do by itself, from here on."""

    digest: str
    kind: str
    environment: str
    level: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Glass:
    """Somebody said that there is an emergency, and was believed."""

    at_s: float
    user: str
    tenant: str
    roles: tuple[str, ...]
    agent: str
    run: str
    """Empty: for what the person does without an agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strayed:
    """A model asked for something else in the place of a call of a plan, and that became a question of its own."""

    run: str
    plan: tuple[str, ...]
    number: int


Event = Actor | Use | Yes | Stop | Lift | Left | Given | Pinned | Held | Earned | Glass | Strayed


def _is_text(value: object, *, most: int = 200) -> bool:
    return type(value) is str and len(value) <= most


def _is_count(value: object, *, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_service(value: object) -> bool:
    return type(value) is str and any(value in services for services in SERVICES.values())


def _is_place(value: object) -> bool:
    return type(value) is str and value in {"staging", "production"}


def _is_change(value: object) -> bool:
    return (
        type(value) is list
        and len(value) <= 3
        and all(
            type(item) is dict and set(item) == {"key", "value"} and _is_text(item["key"]) and _is_text(item["value"])
            for item in value
        )
    )


def _is_volume(value: object) -> bool:
    return type(value) is str and re.fullmatch(r"[a-z0-9-]{1,20}", value) is not None


_Checks = dict[str, Callable[[object], bool]]
_AT: _Checks = {"service": _is_service, "environment": _is_place}


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What the operator knows of a tool."""

    kind: Literal["read", "egress", "reversible", "irreversible"]
    takes: _Checks
    may_take: _Checks = field(default_factory=dict)
    is_blind: bool = False
    is_own: bool = False
    """Whether it only reads what is Quell's own, and goes on under a kill."""
    may_repeat: bool = False
    """Whether doing it twice under one key is as good as once."""

    @property
    def is_plain_read(self) -> bool:
        """Whether it can neither change anything nor carry anything out."""
        return self.kind == "read"


MEANS: dict[str, Means] = {
    "logs_search": Means(kind="read", takes={"service": _is_service, "query": _is_text}, is_own=True),
    "big_report": Means(kind="read", takes={"service": _is_service}),
    "is_volume_deleted": Means(kind="read", takes={**_AT, "volume": _is_text}, is_own=True),
    "fetch_page": Means(kind="egress", takes={"url": _is_text}),
    "read_url": Means(kind="egress", takes={"url": _is_text}),
    "scale": Means(
        kind="reversible", takes={**_AT, "replicas": lambda value: _is_count(value, most=100)}, may_repeat=True
    ),
    "restart": Means(kind="reversible", takes=_AT, may_repeat=True),
    "drain": Means(kind="reversible", takes=_AT, may_repeat=True),
    "set_config": Means(
        kind="reversible",
        takes={**_AT, "changes": _is_change, "is_live": lambda value: type(value) is bool},
        may_take={"note": _is_text},
        may_repeat=True,
    ),
    "nudge": Means(kind="reversible", takes=_AT, is_blind=True),
    "flip_flag": Means(kind="irreversible", takes=_AT, may_repeat=True),
    "delete_volume": Means(kind="irreversible", takes={**_AT, "volume": _is_volume}),
    "page_vendor": Means(kind="irreversible", takes={"service": _is_service, "message": _is_text}, is_blind=True),
}
OWN_READERS = frozenset({"head", "slice", "grep", "schema", "item_schema", "get_in", "iterate_over", "read"})


class Oracle:
    """Judges a record event by event; `violations` says what was wrong and where."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.effects = 0
        self._actors: dict[str, Actor] = {}
        self._yes: dict[tuple[str, str], list[Yes]] = defaultdict(list)
        self._stops: dict[str, Stop] = {}
        self._done: dict[tuple[str, str], list[Use]] = defaultdict(list)
        self._first: dict[str, Use] = {}
        self._past: dict[tuple[str, str], list[Use]] = defaultdict(list)
        self._failed: dict[str, int] = {}
        self._pins: dict[str, list[Pinned]] = defaultdict(list)
        self._held: dict[str, list[Held]] = defaultdict(list)
        self._earned: dict[tuple[str, str, str], list[Earned]] = defaultdict(list)
        self._glasses: list[Glass] = []
        self._strayed: dict[tuple[str, tuple[str, ...]], int] = {}
        self._inside: dict[str, set[str]] = defaultdict(set)
        self._paid: dict[str, set[str]] = defaultdict(set)
        self._days: Counter[tuple[str, int]] = Counter()
        self._units: Counter[str] = Counter()
        self._used_yes: dict[int, int] = {}
        self._to_audit: list[Use] = []

    def see(self, event: Event) -> None:
        """Take the next thing that happened."""
        match event:
            case Actor():
                self._actors[event.run] = event
            case Yes():
                self._yes[event.run, event.call].append(event)
            case Stop():
                self._see_stop(event)
            case Lift():
                self._stops.pop(event.id, None)
            case Left():
                self._inside[self._actors[event.run].digest].discard(event.key)
            case Given():
                self._see_given(event)
            case Use():
                self._see_use(event)
            case Pinned():
                self._pins[event.tool].append(event)
            case Held():
                # Whoever takes over decides what becomes of what the other had sent; it may still be on its way.
                for keys in self._inside.values():
                    keys.difference_update({key for key in keys if self._first[key].run == event.run})
                self._held[event.run].append(event)
            case Earned():
                self._earned[event.digest, event.kind, event.environment].append(event)
            case Glass():
                self._glasses.append(event)
            case Strayed():
                self._strayed.setdefault((event.run, event.plan), event.number)

    def see_failure(self, run: str, call: str, *, number: int) -> None:
        """Take that a tool's failure is known to all by now, but to what had been let go before."""
        first = next(iter(self._done[run, call]), None)
        if first is not None:
            self._failed.setdefault(first.key, number)

    def see_broken(self, told: str) -> None:
        """Take that the guard found itself in a state that it holds for impossible."""
        self._wrong("broken", told)

    def _wrong(self, kind: str, told: str, use: Use | None = None) -> None:
        self.kinds[kind] += 1
        if len(self.violations) < 50:
            where = "" if use is None else f" [{use.tool} {use.arguments[:120]} {use.run}/{use.call} #{use.asked}]"
            self.violations.append(f"{kind}: {told}{where}")

    # -- what each event means ----------------------------------------------------------------------------------------

    def _see_stop(self, stop: Stop) -> None:
        self._stops[stop.id] = stop
        if stop.told is not None:
            inside = set[str]().union(*self._inside.values())
            covered = {key for key in inside if self._covers(stop, self._first[key])}
            if covered - stop.told:
                self._wrong("untold", f"a kill did not tell of {len(covered - stop.told)} effects under way")

    def _see_given(self, event: Given) -> None:
        for run in set(re.findall(r"only-for-(run_[0-9a-f]+)", event.text)):
            if run != event.run:
                self._wrong("foreign", f"{event.run} read a result of {run}")

    def _see_use(self, use: Use) -> None:
        actor, means = self._actors.get(use.run), MEANS.get(use.tool)
        if means is None or actor is None:
            self._wrong("tool", "no such tool, or no such run", use)
            return
        arguments = self._arguments(use, means)
        if arguments is None:
            return
        self._check_reach(use, actor, arguments)
        self._check_pin(use, means)
        self._check_stops(use, is_effect=bool(use.key))
        self._check_budgets(use, actor, arguments, is_effect=means.kind in {"reversible", "irreversible"})
        if means.kind in {"reversible", "irreversible"}:
            if not use.key:
                self._wrong("key", "an effect without an idempotency key", use)
            self._check_holder(use)
            self._check_basis(use, actor, means, arguments)
            self._check_caps(use, actor, arguments)
            self._check_once(use, means)
            if use.token == self._held[use.run][-1].token:
                self._inside[actor.digest].add(use.key)
        elif means.kind == "egress":
            self._check_egress(use, actor, str(arguments["url"]))
        self._to_audit.append(use)

    def _arguments(self, use: Use, means: Means) -> Arguments | None:
        doubled: list[str] = []

        def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
            doubled.extend([""] * (len(pairs) - len(dict(pairs))))
            return dict(pairs)

        try:
            value = json.loads(use.arguments, object_pairs_hook=once)
        except ValueError:
            value = None
        right = (
            isinstance(value, dict)
            and not doubled
            and set(means.takes) <= set(value) <= set(means.takes) | set(means.may_take)
            and all({**means.takes, **means.may_take}[name](item) for name, item in value.items())
        )
        if not right:
            self._wrong("arguments", "the operator's schema does not allow these", use)
            return None
        assert isinstance(value, dict)
        return value

    def _check_reach(self, use: Use, actor: Actor, arguments: Arguments) -> None:
        if not any(fnmatchcase(use.tool, glob) for glob in actor.tools):
            self._wrong("grant", f"the agent {actor.agent} was never given this tool", use)
        if "service" in arguments and arguments["service"] not in SERVICES[actor.tenant]:
            self._wrong("tenant", f"the service is not of {actor.tenant}", use)
        if not {"viewer", "operator", "approver", "admin"} & set(actor.roles):
            self._wrong("role", "the person has no role", use)

    def _check_pin(self, use: Use, means: Means) -> None:
        """Let only what a plain read was decided about before its pin changed go out under the old one."""
        for pinned in reversed(self._pins[use.tool]):
            is_before = use.asked > pinned.asked if means.is_plain_read else use.begun > pinned.number
            if is_before:
                if use.pin != pinned.pin:
                    self._wrong("pin", f"called as {use.pin} when {pinned.pin or 'nothing'} was pinned", use)
                return

    def _check_holder(self, use: Use) -> None:
        token = next((held.token for held in reversed(self._held[use.run]) if use.begun > held.number), "")
        if use.token != token or not token:
            self._wrong("fence", f"let go by a worker that does not hold the run: {use.token!r}", use)

    def _covers(self, stop: Stop, use: Use) -> bool:
        given = json.loads(use.arguments)
        place = given.get("environment", "production") if isinstance(given, dict) else "production"
        return (
            fnmatchcase(self._actors[use.run].tenant, stop.tenant)
            and fnmatchcase(use.tool, stop.tool)
            and fnmatchcase(str(place), stop.environment)
        )

    def _check_stops(self, use: Use, *, is_effect: bool) -> None:
        for stop in self._stops.values():
            if not self._covers(stop, use):
                continue
            is_late = use.begun > stop.number
            if is_effect and not is_late and stop.told is not None and use.key not in stop.told:
                self._wrong("untold", "let go before a kill that did not tell of it", use)
            elif is_effect and is_late and use.begun_at_s < stop.ends_at_s:
                if stop.kind == "kill" or not self._is_emergency(use):
                    self._wrong("stopped", f"let go under a {stop.kind}", use)
            elif stop.kind == "kill" and MEANS[use.tool].kind == "egress" and is_late:
                self._wrong("stopped", "reached out under a kill", use)
            elif stop.kind == "kill" and self._is_late_read(use, stop):
                self._wrong("stopped", "read under a kill", use)

    @staticmethod
    def _is_late_read(use: Use, stop: Stop) -> bool:
        """Tell whether a read came later than what a process may take from memory; what is Quell's own goes on."""
        means = MEANS[use.tool]
        return means.is_plain_read and not means.is_own and use.asked_at_s > stop.at_s + GLANCE_S

    def _is_emergency(self, use: Use) -> bool:
        """Tell whether a person with the role broke the glass for this run, in the half hour before."""
        actor = self._actors[use.run]
        return use.tool == EMERGENCY and any(
            (glass.user, glass.tenant, glass.run) == (actor.user, actor.tenant, use.run)
            and "break-glass" in glass.roles
            and not glass.agent
            and glass.at_s <= use.begun_at_s < glass.at_s + GLASS_S
            for glass in self._glasses
        )

    def _check_budgets(self, use: Use, actor: Actor, arguments: Arguments, *, is_effect: bool) -> None:
        paid, price = self._paid[use.run], use.key or f"{use.asked} {use.tool}"
        if price not in paid:
            paid.add(price)
            if len(paid) > RUN_CALLS:
                self._wrong("budget", f"call {len(paid)} of {RUN_CALLS} of its run", use)
            if use.at_s // DAY_S == use.asked_at_s // DAY_S:
                self._days[actor.tenant, int(use.at_s // DAY_S)] += 1
                if self._days[actor.tenant, int(use.at_s // DAY_S)] > DAY_CALLS:
                    self._wrong("budget", f"more than {DAY_CALLS} calls of {actor.tenant} in a day", use)
        if is_effect and use.key not in self._first:
            self._units[use.run] += _units(arguments)
            if self._units[use.run] > RUN_UNITS:
                self._wrong("budget", f"{self._units[use.run]} of {RUN_UNITS} units of its run", use)

    # -- on what it rests ---------------------------------------------------------------------------------------------

    def _check_basis(self, use: Use, actor: Actor, means: Means, arguments: Arguments) -> None:
        level = self._level(use, actor, means, arguments)
        if actor.stage == "shadow" or level < 2 or not {"operator", "admin"} & set(actor.roles):
            self._wrong("basis", "this run may change nothing", use)
        replicas = arguments.get("replicas")
        if arguments.get("environment") == "production" and isinstance(replicas, int) and replicas < 2:
            self._wrong("forbidden", "production is never scaled below two", use)
        if use.form == "words" and not use.words:
            self._wrong("answer", "a form that wants words was answered by a yes", use)
        if not use.form and (self._is_automatic(actor, means, level=level) or self._is_emergency(use)):
            return
        needed = 2 if means.kind == "irreversible" else 1
        people = self._people(use, actor)
        if len(people) < needed:
            self._wrong("approval", f"{len(people)} of {needed} people approved exactly this in time", use)

    def _level(self, use: Use, actor: Actor, means: Means, arguments: Arguments) -> int:
        """Return how far this may go by itself: what the caller says, and no more than what was earned by then."""
        place = str(arguments.get("environment", "production"))
        earned = self._earned[actor.digest, means.kind, place]
        return min(actor.level, next((each.level for each in reversed(earned) if use.begun > each.number), 5))

    @staticmethod
    def _is_automatic(actor: Actor, means: Means, *, level: int) -> bool:
        return (
            means.kind == "reversible"
            and not means.is_blind
            and level >= 3
            and actor.stage == "stable"
            and not actor.is_tainted
        )

    def _people(self, use: Use, actor: Actor) -> set[str]:
        return {
            yes.by.strip().casefold()
            for yes in self._yes[use.run, use.call]
            if (yes.tool, yes.arguments) == (use.tool, use.arguments)
            and yes.tenant == actor.tenant
            and yes.by.strip().casefold() != actor.user.strip().casefold()
            and {"approver", "admin"} & set(yes.roles)
            and (use.form != "words" or yes.words == use.words)
            and yes.at_s < yes.asked_at_s + APPROVAL_S
            and use.begun_at_s < yes.asked_at_s + APPROVAL_S
            and self._is_its_turn(yes, use)
            and self._used_yes.setdefault(yes.number, use.asked) == use.asked
        } | self._people_before(use)

    def _is_its_turn(self, yes: Yes, use: Use) -> bool:
        """Tell whether a call of a plan comes after all before it have happened, and nobody has left the plan."""
        before = yes.plan[: yes.plan.index(use.call)] if yes.plan else ()
        inside = set[str]().union(*self._inside.values())
        return self._strayed.get((use.run, yes.plan), use.begun) >= use.begun and all(
            any(each.is_done for each in self._done[use.run, call])
            and not any(each.key in inside for each in self._done[use.run, call])
            for call in before
        )

    def _people_before(self, use: Use) -> set[str]:
        """Return who approved what was let go before under this very key: it goes on while their yes is in time."""
        if use.key not in self._first:
            return set()
        return {
            yes.by.strip().casefold()
            for yes in self._yes[use.run, use.call]
            if (yes.tool, yes.arguments) == (use.tool, use.arguments)
            and use.begun_at_s < yes.asked_at_s + APPROVAL_S
            and self._used_yes.get(yes.number) == self._first[use.key].asked
        }

    def _check_egress(self, use: Use, actor: Actor, url: str) -> None:
        try:
            host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").rstrip(".")
        except ValueError:
            host = ""
        if not {"operator", "admin"} & set(actor.roles):
            self._wrong("egress", "this person may not reach out", use)
        if host in LISTED:
            return
        if host not in ASKED:
            self._wrong("egress", f"host {host!r} is on no list", use)
        elif not self._people(use, actor):
            self._wrong("egress", f"nobody approved exactly this for {host!r}, or it was used already", use)

    # -- how much, and how often --------------------------------------------------------------------------------------

    def _check_caps(self, use: Use, actor: Actor, arguments: Arguments) -> None:
        since_s = use.begun_at_s - HOUR_S
        self._past[actor.tenant, actor.digest] = past = [
            each for each in self._past[actor.tenant, actor.digest] if each.at_s > use.at_s - 2 * HOUR_S
        ]
        others = [each for each in past if each.key != use.key and each.begun_at_s > since_s]
        done = [json.loads(each.arguments) for each in others if each.is_done]
        if len(others) >= CALLS_1H:
            self._wrong("caps", f"{len(others)} effects of this workflow in the hour before", use)
        if sum(map(_units, done)) + _units(arguments) > UNITS_1H:
            self._wrong("caps", "too many units in an hour", use)
        if use.tool == "scale" and sum(map(_units, done)) + _units(arguments) > SCALED_1H:
            self._wrong("caps", "too many units in an hour for scaling", use)
        if len({str(each["service"]) for each in done} | {str(arguments["service"])}) > SERVICES_1H:
            self._wrong("caps", "too many services in an hour", use)
        failed = [each for each in others if each.key in self._failed and use.begun > self._failed[each.key]]
        if len(failed) >= FAILURES_1H:
            self._wrong("caps", "it goes on after three failures", use)
        if len(self._inside[actor.digest] - {use.key}) >= IN_FLIGHT:
            self._wrong("caps", f"{len(self._inside[actor.digest])} in flight already", use)

    def _check_once(self, use: Use, means: Means) -> None:
        """One wish, one effect; the same key again is no second one where the tool remembers it or sets a value."""
        actor = self._actors[use.run]
        before = self._done[use.run, use.call]
        if any(each.key != use.key or each.arguments != use.arguments or each.tool != use.tool for each in before):
            self._wrong("twice", "one call id did two things", use)
        if use.is_done and not means.may_repeat and any(each.is_done for each in before):
            self._wrong("twice", "it happened twice", use)
        before.append(use)
        if use.key not in self._first:
            self._first[use.key] = use
            self._past[actor.tenant, actor.digest].append(use)
            self.effects += 1

    def check_audit(self, records: Mapping[tuple[str, str, str], list[tuple[int, str]]], *, is_intact: bool) -> None:
        """Look for the record of each use before it; `records` are (number, arguments) by kind, run and call."""
        if not is_intact:
            self._wrong("audit", "the log does not verify")
        for use in self._to_audit:
            kind = "effect" if use.key else "decision"
            found = records.get((kind, use.run, use.call), [])
            if not any(number <= use.audited and arguments == use.arguments for number, arguments in found):
                self._wrong("audit", f"no {kind} record of exactly this stood before it", use)
        self._to_audit.clear()


def _units(arguments: Arguments) -> int:
    """Count what is touched: replicas where it says so, one otherwise."""
    replicas = arguments.get("replicas", 1)
    return replicas if isinstance(replicas, int) else 1
