"""Verdicts: what the packs say, what no policy can lift, who is asked, and that authority is what all share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quell.domain import Facts, Level, Principal, Recovery, Tool, ToolClass, UsageError
from quell.governance import PolicySet
from tests.doors._policy_bench import (
    ADA,
    DELETE,
    FETCH,
    LOGS,
    ON_WEB,
    SCALE,
    TOOLS,
    as_role,
    call,
    decide,
    load,
    source,
    tool,
)

ALL = '@id("all") permit (principal, action, resource);'
COPILOT = load(PolicySet.pack("copilot"))
AUTO = load(PolicySet.pack("reversible-auto"))
DARK = load(PolicySet.pack("dark-factory"))
L3 = replace(ADA, level=Level.REVERSIBLE)
L5 = replace(ADA, level=Level.CLOSED_LOOP)

PACKS = [
    (COPILOT, LOGS, ADA, "permit", 0),
    (COPILOT, LOGS, as_role("viewer"), "permit", 0),
    (COPILOT, LOGS, Principal(user="ada"), "deny", 0),
    (COPILOT, FETCH, ADA, "ask", 1),
    (COPILOT, FETCH, as_role("viewer"), "deny", 0),
    (COPILOT, SCALE, L5, "ask", 1),
    (COPILOT, SCALE, as_role("viewer"), "deny", 0),
    (COPILOT, SCALE, as_role("approver"), "deny", 0),
    (COPILOT, SCALE, replace(ADA, level=Level.PROPOSE), "deny", 0),
    (COPILOT, SCALE, replace(ADA, stage="shadow"), "deny", 0),
    (COPILOT, DELETE, L5, "ask", 2),
    (AUTO, SCALE, L3, "permit", 0),
    (AUTO, SCALE, ADA, "ask", 1),
    (AUTO, SCALE, replace(L3, is_tainted=True), "ask", 1),
    (AUTO, SCALE, replace(L3, stage="canary"), "ask", 1),
    (AUTO, SCALE, replace(L3, roles=("viewer",)), "deny", 0),
    (AUTO, FETCH, L5, "ask", 1),
    (AUTO, DELETE, L5, "ask", 2),
    (DARK, SCALE, L3, "ask", 1),
    (DARK, SCALE, L5, "permit", 0),
    (DARK, FETCH, L5, "permit", 0),
    (DARK, FETCH, replace(L5, is_tainted=True), "ask", 1),
    (DARK, DELETE, L5, "ask", 2),
]


@pytest.mark.parametrize(("policies", "of", "who", "decision", "quorum"), PACKS)
def test_the_packs_say(policies: PolicySet, of: Tool, who: Principal, decision: str, quorum: int) -> None:
    verdict = decide(policies, of, who)
    assert (verdict.decision, verdict.quorum) == (decision, quorum)
    assert verdict.policy_digest == policies.digest
    assert verdict.reason
    assert (verdict.approver_roles == ("approver", "admin")) is (decision == "ask")


CAPS = [
    Facts(calls_1h=1_000),
    Facts(services_1h=1_000),
    Facts(units_1h=10_000),
    Facts(failures_1h=10),
    Facts(in_flight=10),
    Facts(blast_percent=51),
]


@pytest.mark.parametrize("facts", CAPS)
@pytest.mark.parametrize("policies", [COPILOT, AUTO, DARK])
def test_no_approval_lifts_a_cap(policies: PolicySet, facts: Facts) -> None:
    for of in (SCALE, DELETE):
        verdict = decide(policies, of, L5, replace(facts, approvals=5))
        assert verdict.decision == "deny"
        assert any("cap-" in policy for policy in verdict.policies)
    assert decide(policies, LOGS, L5, facts).decision == "permit"


def test_a_wide_blast_asks_a_person() -> None:
    assert decide(AUTO, SCALE, L3, Facts(blast_percent=10)).decision == "permit"
    assert decide(AUTO, SCALE, L3, Facts(blast_percent=11)).decision == "ask"


def test_without_policies_everything_is_denied() -> None:
    empty = load()
    for of in TOOLS:
        verdict = decide(empty, of, replace(L5, roles=("admin",)), Facts(approvals=5))
        assert (verdict.decision, verdict.policies) == ("deny", ())
        assert "no policy permits" in verdict.reason


def test_an_approved_call_is_permitted_once_enough_people_said_yes() -> None:
    assert decide(COPILOT, SCALE, facts=Facts(approvals=1)).decision == "permit"
    one = decide(COPILOT, DELETE, facts=Facts(approvals=1))
    assert (one.decision, one.quorum) == ("ask", 2)
    assert decide(COPILOT, DELETE, facts=Facts(approvals=2)).decision == "permit"
    assert decide(COPILOT, DELETE, facts=Facts(approvals=1_000)).decision == "permit"


def test_what_cannot_be_undone_asks_two_people_whatever_the_policy_says() -> None:
    permissive = load(ALL)
    assert decide(permissive, SCALE).decision == "permit"
    verdict = decide(permissive, DELETE, facts=Facts(approvals=1))
    assert (verdict.decision, verdict.quorum, verdict.approver_roles) == ("ask", 2, ("approver",))
    nothing_undoes_it = replace(SCALE, revert="")
    assert decide(load(ALL, tools=(nothing_undoes_it,)), nothing_undoes_it, arguments={
        "service": "web", "environment": "prod", "replicas": 1,
    }).quorum == 2  # fmt: skip


def test_a_blind_effect_is_never_automatic() -> None:
    blind = tool("blind", ToolClass.REVERSIBLE, recovery=Recovery.BLIND)
    policies = load(ALL, tools=(blind,))
    assert decide(policies, blind, arguments={}).decision == "ask"
    assert decide(policies, blind, facts=Facts(approvals=1), arguments={}).decision == "permit"


def test_a_read_that_reaches_a_destination_is_judged_as_egress() -> None:
    reads = load('@id("reads") permit (principal, action in Quell::Action::"class:read", resource);')
    assert decide(reads, LOGS).decision == "permit"
    assert decide(reads, FETCH).decision == "deny"


def test_a_permit_that_names_approvers_or_a_quorum_never_permits_without_them() -> None:
    policies = load('@id("db") @approvers("dba") @quorum("3") permit (principal, action, resource);')
    verdict = decide(policies, LOGS)
    assert (verdict.decision, verdict.quorum, verdict.approver_roles) == ("ask", 3, ("dba",))
    assert decide(policies, LOGS, facts=Facts(approvals=2)).decision == "ask"
    assert decide(policies, LOGS, facts=Facts(approvals=3)).decision == "permit"


def test_of_several_ways_to_approve_the_strictest_counts() -> None:
    policies = load(
        '@id("a") @approvers("sre") permit (principal, action, resource);'
        '@id("b") @approvers("dba,lead") permit (principal, action, resource) when { context.approvals >= 3 };'
    )
    verdict = decide(policies, SCALE)
    assert (verdict.policies, verdict.quorum, verdict.approver_roles) == (("b",), 3, ("dba", "lead"))
    assert decide(policies, SCALE, facts=Facts(approvals=2)).decision == "ask"


def test_a_forbid_that_an_approval_lifts_asks_and_is_named() -> None:
    policies = load(
        ALL
        + '@id("prod") forbid (principal, action, resource in Quell::Environment::"prod") unless { context.approvals >= 2 };'
    )
    verdict = decide(policies, SCALE)
    assert (verdict.decision, verdict.quorum, verdict.policies) == ("ask", 2, ("all", "prod"))
    assert decide(policies, SCALE, facts=Facts(approvals=2)).decision == "permit"
    elsewhere = {"service": "web", "environment": "staging", "replicas": 1}
    assert decide(policies, SCALE, arguments=elsewhere).decision == "permit"


def test_a_freeze_stops_changes_and_no_approval_lifts_it() -> None:
    policies = load(ALL)
    frozen = Facts(is_frozen=True, approvals=5)
    for of in (SCALE, DELETE):
        verdict = decide(policies, of, facts=frozen)
        assert (verdict.decision, verdict.policies) == ("deny", ("quell.frozen",))
        assert "freeze" in verdict.reason
    for of in (LOGS, FETCH):
        assert decide(policies, of, facts=frozen).decision == "permit"


def test_only_a_break_glass_policy_lifts_a_freeze_and_only_while_the_glass_is_broken() -> None:
    glass = '@id("glass") @break_glass permit (principal in Quell::Role::"breaker", action, resource);'
    policies = load(ALL, source(glass, "glass.cedar"))
    breaker = as_role("breaker")
    broken = Facts(is_frozen=True, is_break_glass=True)
    assert decide(policies, SCALE, breaker, broken).policies == ("glass",)
    assert decide(policies, SCALE, ADA, broken).decision == "deny"
    assert decide(policies, SCALE, breaker, Facts(is_frozen=True)).decision == "deny"
    assert decide(policies, DELETE, breaker, broken).quorum == 2
    assert decide(load(glass), SCALE, breaker).decision == "deny"
    assert decide(load(glass), SCALE, breaker, Facts(is_break_glass=True)).decision == "permit"


def test_the_kill_switch_leaves_our_own_reads_and_nothing_else() -> None:
    policies = load(
        '@id("all") @break_glass permit (principal, action, resource);', source(ALL.replace("all", "a2"), "b")
    )
    killed = Facts(is_killed=True, is_break_glass=True, approvals=5)
    assert decide(policies, LOGS, facts=killed).decision == "permit"
    foreign = tool("metrics.query", server="prometheus")
    with_foreign = load(ALL, tools=(*TOOLS, foreign))
    assert decide(with_foreign, foreign, facts=killed, arguments={}).policies == ("quell.killed",)
    for of in (SCALE, DELETE, FETCH):
        assert decide(policies, of, facts=killed).policies == ("quell.killed",)


SHRUNK = [
    (replace(ADA, agent="sre", agent_tools=("logs.*",)), "quell.agent"),
    (replace(ADA, agent="sre", agent_tools=()), "quell.agent"),
    (replace(ADA, agent="sre", agent_tools=None), "quell.agent"),
    (replace(ADA, workflow="w", workflow_tools=("k8s.delete",)), "quell.workflow"),
    (replace(ADA, workflow="w", workflow_tools=("K8S.*",)), "quell.workflow"),
    (replace(ADA, scopes=("tool:logs.*", "verb:*")), "quell.credential"),
    (replace(ADA, scopes=("verb:approval.decide",)), "quell.credential"),
    (replace(ADA, user=""), "quell.user"),
]


@pytest.mark.parametrize(("who", "by"), SHRUNK)
def test_what_the_agent_the_workflow_or_the_credential_may_not_no_policy_grants(who: Principal, by: str) -> None:
    verdict = decide(load(ALL), SCALE, who, Facts(approvals=5))
    assert (verdict.decision, verdict.policies) == ("deny", (by,))


def test_what_all_of_them_may_goes() -> None:
    who = replace(
        ADA,
        agent="sre",
        agent_tools=("k8s.*",),
        workflow="w",
        workflow_tools=("*.scale",),
        scopes=("tool:k8s.*",),
    )
    assert decide(load(ALL), SCALE, who).decision == "permit"


def test_policies_see_who_acts_and_on_what() -> None:
    policies = load("""
        @id("exact")
        permit (
            principal in Quell::User::"ada",
            action == Quell::Action::"k8s.scale",
            resource == Quell::Resource::"web"
        ) when {
            principal in Quell::Role::"operator" && principal in Quell::Agent::"sre" &&
            principal in Quell::Workflow::"heal" && principal in Quell::Tenant::"local" &&
            principal.user == "ada" && principal.workflow_digest == "d1" && principal.level == 2 &&
            resource in Quell::Environment::"prod" && resource.kind == "Service" && resource.units == 3 &&
            context.args.replicas == 3 && context.server == "k8s" && context.recovery == "natural" &&
            context.host == "" && context.history.calls_1h == 7 && context.blast_percent == 4
        };
    """)
    who = replace(ADA, agent="sre", agent_tools=("*",), workflow="heal", workflow_digest="d1", workflow_tools=("*",))
    facts = Facts(calls_1h=7, blast_percent=4)
    assert decide(policies, SCALE, who, facts).decision == "permit"
    for other in (replace(who, user="eve"), replace(who, workflow_digest="d2"), replace(who, tenant="other")):
        assert decide(policies, SCALE, other, facts).decision == "deny"


def test_the_host_that_a_call_reaches_is_the_one_that_policies_see() -> None:
    policies = load('@id("status") permit (principal, action, resource) when { context.host == "status.example" };')
    assert decide(policies, FETCH, arguments={"url": "https://STATUS.example./x"}).decision == "permit"
    assert decide(policies, FETCH, arguments={"url": "https://status.example.evil.example/"}).decision == "deny"


def test_a_call_that_was_changed_after_it_was_frozen_is_denied() -> None:
    policies = load(ALL)
    good = call(SCALE)
    for changed in (
        replace(good, arguments=good.arguments.replace("3", "4")),
        replace(good, resource=replace(good.resource, name="db")),
        replace(good, resource=replace(good.resource, environment="staging")),
        replace(good, digest="0" * 64),
        replace(good, arguments='{"service":"web"}'),
        replace(good, arguments="{"),
    ):
        verdict = policies.admit(changed, tool=SCALE, principal=ADA, facts=Facts())
        assert verdict.decision == "deny"
        assert verdict.policies[0] in {"quell.binding", "quell.arguments", "quell.error"}


BESIDE = replace(
    SCALE, name="k8s-two__k8s.scale", server="k8s-two", stands_for="k8s", also=("k8s.scale",), pin="sha256:beside"
)
"""What another server under the name `k8s` offers while the first is there."""


@pytest.mark.parametrize(
    "scope",
    [
        'action == Quell::Action::"k8s.scale", resource)',
        'action in [Quell::Action::"k8s.scale", Quell::Action::"k8s.delete"], resource)',
        'action in Quell::Action::"server:k8s", resource)',
        'action, resource) when { context.server == "k8s" }',
        'action, resource) when { action == Quell::Action::"k8s.scale" && context.args.replicas == 3 }',
    ],
)
def test_a_forbid_by_the_name_that_a_server_was_given_counts_for_the_one_that_stands_for_it(scope: str) -> None:
    policies = load(f'{ALL} @id("no") @reason("not now") forbid (principal, {scope};', tools=(*TOOLS, BESIDE))
    what = ON_WEB[SCALE]
    for each in (SCALE, BESIDE):
        verdict = decide(policies, each, arguments=what)
        assert (verdict.decision, verdict.policies, verdict.reason) == ("deny", ("no",), "not now")
    told = policies.explain(call(BESIDE, what), tool=BESIDE, principal=ADA, facts=Facts())
    assert [(ruling.policy, ruling.says) for ruling in told.rulings][:2] == [("all", "applies"), ("no", "applies")]
    assert decide(policies, LOGS).decision == "permit"


def test_a_permit_by_the_name_that_a_server_was_given_is_not_one_for_the_server_that_stands_for_it() -> None:
    text = '@id("some") permit (principal, action in Quell::Action::"server:k8s", resource);'
    policies = load(text, tools=(*TOOLS, BESIDE))
    assert decide(policies, SCALE).decision == "permit"
    assert decide(policies, BESIDE, arguments=ON_WEB[SCALE]).decision == "deny"


def test_a_forbid_by_another_name_that_an_approval_lifts_asks_and_a_watching_one_is_told() -> None:
    text = """@id("one-look") forbid (principal, action == Quell::Action::"k8s.scale", resource)
    unless { context.approvals >= 1 };"""
    policies = load(ALL + text, tools=(*TOOLS, BESIDE))
    verdict = decide(policies, BESIDE, arguments=ON_WEB[SCALE])
    assert (verdict.decision, verdict.quorum, verdict.policies) == ("ask", 1, ("all", "one-look"))
    assert decide(policies, BESIDE, facts=Facts(approvals=1), arguments=ON_WEB[SCALE]).decision == "permit"
    watching = load(ALL, source(text, "next", "log"), tools=(*TOOLS, BESIDE))
    assert decide(watching, BESIDE, arguments=ON_WEB[SCALE]).would_deny == ("one-look",)


def test_a_forbid_that_cannot_be_evaluated_for_a_tool_under_another_name_lets_nothing_through() -> None:
    """The tool of the same name takes other arguments than the one that the policy was written for."""
    other = replace(BESIDE, input_schema=FETCH.input_schema, resource=FETCH.resource)
    text = '@id("many") forbid (principal, action == Quell::Action::"k8s.scale", resource) when { context.args.replicas > 9 };'
    policies = load(ALL + text, tools=(*TOOLS, other))
    verdict = decide(policies, other, arguments=ON_WEB[FETCH])
    assert (verdict.decision, verdict.policies) == ("deny", ("quell.error",))
    assert "many" in verdict.reason or "replicas" in verdict.reason


def test_a_watching_set_never_decides_and_says_what_it_would_have_denied() -> None:
    strict = source('@id("no") forbid (principal, action, resource) when { context.args has replicas };', "next", "log")
    quiet = source('@id("some") permit (principal, action == Quell::Action::"logs.search", resource);', "few", "log")
    policies = load(ALL, strict, quiet)
    verdict = decide(policies, SCALE)
    assert (verdict.decision, verdict.would_deny) == ("permit", ("no", "few:no-permit"))
    assert decide(policies, LOGS).would_deny == ()
    wider = load(PolicySet.pack("copilot"), source(ALL, "wide", "log"))
    assert decide(wider, SCALE, as_role("viewer")).decision == "deny"


def test_the_next_version_of_a_set_may_watch_under_the_same_ids() -> None:
    policies = load(PolicySet.pack("copilot"), replace(PolicySet.pack("copilot", mode="log"), name="next copilot"))
    assert decide(policies, LOGS).would_deny == ()
    assert decide(policies, SCALE).would_deny == (), "the same policies would have asked as these do"
    assert decide(policies, SCALE, as_role("viewer")).would_deny == ("next copilot:no-permit",)
    auto = load(PolicySet.pack("reversible-auto"), replace(PolicySet.pack("copilot", mode="log"), name="next copilot"))
    assert decide(auto, SCALE, L3).would_deny == ("next copilot:ask",), "what goes by itself would have waited"
    assert decide(auto, SCALE, L3, Facts(calls_1h=30)).would_deny == ("copilot.cap-rate",)


def test_who_could_approve_is_asked_of_many_people_at_once() -> None:
    people = [
        replace(ADA, roles=("approver",)),
        Principal(user="bob", roles=("approver",)),
        Principal(user="cem", roles=("operator",)),
        Principal(user="dee", roles=("admin",), tenant="other"),
        Principal(user="eve", roles=("admin",)),
        Principal(user="bot", roles=("approver",), agent="sre"),
    ]

    def names(policies: PolicySet, of: Tool, who: Principal) -> list[str]:
        found = policies.approvers(call(of), tool=of, principal=who, facts=Facts(), people=people)
        return [person.user for person in found]

    assert names(COPILOT, SCALE, ADA) == ["bob", "eve"]
    assert names(COPILOT, SCALE, replace(ADA, user="BOB")) == ["ada", "eve"], "one person in two spellings is one"
    assert names(COPILOT, LOGS, ADA) == []
    assert names(COPILOT, SCALE, as_role("viewer")) == []


def test_a_number_that_a_policy_compares_must_fit_and_others_need_not() -> None:
    share = tool("share", properties={"share": {"type": "number"}, "other": {"type": "number"}}, required=("share",))
    policies = load(
        '@id("few") permit (principal, action, resource) '
        'when { context.args has share && context.args.share.lessThan(decimal("0.5")) };',
        tools=(share,),
    )
    assert decide(policies, share, arguments={"share": 0.4999}).decision == "permit"
    assert decide(policies, share, arguments={"share": 1e-3, "other": 1e-9}).decision == "permit"
    assert decide(policies, share, arguments={"share": 0.5}).decision == "deny"
    verdict = decide(policies, share, arguments={"share": 0.49999})
    assert (verdict.decision, verdict.policies) == ("deny", ("quell.error",))
    assert "four digits" in verdict.reason


def test_there_is_no_other_pack() -> None:
    with pytest.raises(UsageError, match="no policy pack"):
        PolicySet.pack("yolo")  # type: ignore[arg-type]  # that is the point
