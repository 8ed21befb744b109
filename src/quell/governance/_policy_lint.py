"""Find what Cedar's validator lets pass: policies that can never apply, and arithmetic that can overflow.

Cedar skips a policy whose evaluation fails, so that a forbid with an overflow is no forbid. Here each condition is
evaluated over all values at once (intervals and sets of words, narrowed by what stood before it in a conjunction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from quell.domain import Problem
from quell.governance._canonical import INTEGER_MAX, Json
from quell.governance._policy_schema import CONTEXT, HISTORY, PRINCIPAL, RESOURCE, ArgumentType
from quell.governance._policy_source import QUORUM_MAX, Policy

_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_STEPS_MAX = 100_000
"""Nodes looked at per policy and tool; a policy that is larger is refused."""


@dataclass(frozen=True, slots=True)
class Range:
    """Every integer between two."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Words:
    """One of these texts."""

    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Truth:
    """What a condition can be."""

    can_hold: bool
    can_fail: bool


Abstract: TypeAlias = "Range | Words | Truth | None"
"""What is known of a value; None: nothing."""
_Path: TypeAlias = tuple[str, ...]

_ANY = Range(-INTEGER_MAX, INTEGER_MAX)
_COUNT = Range(0, INTEGER_MAX)
_EITHER = Truth(can_hold=True, can_fail=True)
_KNOWN: Mapping[_Path, Abstract] = {
    ("principal", "level"): Range(0, 5),
    ("principal", "stage"): Words(frozenset({"shadow", "canary", "stable"})),
    ("context", "recovery"): Words(frozenset({"keyed", "probeable", "natural", "blind"})),
    ("context", "approvals"): Range(0, QUORUM_MAX),
    ("context", "blast_percent"): Range(0, 100),
    ("resource", "units"): _COUNT,
    **{("context", "history", name): _COUNT for name in HISTORY},
}
_INVERSE = {"<": ">=", ">=": "<", ">": "<=", "<=": ">", "==": "!=", "!=": "=="}
_MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def lint(policy: Policy, arguments: Sequence[ArgumentType | None]) -> Iterator[Problem]:
    """Say whether a policy can never apply or can overflow, judged over each tool that its scope covers.

    `arguments` holds the argument types of those tools; one None stands for tools that are not known.
    """
    can_apply = False
    overflows: set[str] = set()
    try:
        for each in arguments:
            judge = _Judge(arguments=each, known=dict(_KNOWN), overflows=overflows, steps=[_STEPS_MAX])
            can_apply |= judge.conditions(cast("list[Json]", policy.body.get("conditions") or []))
    except (RecursionError, _TooLargeError):
        yield _problem(policy, "is too large or too deep to be judged", "split it into several policies")
        return
    if not can_apply:
        yield _problem(
            policy,
            "can never apply: its conditions exclude each other or every value there is",
            "put them right or remove it",
        )
    for operation in sorted(overflows):
        yield _problem(
            policy,
            f"the `{operation}` in it can overflow, and Cedar skips a policy whose evaluation fails",
            "bound the numbers before it, such as `context.args.n < 1000 && ...`",
        )


def _problem(policy: Policy, reason: str, hint: str) -> Problem:
    return Problem(path=policy.id, reason=reason, hint=hint, source=policy.place)


