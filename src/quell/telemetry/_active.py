"""The functions that everybody may call at any time; they do nothing until telemetry is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from quell.telemetry._catalogue import EVENTS, EventSpec

Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = Scalar | Sequence[str] | None
Signal: TypeAlias = Literal["logs", "traces", "metrics"]
Exporter: TypeAlias = Callable[[Signal, bytes], Awaitable[object] | None]
"""Takes OTLP protobuf bytes of one signal; called in the event loop in which `attach` was called, if there was one."""


class Span(Protocol):
    """What the body of a `with span(...)` may do."""

    def put(self, key: str, value: Scalar) -> None:
        """Add an attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The caller's place in a trace, read from its headers (W3C trace context)."""

    traceparent: str
    tracestate: str = ""


class Sink(Protocol):
    """What `open_telemetry` puts behind these functions."""

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Scalar], *, parent: Parent | None) -> Iterator[Span]:
        """Time a piece of work."""
        ...

    def count(self, name: str, n: float, attributes: Mapping[str, Scalar]) -> None:
        """Add to a counter."""

    def event(self, name: str, spec: EventSpec, *, run: str, body: Mapping[str, Value]) -> None:
        """Write one event."""

    def inject(self, headers: MutableMapping[str, str]) -> None:
        """Write the current place in the trace into headers."""


class _Nothing:
    def put(self, key: str, value: Scalar) -> None:
        """Forget it."""


_NOTHING = _Nothing()
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


@contextmanager
def span(name: str, attributes: Mapping[str, Scalar] | None = None, *, parent: Parent | None = None) -> Iterator[Span]:
    """Time a block as one span; an exception that leaves it marks the span as failed."""
    if not _sinks or _quiet.get():
        yield _NOTHING
        return
    with _sinks[0].span(name, attributes or {}, parent=parent) as opened:
        yield opened


def count(name: str, /, n: float = 1, **attributes: Scalar) -> None:
    """Add `n` to the counter `name`."""
    if _sinks and not _quiet.get():
        _sinks[0].count(name, n, attributes)


def event(name: str, /, *, run: str = "", **body: Value) -> None:
    """Write one event of the catalogue, keyed on the run it belongs to.

    Raises ValueError for a name that the catalogue does not have: that is a bug of the caller.
    """
    spec = EVENTS.get(name)
    if spec is None:
        raise ValueError(f"{name!r} is not in the event catalogue (quell.telemetry.EVENTS)")
    if _sinks:
        _sinks[0].event(name, spec, run=run, body=body)


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
