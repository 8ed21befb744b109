"""Say what is wrong with arguments so that a person or a model can put it right at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from itertools import islice

from jsonschema import ValidationError as Mistake

_NAMES_MAX = 200
_KINDS = {"string": "a text", "integer": "an integer", "number": "a number", "boolean": "true or false"}
_KINDS |= {"object": "an object", "array": "a list", "null": "null"}


def words_of(mistake: Mistake) -> str:
    """Write one mistake as one line: where, what came, what is allowed."""
    path = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in mistake.absolute_path)
    tell = _WORDS.get(str(mistake.validator), _other)
    return f"{_shown(path, plain=True) or 'arguments'}: {tell(mistake)}"


def _shown(value: object, *, plain: bool = False) -> str:
    text = str(value) if plain else json.dumps(value, ensure_ascii=True)
    text = text if text.isascii() else text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def _listed(values: object) -> str:
    items = values if isinstance(values, list) else [values]
    told = ", ".join(_shown(item) for item in items[:20])
    return told + (f" and {len(items) - 20} more" if len(items) > 20 else "")


def _type(mistake: Mistake) -> str:
    kinds = mistake.validator_value if isinstance(mistake.validator_value, list) else [mistake.validator_value]
    wanted = " or ".join(_KINDS.get(str(kind), str(kind)) for kind in kinds)
    extra = ""
    if isinstance(mistake.instance, float) and mistake.instance.is_integer() and "integer" in kinds:
        extra = f"; write {int(mistake.instance)}"
    elif isinstance(mistake.instance, str) and "string" not in kinds:
        extra = "; write it without quotes"
    return f"{_shown(mistake.instance)} is not {wanted}{extra}"


def _missing(mistake: Mistake) -> str:
    present = mistake.instance if isinstance(mistake.instance, dict) else {}
    wanted = mistake.validator_value if isinstance(mistake.validator_value, list) else []
    missing = [name for name in wanted if name not in present]
    return f"missing: {', '.join(_shown(name, plain=True) for name in missing)}"


def _unknown(mistake: Mistake) -> str:
    known = _names(mistake.schema)
    present = mistake.instance if isinstance(mistake.instance, dict) else {}
    # What references named is known to the library alone; it writes the names that nobody named into its message.
    in_place = mistake.validator == "unevaluatedProperties"
    # The first of them are enough, and a message of thousands would be searched thousands of times.
    looked_at = [*islice(present, _NAMES_MAX)]
    extra = [name for name in looked_at if (repr(name) in mistake.message if in_place else name not in known)]
    told = []
    for name in extra[:10]:
        near = get_close_matches(name[:80], known, n=1)
        told.append(_shown(name, plain=True) + (f" (did you mean {near[0]}?)" if near else ""))
    allowed = f"; allowed: {', '.join(known[:30])}" if known else "" if in_place else "; nothing may stand here"
    return f"not known: {', '.join(told) or 'a key'}{allowed}"


def _names(schema: object) -> list[str]:
    """Collect the names that a schema and the schemas in its place define."""
    if not isinstance(schema, Mapping):
        return []
    found = list(schema.get("properties", ()))
    for keyword in ("allOf", "anyOf", "oneOf"):
        for inner in schema.get(keyword, ()):
            found += [name for name in _names(inner) if name not in found]
    return found


def _forms(mistake: Mistake) -> str:
    first: dict[int, str] = {}
    for inner in mistake.context or ():
        first.setdefault(int(inner.relative_schema_path[0]), words_of(inner))
    told = "; ".join(f"({number + 1}) {text}" for number, text in list(first.items())[:5])
    if not told:
        return "matches more than one of the forms of which it may match only one"
    return f"matches none of the {len(first)} allowed forms: {told}"


def _bound(said: str) -> Callable[[Mistake], str]:
    def tell(mistake: Mistake) -> str:
        return f"{_shown(mistake.instance)} {said.format(_shown(mistake.validator_value))}"

    return tell


def _other(mistake: Mistake) -> str:
    return f"{_shown(mistake.instance)} breaks `{mistake.validator}`: {_shown(mistake.validator_value)}"


_WORDS: Mapping[str, Callable[[Mistake], str]] = {
    "type": _type,
    "required": _missing,
    "additionalProperties": _unknown,
    "unevaluatedProperties": _unknown,
    "anyOf": _forms,
    "oneOf": _forms,
    "enum": lambda mistake: f"{_shown(mistake.instance)} is not allowed; allowed: {_listed(mistake.validator_value)}",
    "const": lambda mistake: (
        f"{_shown(mistake.instance)} is not {_shown(mistake.validator_value)}, the only value allowed"
    ),
    "minimum": _bound("is less than {}, the least allowed"),
    "maximum": _bound("is more than {}, the most allowed"),
    "exclusiveMinimum": _bound("must be more than {}"),
    "exclusiveMaximum": _bound("must be less than {}"),
    "multipleOf": _bound("is not a multiple of {}"),
    "minLength": _bound("has fewer than {} characters"),
    "maxLength": _bound("has more than {} characters"),
    "minItems": _bound("has fewer than {} items"),
    "maxItems": _bound("has more than {} items"),
    "pattern": _bound("does not match the pattern {}"),
    "uniqueItems": lambda _: "an item comes twice; each may come once",
}
