"""Read the JSON of a request field by field, and tell every mistake of it at once, each with its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from quell.server._openai_errors import ChatError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Mistake: TypeAlias = Literal[
    "wrong type", "invalid_value", "missing_required_parameter", "unsupported_parameter", "unsupported_value"
]


class Wish:
    """An object of a request, and the mistakes that were found in it so far; a null is as good as nothing."""

    def __init__(self, fields: Mapping[str, Any], *, place: str = "", mistakes: list[ChatError] | None = None) -> None:
        self._whole = fields
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._place = place
        self._left = set(self._fields)
        self.mistakes = [] if mistakes is None else mistakes

    @classmethod
    def of(cls, body: bytes) -> Wish:
        """Read a body. Raises ChatError 400 for what is no JSON and 422 for what is no object."""
        try:
            read = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ChatError(400, f"the body is no JSON: {error}", reason="invalid_json") from error
        if not isinstance(read, dict):
            raise ChatError(422, "the body must be an object of JSON", reason="wrong_type")
        return cls(read)

    def place(self, name: str) -> str:
        """Say where a field stands."""
        return f"{self._place}.{name}" if self._place else name

    def wrong(self, name: str, said: str, kind: Mistake = "invalid_value") -> None:
        """Keep a mistake for the end."""
        status, reason = (422, "wrong_type") if kind == "wrong type" else (400, kind)
        place = self.place(name) if name else self._place
        self.mistakes.append(ChatError(status, f"{place}: {said}", reason=reason, param=place))

    def written(self) -> str:
        """Return the whole object as JSON."""
        self._left.clear()
        return msgspec.json.encode(self._whole).decode()

    def take(self, name: str) -> Json:
        """Return a field as it is; None when it is not there."""
        self._left.discard(name)
        found: Json = self._fields.get(name)
        return found

    def text(self, name: str, *, choices: tuple[str, ...] = (), length_max: int = 0) -> str:
        """Return a field of text; empty when it is not there."""
        found = self.take(name)
        if found is None:
            return ""
        if not isinstance(found, str):
            self.wrong(name, "must be text", "wrong type")
            return ""
        if choices and found not in choices:
            self.wrong(name, f"is {found[:40]!r}, and must be one of {', '.join(choices)}")
            return ""
        if length_max and len(found) > length_max:
            self.wrong(name, f"has more than {length_max} characters")
        return found

    def flag(self, name: str) -> bool | None:
        """Return a field that is true or false."""
        found = self.take(name)
        if found is not None and not isinstance(found, bool):
            self.wrong(name, "must be true or false", "wrong type")
            return None
        return found

    def whole(self, name: str, *, low: int, high: int = 2**53) -> int | None:
        """Return a field that is a whole number."""
        found = self.take(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int):
            self.wrong(name, "must be a whole number", "wrong type")
        elif not low <= found <= high:
            self.wrong(name, f"is {found}, and must be from {low} to {high}")
        else:
            return found
        return None

    def number(self, name: str, *, low: float, high: float) -> float | None:
        """Return a field that is a number."""
        found = self.take(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float):
            self.wrong(name, "must be a number", "wrong type")
        elif not low <= found <= high:
            self.wrong(name, f"is {found}, and must be from {low:g} to {high:g}")
        else:
            return float(found)
        return None

    def below(self, name: str) -> Wish | None:
        """Return a field that is an object."""
        found = self.take(name)
        if found is None:
            return None
        if not isinstance(found, dict):
            self.wrong(name, "must be an object", "wrong type")
            return None
        return Wish(found, place=self.place(name), mistakes=self.mistakes)

    def listed(self, name: str, *, items_max: int) -> list[Json] | None:
        """Return a field that is a list."""
        found = self.take(name)
        if found is None:
            return None
        if not isinstance(found, list):
            self.wrong(name, "must be a list", "wrong type")
            return None
        if len(found) > items_max:
            self.wrong(name, f"has more than {items_max} entries")
            return None
        return found

    def objects(self, name: str, *, items_max: int) -> list[Wish]:
        """Return a field that is a list of objects."""
        found: list[Wish] = []
        for number, item in enumerate(self.listed(name, items_max=items_max) or ()):
            place = f"{self.place(name)}[{number}]"
            if isinstance(item, dict):
                found.append(Wish(item, place=place, mistakes=self.mistakes))
            else:
                self.wrong(f"{name}[{number}]", "must be an object", "wrong type")
        return found

    def texts(self, name: str, *, items_max: int) -> tuple[str, ...]:
        """Return a field that is a text or a list of texts."""
        found = self.take(name)
        if found is None:
            return ()
        items = [found] if isinstance(found, str) else found
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            self.wrong(name, "must be text or a list of texts", "wrong type")
        elif len(items) > items_max:
            self.wrong(name, f"has more than {items_max} entries")
        else:
            return tuple(str(item) for item in items)
        return ()

    def table(self, name: str, *, items_max: int, value_max: int) -> dict[str, str]:
        """Return a field that is an object of texts."""
        found = self.take(name)
        if found is None:
            return {}
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            self.wrong(name, "must be an object whose values are texts", "wrong type")
        elif len(found) > items_max or any(len(key) > value_max or len(str(found[key])) > value_max for key in found):
            self.wrong(name, f"has more than {items_max} entries, or one longer than {value_max} characters")
        else:
            return {key: str(value) for key, value in found.items()}
        return {}

    def only(self, name: str, *accepted: Json, why: str) -> None:
        """Take a field that says what is so anyway; anything else is refused by name."""
        found = self.take(name)
        if found is not None and not any(found == each and type(found) is type(each) for each in accepted):
            self.wrong(name, f"is not supported with this value: {why}", "unsupported_value")

    def passed(self, *names: str) -> None:
        """Take fields that mean nothing here and are documented so."""
        self._left.difference_update(names)

    def rest(self, why: str = "this server does not know it, and ignores nothing in silence") -> None:
        """Refuse by name what nobody has taken."""
        for name in sorted(self._left):
            self.wrong(name, f"is not supported: {why}", "unsupported_parameter")
        self._left.clear()

    def finish(self) -> None:
        """Raise ChatError with every mistake, under the place of the first."""
        if not self.mistakes:
            return
        first = self.mistakes[0]
        said = "; ".join(str(mistake) for mistake in self.mistakes[:20])
        raise ChatError(first.status, said, reason=first.reason, param=first.param)
