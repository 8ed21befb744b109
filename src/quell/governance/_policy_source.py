"""Read Cedar texts into policies with ids of their own: every mistake at once, none of them deciding anything yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

from cedarpy import policies_to_json_str

from quell.domain import PolicySource, Problem
from quell.governance._canonical import Json

POLICIES_MAX = 500
"""A decision takes time linear in them: half a millisecond here."""
QUORUM_MAX = 5
SOURCE_MAX_CHARS = 2_000_000
POLICY_MAX_CHARS = 32_000
_BRACKETS_MAX = 50
KERNEL = "quell"
"""Source of the policies that are built in; ids that begin with it are theirs."""
_ANNOTATIONS = frozenset({"id", "approvers", "quorum", "break_glass", "reason"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,99}\Z")
_TOKEN = re.compile(r'//[^\n\r]*|"(?:[^"\\]|\\.)*"|[()\[\]{};]', re.DOTALL)
_CHAIN = re.compile(r"(?:\.\s*\w+\s*){17}")
_COMMENT = re.compile(r"//[^\n\r]*")
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy as it was read."""

    id: str
    source: str
    place: str
    """Source and line, for problems."""
    mode: Literal["enforce", "log"]
    effect: Literal["permit", "forbid"]
    approvers: tuple[str, ...]
    """Roles of those who may approve what it permits; empty: those of the default."""
    quorum: int
    """Approvals that it asks for; 0 when it does not say."""
    is_break_glass: bool
    reason: str
    """Words of the operator for those whom it concerns."""
    text: str
    """The policy as it is written, comments before it too."""
    body: dict[str, Json]
    """The policy in Cedar's JSON form."""

    @property
    def actions(self) -> tuple[str, ...] | None:
        """Ids of the actions and groups that its scope names; None when it is about all."""
        action = self.body["action"]
        assert isinstance(action, dict)
        entity, entities = action.get("entity"), action.get("entities")
        named = [entity] if entity is not None else entities
        return (
            None
            if named is None
            else tuple(str(cast("dict[str, Json]", each)["id"]) for each in cast("list[Json]", named))
        )


def read_sources(sources: Iterable[PolicySource]) -> tuple[tuple[Policy, ...], tuple[Problem, ...]]:
    """Read every policy of every source, and say what is wrong with those that cannot be."""
    policies: dict[tuple[str, str], Policy] = {}
    problems: list[Problem] = []
    names: set[str] = set()
    for source in sources:
        if source.name in names:
            problems.append(_problem(source.name, "", "two sources have this name", "give each its own"))
        names.add(source.name)
        read = list(_read(source))
        if not read:
            # A file that was cut to nothing would take its forbids along, and nobody would be told.
            problems.append(
                _problem(source.name, "", "holds no policy", "write one, or take the file off the settings")
            )
        for found in read:
            if isinstance(found, Problem):
                problems.append(found)
                continue
            # A set that only watches stands apart, so that the next version of a set can watch beside today's.
            key = (source.name if source.mode == "log" else "", found.id)
            if key in policies:
                other = policies[key].place
                problems.append(
                    _problem(found.place, found.id, f"this @id stands in {other} too", "give each policy its own @id")
                )
            else:
                policies[key] = found
    return tuple(policies.values()), tuple(problems)


def attributes_read(policies: Iterable[Policy]) -> frozenset[str]:
    """Collect the names of all attributes that policies read or ask for."""
    names: set[str] = set()
    stack: list[Json] = [policy.body.get("conditions") for policy in policies]
    while stack:
        at = stack.pop()
        if isinstance(at, dict):
            attribute = at.get("attr")
            names |= {attribute} if isinstance(attribute, str) else set()
            stack += at.values()
        elif isinstance(at, list):
            # An extended `has a.b.c` holds its names as a list.
            names |= {item for item in at if isinstance(item, str)}
            stack += at
    return frozenset(names)


def _read(source: PolicySource) -> Iterator[Policy | Problem]:
    if len(source.text) > SOURCE_MAX_CHARS:
        yield _problem(source.name, "", f"is longer than {SOURCE_MAX_CHARS:,} characters", "split the file")
        return
    line = 1
    for text in _statements(source.text):
        begins = line + text[: len(text) - len(text.lstrip())].count("\n")
        line += text.count("\n")
        yield from _statement(source, f"{source.name}:{begins}", text)


