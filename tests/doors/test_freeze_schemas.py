"""Whatever a server sends as a schema, and whatever a model sends as arguments, the answer is a call or a refusal."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quell.domain import ConfigError, Facts, RefusedError
from quell.governance import PolicySet
from tests.doors._policy_bench import ADA, call, load, tool

_KEYWORDS = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "unevaluatedProperties",
        "items",
        "prefixItems",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "if",
        "then",
        "else",
        "$ref",
        "$defs",
        "definitions",
        "enum",
        "const",
        "pattern",
        "patternProperties",
        "propertyNames",
        "minimum",
        "maxLength",
        "multipleOf",
        "uniqueItems",
        "contains",
        "dependentSchemas",
        "dependencies",
        "$id",
        "$anchor",
        "$schema",
        "format",
        "default",
        "nullable",
    ]
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [
            "object",
            "string",
            "integer",
            "number",
            "array",
            "null",
            "a",
            "#",
            "#/$defs/a",
            "#nope",
            "#/properties/%zz",
            "^a+$",
            "(",
            "\\d",
        ]
    ),
)
_SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(_KEYWORDS, inner, max_size=4),
        st.dictionaries(st.sampled_from(["a", "b", "__extn", "__entity"]), inner, max_size=2),
    ),
    max_leaves=16,
)
_ARGUMENTS = st.dictionaries(
    st.sampled_from(["a", "b", "__extn", "__entity"]),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-9, 9), st.text(max_size=3)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
        max_leaves=6,
    ),
    max_size=3,
)


@pytest.mark.timeout(60)
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_KEYWORDS, _SCHEMAS, max_size=5), _ARGUMENTS)
def test_any_schema_with_any_arguments_is_a_call_or_a_refusal(
    schema: dict[str, object], arguments: dict[str, object]
) -> None:
    with suppress(RefusedError):
        frozen = call(tool("any", more=schema), arguments)
        assert json.loads(frozen.arguments) == arguments


_TYPED = st.recursive(
    st.sampled_from(
        [{"type": kind} for kind in ("string", "integer", "number", "boolean", "null")] + [{"enum": ["x", "y"]}, {}]
    ),
    lambda inner: st.one_of(
        inner.map(lambda of: {"type": "array", "items": of}),
        inner.map(lambda of: {"anyOf": [of, {"type": "null"}]}),
        st.dictionaries(st.sampled_from(["a", "b", "__extn"]), inner, max_size=3).map(
            lambda of: {"type": "object", "properties": of, "required": sorted(of)}
        ),
        st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2).map(
            lambda of: {"type": "object", "properties": of}
        ),
    ),
    max_leaves=6,
)


@pytest.mark.timeout(60)
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c c", "__extn"]), _TYPED, min_size=1, max_size=4), st.data())
def test_any_arguments_that_a_schema_allows_can_be_decided_about(
    properties: dict[str, object], data: st.DataObject
) -> None:
    """No valid call fails in Cedar: its types are those of the schema."""
    of = tool("any", properties=properties, required=tuple(sorted(properties)))
    arguments = {name: data.draw(_value(schema)) for name, schema in properties.items()}
    policies = load('@id("all") permit (principal, action, resource);', tools=(of,))
    verdict = policies.admit(call(of, arguments), tool=of, principal=ADA, facts=Facts())
    assert verdict.decision == "permit", verdict.reason


def _value(schema: object) -> st.SearchStrategy[object]:
    assert isinstance(schema, dict)
    if "anyOf" in schema:
        return st.one_of(_value(schema["anyOf"][0]), st.none())
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "array":
            return st.lists(_value(schema["items"]), max_size=3)
        case "object":
            required = {
                name: _value(part) for name, part in schema["properties"].items() if name in schema.get("required", ())
            }
            optional = {name: _value(part) for name, part in schema["properties"].items() if name not in required}
            return st.fixed_dictionaries(required, optional=optional)
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
    plain = {"string": st.text(), "integer": st.integers(-(2**53), 2**53), "boolean": st.booleans(), "null": st.none()}
    return plain.get(str(schema.get("type")), st.text() | st.integers(-3, 3) | st.lists(st.booleans(), max_size=2))


@pytest.mark.timeout(60)
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["permit", "forbid", "(", ")", "{", "}", ";", '"', "//", "\n", "@id", '("a")', "principal", "action", "resource", ",",
             "when", "unless", "context", ".args", "&&", "!", "1", "==", "[", "]", "?principal", "\\", "é", "\x00"]
        ),
        max_size=30,
    )
)  # fmt: skip
def test_any_text_for_a_policy_is_taken_or_told(words: list[str]) -> None:
    text = " ".join(words)
    report = PolicySet.check([])
    assert report.problems == ()
    with suppress(ConfigError):
        load(text)
