"""Pins: definitions of tools that people accepted, what they said of them, and how a changed one is shown.

A tool without a pin is unknown, and one whose definition, server or instructions changed is another tool. At first sight
only what the operator's configuration lets in is pinned, in its name.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Literal

from quell.domain import (
    ConfigError,
    Offer,
    Problem,
    Recovery,
    RefusedError,
    ResourceRule,
    ServerIdentity,
    Signer,
    ToolClass,
    ToolPin,
    ToolServer,
    ToolTerms,
    is_glob,
    matches_glob,
)
from quell.runs import Connection
from quell.tools._canonical import canonical

TABLES: tuple[str, ...] = (
    """
    CREATE TABLE IF NOT EXISTS quell_pins (
        server TEXT NOT NULL,
        original TEXT NOT NULL,
        digest TEXT NOT NULL,
        definition TEXT NOT NULL,
        identity TEXT NOT NULL,
        tool_class TEXT NOT NULL,
        recovery TEXT NOT NULL,
        terms TEXT NOT NULL,
        pinned_by TEXT NOT NULL,
        pinned_at TEXT NOT NULL,
        PRIMARY KEY (server, original)
    )
    """,
    (
        "CREATE TABLE IF NOT EXISTS quell_pin_seals (server TEXT NOT NULL, original TEXT NOT NULL,"
        " signature TEXT NOT NULL, PRIMARY KEY (server, original))"
    ),
    (
        "CREATE TABLE IF NOT EXISTS quell_pins_seen (server TEXT NOT NULL, original TEXT NOT NULL, at TEXT NOT NULL,"
        " PRIMARY KEY (server, original))"
    ),
    "CREATE TABLE IF NOT EXISTS quell_pin_turns (one INTEGER PRIMARY KEY, turn BIGINT NOT NULL)",
)
_NEXT_TURN = (
    "INSERT INTO quell_pin_turns (one, turn) VALUES (1, 1)"
    " ON CONFLICT (one) DO UPDATE SET turn = quell_pin_turns.turn + 1"
)
"""Written with every change of a pin: who holds tools in memory sees by one number that they are of yesterday."""


_URL_WORDS = frozenset({"url", "urls", "uri", "uris", "host", "hosts", "hostname", "endpoint", "webhook", "domain"})
_URL_FORMATS = frozenset({"uri", "uri-reference", "iri", "url", "hostname", "idn-hostname", "ipv4", "ipv6"})
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SHOWN_DEPTH_MAX = 64


def definition_digest(definition: Mapping[str, object], identity: ServerIdentity) -> str:
    """Digest a whole wire object together with all that says whose it is."""
    whole = {"definition": definition, "identity": asdict(identity)}
    return "sha256:" + hashlib.sha256(canonical(whole).encode()).hexdigest()


def judge_offer(offer: Offer, pin: ToolPin | None) -> Literal["pinned", "changed", "unknown"]:
    """Say what an offer is to the pin of that name."""
    if pin is None or (pin.server, pin.original) != (offer.server, offer.original):
        return "unknown"
    return "pinned" if pin.digest == offer.digest else "changed"


def require_pinned(offer: Offer, pin: ToolPin | None) -> ToolPin:
    """Return the pin of an offer. Raises RefusedError when nobody accepted the offer as it is."""
    verdict = judge_offer(offer, pin)
    if pin is None or verdict != "pinned":
        raise RefusedError(
            f"{offer.original!a} of tool server {offer.server} is {verdict}: nobody accepted it as it is now",
            hint="let a person look at its definition and pin it",
        )
    return pin


def pin_offer(offer: Offer, terms: ToolTerms, *, pinned_by: str, at: datetime) -> ToolPin:
    """Accept an offer in a person's name."""
    assert pinned_by, "a pin is somebody's"
    return ToolPin(
        server=offer.server,
        original=offer.original,
        digest=offer.digest,
        definition=offer.definition,
        identity=offer.identity,
        terms=terms,
        pinned_by=pinned_by,
        pinned_at=at,
    )


