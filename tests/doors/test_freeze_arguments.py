"""A call is frozen strictly: one text, judged by a closed schema, within bounds that no text and no schema can break."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.domain import FrozenCall, RefusedError, ResourceRule, Tool
from quell.governance import freeze
from tests.doors._policy_bench import SCALE, tool

ANY = tool("any", more={"additionalProperties": True})


def frozen(of: Tool, arguments: str) -> FrozenCall:
    return freeze(of, run="run_1", call="call_1", arguments=arguments)


def refusal(of: Tool, arguments: str | bytes) -> str:
    with pytest.raises(RefusedError) as refused:
        freeze(of, run="run_1", call="call_1", arguments=arguments)
    assert refused.value.hint
    return str(refused.value)


HOSTILE = {
    "a key twice": ('{"a": 1, "a": 2}', "'a' comes twice"),
    "a key twice, one of them escaped": ('{"a": 1, "\\u0061": 2}', "'a' comes twice"),
    "NaN": ('{"a": NaN}', "NaN is no JSON number"),
    "infinity": ('{"a": -Infinity}', "-Infinity is no JSON number"),
    "a number that overflows to infinity": ('{"a": 1e999}', "too large"),
    "an integer beyond 2^53": ('{"a": 9007199254740993}', "beyond plus or minus 2^53"),
    "a negative integer beyond 2^53": ('{"a": -9007199254740993}', "beyond plus or minus 2^53"),
    "an integer of a million digits": ('{"a": ' + "9" * 1_000_000 + "}", "beyond plus or minus 2^53"),
    "half of a surrogate pair": ('{"a": "\\ud800"}', "surrogate"),
    "half of a surrogate pair in a key": ('{"\\udfff": 1}', "surrogate"),
    "33 levels": ('{"a":' * 33 + "1" + "}" * 33, "nested deeper than 32 levels"),
    "100,000 levels": ("[" * 100_000, "nested deeper than 32 levels"),
    "ten megabytes": ('{"a": "' + "x" * 10_000_000 + '"}', "at most 1,048,576 are read"),
    "more bytes than characters": ('{"a": "' + "é" * 600_000 + '"}', "at most 1,048,576 are read"),
    "too many values": ('{"a": [' + "1," * 30_000 + "1]}", "too many values"),
    "a key of 2,000 letters": ('{"' + "k" * 2_000 + '": 1}', "longer than 1024 characters"),
    "two values": ("{} {}", "not JSON"),
    "a comma too many": ('{"a": 1,}', "not JSON"),
    "nothing": ("", "not JSON"),
    "a byte order mark": ('\ufeff{"a": 1}', "not JSON"),
    "a list": ("[]", "no JSON object"),
    "null": ("null", "no JSON object"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_json_is_refused_with_its_reason(what: str) -> None:
    text, reason = HOSTILE[what]
    assert reason in refusal(ANY, text)


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    assert "UTF-8" in refusal(ANY, b'{"a": "\xff\xfe"}')


def test_an_object_in_memory_is_judged_like_a_text() -> None:
    for value in ({"a": float("nan")}, {1: 2}, {"a": 2**60}, {"a": b"x"}, {"a": {"b": {1, 2}}}):
        with pytest.raises(RefusedError):
            freeze(ANY, run="r", call="c", arguments=value)  # type: ignore[arg-type]  # that is the point
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(RefusedError, match="nested deeper"):
        freeze(ANY, run="r", call="c", arguments=loop)


def test_what_is_frozen_does_not_change_with_the_object_it_came_from() -> None:
    given_by_caller: dict[str, object] = {"list": [1]}
    call = freeze(ANY, run="r", call="c", arguments=given_by_caller)
    given_by_caller["list"] = [2]
    assert call.arguments == '{"list":[1]}'


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), _JSON, max_size=5))
def test_one_value_has_one_text_whatever_the_order_and_the_spaces(value: dict[str, object]) -> None:
    texts = [json.dumps(value), json.dumps(dict(reversed(list(value.items()))), indent=3, ensure_ascii=False)]
    calls = {freeze(ANY, run="r", call="c", arguments=text) for text in texts}
    assert len(calls) == 1
    (call,) = calls
    assert json.loads(call.arguments) == value
    assert frozen(ANY, call.arguments).arguments == call.arguments


def test_texts_stay_byte_for_byte() -> None:
    for text in ("é", "é", "ﬁ", "\u200b", "\u202e", "line\nline"):
        assert json.loads(frozen(ANY, json.dumps({"a": text})).arguments) == {"a": text}


def test_all_mistakes_are_told_at_once_with_what_is_allowed() -> None:
    scale = tool(
        "scale",
        properties={
            "service": {"type": "string", "pattern": "^[a-z]+$"},
            "environment": {"enum": ["prod", "staging"]},
            "replicas": {"type": "integer", "maximum": 50},
            "labels": {"type": "object", "properties": {"team": {"type": "string"}}},
        },
        required=("service", "reason"),
    )
    told = refusal(
        scale, '{"sevice": "web", "environment": "pod", "replicas": "3", "labels": {"taem": "x"}, "force": true}'
    )
    for words in (
        "missing: service, reason",
        "sevice (did you mean service?)",
        "force",
        "allowed: service, environment, replicas, labels",
        '/environment: "pod" is not allowed; allowed: "prod", "staging"',
        '/replicas: "3" is not an integer; write it without quotes',
        "/labels: not known: taem (did you mean team?); allowed: team",
    ):
        assert words in told


def test_nothing_is_coerced() -> None:
    for value, words in (
        ("true", "true is not an integer"),
        ("3.0", "write 3"),
        ('"3"', "without quotes"),
        ("null", "null"),
    ):
        arguments = f'{{"service": "web", "environment": "prod", "replicas": {value}}}'
        assert words in refusal(SCALE, arguments)


CLOSED: Mapping[str, Mapping[str, object]] = {
    "of draft 7": {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {}}},
    "with all of": {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {}}}]},
    "with a reference": {"$defs": {"A": {"properties": {"a": {}}}}, "allOf": [{"$ref": "#/$defs/A"}]},
    "with a choice": {
        "oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"required": ["c"], "properties": {"c": {}}}]
    },
}


@pytest.mark.parametrize("how", CLOSED)
def test_an_argument_that_the_schema_does_not_name_is_refused(how: str) -> None:
    closed = tool("closed", more=CLOSED[how])
    assert frozen(closed, '{"a": 1}').arguments == '{"a":1}'
    assert "not known: x" in refusal(closed, '{"a": 1, "x": 1}')


def test_an_argument_below_is_refused_too_unless_the_schema_says_otherwise() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    nested = tool(
        "nested",
        properties={
            "one": inner,
            "many": {"type": "array", "items": inner},
            "ref": {"$ref": "#/$defs/inner"},
            "open": {**inner, "additionalProperties": {"type": "string"}},
        },
        more={"$defs": {"inner": inner}},
    )
    assert frozen(nested, '{"one":{"a":1},"many":[{"a":1}],"ref":{"a":1},"open":{"a":1,"x":"y"}}')
    for bad in ('{"one":{"x":1}}', '{"many":[{"x":1}]}', '{"ref":{"x":1}}', '{"open":{"x":1}}'):
        assert refusal(nested, bad)


def test_a_recursive_schema_is_judged_at_every_level() -> None:
    tree = tool("tree", properties={"child": {"$ref": "#"}, "name": {"type": "string"}})
    assert frozen(tree, '{"child":{"child":{"name":"leaf"}}}')
    assert "/child/child" in refusal(tree, '{"child":{"child":{"name":1}}}')


BOMBS: Mapping[str, Mapping[str, object]] = {
    "in circles": {"allOf": [{"$ref": "#"}]},
    "doubling": {
        "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}},
        "allOf": [{"$ref": "#/$defs/d0"}],
    },
    "to another place": {"properties": {"a": {"$ref": "https://schemas.example/x.json"}}},
    "to a file": {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
    "into nothing": {"properties": {"a": {"$ref": "#/$defs/none"}}},
    "with an id of its own": {"properties": {"a": {"$id": "https://schemas.example/x", "type": "integer"}}},
    "with a pattern that looks ahead": {"properties": {"a": {"type": "string", "pattern": "^(?=x)x"}}},
    "with a pattern that refers back": {"properties": {"a": {"type": "string", "pattern": "(a+)\\1"}}},
    "with an involved pattern for names": {"patternProperties": {"^(a+)+$": {}}},
    "that is no schema": {"properties": {"a": {"type": "text"}}},
    "of a list": {"type": "array"},
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_schema_that_is_a_trap_is_refused(what: str) -> None:
    assert refusal(tool("trap", more=BOMBS[what]), '{"a": 1}')


_SLOW = {"patternProperties": {"^(a|a)*$": {"type": "string"}}}
ASTRAY: Mapping[str, Mapping[str, object]] = {
    "a keyword that nobody knows": {"properties": {"a": {"$ref": "#/x/slow"}}, "x": {"slow": _SLOW}},
    "a value of an enumeration": {"properties": {"a": {"$ref": "#/enum/0"}}, "enum": [_SLOW]},
    "an example": {"properties": {"a": {"$ref": "#/properties/b/examples/0"}, "b": {"examples": [_SLOW]}}},
    "an anchor where nothing is judged": {
        "properties": {"a": {"$ref": "#slow"}},
        "contentSchema": {"$anchor": "slow", **_SLOW},
    },
    "a place written in percent signs": {"properties": {"a": {"$ref": "#/%78/slow"}}, "x": {"slow": _SLOW}},
}


@pytest.mark.parametrize("what", ASTRAY)
def test_a_reference_leads_only_to_what_was_judged_as_a_schema(what: str) -> None:
    told = refusal(tool("astray", more=ASTRAY[what]), json.dumps({"a": {"a" * 22 + "!": 1}}))
    assert "is no schema of it" in told


def test_a_reference_finds_a_schema_by_every_way_to_write_its_place() -> None:
    word = {"type": "string", "minLength": 2}
    for place in ("#/$defs/a~1b%20c", "#/%24defs/a~1b%20c", "#/properties/b", "#/properties/c/prefixItems/0"):
        more = {
            "properties": {"a": {"$ref": place}, "b": word, "c": {"type": "array", "prefixItems": [word]}},
            "$defs": {"a/b c": word},
        }
        assert frozen(tool("found", more=more), '{"a":"xy"}')
        assert "/a: " in refusal(tool("found", more=more), '{"a":"x"}')


def test_a_pattern_that_would_take_for_ever_elsewhere_takes_no_time() -> None:
    slow = tool("slow", properties={"a": {"type": "string", "pattern": "^(a+)+$"}})
    assert "does not match" in refusal(slow, json.dumps({"a": "a" * 100_000 + "b"}))


def test_a_pattern_means_what_it_means_in_json_schema() -> None:
    digits = tool("digits", properties={"a": {"type": "string", "pattern": "^\\d+[\\w]?$"}})
    assert frozen(digits, '{"a":"12x"}')
    for trick in ("12\n", "\u0661\u0662", "12é"):
        assert "does not match" in refusal(digits, json.dumps({"a": trick}))


def test_many_equal_items_that_cannot_be_sorted_are_compared_in_linear_time() -> None:
    unique = tool("unique", properties={"a": {"type": "array", "uniqueItems": True}})
    items = [{"n": number} if number % 2 else number for number in range(4_000)]
    assert frozen(unique, json.dumps({"a": items}))
    assert "comes twice" in refusal(unique, json.dumps({"a": [*items, {"n": 1}]}))


def test_a_list_of_mistakes_has_an_end() -> None:
    strict = tool("strict", properties={"a": {"type": "array", "items": {"type": "string"}}})
    told = refusal(strict, json.dumps({"a": list(range(5_000))}))
    assert told.endswith("and more")
    assert len(told) < 3_000


def test_the_resource_comes_from_the_arguments_alone() -> None:
    call = frozen(SCALE, '{"service": "web", "environment": "prod", "replicas": 3}')
    assert (call.resource.kind, call.resource.name) == ("Service", "web")
    assert (call.resource.environment, call.resource.units, call.resource.host) == ("prod", 3, "")
    whole = freeze(ANY, run="r", call="c", arguments={}, environment="staging")
    assert (whole.resource.kind, whole.resource.name, whole.resource.environment) == ("Server", "k8s", "staging")


MISSING = {
    "missing": ({}, "is missing"),
    "no text": ({"meta": {"names": [1]}}, "is no text"),
    "empty": ({"meta": {"names": [""]}}, "is empty"),
    "a space at its end": ({"meta": {"names": ["web "]}}, "spaces at its ends"),
    "a zero-width space": ({"meta": {"names": ["we\u200bb"]}}, "hidden letters"),
    "a letter with a plainer form": ({"meta": {"names": ["\uff57eb"]}}, "plainer form"),
    "beyond the list": ({"meta": {"names": []}}, "is missing"),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_call_whose_resource_is_not_certain_is_refused(what: str) -> None:
    arguments, reason = MISSING[what]
    of = replace(ANY, resource=ResourceRule(name="/meta/names/0"))
    told = refusal(of, json.dumps(arguments))
    assert reason in told
    assert "/meta/names/0" in told


def test_units_are_an_integer_from_zero_upwards() -> None:
    of = replace(ANY, resource=ResourceRule(units="/n"))
    assert frozen(of, '{"n": 7}').resource.units == 7
    for value in ("-1", "1.5", '"3"', "true", "null"):
        assert "no integer" in refusal(of, f'{{"n": {value}}}')


HOSTS = {
    "https://Status.Example.:8443/a?b@c#d": "status.example",
    "status.example": "status.example",
    "status.example:443": "status.example",
    "http://[2001:DB8:0::1]/": "2001:db8::1",
    "http://[::ffff:10.0.0.1]/": "10.0.0.1",
    "2001:db8::1": "2001:db8::1",
    "http://10.0.0.1": "10.0.0.1",
    "https://xn--bcher-kva.example": "xn--bcher-kva.example",
    "http://under_score.svc": "under_score.svc",
}
NO_HOSTS = [
    "https://good.example@evil.example/",
    "https://good.example\\@evil.example/",
    "https://good.example\\.evil.example/",
    "https://good.example%2eevil.example/",
    "https://good.example evil.example/",
    "https://good.example\t.evil.example/",
    "https://bücher.example",
    "https://g\u043e\u043ed.example",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://0177.0.0.1/",
    "http://[::1",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://host:99999/",
    "http://host:8o/",
    "http:///etc/passwd",
    "file:///etc/passwd",
    "//evil.example/x",
    "good.example/path",
    "http://-bad.example",
    "http://a..b",
    "http://" + "a" * 300,
    "",
    ".",
    "javascript:alert(1)",
    "https:443",
    "HTTPS:evil.example",
    "https:/evil.example",
]


@pytest.mark.parametrize("text", HOSTS)
def test_a_host_has_one_form(text: str) -> None:
    of = replace(ANY, resource=ResourceRule(destination="/url"))
    assert frozen(of, json.dumps({"url": text})).resource.host == HOSTS[text]


@pytest.mark.parametrize("text", NO_HOSTS)
def test_a_host_that_readers_read_differently_is_refused(text: str) -> None:
    of = replace(ANY, resource=ResourceRule(destination="/url"))
    assert "destination" in refusal(of, json.dumps({"url": text}))


def test_the_digest_covers_tool_pin_arguments_and_resource() -> None:
    first = frozen(SCALE, '{"service": "web", "environment": "prod", "replicas": 3}')
    assert len(first.digest) == len(hashlib.sha256().hexdigest())
    others = [
        frozen(SCALE, '{"service": "web", "environment": "prod", "replicas": 4}'),
        frozen(replace(SCALE, pin="sha256:other"), first.arguments),
        frozen(replace(SCALE, name="k8s.scale2"), first.arguments),
        frozen(replace(SCALE, resource=ResourceRule(name="/service", environment="/environment")), first.arguments),
        frozen(replace(SCALE, resource=replace(SCALE.resource, kind="Deployment")), first.arguments),
    ]
    assert len({first.digest, *(call.digest for call in others)}) == 6
    again = freeze(SCALE, run="another run", call="another call", arguments=first.arguments)
    assert again.digest == first.digest