class _TooLargeError(Exception):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """Evaluates expressions of one policy, for one tool, under what is known at that place."""

    arguments: ArgumentType | None
    known: Mapping[_Path, Abstract]
    overflows: set[str]
    steps: list[int]

    def conditions(self, conditions: list[Json]) -> bool:
        """Whether all conditions of a policy can hold together."""
        judge = self
        for condition in conditions:
            assert isinstance(condition, dict)
            holds = condition["kind"] == "when"
            truth = _truth(judge.of(condition["body"]))
            if not (truth.can_hold if holds else truth.can_fail):
                return False
            judge = judge.given(condition["body"], holds=holds)
        return True

    def of(self, expression: Json) -> Abstract:
        """Return all that an expression can be."""
        self.steps[0] -= 1
        if self.steps[0] < 0:
            raise _TooLargeError
        operator, parts = _operation(expression)
        rule = _RULES.get(operator)
        if rule is not None:
            return rule(self, operator, parts)
        self._look_inside(parts)
        return None

    def given(self, expression: Json, *, holds: bool) -> _Judge:
        """Return a judge that knows that an expression held, or that it did not."""
        operator, parts = _operation(expression)
        if operator == "!":
            return self.given(_only(parts), holds=not holds)
        if operator == ("&&" if holds else "||"):
            left, right = _pair(parts)
            return self.given(left, holds=holds).given(right, holds=holds)
        if operator in _INVERSE:
            left, right = _pair(parts)
            operator = operator if holds else _INVERSE[operator]
            narrowed = self.narrowed(operator, left, right)
            return narrowed.narrowed(_MIRROR[operator], right, left)
        path = _path(expression)
        if path is not None and operator == ".":
            return self._knowing(path, Truth(can_hold=holds, can_fail=not holds))
        return self

    def _knowing(self, path: _Path, value: Abstract) -> _Judge:
        return replace(self, known={**self.known, path: value})

    def narrowed(self, operator: str, left: Json, right: Json) -> _Judge:
        """Return a judge that knows what a comparison that held says of its left side."""
        path, other = _path(left), self.of(right)
        if path is None:
            return self
        if isinstance(other, Range):
            now = self.of(left)
            now = now if isinstance(now, Range) else _ANY
            low, high = now.low, now.high
            if operator in {"<", "<=", "=="}:
                high = min(high, other.high - (operator == "<"))
            if operator in {">", ">=", "=="}:
                low = max(low, other.low + (operator == ">"))
            return self._knowing(path, Range(low, high)) if low <= high else self
        if isinstance(other, Words) and operator == "==":
            return self._knowing(path, other)
        return self

    def logic(self, operator: str, parts: Json) -> Truth:
        """Judge `&&` and `||`; the right side is judged knowing the left."""
        pair = _pair(parts)
        left = _truth(self.of(pair[0]))
        if operator == "&&":
            if not left.can_hold:
                return left
            right = _truth(self.given(pair[0], holds=True).of(pair[1]))
            return Truth(can_hold=right.can_hold, can_fail=left.can_fail or right.can_fail)
        if not left.can_fail:
            return left
        right = _truth(self.given(pair[0], holds=False).of(pair[1]))
        return Truth(can_hold=left.can_hold or right.can_hold, can_fail=right.can_fail)

    def inverted(self, _operator: str, parts: Json) -> Truth:
        """Judge `!`."""
        truth = _truth(self.of(_only(parts)))
        return Truth(can_hold=truth.can_fail, can_fail=truth.can_hold)

    def compared(self, operator: str, parts: Json) -> Truth:
        """Judge a comparison."""
        left, right = _pair(parts)
        return _compared(operator, self.of(left), self.of(right))

    def choice(self, _operator: str, parts: Json) -> Abstract:
        """Judge `if then else`; only branches that can be taken count."""
        assert isinstance(parts, dict)
        test = _truth(self.of(parts["if"]))
        then = self.given(parts["if"], holds=True).of(parts["then"]) if test.can_hold else None
        other = self.given(parts["if"], holds=False).of(parts["else"]) if test.can_fail else None
        if not (test.can_hold and test.can_fail):
            return then if test.can_hold else other
        if isinstance(then, Range) and isinstance(other, Range):
            return Range(min(then.low, other.low), max(then.high, other.high))
        if isinstance(then, Truth) and isinstance(other, Truth):
            return Truth(can_hold=then.can_hold or other.can_hold, can_fail=then.can_fail or other.can_fail)
        return None

    def arithmetic(self, operator: str, parts: Json) -> Range:
        """Judge arithmetic, and note whether it can overflow."""
        if operator == "neg":
            one = _range(self.of(_only(parts)))
            ends = [-one.low, -one.high]
        else:
            left, right = (_range(self.of(part)) for part in _pair(parts))
            ends = [_calculated(operator, a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
        if min(ends) < _LONG_MIN or max(ends) > _LONG_MAX:
            self.overflows.add("-" if operator == "neg" else operator)
        return Range(max(min(ends), _LONG_MIN), min(max(ends), _LONG_MAX))

    def looked_up(self, operator: str, parts: Json) -> Abstract:
        """Judge an attribute."""
        path = _path({operator: parts})
        if path is None:
            self._look_inside(parts)
            return None
        if path in self.known:
            return self.known[path]
        found = self._argument(path)
        if found is not None and found[0].kind == "long":
            return _ANY
        return Words(found[0].words) if found is not None and found[0].words is not None else None

    def _argument(self, path: _Path) -> tuple[ArgumentType, bool] | None:
        """Return the type at a path into the arguments, and whether it is always there."""
        if path[:2] != ("context", "args") or self.arguments is None:
            return None
        at: tuple[ArgumentType, bool] | None = (self.arguments, True)
        for name in path[2:]:
            at = (at[0].attributes or {}).get(name) if at is not None else None
        return at

    def has(self, _operator: str, parts: Json) -> Truth:
        """Judge whether an attribute is there."""
        assert isinstance(parts, dict)
        parent = _path(parts["left"])
        if parent is None:
            self.of(parts["left"])
            return _EITHER
        path = (*parent, str(parts["attr"]))
        if path[:2] == ("context", "args") and len(path) > 2:
            found = self._argument(path)
            if self.arguments is None:
                return _EITHER
            return Truth(can_hold=found is not None, can_fail=found is None or not found[1])
        fixed = {"principal": PRINCIPAL, "resource": RESOURCE, "context": {**CONTEXT, "args": None}}.get(path[0])
        if len(path) != 2 or fixed is None:
            return _EITHER
        return Truth(can_hold=path[1] in fixed, can_fail=path[1] not in fixed)

    def _look_inside(self, parts: Json) -> None:
        """Evaluate the parts of what is not understood, for the arithmetic in them."""
        if isinstance(parts, dict):
            for part in parts.values():
                self._look_inside_one(part)
        elif isinstance(parts, list):
            for part in parts:
                self._look_inside_one(part)

    def _look_inside_one(self, part: Json) -> None:
        if isinstance(part, dict) and len(part) == 1:
            self.of(part)
        elif isinstance(part, dict | list):
            self._look_inside(part)


_Rule: TypeAlias = Callable[[_Judge, str, Json], Abstract]
_RULES: Mapping[str, _Rule] = {
    "Value": lambda _judge, _operator, parts: _literal(parts),
    "!": _Judge.inverted,
    "if-then-else": _Judge.choice,
    ".": _Judge.looked_up,
    "has": _Judge.has,
    **dict.fromkeys(("&&", "||"), _Judge.logic),
    **dict.fromkeys(_INVERSE, _Judge.compared),
    **dict.fromkeys(("+", "-", "*", "neg"), _Judge.arithmetic),
}


def _operation(expression: Json) -> tuple[str, Json]:
    assert isinstance(expression, dict)
    return next(iter(expression.items()))


def _pair(parts: Json) -> tuple[Json, Json]:
    assert isinstance(parts, dict)
    return parts["left"], parts["right"]


def _only(parts: Json) -> Json:
    assert isinstance(parts, dict)
    return parts["arg"]


def _literal(value: Json) -> Abstract:
    if isinstance(value, bool):
        return Truth(can_hold=value, can_fail=not value)
    if isinstance(value, int):
        return Range(value, value)
    return Words(frozenset({value})) if isinstance(value, str) else None


def _path(expression: Json) -> _Path | None:
    """Return the path of a chain of attributes that begins at a variable; None for anything else."""
    operator, parts = _operation(expression)
    if operator == "Var":
        return (str(parts),)
    if operator != ".":
        return None
    assert isinstance(parts, dict)
    before = _path(parts["left"])
    return (*before, str(parts["attr"])) if before is not None else None


def _truth(value: Abstract) -> Truth:
    return value if isinstance(value, Truth) else _EITHER


def _range(value: Abstract) -> Range:
    return value if isinstance(value, Range) else _ANY


def _calculated(operator: str, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def _compared(operator: str, left: Abstract, right: Abstract) -> Truth:
    if operator in {"==", "!="}:
        equal = _equal(left, right)
        return equal if operator == "==" else Truth(can_hold=equal.can_fail, can_fail=equal.can_hold)
    if not (isinstance(left, Range) and isinstance(right, Range)):
        return _EITHER
    if operator in {">", ">="}:
        left, right = right, left
    if operator in {"<", ">"}:
        return Truth(can_hold=left.low < right.high, can_fail=left.high >= right.low)
    return Truth(can_hold=left.low <= right.high, can_fail=left.high > right.low)


def _equal(left: Abstract, right: Abstract) -> Truth:
    match left, right:
        case Range(), Range():
            meet = left.low <= right.high and right.low <= left.high
            return Truth(can_hold=meet, can_fail=not (meet and left.low == left.high == right.low == right.high))
        case Words(), Words():
            meet = bool(left.values & right.values)
            return Truth(can_hold=meet, can_fail=not (meet and len(left.values) == len(right.values) == 1))
        case Truth(), Truth():
            same = (left.can_hold and right.can_hold) or (left.can_fail and right.can_fail)
            differ = (left.can_hold and right.can_fail) or (left.can_fail and right.can_hold)
            return Truth(can_hold=same, can_fail=differ)
    return _EITHER