def keep_pin(connection: Connection, pin: ToolPin, *, signer: Signer) -> None:
    """Write a pin with its seal, in the place of any that the tool had."""
    connection.run(
        "INSERT INTO quell_pin_seals (server, original, signature) VALUES (:server, :original, :signature)"
        " ON CONFLICT (server, original) DO UPDATE SET signature = excluded.signature",
        server=pin.server,
        original=pin.original,
        signature=signer.sign(_sealed(pin)),
    )
    connection.run(
        "INSERT INTO quell_pins (server, original, digest, definition, identity, tool_class, recovery, terms, pinned_by,"
        " pinned_at) VALUES (:server, :original, :digest, :definition, :identity, :tool_class, :recovery, :terms,"
        " :pinned_by, :pinned_at) ON CONFLICT (server, original) DO UPDATE SET digest = excluded.digest,"
        " definition = excluded.definition, identity = excluded.identity, tool_class = excluded.tool_class,"
        " recovery = excluded.recovery, terms = excluded.terms, pinned_by = excluded.pinned_by,"
        " pinned_at = excluded.pinned_at",
        server=pin.server,
        original=pin.original,
        digest=pin.digest,
        definition=pin.definition,
        identity=canonical(asdict(pin.identity)),
        tool_class=pin.terms.tool_class,
        recovery=pin.terms.recovery,
        terms=canonical(asdict(pin.terms)),
        pinned_by=pin.pinned_by,
        pinned_at=pin.pinned_at.isoformat(),
    )
    connection.run(
        "INSERT INTO quell_pins_seen (server, original, at) VALUES (:server, :original, :at)"
        " ON CONFLICT (server, original) DO NOTHING",
        server=pin.server,
        original=pin.original,
        at=pin.pinned_at.isoformat(),
    )
    connection.run(_NEXT_TURN)


def was_seen(connection: Connection, server: str, original: str) -> bool:
    """Tell whether a tool was ever pinned here, by whomever, and whatever became of its pin."""
    where = "SELECT at FROM quell_pins_seen WHERE server = :server AND original = :original"
    return connection.first(where, server=server, original=original) is not None


def drop_pin(connection: Connection, server: str, original: str) -> bool:
    """Take a pin back; tell whether there was one."""
    where = "DELETE FROM quell_pins WHERE server = :server AND original = :original"
    is_gone = connection.run(where, server=server, original=original) > 0
    seal = "DELETE FROM quell_pin_seals WHERE server = :server AND original = :original"
    connection.run(seal, server=server, original=original)
    if is_gone:
        connection.run(_NEXT_TURN)
    return is_gone


def turn_of(connection: Connection) -> int:
    """Return the number of the last change of any pin; read it before the pins themselves."""
    row = connection.first("SELECT turn FROM quell_pin_turns WHERE one = 1")
    return int(row.turn) if row is not None else 0


def list_pins(connection: Connection, *, signer: Signer) -> tuple[tuple[ToolPin, ...], tuple[str, ...]]:
    """Return every pin by server and name, and the names of those that are not what a person sealed.

    Who writes the database writes rows, and not the seal of what a person accepted: the class of a tool decides
    whether anybody is asked.
    """
    seals = {(row.server, row.original): row.signature for row in connection.all("SELECT * FROM quell_pin_seals")}
    whole: list[ToolPin] = []
    broken: list[str] = []
    for row in connection.all("SELECT * FROM quell_pins ORDER BY server, original"):
        pin = _read(vars(row))
        signature = seals.get((row.server, row.original), "")
        if pin is not None and signature and signer.verify(_sealed(pin), signature=signature):
            whole.append(pin)
        else:
            broken.append(f"{row.server}: {row.original}")
    return tuple(whole), tuple(broken)


def terms_for(offer: Offer, *, server: ToolServer, operator: ToolTerms | None = None) -> ToolTerms:
    """Say what is to be pinned of a tool: the operator's word, or our catalogue's, which hints may only tighten."""
    if operator is not None:
        return operator
    definition = json.loads(offer.definition)
    hints = definition.get("annotations") or {}
    said = next((glob for glob in server.reads if matches_glob(offer.original, glob)), None)
    terms = _catalogue().get(server.catalogue, {}).get(offer.original)
    if said is not None:
        terms = _reading(server, f"the settings say that it reads: {said!a}")
    elif terms is None and server.hints == "believe" and hints.get("readOnlyHint") is True:
        terms = _reading(server, "its server says that it reads, and the settings believe it")
    if terms is None:
        return ToolTerms(timeout_s=server.call_timeout_s, result_max_bytes=server.result_max_bytes)
    if said is not None and not is_glob(said):
        # Named by its name, so somebody looked at this very tool; a glob may have caught more than was meant.
        return terms
    if not terms.tool_class.is_effect and (hints.get("readOnlyHint") is False or hints.get("destructiveHint") is True):
        return replace(
            terms,
            tool_class=ToolClass.IRREVERSIBLE,
            recovery=Recovery.BLIND,
            reason=f"{terms.reason}; its server says that it does more: a person decides",
        )
    if terms.tool_class is ToolClass.READ and (where := _destination(definition.get("inputSchema") or {})):
        return replace(terms, tool_class=ToolClass.EGRESS, reason=f"its argument {where!a} can name a foreign place")
    return terms


def _reading(server: ToolServer, reason: str) -> ToolTerms:
    return ToolTerms(
        tool_class=ToolClass.READ,
        recovery=Recovery.NATURAL,
        timeout_s=server.call_timeout_s,
        result_max_bytes=server.result_max_bytes,
        reason=reason,
    )


