"""The grammar of the built-in model: a table of how people ask, read from the top, the first row that fits counts.

A pattern is words in their order with anything between them; `a|b` is one or the other. To have another phrasing
understood, add a row where it belongs: a row hides the rows below it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal, TypeAlias


class Intent(StrEnum):
    """What a person wants."""

    STATUS = "status"
    """Whether anything is wrong, with the system or one service."""
    CHANGED = "changed"
    WHY = "why"
    """The cause of trouble."""
    LIST = "list"
    """Which incidents there are."""
    SHOW = "show"
    """One incident."""
    FIX = "fix"
    """What would be done about it."""
    BRIEF = "brief"
    """What stands out in telemetry."""
    NAMES = "names"
    """Which services there are."""
    ACT = "act"
    """That something be done: this model does nothing to the system."""
    MORE = "more"
    """More of the last answer."""
    GREET = "greet"
    THANK = "thank"
    ABLE = "able"
    """What this model can do."""
    OTHER = "other"
    """Anything else: it cannot."""


Place: TypeAlias = Literal["any", "start", "whole", "alone"]
"""`start`: begins with it; `whole`: nothing else is said but filling words; `alone`: nothing but words of courtesy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of asking."""

    intent: Intent
    pattern: str
    place: Place = "any"


def _rows(intent: Intent, *patterns: str, place: Place = "any") -> list[Row]:
    return [Row(intent=intent, pattern=pattern, place=place) for pattern in patterns]


_BAD = "wrong|broken|failing|slow|down|bad|unhealthy|off|weird|strange|unusual|odd|burning|fire|fires|firing|alerting"
_WELL = "ok|okay|fine|well|healthy|good|up|normal|green|alright|working|alive|reachable|stable|running|quiet|calm"
_TROUBLE = (
    "problem|problems|issue|issues|alert|alerts|alarm|alarms|trouble|troubles|outage|outages|anomaly|anomalies|fires"
)
_MEND = "fix|repair|solve|mitigate|resolve|remedy|remediate|recover|stop|end|cure|undo|improve"
_CHANGE = (
    "change|changes|changed|new|different|deploy|deploys|deployed|deployment|deployments|release|releases|released|"
    "rollout|rollouts|shipped|pushed|merged|modified|updated|update|updates|upgrade|upgraded|toggled|switched"
)

ROWS: tuple[Row, ...] = (
    *_rows(Intent.GREET, "hi|hello|hey|howdy|morning|afternoon|evening|greetings|hiya|yo", place="alone"),
    *_rows(
        Intent.THANK, "thanks|thank|thx|cheers|great|cool|ok|okay|perfect|nice|bye|goodbye|awesome|good", place="alone"
    ),
    *_rows(Intent.ABLE, "help|commands|usage|capabilities", place="alone"),
    *_rows(
        Intent.ABLE,
        "what can|could you|quell|u do|answer|tell|see",
        "what do you do|know|answer",
        "what|which questions can",
        "who|what are you",
        "how do|does you|quell|this work|function",
        "how can|could you help",
        "what can|could you help",
        "can you help",
        place="alone",
    ),
    *_rows(
        Intent.OTHER,
        "write|compose|draft|generate|translate|code|implement|refactor|sing|imagine|pretend|ignore|forget|act",
        "tell me joke|story|poem|secret|secrets|password",
        "what is love|meaning|weather|capital",
        place="start",
    ),
    *_rows(
        Intent.MORE,
        "more|details|detail|elaborate|expand|evidence|continue|proof|explain",
        "show|tell|give|see|want more|details|detail|evidence|proof|everything|rest",
        "go on",
        place="whole",
    ),
    *_rows(Intent.FIX, "what happens|happen next", "who approve|approves|approval|approvals|decides|sign"),
    *_rows(
        Intent.FIX,
        f"how do|can|could|should|would|to|will|might {_MEND}",
        "what would|should|could|can|shall|must you|we|i|one do|try|recommend|suggest|advise|propose",
        "what do you recommend|suggest|advise|propose",
        "what do i|we do",
        "what next|now",
        "next step|steps|action|actions",
        "advise|advice|recommend|recommendation|recommendations|suggest|suggestion|suggestions|remediation|runbook|proposal|propose",
        f"can|could it|this|that|we|i be|get {_MEND}|fixed|solved|repaired",
    ),
    *_rows(
        Intent.ACT,
        "restart|rollback|roll|revert|scale|delete|kill|drain|deploy|apply|stop|start|disable|enable|switch|turn|reboot|"
        "increase|decrease|raise|lower|silence|mute|ack|acknowledge|merge|drop|execute|run|close|approve|reject|set|"
        f"{_MEND}",
        place="start",
    ),
    *_rows(Intent.SHOW, "incident <ref>", "<id>", "<ref> incident|one", "<ordinal> incident|one"),
    *_rows(Intent.SHOW, "show|open|explain|describe|see|read|about|tell that|this|the|it incident|one"),
    *_rows(
        Intent.LIST,
        "list|show|all|any|which|what|open|recent|many|see|give|past|previous|current|are|have|had incidents|outages",
        "incidents|outages|postmortems",
        "which|what incident",
    ),
    *_rows(Intent.STATUS, f"which|what|any services|service|components|databases affected|impacted|degraded|{_BAD}"),
    *_rows(Intent.NAMES, "which|what|list|show|all|many|see services|databases|queues|components|dependencies|names"),
    *_rows(
        Intent.WHY,
        "why|cause|causes|caused|causing|reason|root|culprit|rca|blame|responsible|whence",
        "how come",
        "who|what broke|breaks|breaking|killed|happened|triggered",
        "investigate|diagnose|debug|troubleshoot|analyse|analyze|examine|inspect",
        "look into",
        "find out",
        f"what is {_BAD}|happening|going|up|matter with|to|in|about|at|inside",
        f"what makes|made {_BAD}|fail",
        "what happened",
    ),
    *_rows(
        Intent.CHANGED,
        f"what|anything|something|everything|who|which|any|did|has|have|was|were|when|show|list|tell|recent|latest|last {_CHANGE}",
        "changes|changelog|deploys|deployments|releases|rollouts|changed",
        "what|which flags|flag|config|configuration",
        "difference|diff|before|compare|compared",
    ),
    *_rows(
        Intent.BRIEF,
        "brief|briefing|summary|summarise|summarize|picture|digest|recap|tldr|report",
        "show|read|see|search|get|give|tail logs|log|metrics|traces|spans|telemetry|graphs",
        "what|how rate|latency|p50|p95|p99|throughput|traffic|load|usage|rps|many|much|cpu|memory|slow|fast|busy",
        "stands|stand|sticks out",
        "update|catch|fill me|us",
    ),
    *_rows(
        Intent.STATUS,
        f"is|are|was|were|anything|something|everything|all|things|we|does|has|have {_BAD}|{_WELL}|{_TROUBLE}",
        "status|health|overview|state|situation|dashboard",
        "how is|are|goes|going",
        f"any|current|firing|active|open|see|got|have|new|more|other {_TROUBLE}|errors|failures|trouble",
        f"anything|something {_BAD}|happening|{_TROUBLE}|errors",
        f"what is {_BAD}|happening|going|up",
        "still|fixed|over|recovered|resolved|better|solved",
        f"{_TROUBLE}|firing",
        "worry|worried|concerned|attention",
        "sleep|relax",
    ),
)
"""How people ask."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


