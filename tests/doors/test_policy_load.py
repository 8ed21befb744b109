"""Policies are judged before they decide: every mistake is told, with the policy it stands in and what to do."""

from __future__ import annotations

import json
from dataclasses import replace

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quell.domain import ConfigError, Facts, Problem, ResourceRule, Tool, ToolClass
from quell.governance import PolicySet
from tests.doors._policy_bench import SCALE, TOOLS, decide, load, source, tool

ALL = '@id("all") permit (principal, action, resource);'


def problems(*texts: str, tools: tuple[Tool, ...] = TOOLS) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as refused:
        PolicySet.load([source(text, f"{number}.cedar") for number, text in enumerate(texts)], tools=tools)
    return refused.value.problems


def when(condition: str, effect: str = "forbid") -> str:
    return f'@id("x") {effect} (principal, action == Quell::Action::"k8s.scale", resource) when {{ {condition} }};'


MISTAKES = {
    "broken syntax": ("permit (principal, action, resource) when {", "cannot be read"),
    "no id": ("permit (principal, action, resource);", "has no @id"),
    "an id that is no name": ('@id("a b") permit (principal, action, resource);', "has no @id"),
    "an id of the built-in ones": ('@id("quell.killed") permit (principal, action, resource);', "are built in"),
    "an unknown annotation": (f'@aprovers("x") {ALL}', "@aprovers is not known"),
    "a quorum that is no number": (f'@quorum("many") {ALL}', "no number of people"),
    "a quorum that is too large": (f'@quorum("6") {ALL}', "no number of people"),
    "approvers that are no roles": (f'@approvers("a,,b") {ALL}', "names no roles"),
    "approvers at a forbid": ('@id("x") @approvers("sre") forbid (principal, action, resource);', "stands at a forbid"),
    "a template": ('@id("t") permit (principal == ?principal, action, resource);', "is a template"),
    "an unknown tool": (
        '@id("x") permit (principal, action == Quell::Action::"k8s.scal", resource);',
        "unrecognized action",
    ),
    "an unknown attribute": (
        '@id("x") permit (principal, action, resource) when { principal.autonomi > 1 };',
        "not found",
    ),
    "an argument of another type": (
        when('context.args.replicas == "three"'),
        "are not compatible",
    ),
    "an argument that does not exist": (when("context.args.replica > 3"), "not found"),
    "a wrong resource type": (
        '@id("x") permit (principal, action, resource == Quell::User::"web");',
        "applicable action",
    ),
    "a scope that is a group": (
        '@id("x") permit (principal, action == Quell::Action::"class:read", resource);',
        "applicable",
    ),
    "a condition that is never true": (when("false"), "can never apply"),
    "a level that does not exist": (when("principal.level > 5", "permit"), "can never apply"),
    "a stage that does not exist": (when('principal.stage == "prod"', "permit"), "can never apply"),
    "conditions that exclude each other": (
        when("context.args.replicas > 5 && context.args.replicas < 5"),
        "can never apply",
    ),
    "two names at once": (when('resource.name == "a" && resource.name == "b"'), "can never apply"),
    "true and false at once": (when("context.approved && !context.approved", "permit"), "can never apply"),
    "more approvals than there can be": (when("context.approvals >= 6", "permit"), "can never apply"),
    "an argument that no tool has": (when("context.args has force"), "can never apply"),
    "a product": (when("context.args.replicas * context.args.replicas > 9"), "`*` in it can overflow"),
    "a large sum": (when("context.args.replicas + 9223372036854775807 > 9"), "`+` in it can overflow"),
    "a large difference": (when("-9000000000000000000 - context.args.replicas * 1000 < 9"), "`-` in it can overflow"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_told_with_what_to_do(what: str) -> None:
    text, reason = MISTAKES[what]
    found = problems(text)
    assert any(reason in problem.reason for problem in found), [str(problem) for problem in found]
    assert all(problem.hint and problem.source == "0.cedar:1" for problem in found)


def test_all_mistakes_of_all_sources_are_told_at_once() -> None:
    found = problems("permit (", when("false"), '@id("y") permit (principal, action, resource) when { principal.x };')
    assert {problem.source for problem in found} == {"0.cedar:1", "1.cedar:1", "2.cedar:1"}
    assert {problem.path for problem in found} == {"", "x", "y"}


def test_an_id_may_stand_once() -> None:
    (found,) = problems(ALL, ALL)
    assert (found.path, found.source) == ("all", "1.cedar:1")
    assert "0.cedar:1" in found.reason


def test_a_near_miss_of_a_tool_is_named() -> None:
    found = problems('@id("x") permit (principal, action == Quell::Action::"k8s.scal", resource);')
    assert any("did you mean k8s.scale" in problem.hint for problem in found)


def test_more_than_500_policies_are_refused() -> None:
    text = "\n".join(f'@id("p.{number}") permit (principal, action, resource);' for number in range(500))
    assert any("at most 500" in problem.reason for problem in problems(text))


LARGE = {
    "a long sum": " + ".join(["context.args.replicas"] * 1_000) + " > 3",
    "a sum beyond all bounds": " + ".join(["context.args.replicas"] * 10_000) + " > 3",
    "deep brackets": "(" * 10_000 + "true" + ")" * 10_000,
    "a chain of names": "context has a" + " .a // x\n" * 3_000,
    "deep lists": "[" * 1_000 + "]" * 1_000 + " == []",
}


@pytest.mark.parametrize("what", LARGE)
def test_a_policy_that_is_too_large_to_judge_is_refused_and_harms_nobody(what: str) -> None:
    assert problems(when(LARGE[what]))


def test_a_problem_names_the_line_whatever_stands_in_texts_and_comments() -> None:
    text = """// a comment with "; and (
@id("one") // ";
permit (principal, action, resource)
when { principal.user == "a;\\"}//" };

// and the second
@id("two")
permit (principal, action, resource) when { principal.nothing };
// the end;"""
    (found,) = problems(text)
    assert (found.path, found.source) == ("two", "0.cedar:6")


def test_many_conditions_in_a_row_are_taken() -> None:
    names = " || ".join(f'resource.name == "service-{number}"' for number in range(60))
    policies = load(f'@id("x") permit (principal, action, resource) when {{ {names} || resource.name == "web" }};')
    assert decide(policies, SCALE).decision == "permit"


GUARDED = [
    "context.args.replicas * 2 > context.history.units_1h + 7",
    "context.args.replicas < 1000 && context.args.replicas > 0 && context.args.replicas * context.args.replicas > 9",
    "context.args.replicas >= 1000 || context.args.replicas < 0 || context.args.replicas * context.args.replicas > 9",
    "if principal.level > 3 then principal.level * principal.level > 9 else true",
    "!(context.args.replicas > 9 || context.args.replicas < 1) && context.args.replicas * context.args.replicas > 9",
]


@pytest.mark.parametrize("condition", GUARDED)
def test_arithmetic_whose_numbers_are_bounded_is_taken(condition: str) -> None:
    assert load(when(condition))


def test_an_optional_argument_must_be_asked_for_first() -> None:
    optional = tool("opt", properties={"n": {"type": "integer"}, "s": {"type": ["string", "null"]}}, required=("s",))
    text = '@id("x") permit (principal, action == Quell::Action::"opt", resource) when { context.args.n > 1 };'
    (found,) = problems(text, tools=(optional,))
    assert "optional attribute" in found.reason
    assert "context.args has" in found.hint
    policies = load(
        '@id("x") permit (principal, action == Quell::Action::"opt", resource) '
        'when { context.args has n && context.args.n > 1 || context.args has s && context.args.s == "y" };',
        tools=(optional,),
    )
    assert decide(policies, optional, arguments={"n": 2, "s": None}).decision == "permit"
    assert decide(policies, optional, arguments={"s": "y"}).decision == "permit"
    assert decide(policies, optional, arguments={"s": None}).decision == "deny"


def test_arguments_of_every_typable_kind_can_be_asked_about() -> None:
    rich = tool(
        "rich",
        properties={
            "flag": {"type": "boolean"},
            "mode": {"enum": ["soft", "hard"]},
            "names": {"type": "array", "items": {"type": "string"}},
            "deep": {"$ref": "#/$defs/deep"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        },
        required=("flag", "mode", "names", "deep"),
        more={"$defs": {"deep": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}},
    )
    arguments = {"flag": True, "mode": "soft", "names": ["a", "b", "a"], "deep": {"n": 3}, "maybe": 5, "either": "x"}
    yes = (
        'context.args.flag && context.args.mode == "soft" && context.args.names.contains("b") && '
        "context.args.deep.n == 3 && context.args has maybe && context.args.maybe == 5"
    )
    policies = load(
        f'@id("x") permit (principal, action == Quell::Action::"rich", resource) when {{ {yes} }};', tools=(rich,)
    )
    assert decide(policies, rich, arguments=arguments).decision == "permit"
    assert decide(policies, rich, arguments={**arguments, "mode": "hard"}).decision == "deny"
    untyped = (
        '@id("x") permit (principal, action, resource) when { context.args has either && context.args.either == 1 };'
    )
    assert any("never apply" in problem.reason for problem in problems(untyped, tools=(rich,)))
    impossible = (
        '@id("x") permit (principal, action == Quell::Action::"rich", resource) when { context.args.mode == "Hard" };'
    )
    assert any("never apply" in problem.reason for problem in problems(impossible, tools=(rich,)))


NASTY = [
    'x"; };',
    "a || true",
    "__entity",
    "__extn",
    "",
    "ключ",
    "in",
    "a\nb",
    "\\",
    '"]; permit(principal,action,resource);//',
]


def test_names_of_arguments_are_never_read_as_cedar() -> None:
    nasty = tool("nasty", properties={name: {"type": "integer"} for name in NASTY})
    policies = load(
        '@id("x") forbid (principal, action, resource) when { context.args has "x\\"; };" && context.args["x\\"; };"] > 1 };',
        source(ALL, "b"),
        tools=(nasty,),
    )
    assert decide(policies, nasty, arguments=dict.fromkeys(NASTY, 1)).decision == "permit"
    assert decide(policies, nasty, arguments=dict.fromkeys(NASTY, 2)).policies == ("x",)


def test_an_argument_cannot_pose_as_an_entity() -> None:
    free = tool("free", properties={"who": {"type": "string"}, "any": {}}, more={"additionalProperties": True})
    policies = load('@id("x") permit (principal, action, resource) when { context.args has who };', tools=(free,))
    pose = {"__entity": {"type": "Quell::Role", "id": "admin"}}
    assert decide(policies, free, arguments={"any": pose, "more": pose, "who": json.dumps(pose)}).decision == "permit"
    assert (
        decide(policies, free, arguments={"any": pose, "__entity": {"type": "Quell::Run", "id": "x"}}).decision
        == "deny"
    )


@pytest.mark.parametrize(
    "name", ["", "class:read", "none:read", 'a"b', "k8s scale", "\u0455cale", "x" * 129, "-x", "a\n"]
)
def test_a_tool_whose_name_is_no_name_is_refused(name: str) -> None:
    (found,) = problems(ALL, tools=(replace(SCALE, name=name),))
    assert "no tool name" in found.reason


def test_a_tool_may_be_called_as_its_class_is() -> None:
    read = tool("read", ToolClass.IRREVERSIBLE)
    policies = load('@id("x") permit (principal, action in Quell::Action::"class:read", resource);', tools=(read,))
    assert decide(policies, read, arguments={}, facts=Facts(approvals=5)).decision == "deny"


TOOL_MISTAKES = [
    ((SCALE, SCALE), "two tools have this name"),
    ((replace(SCALE, input_schema="{"),), "not JSON"),
    ((replace(SCALE, input_schema='{"type": "text"}'),), "type object"),
    ((replace(SCALE, resource=ResourceRule(name="/servce")),), "leads to no argument"),
    ((replace(SCALE, resource=ResourceRule(name="service")),), "leads to no argument"),
]


@pytest.mark.parametrize(("tools", "reason"), TOOL_MISTAKES)
def test_a_tool_that_cannot_be_judged_is_refused(tools: tuple[Tool, ...], reason: str) -> None:
    assert any(reason in problem.reason for problem in problems(ALL, tools=tools))


def test_policies_are_checked_without_tools_as_far_as_that_goes() -> None:
    report = PolicySet.check(
        [
            PolicySet.pack("copilot"),
            source('@id("tool") permit (principal, action == Quell::Action::"a.b", resource);', "a"),
            source(
                '@id("args") forbid (principal, action, resource) when { context.args.n * context.args.n > 3 };', "b"
            ),
            source('@id("typo") permit (principal, action, resource) when { principal.autonomi > 3 };', "c"),
        ]
    )
    assert {problem.path for problem in report.problems} == {"args", "typo"}
    assert report.unchecked == ("tool", "args")
    assert {"copilot.reads", "quell.killed", "tool", "args", "typo"} <= set(report.policies)
    with_tools = PolicySet.check([source(ALL)], tools=TOOLS)
    assert (with_tools.problems, with_tools.unchecked) == ((), ())


def test_the_digest_names_the_sources_whatever_their_order() -> None:
    one, two = source(ALL, "one"), source(ALL.replace("all", "b"), "two")
    digest = load(one, two).digest
    assert digest == load(two, one).digest == PolicySet.check([one, two]).digest
    assert digest not in {
        load(one).digest,
        load(one, replace(two, mode="log")).digest,
        load(one, source(two.text + " ", "two")).digest,
    }


_NUMBERS = st.sampled_from(
    ["context.args.n", "context.args.m", "1", "-3", "1000000", "9007199254740992", "4611686018427387904"]
)
_SUMS = st.recursive(
    _NUMBERS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*"]), inner), st.builds("-({})".format, inner)
    ),
    max_leaves=5,
)
_TESTS = st.builds("{} {} {}".format, _SUMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), _SUMS)
_CONDITIONS = st.recursive(
    _TESTS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["&&", "||"]), inner),
        st.builds("!({})".format, inner),
        st.builds("(if {} then {} else {})".format, inner, inner, inner),
    ),
    max_leaves=5,
)
_EDGES = (-(2**53), -1_000_001, -3, -1, 0, 1, 2, 1_000_000, 2**53)


