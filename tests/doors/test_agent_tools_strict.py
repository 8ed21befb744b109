"""The strict shape of schemas: every property is required, none other allowed, and what models make of it turns back."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from quell.domain import strict_schema, without_nulls

Json = dict[str, Any]

_NAMES = st.sampled_from(["a", "b", "service", "since"])
_LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer", "minimum": 0},
        {"type": ["number", "null"]},
        {"enum": ["x", "y"]},
        {"type": "string", "enum": ["x", "y"]},
        {"const": 7},
        {"const": None},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"$ref": "#/$defs/when"},
        {"type": "object", "additionalProperties": {"type": "string"}},
        True,
        {},
    ]
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    def made(properties: Json, required: set[str], more: Json) -> Json:
        return {"type": "object", "properties": properties, "required": sorted(required & set(properties)), **more}

    more = st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": True}])
    return st.builds(made, st.dictionaries(_NAMES, inner, min_size=1, max_size=3), st.sets(_NAMES), more)


_SCHEMAS = st.recursive(
    _LEAVES, lambda inner: _objects(inner) | inner.map(lambda each: {"type": "array", "items": each}), max_leaves=6
)
_VALUES = st.recursive(
    st.sampled_from([None, "x", "y", "2026-11-20", 7, 0, True]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)


def _with_defs(schema: Json) -> Json:
    when = {"type": "object", "properties": {"at": {"type": "string"}}, "additionalProperties": False}
    return {**schema, "$defs": {"when": when}}


def _objects_in(schema: object) -> list[Json]:
    if isinstance(schema, list):
        return [each for part in schema for each in _objects_in(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if isinstance(schema.get("properties"), dict) else []
    return own + [each for part in schema.values() for each in _objects_in(part)]


def _filled(value: Any, schema: Any, root: Json) -> Any:
    """Say null for everything that a value leaves out, as a model does that has to say everything."""
    if isinstance(schema, dict) and "$ref" in schema:
        schema = root["$defs"]["when"]
    if isinstance(value, list) and isinstance(schema, dict):
        return [_filled(each, schema.get("items"), root) for each in value]
    if not isinstance(value, dict) or not isinstance(schema, dict):
        return value
    properties = schema.get("properties") or {}
    told = {name: _filled(each, properties.get(name), root) for name, each in value.items()}
    return {**dict.fromkeys(properties), **told}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(_objects(_SCHEMAS))
def test_every_object_of_a_strict_schema_requires_all_that_it_names_and_nothing_else(schema: Json) -> None:
    text = json.dumps(_with_defs(schema))
    strict = json.loads(strict_schema(text))
    jsonschema.Draft202012Validator.check_schema(strict)
    for each in _objects_in(strict):
        assert sorted(each["required"]) == sorted(each["properties"])
        assert each["additionalProperties"] is False
    assert strict_schema(json.dumps(strict)) == json.dumps(strict, sort_keys=True, separators=(",", ":"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(_objects(_SCHEMAS), st.data())
def test_what_fits_the_strict_schema_fits_the_pinned_one_without_its_nulls(schema: Json, data: st.DataObject) -> None:
    root = _with_defs(schema)
    strict = json.loads(strict_schema(json.dumps(root)))
    value = {name: data.draw(_VALUES) for name in schema["properties"]}
    said = _filled(value, schema, root)
    assume(not list(jsonschema.Draft202012Validator(strict).iter_errors(said)))
    meant = json.loads(without_nulls(json.dumps(said), schema=json.dumps(root)))
    jsonschema.validate(meant, root)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(_objects(_objects(_LEAVES.filter(lambda each: each not in (True, {})))), st.data())
def test_what_the_pinned_schema_allows_can_be_said_in_the_strict_one(schema: Json, data: st.DataObject) -> None:
    root = _with_defs(schema)
    value = data.draw(st.dictionaries(_NAMES, st.dictionaries(_NAMES, _VALUES, max_size=3), max_size=2))
    value = {
        name: {inner: each for inner, each in about.items() if inner in schema["properties"][name]["properties"]}
        for name, about in value.items()
        if name in schema["properties"]
    }
    assume(not list(jsonschema.Draft202012Validator(root).iter_errors(value)))
    said = _filled(value, schema, root)
    jsonschema.validate(said, json.loads(strict_schema(json.dumps(root))))


@pytest.mark.parametrize("schema", ['{"type":"string"}', '{"type":["object","null"]}', "false", "[]", "3"])
def test_arguments_that_are_no_object_are_refused(schema: str) -> None:
    with pytest.raises(ValueError, match="not that of an object"):
        strict_schema(schema)


def test_a_schema_without_properties_takes_no_arguments() -> None:
    for schema in ("{}", "true", '{"type":"object"}'):
        strict = json.loads(strict_schema(schema))
        assert (strict["required"], strict["properties"], strict["additionalProperties"]) == ([], {}, False)


def test_a_schema_without_end_is_refused() -> None:
    schema: Json = {"type": "string"}
    for _ in range(80):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(ValueError, match="deeper"):
        strict_schema(json.dumps(schema))


def test_nulls_that_were_meant_stay() -> None:
    schema = {
        "type": "object",
        "properties": {"must": {"type": ["string", "null"]}, "may": {"type": ["string", "null"]}},
        "required": ["must"],
    }
    assert json.loads(without_nulls('{"must":null,"may":null,"odd":null}', schema=json.dumps(schema))) == {
        "must": None,
        "odd": None,
    }


@pytest.mark.parametrize("arguments", ["", "{", "[null]", "null", '"x"'])
def test_what_is_no_object_comes_back_as_it_is(arguments: str) -> None:
    assert without_nulls(arguments, schema='{"type":"object"}') == arguments
