"""Pins as they are kept: which definitions people accepted, and what they are shown before they do."""

from __future__ import annotations

from datetime import datetime

from quell.domain import Clock, Offer, Principal, RefusedError, Signer, ToolPin, ToolServer, ToolTerms
from quell.runs import Connection
from quell.tools import _pins as pins


class Pins:
    """The accepted definitions of one journal."""

    TABLES = pins.TABLES
    """What `Connection.make_tables` makes."""

    CONFIGURATION = "quell:configuration"
    """In whose name a tool is pinned that no person looked at: who wrote its server down let it in."""

    terms_for = staticmethod(pins.terms_for)
    """Says what is to be pinned of a tool: the operator's word, or the catalogue's, which hints may only tighten."""
    show = staticmethod(pins.show_offer)
    """Writes a definition for a person, every invisible character made visible."""
    show_change = staticmethod(pins.show_change)
    """Writes the difference between what was accepted and what is offered."""
    judge = staticmethod(pins.judge_offer)
    """Says what an offer is to the pin of that name: pinned, changed or unknown."""

    def __init__(self, *, clock: Clock, signer: Signer) -> None:
        """Seal what people accept with a key that does not lie in the database."""
        self._clock = clock
        self._signer = signer

    def accept(self, connection: Connection, offer: Offer, terms: ToolTerms, *, by: Principal) -> ToolPin:
        """Pin an offer in a person's name. Raises RefusedError for anybody else, and for what no call can use."""
        if by.agent or by.agent_tools is not None or by.workflow or not {"operator", "admin"} & set(by.roles):
            raise RefusedError("only a person with the role operator or admin pins tools", hint="do it yourself")
        _refuse_unusable(offer, terms, pinned_by=by.user, at=self._clock())
        pin = pins.pin_offer(offer, terms, pinned_by=by.user, at=self._clock())
        pins.keep_pin(connection, pin, signer=self._signer)
        return pin

    def accept_first(
        self, connection: Connection, offer: Offer, terms: ToolTerms, *, old: ToolPin | None, stands_for: str = ""
    ) -> ToolPin | None:
        """Pin an offer that nobody saw before in the name of the configuration; None for one that somebody did.

        `old` is the pin that it has in this transaction. What the configuration pinned itself follows it: to another address, and to other terms of the same definition.
        Any other change, and what a person pinned or took back, is left to people; so is what a person pinned or took
        back of the server that this one `stands_for`. Raises RefusedError for what no call can use.
        """
        if old is None and pins.was_seen(connection, offer.server, offer.original):
            return None
        if old is None and stands_for and pins.was_seen(connection, stands_for, offer.original):
            beside = self.find(connection, stands_for, offer.original)
            if beside is None or beside.pinned_by != self.CONFIGURATION:
                return None
        if old is not None and not _follows(old, offer, terms):
            return None
        pin = pins.pin_offer(offer, terms, pinned_by=self.CONFIGURATION, at=self._clock())
        _refuse_unusable(offer, terms, pinned_by=pin.pinned_by, at=pin.pinned_at)
        pins.keep_pin(connection, pin, signer=self._signer)
        return pin

    @staticmethod
    def drop(connection: Connection, server: str, original: str) -> bool:
        """Take a pin back; False when there was none."""
        return pins.drop_pin(connection, server, original)

    def find(self, connection: Connection, server: str, original: str) -> ToolPin | None:
        """Return the pin of a tool, if there is one and it is what a person accepted."""
        return next((pin for pin in self.listed(connection) if (pin.server, pin.original) == (server, original)), None)

    def listed(self, connection: Connection) -> tuple[ToolPin, ...]:
        """Return every pin that is what a person accepted, by server and name."""
        return pins.list_pins(connection, signer=self._signer)[0]

    def broken(self, connection: Connection) -> tuple[str, ...]:
        """Return the names of rows that look like pins and are not what a person accepted: they serve nothing."""
        return pins.list_pins(connection, signer=self._signer)[1]

    @staticmethod
    def turn(connection: Connection) -> int:
        """Return the number of the last change of any pin; read it before the pins themselves."""
        return pins.turn_of(connection)

    @staticmethod
    def check(server: ToolServer) -> None:
        """Check what the settings say of a server. Raises ConfigError when the catalogue has no such section."""
        pins.check_catalogue(server.catalogue)


def _follows(old: ToolPin, offer: Offer, terms: ToolTerms) -> bool:
    """Tell whether the configuration may pin anew: it did before, and it is the configuration that changed."""
    if old.pinned_by != Pins.CONFIGURATION:
        return False
    has_moved = old.identity.address != offer.identity.address
    return has_moved or (old.digest == offer.digest and old.terms != terms)


def _refuse_unusable(offer: Offer, terms: ToolTerms, *, pinned_by: str, at: datetime) -> None:
    """Refuse a definition that no policy could be written for: pinned, it would keep every tool from being taken."""
    # Loaded here: who lists pins waits neither for Cedar nor for the hands.
    from quell.governance import PolicySet  # noqa: PLC0415
    from quell.tools._registry import tool_of  # noqa: PLC0415

    tool = tool_of(pins.pin_offer(offer, terms, pinned_by=pinned_by, at=at), name="tool", names={})
    report = PolicySet.check((), tools=[tool])
    if report.problems:
        raise RefusedError(
            f"{offer.original!a} of {offer.server} can not be used: {report.problems[0].reason}",
            hint="tell who wrote its definition",
        )
