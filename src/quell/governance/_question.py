"""The question that people are asked: rendered by code from frozen facts, whole, with nothing hidden in it.

What attackers may have written (arguments, names, diffs, the model's words) stands in lines that begin with a bar or an
angle bracket, and every character in it that does not show itself is named.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, TypeAlias

from quell.domain import ASK_PEOPLE, Approval, AskedCall, is_hidden
from quell.governance._form import lines_of, wanted_of

Form: TypeAlias = Literal["text", "json", "markdown"]

_OPEN, _CLOSE = "⟦", "⟧"
"""Marks around the name of a character; where they come by themselves they are named as well."""
_MISLEADING = frozenset("⟦⟧\ufe0e\ufe0f")
"""Our own marks, and selectors of the looks of a symbol: honest elsewhere, but two questions must not look the same."""
_ACCENTS_MAX = 2
_LOOKALIKES = dict(
    zip(
        "авеёикмнорстухѕіјԁԛԝһАВЕКМНОРСТУХЅІЈαινορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɡɑ",
        "abeeukmhopctyxsijdqwhABEKMHOPCTYXSIJaivoptuxABEZHIKMNOPTYXiga",
        strict=True,
    )
)
"""Letters that look like a Latin one in most typefaces (a part of Unicode's confusables.txt, UTS 39)."""
_WORD = re.compile(r"[^\W_]+")
_SAID_MAX = 20
UNVERIFIED = "THE MODEL'S OWN WORDS, UNVERIFIED: nobody has checked them, and they bind nothing"
_UTC = "%Y-%m-%d %H:%M:%S UTC"


def visible(text: str) -> str:
    """Name every character that does not show itself; a line break stays one."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(letter if shows else _mark(letter) for letter, shows in _judged(text))


def warnings_of(text: str) -> tuple[str, ...]:
    """Return what could deceive a reader of a text: hidden characters, mixed scripts, letters that look like others."""
    found: dict[str, None] = {}
    if text.isascii() and text.replace("\n", "").isprintable():
        return ()
    for letter, shows in _judged(text):
        if not shows and letter not in {_OPEN, _CLOSE}:
            found[f"hidden or misleading character {_named(letter)}"] = None
    for match in _WORD.finditer(text):
        if not match[0].isascii() and (told := _deception(match[0])):
            found[told] = None
    return tuple(found)


def shown(approval: Approval, *, form: Form, chars_max: int | None = None, link: str = "") -> str:
    """Render the whole question, or, where it does not fit, where to read it: it is never cut."""
    text = {"text": _as_text, "json": _as_json, "markdown": _as_markdown}[form](approval)
    if chars_max is None or len(text) <= chars_max:
        return text
    terms = approval.terms
    pointer = {
        "approval": terms.id,
        "digest": approval.digest,
        "calls": len(terms.calls),
        "expires_at": terms.expires_at.strftime(_UTC),
        "note": "too large to be shown here whole; read it before you answer",
        "link": link or f"quell approval show {terms.id}",
    }
    if form == "json":
        return json.dumps(pointer)
    return "\n".join(f"{name}: {visible(str(value))}" for name, value in pointer.items())


def _as_text(approval: Approval) -> str:
    lines = [f"APPROVAL {approval.id}", *(f"  {name:<13} {_line(value)}" for name, value in _head(approval))]
    for title, parts in _calls(approval):
        lines += ["", _line(title)]
        for name, said in parts:
            lines += [f"  {name}", *_barred(said, "  | ")]
    lines += ["", "WARNINGS", *(f"  - {text}" for text in _warnings(approval) or ("none",))]
    if approval.terms.explanation:
        lines += ["", UNVERIFIED, *_barred(approval.terms.explanation.split("\n"), "  > ")]
    return "\n".join([*lines, "", "TO ANSWER", *(f"  {text}" for text in _answers(approval))])


def _as_markdown(approval: Approval) -> str:
    lines = [f"**Approval {approval.id}**", *_fenced("\n".join(f"{n:<13} {_line(v)}" for n, v in _head(approval)))]
    for title, parts in _calls(approval):
        lines += ["**Call**", *_fenced(_line(title))]
        for name, said in parts:
            lines += [f"{name}:", *_fenced("\n".join(_barred(said, "| ")))]
    lines += ["**Warnings**", *_fenced("\n".join(_warnings(approval) or ("none",)))]
    if approval.terms.explanation:
        lines += [f"**{UNVERIFIED}**", *_fenced("\n".join(_barred(approval.terms.explanation.split("\n"), "> ")))]
    return "\n".join([*lines, "**To answer**", *_fenced("\n".join(_answers(approval)))])


def _as_json(approval: Approval) -> str:
    """Write every field as it is; what does not show itself is escaped by JSON, and the warnings name it."""
    terms = approval.terms
    told = {
        "approval": terms.id,
        "digest": approval.digest,
        "status": approval.status.value,
        "told": approval.told,
        "tenant": terms.tenant,
        "run": terms.run,
        "requester": terms.requester,
        "barred": terms.barred,
        "agent": terms.agent,
        "workflow": {"name": terms.workflow, "digest": terms.workflow_digest},
        "policy": {"ids": terms.policies, "digest": terms.policy_digest, "reason": terms.reason},
        **({"gate": terms.gate} if terms.gate else {}),
        "evidence_digest": terms.evidence_digest,
        "approver_roles": terms.approver_roles,
        "quorum": terms.quorum,
        "supersedes": terms.supersedes,
        "requested_at": terms.requested_at.isoformat(),
        "expires_at": terms.expires_at.isoformat(),
        "calls": [_call_object(asked) for asked in terms.calls],
        "warnings": _warnings(approval),
        "unverified_words_of_the_model": terms.explanation,
    }
    return json.dumps(told, indent=2)


def _call_object(asked: AskedCall) -> dict[str, object]:
    call = asked.call
    return {
        "call": call.id,
        "tool": call.tool,
        "class": asked.tool_class.value,
        "pin": call.pin,
        "arguments": call.arguments,
        "resource": {
            "kind": call.resource.kind,
            "name": call.resource.name,
            "environment": call.resource.environment,
            "units": call.resource.units,
            "host": call.resource.host,
        },
        "digest": call.digest,
        "facts": dict(asked.facts),
        "dry_run": asked.diff,
        "revert_plan": asked.revert_plan,
        "form": json.loads(asked.form) if asked.form else None,
    }


def _head(approval: Approval) -> Iterator[tuple[str, str]]:
    terms = approval.terms
    yield "digest", approval.digest
    yield "status", approval.told
    yield "expires", terms.expires_at.strftime(_UTC)
    yield "asked for", f"{terms.requester}, tenant {terms.tenant}, run {terms.run}"
    if terms.agent or terms.workflow:
        yield (
            "through",
            f"agent {terms.agent or '-'}, workflow {terms.workflow or '-'} {terms.workflow_digest}".rstrip(),
        )
    yield "who", f"{terms.quorum} of {', '.join(terms.approver_roles)}; not {', '.join(terms.barred)}"
    yield "why", terms.reason
    if terms.gate:
        yield "gate", f"{terms.gate} ({'the agent asks' if terms.gate == ASK_PEOPLE else 'the file of the agent'})"
    yield "policies", f"{', '.join(terms.policies)} of {terms.policy_digest}"
    yield "evidence", terms.evidence_digest or "none"
    if terms.supersedes:
        yield "edited from", terms.supersedes
    for vote in approval.votes:
        if vote.answers:
            yield "filled in", f"{vote.voter}: {vote.answers}"


def _calls(approval: Approval) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """Give each call with its parts, each as lines; a line break within a line is named."""
    calls = approval.terms.calls
    for number, asked in enumerate(calls, start=1):
        call, resource = asked.call, asked.call.resource
        acts_on = f"{resource.kind} {resource.name or '(the whole server)'} in {resource.environment or '-'}, {resource.units} unit(s)"
        yield (
            f"CALL {number} of {len(calls)}: {call.tool} ({asked.tool_class})",
            [
                ("acts on", [acts_on + (f", reaches {resource.host}" if resource.host else "")]),
                ("arguments", _laid_out(call.arguments).split("\n")),
                ("what the inventory knows", [f"{name}: {value}" for name, value in asked.facts] or ["nothing"]),
                ("what a dry run says", (asked.diff or "there was no dry run").split("\n")),
                ("how it would be undone", (asked.revert_plan.removeprefix("[]") or "nothing undoes it").split("\n")),
                ("definition of the tool", [call.pin]),
                *([("what the server wants filled in", list(lines_of(asked.form)))] if asked.form else []),
            ],
        )


def _answers(approval: Approval) -> tuple[str, str]:
    forms = [asked.form for asked in approval.terms.calls if asked.form]
    fields = "".join(f" --answer '{_line(name)}=...'" for form in forms for name in wanted_of(form))
    return (
        f"quell approval approve {approval.id} --digest {approval.digest[:8]}{fields}",
        f'quell approval reject {approval.id} --digest {approval.digest[:8]} --reason "..."',
    )


def _warnings(approval: Approval) -> tuple[str, ...]:
    terms = approval.terms
    places = [("requester", terms.requester), ("agent", terms.agent), ("workflow", terms.workflow)]
    for number, asked in enumerate(terms.calls, start=1):
        call, resource = asked.call, asked.call.resource
        places += [
            (f"call {number}, tool", call.tool),
            (f"call {number}, resource", f"{resource.name} {resource.environment} {resource.host}"),
            (f"call {number}, arguments", _decoded(call.arguments)),
            (f"call {number}, inventory", " ".join(text for fact in asked.facts for text in fact)),
            (f"call {number}, dry run", asked.diff),
            (f"call {number}, revert plan", asked.revert_plan),
            (f"call {number}, form", _decoded(asked.form or "{}")),
        ]
    places.append(("the model's words", terms.explanation))
    return tuple(f"{place}: {told}" for place, text in places for told in warnings_of(text)[:_SAID_MAX])


def _laid_out(arguments: str) -> str:
    """Lay out canonical JSON over lines, if that says exactly the same."""
    try:
        told = json.loads(arguments)
        same = json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":")) == arguments
    except (ValueError, RecursionError):
        return arguments
    return json.dumps(told, ensure_ascii=False, sort_keys=True, indent=2) if same else arguments


def _decoded(arguments: str) -> str:
    """Return the texts of the arguments as a program will see them: escapes hide characters from the eye too."""
    try:
        told = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return " ".join(_texts(told))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _barred(lines: Iterable[str], bar: str) -> list[str]:
    return [bar + _line(line) for line in lines]


def _line(text: str) -> str:
    return visible(text).replace("\n", _mark("\n"))


def _fenced(text: str) -> list[str]:
    """Fence a block for chat. Three backticks in a row would end it anywhere, so they are named."""
    safe = re.sub(r"`{3,}", lambda run: _mark("`") * len(run[0]), text)
    return ["```", safe, "```"]


def _judged(text: str) -> Iterator[tuple[str, bool]]:
    """Give each character with whether it shows itself; of accents, the first two on a letter do."""
    accents = _ACCENTS_MAX
    for letter in text:
        kind = _kind(letter)
        accents = 0 if kind == "letter" else accents + 1 if kind == "accent" else _ACCENTS_MAX
        yield letter, kind in {"letter", "plain"} or (kind == "accent" and accents <= _ACCENTS_MAX)


@lru_cache(maxsize=4096)
def _kind(letter: str) -> Literal["letter", "plain", "accent", "hidden"]:
    if " " <= letter <= "~" or letter == "\n":
        return "letter" if letter.isalpha() else "plain"
    category = unicodedata.category(letter)
    if is_hidden(letter) or category == "Zs" or letter in _MISLEADING:
        return "hidden"
    if category in {"Mn", "Me"}:
        return "accent"
    return "letter" if category.startswith(("L", "Mc")) else "plain"


def _mark(letter: str) -> str:
    return f"{_OPEN}U+{ord(letter):04X}{_CLOSE}"


def _named(letter: str) -> str:
    return f"U+{ord(letter):04X} {unicodedata.name(letter, 'without a name')}"


def _deception(word: str) -> str:
    plain = unicodedata.normalize("NFKC", word)
    latin = "".join(_LOOKALIKES.get(letter, letter) for letter in plain)
    if latin.isascii() and latin != word:
        strange = next(letter for letter in word if not letter.isascii())
        return f"{visible(word)!r} looks like {latin!r} but holds {_named(strange)}"
    scripts = {unicodedata.name(letter, "UNNAMED").split(" ")[0] for letter in plain if letter.isalpha()}
    if len(scripts) > 1 and "LATIN" in scripts:
        return f"{visible(word)!r} mixes scripts: {', '.join(sorted(scripts)).lower()}"
    return ""