SYMPTOMS = _set(
    "slow slower sluggish latency lag lagging laggy timeout timeouts timing timed hanging hangs hung stuck delayed delays delay down "
    "dead unreachable offline broken failing fails fail failed failure failures error errors erroring 500 500s 502 503 504 5xx 4xx "
    "crash crashing crashes crashed crashloop crashlooping exception exceptions restarting oom overloaded saturated spike spikes "
    "spiking unavailable flaky unresponsive degraded degradation leak leaking refused rejected wrong"
)
"""Words for trouble: who says one of them about something wants to know why."""
POLITE = _set(
    "please pls kindly hey hi hello quell and but so ok okay well then also now can could would you will u just go ahead i we need "
    "want to let us"
)
"""What may stand before a wish."""
COURTEOUS = _set(
    "you there all everyone very much so lot a for the that this your help again me us with here good to both of"
)
"""What may stand beside a greeting, thanks, or a question about this model itself."""
ASKING = _set("is are was were does do did has have can could should will")
POINTING = _set("it this that them they these those there")
"""Words for what was talked about before."""
FILLING = (
    POLITE
    | ASKING
    | POINTING
    | frozenset(f"{_BAD}|{_WELL}|{_TROUBLE}|{_CHANGE}|{_MEND}".split("|"))
    | _set(
        "a an the of on in at for with from by about our my your their its here be been being am had may might me he she or not no if "
        "than as any some all every everything anything something nothing thing things one ones service services svc system systems "
        "production prod live again still what which who whom whose when where why how happen happens happened happening going wrong "
        "problem problems issue issues trouble incident incidents alert alerts alarm user users customer customers people client clients "
        "page pages get gets getting got give show tell look looking looks see say says know think like lot lots many much more most "
        "really very too right today currently recently recent latest last past since ago between during into out up over off back "
        "there's that's minute minutes min mins hour hours day days week yesterday tonight suddenly always often keep keeps keeping "
        "taking takes take long because due respond responding response responses request requests call calls rate rates high higher "
        "rising increasing increased low number count same other both only even ever working work works ok okay fine well healthy good "
        "normal status health cause causes caused causing root reason reasons investigate diagnose debug troubleshoot check find look into "
        "list open doing do done new bad much please thanks thank guys team anyone somebody someone world whole entire overall general "
        "summary brief briefing logs log metrics traces telemetry errors app application platform environment cluster "
        "config configuration flag flags next step steps time times compare rollback approve approval action actions "
        "resolved closed fixed solved finished ended over older severity critical that were"
    )
)
"""Words that name nothing of the system."""
_BESIDE = {"whole": FILLING, "alone": POLITE | COURTEOUS}
KINDS = {
    "database": "database", "databases": "database", "db": "database", "dbs": "database", "sql": "database",
    "datastore": "database", "queue": "queue", "queues": "queue", "broker": "queue", "topic": "queue",
    "third": "external", "vendor": "external", "provider": "external", "external": "external",
}  # fmt: skip
"""Words for a kind of thing, of which there may be one only."""
ORDINALS = {
    "first": "1", "latest": "1", "newest": "1", "last": "1", "current": "1", "recent": "1", "second": "2", "third": "3",
    "fourth": "4", "fifth": "5", "sixth": "6", "seventh": "7", "eighth": "8", "ninth": "9", "tenth": "10",
}  # fmt: skip

