"""Run a table of requests and expected verdicts, written in TOML, against policies."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from quell.domain import (
    ConfigError,
    Facts,
    FrozenCall,
    PolicyMismatch,
    PolicyTableReport,
    Principal,
    Problem,
    RefusedError,
    Tool,
    Verdict,
)
from quell.governance._arguments import freeze

_CASES_MAX = 10_000


class _Admit(Protocol):
    def __call__(self, call: FrozenCall, *, tool: Tool, principal: Principal, facts: Facts) -> Verdict:
        """Decide about a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One row: a request, and what should come of it."""

    name: str
    tool: str
    expect: Literal["permit", "ask", "deny"]
    arguments: Mapping[str, object] | None = None
    environment: str = "default"
    principal: Principal | None = None
    facts: Facts | None = None
    policies: tuple[str, ...] | None = None
    """Ids that must be among those that decided."""
    quorum: int | None = None
    approvers: tuple[str, ...] | None = None


_READER = TypeAdapter(_Case)


def run_table(text: str, *, source: str, tools: Mapping[str, Tool], admit: _Admit) -> PolicyTableReport:
    """Decide every case and compare. Raises ConfigError with every malformed case."""
    cases = _cases(text, source)
    mismatches = []
    for case in cases:
        verdict = _decided(case, tools, admit)
        if not _is_expected(case, verdict):
            mismatches.append(PolicyMismatch(case=case.name, expected=_expected(case), verdict=verdict))
    return PolicyTableReport(cases=len(cases), mismatches=tuple(mismatches))


def _decided(case: _Case, tools: Mapping[str, Tool], admit: _Admit) -> Verdict:
    tool = tools.get(case.tool)
    if tool is None:
        return Verdict(decision="deny", policies=("quell.pin",), reason=f"no tool `{case.tool}` is pinned")
    try:
        call = freeze(tool, run="table", call=case.name, arguments=case.arguments or {}, environment=case.environment)
    except RefusedError as refusal:
        return Verdict(decision="deny", policies=("quell.arguments",), reason=str(refusal))
    return admit(call, tool=tool, principal=case.principal or Principal(user="somebody"), facts=case.facts or Facts())


def _is_expected(case: _Case, verdict: Verdict) -> bool:
    return (
        verdict.decision == case.expect
        and set(case.policies or ()) <= set(verdict.policies)
        and case.quorum in {None, verdict.quorum}
        and (case.approvers is None or set(case.approvers) == set(verdict.approver_roles))
    )


def _expected(case: _Case) -> str:
    said: list[str] = [case.expect]
    said += [f"by {', '.join(case.policies)}"] if case.policies else []
    said += [f"quorum {case.quorum}"] if case.quorum is not None else []
    said += [f"of {', '.join(case.approvers)}"] if case.approvers is not None else []
    return " ".join(said)


def _cases(text: str, source: str) -> list[_Case]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is no TOML: {error}", hint="see docs/how-to/write-a-policy.md") from None
    rows = document.get("case", [])
    if not isinstance(rows, list) or document.keys() - {"case"} or not 0 < len(rows) <= _CASES_MAX:
        raise ConfigError(f"{source} holds no list of [[case]] alone", hint="write each request as one [[case]]")
    cases: list[_Case] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows, start=1):
        found = list(_unknown_keys(row, f"case {number}", source))
        problems += found
        try:
            cases.append(_READER.validate_json(json.dumps(row, default=str), strict=True))
        except ValidationError as error:
            problems += [
                Problem(
                    path=f"case {number}: {'.'.join(str(part) for part in each['loc'])}",
                    reason=each["msg"], hint="see docs/how-to/write-a-policy.md", source=source,
                )
                for each in error.errors()
            ]  # fmt: skip
    if problems:
        raise ConfigError(f"{source} has {len(problems)} mistakes", hint=str(problems[0]), problems=tuple(problems))
    return cases


def _unknown_keys(row: object, path: str, source: str) -> Iterator[Problem]:
    if not isinstance(row, dict):
        return
    for at, kind in (("", _Case), ("principal", Principal), ("facts", Facts)):
        known = {field.name for field in fields(kind)}
        part = row.get(at, {}) if at else row
        for key in sorted(part.keys() - known if isinstance(part, dict) else ()):
            where = f"{path}: {at}.{key}" if at else f"{path}: {key}"
            yield Problem(path=where, reason="is not known", hint=f"known: {', '.join(sorted(known))}", source=source)