def check_catalogue(name: str) -> None:
    """Raise ConfigError when our catalogue has no such section."""
    if name and name not in _catalogue():
        problem = Problem(
            path="catalogue",
            reason=f"there is no section {name}",
            hint=f"there are: {', '.join(sorted(_catalogue()))}",
            source="tool servers",
        )
        raise ConfigError("the catalogue of tools lacks a section", problems=(problem,))


def show_offer(offer: Offer) -> str:
    """Write a definition for a person, every invisible character made visible."""
    return "\n".join(_lines(json.loads(offer.definition), offer.identity))


def show_change(pin: ToolPin, offer: Offer) -> str:
    """Write the difference between what was accepted and what is offered, every invisible character made visible."""
    old = list(_lines(json.loads(pin.definition), pin.identity))
    new = list(_lines(json.loads(offer.definition), offer.identity))
    shown = difflib.unified_diff(old, new, fromfile="pinned", tofile="offered", n=1, lineterm="")
    return "\n".join(shown)


def _lines(definition: object, identity: ServerIdentity) -> Iterator[str]:
    yield from _leaves("tool", definition, depth=0)
    yield from _leaves("server", asdict(identity), depth=0)


def _leaves(path: str, value: object, *, depth: int) -> Iterator[str]:
    """Yield one line per leaf, and per line of a text: a difference then shows what differs and little else."""
    if isinstance(value, dict) and value and depth < _SHOWN_DEPTH_MAX:
        for name in sorted(value):
            yield from _leaves(f"{path}.{_escaped(str(name))}", value[name], depth=depth + 1)
    elif isinstance(value, list) and value and depth < _SHOWN_DEPTH_MAX:
        for index, item in enumerate(value):
            yield from _leaves(f"{path}[{index}]", item, depth=depth + 1)
    elif isinstance(value, str) and "\n" in value:
        for number, line in enumerate(value.split("\n"), start=1):
            yield f"{path} line {number}: {_escaped(line)}"
    else:
        yield f"{path}: {canonical(value)}"


def _escaped(text: str) -> str:
    """Escape all but plain printable ASCII: letters that look like others, direction marks, terminal codes."""
    return canonical(text)[1:-1]


def _destination(schema: object, *, name: str = "", depth: int = 0) -> str:
    """Return the name of an argument that can carry a URL or a host; empty when none looks like it.

    Every corner of the schema is looked into, definitions and alternatives too: to find one too many only tightens.
    """
    if depth > _SHOWN_DEPTH_MAX:
        return name or "(deep)"
    if isinstance(schema, list):
        return next(filter(None, (_destination(part, name=name, depth=depth + 1) for part in schema)), "")
    if not isinstance(schema, dict):
        return ""
    if schema.get("format") in _URL_FORMATS:
        return name or "(all)"
    properties = schema.get("properties")
    for own in properties if isinstance(properties, dict) else ():
        if {word.lower() for word in _WORDS.findall(own)} & _URL_WORDS:
            return str(own)
    return next(filter(None, (_destination(part, name=key, depth=depth + 1) for key, part in schema.items())), "")


def _sealed(pin: ToolPin) -> bytes:
    """Return what a seal is over: everything that a person accepted, and said."""
    whole = {**asdict(pin), "pinned_at": pin.pinned_at.isoformat()}
    return b"quell pin 1\n" + canonical(whole).encode()


def _read(row: Mapping[str, str]) -> ToolPin | None:
    """Return the pin of a row; None for a row that is none."""
    try:
        return _pin_of_row(row)
    except (ValueError, TypeError, KeyError, AssertionError):
        return None


def _pin_of_row(row: Mapping[str, str]) -> ToolPin:
    return ToolPin(
        server=row["server"],
        original=row["original"],
        digest=row["digest"],
        definition=row["definition"],
        identity=ServerIdentity(**json.loads(row["identity"])),
        terms=_terms_of(json.loads(row["terms"])),
        pinned_by=row["pinned_by"],
        pinned_at=datetime.fromisoformat(row["pinned_at"]),
    )


def _terms_of(fields: Mapping[str, object]) -> ToolTerms:
    """Build terms from plain fields, of a row or of the catalogue."""
    known = dict(fields)
    resource = known.pop("resource", {})
    assert isinstance(resource, dict), "a table"
    return ToolTerms(
        **{  # type: ignore[arg-type]  # our own file and our own rows
            **known,
            "tool_class": ToolClass(str(known["tool_class"])),
            "recovery": Recovery(str(known["recovery"])),
            "resource": ResourceRule(**resource),
        }
    )


@cache
def _catalogue() -> Mapping[str, Mapping[str, ToolTerms]]:
    raw = tomllib.loads(files("quell.tools").joinpath("catalogue.toml").read_text())
    return {
        section: {
            # Reading again changes nothing, so reads need not say so.
            tool: _terms_of({"recovery": "natural", "reason": f"catalogue, {section}", **fields})
            for tool, fields in tools.items()
        }
        for section, tools in raw.items()
    }