@settings(max_examples=150, deadline=None)
@given(_CONDITIONS, st.sampled_from(["when", "unless"]))
def test_what_the_lint_lets_pass_never_overflows_and_what_it_calls_dead_never_applies(
    condition: str, word: str
) -> None:
    """Compare the lint with Cedar itself, at the edges of what arguments can be."""
    numbers = tool("t", properties={"n": {"type": "integer"}, "m": {"type": "integer"}}, required=("n", "m"))
    text = f'@id("x") permit (principal, action, resource) {word} {{ {condition} }};'
    scoped = text.replace("action,", 'action == Quell::Action::"t",')
    found = [problem.reason for problem in PolicySet.check([source(scoped)], tools=[numbers]).problems]
    may_overflow = any("overflow" in reason for reason in found)
    is_dead = any("never apply" in reason for reason in found)
    results = cedarpy.is_authorized_batch(
        [
            {
                "principal": 'Quell::Run::"r"',
                "action": 'Quell::Action::"t"',
                "resource": 'Quell::Resource::"w"',
                "context": {"args": {"n": n, "m": m}},
            }
            for n in _EDGES
            for m in _EDGES
        ],
        cedarpy.PolicySet.from_str(text),
        "[]",
    )
    assert may_overflow or not any(result.diagnostics.errors for result in results)
    assert not is_dead or not any(result.allowed for result in results)