_ID = re.compile(r"inc_[0-9a-z]{2,40}")
_REF = re.compile(r"#?\d{1,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Which row fits, and which of the words it took."""

    intent: Intent
    taken: frozenset[int]


def matched(words: Sequence[str]) -> Matched | None:
    """Return the first row that fits these words."""
    begins = next((place for place, word in enumerate(words) if word not in POLITE), 0)
    for row in ROWS:
        for start in (0, begins) if row.place == "start" and begins else (0,):
            taken = _taken(row.pattern, words, start=start, is_fixed=row.place == "start")
            if taken is None:
                continue
            rest = [word for place, word in enumerate(words) if place not in taken]
            beside = _BESIDE.get(row.place)
            if beside is None or all(word in beside for word in rest):
                return Matched(intent=row.intent, taken=frozenset(taken))
    return None


def _taken(pattern: str, words: Sequence[str], *, start: int, is_fixed: bool) -> list[int] | None:
    taken: list[int] = []
    at = start
    for number, group in enumerate(pattern.split(" ")):
        fits = (place for place in range(at, len(words)) if _fits(group, words[place]))
        place = next(fits, None)
        if place is None or (is_fixed and number == 0 and place != start):
            return None
        taken.append(place)
        at = place + 1
    return taken


def _fits(group: str, word: str) -> bool:
    match group:
        case "<id>":
            return _ID.fullmatch(word) is not None
        case "<ref>":
            return _REF.fullmatch(word) is not None or _ID.fullmatch(word) is not None
        case "<ordinal>":
            return word in ORDINALS
    return word in _choices(group)


@lru_cache(maxsize=1_024)
def _choices(group: str) -> frozenset[str]:
    return frozenset(group.split("|"))
