"""The functions that everybody may call at any time; they do nothing until telemetry is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from quell.telemetry._catalogue import EVENTS, EventSpec, Scalar, Value, unsaid

Attribute: TypeAlias = Scalar | Sequence[str]
Kind: TypeAlias = Literal["internal", "server", "client"]
"""Which side of a call a span is: a request that came, one that went out, or neither."""
Signal: TypeAlias = Literal["logs", "traces", "metrics"]
Exporter: TypeAlias = Callable[[Signal, bytes], Awaitable[object] | None]
"""Takes OTLP protobuf bytes of one signal; called in the event loop in which `attach` was called, if there was one."""


class Span(Protocol):
    """What the body of a `with span(...)` may do."""

    def put(self, key: str, value: Attribute) -> None:
        """Add an attribute."""

    def put_content(self, key: str, text: str) -> None:
        """Add what people, models or tools said, as `content` returned it; it is not cut or cleaned again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The caller's place in a trace, read from its headers (W3C trace context)."""

    traceparent: str
    tracestate: str = ""


class Sink(Protocol):
    """What `open_telemetry` puts behind these functions."""

    def span(
        self, name: str, attributes: Mapping[str, Attribute], *, parent: Parent | None, kind: Kind
    ) -> AbstractContextManager[Span]:
        """Time a piece of work."""
        ...

    @property
    def is_listening(self) -> bool:
        """Whether spans and metrics go anywhere."""

    @property
    def is_recording(self) -> bool:
        """Whether what is said may stand in spans."""

    def content(self, text: str) -> str:
        """Return a text as it may stand in a span."""

    def count(self, name: str, n: float, attributes: Mapping[str, Scalar]) -> None:
        """Add to a counter or a level."""

    def measure(self, name: str, value: float, attributes: Mapping[str, Scalar]) -> None:
        """Take one value into a histogram, or set a gauge."""

    def event(self, name: str, spec: EventSpec, *, run: str, body: Mapping[str, Value]) -> None:
        """Write one event."""

    def inject(self, headers: MutableMapping[str, str]) -> None:
        """Write the current place in the trace into headers."""


class _Nothing:
    def put(self, key: str, value: Attribute) -> None:
        """Forget it."""

    def put_content(self, key: str, text: str) -> None:
        """Forget it."""


NOTHING: Span = _Nothing()
"""A span that nobody hears of."""
_UNHEARD = nullcontext(NOTHING)
_sinks: list[Sink] = []
_quiet: ContextVar[bool] = ContextVar("quell_telemetry_quiet", default=False)


def install(sink: Sink) -> None:
    """Make `sink` the one that hears everything."""
    assert not _sinks, "telemetry is open already in this process"
    _sinks.append(sink)


def uninstall(sink: Sink) -> None:
    """Fall back to doing nothing, if `sink` is the one installed."""
    if sink in _sinks:
        _sinks.remove(sink)


def is_quiet() -> bool:
    """Tell whether spans and counts of this context are muted."""
    return _quiet.get()


@contextmanager
def quiet() -> Iterator[None]:
    """Mute spans, counts and OpenTelemetry records of this block: it carries Quell's own telemetry.

    Without it, storing a span about Quell would make a span about storing it, for ever.
    """
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_listening() -> bool:
    """Tell whether spans and metrics of this context go anywhere: who makes many attributes may save the work."""
    return bool(_sinks) and _sinks[0].is_listening and not _quiet.get()


def is_recording() -> bool:
    """Tell whether what is said may stand in spans of this context."""
    return is_listening() and _sinks[0].is_recording


def content(text: str) -> str:
    """Return a text as it may stand in a span: without secrets, and cut; empty while no content is recorded."""
    return _sinks[0].content(text) if is_recording() else ""


def span(
    name: str,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    parent: Parent | None = None,
    kind: Kind = "internal",
) -> AbstractContextManager[Span]:
    """Time a block as one span; an exception that leaves it marks the span as failed."""
    # One that nobody hears of costs nothing for as long as its block lasts: there are some for every run under way.
    return _sinks[0].span(name, attributes or {}, parent=parent, kind=kind) if is_listening() else _UNHEARD


def count(name: str, /, n: float = 1, **attributes: Scalar) -> None:
    """Add `n` to the counter or the level `name`."""
    if _sinks and not _quiet.get():
        _sinks[0].count(name, n, attributes)


def measure(name: str, value: float, attributes: Mapping[str, Scalar] | None = None) -> None:
    """Take one value into the histogram `name`, or set the gauge of that name."""
    if _sinks and not _quiet.get():
        _sinks[0].measure(name, value, attributes or {})


def event(name: str, /, *, run: str = "", **body: Value) -> None:
    """Write one event of the catalogue, keyed on the run it belongs to.

    Raises ValueError for a name that the catalogue does not have: that is a bug of the caller.
    """
    spec = EVENTS.get(name)
    if spec is None:
        raise ValueError(f"{name!r} is not in the event catalogue (quell.telemetry.EVENTS)")
    if _sinks:
        sink = _sinks[0]
        sink.event(name, spec, run=run, body=body if sink.is_recording else unsaid(name, body))


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the current place in the trace into outgoing headers, as W3C `traceparent`."""
    if _sinks and not _quiet.get():
        _sinks[0].inject(headers)


def extract(headers: Mapping[str, str]) -> Parent | None:
    """Read the caller's place in a trace from incoming headers; hand it to `span(parent=…)`."""
    found = {key.lower(): value for key, value in headers.items() if key.lower() in {"traceparent", "tracestate"}}
    if "traceparent" not in found:
        return None
    return Parent(traceparent=found["traceparent"], tracestate=found.get("tracestate", ""))