def _statements(text: str) -> Iterator[str]:
    """Cut a text after each `;` that ends a policy; whatever is cut wrongly, Cedar's parser refuses."""
    begins = depth = 0
    for token in _TOKEN.finditer(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token[0], 0)
        if token[0] == ";" and depth <= 0:
            yield text[begins : token.end()]
            begins, depth = token.end(), 0
    if _COMMENT.sub("", text[begins:]).strip():
        yield text[begins:]


def _statement(source: PolicySource, place: str, text: str) -> Iterator[Policy | Problem]:
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    bare = _TOKEN.sub(lambda token: "" if token[0].startswith("//") else "x" if token[0][0] == '"' else token[0], text)
    # Cedar's parser ends the whole program when brackets nest some hundreds deep, and takes all memory for a `has` of
    # thousands of names: it never sees such a text.
    if len(text) > POLICY_MAX_CHARS or deepest > _BRACKETS_MAX or _CHAIN.search(bare):
        reason = (
            f"is longer than {POLICY_MAX_CHARS:,} characters, or nests deeper than {_BRACKETS_MAX} brackets or 16 names"
        )
        yield _problem(place, "", reason, "split it into several policies")
        return
    try:
        read = json.loads(policies_to_json_str(text))
    except (ValueError, RecursionError) as error:
        said = "it nests too deep" if isinstance(error, RecursionError) else str(error)
        said = said.removeprefix("Policy parse error: ")
        yield _problem(place, "", f"cannot be read: {said}", "see the Cedar grammar; each policy ends with `;`")
        return
    if read["templates"]:
        yield _problem(place, "", "is a template", "write out `?principal` and `?resource`")
        return
    assert len(read["staticPolicies"]) == 1, "one statement is one policy"
    yield from _policy(source, place, text.strip(), read["staticPolicies"]["policy0"])


def _policy(source: PolicySource, place: str, text: str, body: dict[str, Json]) -> Iterator[Policy | Problem]:
    raw = body.get("annotations") or {}
    assert isinstance(raw, dict)
    notes = {name: "" if value is None else str(value) for name, value in raw.items()}
    told = notes.get("id", "")
    if not _ID.match(told):
        yield _problem(place, "", "has no @id", 'write @id("team.what") before it: letters, digits, _ . : / -')
        return
    wrong = list(_judge_notes(source, place, str(body["effect"]), notes))
    yield from wrong
    if not wrong:
        yield Policy(
            id=told,
            source=source.name,
            place=place,
            mode=source.mode,
            effect=cast("Literal['permit', 'forbid']", body["effect"]),
            approvers=tuple(role.strip() for role in notes.get("approvers", "").split(",") if role.strip()),
            quorum=int(notes.get("quorum", "0")),
            is_break_glass="break_glass" in notes,
            reason=notes.get("reason", ""),
            text=text,
            body=body,
        )


def _judge_notes(source: PolicySource, place: str, effect: str, notes: dict[str, str]) -> Iterator[Problem]:
    told = notes["id"]
    if told.split(".", maxsplit=1)[0] == KERNEL and source.name != KERNEL:
        yield _problem(place, told, f"ids that begin with `{KERNEL}.` are built in", "choose another @id")
    for name in sorted(notes.keys() - _ANNOTATIONS):
        known = ", ".join(f"@{each}" for each in sorted(_ANNOTATIONS))
        yield _problem(place, told, f"@{name} is not known", f"known: {known}")
    quorum = notes.get("quorum", "1")
    if not (quorum.isascii() and quorum.isdigit() and 1 <= int(quorum[:3]) <= QUORUM_MAX):
        yield _problem(place, told, f"@quorum({quorum[:20]!r}) is no number of people", f"1 to {QUORUM_MAX}")
    roles = [role.strip() for role in notes["approvers"].split(",")] if "approvers" in notes else []
    if not all(_ROLE.match(role) for role in roles):
        yield _problem(place, told, "@approvers names no roles", 'such as @approvers("approver,oncall")')
    for name in ("approvers", "quorum", "break_glass"):
        if name in notes and effect == "forbid":
            yield _problem(place, told, f"@{name} stands at a forbid", "no approval lifts a forbid; put it at a permit")


def _problem(source: str, policy: str, reason: str, hint: str) -> Problem:
    return Problem(path=policy, reason=reason, hint=hint, source=source)
