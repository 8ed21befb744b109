"""A table of requests is decided, recorded decisions are decided again, and a verdict is explained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quell.domain import ConfigError, Facts, Level, RecordedDecision, Verdict
from quell.governance import PolicySet
from tests.doors._policy_bench import ADA, DELETE, LOGS, SCALE, as_role, call, decide, load, source

COPILOT = load(PolicySet.pack("copilot"))
AUTO = load(PolicySet.pack("reversible-auto"))
TABLE = """
[[case]]
name = "an operator reads"
tool = "logs.search"
arguments = { query = "error" }
principal = { user = "ada", roles = ["operator"] }
expect = "permit"
policies = ["copilot.reads"]

[[case]]
name = "scaling asks one person"
tool = "k8s.scale"
arguments = { service = "web", environment = "prod", replicas = 3 }
principal = { user = "ada", roles = ["operator"], level = 3, stage = "canary" }
expect = "ask"
quorum = 1
approvers = ["admin", "approver"]

[[case]]
name = "not in a freeze"
tool = "k8s.scale"
arguments = { service = "web", environment = "prod", replicas = 3 }
principal = { user = "ada", roles = ["operator"] }
facts = { is_frozen = true, approvals = 2 }
expect = "deny"
policies = ["quell.frozen"]

[[case]]
name = "not with a wrong argument"
tool = "k8s.scale"
arguments = { service = "web", environment = "prod", replicas = "3" }
expect = "deny"
policies = ["quell.arguments"]

[[case]]
name = "not a tool that nobody knows"
tool = "k8s.exec"
expect = "deny"
policies = ["quell.pin"]
"""


def test_a_table_that_is_right_has_no_mismatch() -> None:
    report = COPILOT.run_table(TABLE)
    assert (report.cases, report.mismatches) == (5, ())


def test_a_mismatch_names_the_case_and_the_policies_that_decided() -> None:
    wrong = TABLE.replace('expect = "permit"', 'expect = "deny"', 1).replace("quorum = 1", "quorum = 2")
    first, second = COPILOT.run_table(wrong).mismatches
    assert str(first).startswith("an operator reads: expected deny by copilot.reads, got permit by copilot.reads")
    assert second.expected == "ask quorum 2 of admin, approver"
    assert second.verdict.quorum == 1


BROKEN = {
    "no TOML": ("[[case", "is no TOML"),
    "nothing": ("", "no list of"),
    "another table": ("x = 1\n" + TABLE, "no list of"),
    "an unknown key": (TABLE.replace("facts = {", "facts = { is_forzen = true, "), "case 3: facts.is_forzen"),
    "an unknown decision": (TABLE.replace('"permit"', '"allow"'), "case 1: expect"),
    "a missing key": (TABLE.replace('tool = "logs.search"', ""), "case 1: tool"),
    "another type": (TABLE.replace("level = 3", 'level = "3"'), "case 2: principal.level"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_table_is_refused_with_its_place(what: str) -> None:
    text, words = BROKEN[what]
    with pytest.raises(ConfigError) as refused:
        COPILOT.run_table(text, source="cases.toml")
    told = [str(refused.value), *(str(problem) for problem in refused.value.problems)]
    assert any(words in line for line in told), told
    assert "cases.toml" in told[0]


def recorded(policies: PolicySet) -> list[RecordedDecision]:
    return [
        RecordedDecision(call=call(of), principal=who, facts=facts, verdict=decide(policies, of, who, facts))
        for of in (LOGS, SCALE, DELETE)
        for who in (ADA, replace(ADA, level=Level.REVERSIBLE), as_role("viewer"))
        for facts in (Facts(), Facts(calls_1h=25))
    ]


def test_recorded_decisions_are_decided_again_by_a_candidate() -> None:
    records = recorded(COPILOT)
    assert COPILOT.simulate(records) == ()
    shifts = AUTO.simulate(records)
    seen = [
        (shift.record.call.tool, shift.record.facts.calls_1h, shift.record.verdict.decision, shift.verdict.decision)
        for shift in shifts
    ]
    assert ("k8s.scale", 0, "ask", "permit") in seen
    assert ("k8s.delete", 25, "ask", "deny") in seen
    assert all(tool_name != "logs.search" for tool_name, *_ in seen)


def test_what_a_server_asked_of_people_is_compared_as_the_permit_that_it_was() -> None:
    same, stricter = load(PolicySet.pack("copilot")), load('@id("none") forbid (principal, action, resource);')
    permit = decide(same, LOGS)
    asked = replace(
        permit, decision="ask", policies=("quell.server-asks", *permit.policies), approver_roles=("approver",), quorum=1
    )
    record = RecordedDecision(call=call(LOGS), principal=ADA, facts=Facts(), verdict=asked)
    assert same.simulate([record]) == (), "the same policies change nothing"
    (shift,) = stricter.simulate([record])
    assert shift.verdict.decision == "deny"


def test_a_recorded_call_of_a_tool_that_is_gone_or_changed_shows_as_a_shift() -> None:
    (first, *_) = recorded(COPILOT)
    gone = load(PolicySet.pack("copilot"), tools=(SCALE,))
    changed = load(PolicySet.pack("copilot"), tools=(replace(LOGS, pin="sha256:new"),))
    for policies in (gone, changed):
        (shift,) = policies.simulate([first])
        assert shift.verdict.policies == ("quell.pin",)


def test_a_changed_quorum_is_a_shift() -> None:
    record = recorded(COPILOT)[6]
    assert record.verdict.decision == "ask"
    other = replace(record, verdict=replace(record.verdict, quorum=2))
    assert len(COPILOT.simulate([record, other])) == 1


def test_an_explanation_says_what_each_policy_says() -> None:
    policies = load(PolicySet.pack("copilot"), source('@id("watch") forbid (principal, action, resource);', "w", "log"))
    told = policies.explain(call(SCALE), tool=SCALE, principal=ADA, facts=Facts())
    by_policy = {ruling.policy: ruling for ruling in told.rulings}
    assert told.verdict == decide(policies, SCALE)
    assert by_policy["copilot.reversible-asked"].says == "applies with approvals"
    assert by_policy["copilot.reads"].says == "does not apply"
    assert (by_policy["watch"].says, by_policy["watch"].source) == ("applies", "w")
    assert "context.approved" in by_policy["copilot.reversible-asked"].text
    assert told.rulings[0].policy == "watch"
    broken = policies.explain(call(SCALE), tool=SCALE, principal=ADA, facts=Facts(calls_1h=-1))
    assert (broken.verdict.decision, broken.rulings) == ("deny", ())


def test_a_verdict_is_a_plain_value() -> None:
    assert isinstance(decide(COPILOT, SCALE), Verdict)
    assert decide(COPILOT, SCALE) == decide(COPILOT, SCALE)
