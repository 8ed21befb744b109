"""A cheap look at an OTLP payload before it is acknowledged: is it whole, how much is in it, can the engine read it.

The payload is parsed in C into messages that know only the path to the values. Values that the engine's flat schema
cannot hold (lists, maps, bytes, exponential histograms, summaries) are declared as a message with a required field
that nobody sends; "is it initialised" then answers, for a whole payload and without a loop in Python, whether one is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # it ships no types
from google.protobuf.message import DecodeError, Message  # it ships no types

SignalName: TypeAlias = Literal["logs", "traces", "metrics"]

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "quell.probe"
_NEVER_SENT = 536870911
_SCALARS = {
    "bytes": _Field.TYPE_BYTES,
    "fixed64": _Field.TYPE_FIXED64,
    "int32": _Field.TYPE_INT32,
    "double": _Field.TYPE_DOUBLE,
}
_LABELS = {"": _Field.LABEL_OPTIONAL, "*": _Field.LABEL_REPEATED, "!": _Field.LABEL_REQUIRED}
# name -> fields as "number label type"; `*` repeated, `!` required.
_MESSAGES = {
    "Trap": (f"{_NEVER_SENT}!int32",),
    "AnyValue": ("1 bytes", "5 Trap", "6 Trap", "7 Trap"),
    "KeyValue": ("1 bytes", "2 AnyValue"),
    "Resource": ("1*KeyValue",),
    "Scope": ("1 bytes", "2 bytes", "3*KeyValue"),
    "LogRecord": ("1 fixed64", "5 AnyValue", "6*KeyValue"),
    "ScopeLogs": ("1 Scope", "2*LogRecord"),
    "ResourceLogs": ("1 Resource", "2*ScopeLogs"),
    "Logs": ("1*ResourceLogs",),
    "Event": ("1 fixed64", "2 bytes", "3*KeyValue"),
    "Link": ("1 bytes", "2 bytes", "4*KeyValue"),
    "Span": ("1 bytes", "2 bytes", "7 fixed64", "9*KeyValue", "11*Event", "13*Link"),
    "ScopeSpans": ("1 Scope", "2*Span"),
    "ResourceSpans": ("1 Resource", "2*ScopeSpans"),
    "Traces": ("1*ResourceSpans",),
    "Exemplar": ("2 fixed64", "7*KeyValue"),
    "NumberPoint": ("3 fixed64", "5*Exemplar", "7*KeyValue"),
    "Numbers": ("1*NumberPoint",),
    "HistogramPoint": ("3 fixed64", "8*Exemplar", "9*KeyValue"),
    "Histogram": ("1*HistogramPoint",),
    "Metric": ("1 bytes", "5 Numbers", "7 Numbers", "9 Histogram", "10 Trap", "11 Trap"),
    "ScopeMetrics": ("1 Scope", "2*Metric"),
    "ResourceMetrics": ("1 Resource", "2*ScopeMetrics"),
    "Metrics": ("1*ResourceMetrics",),
}


def _descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="quell_probe.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields:
            label = next((mark for mark in "*!" if mark in text), "")
            number, _, kind = text.partition(label or " ")
            field = message.field.add(name=f"f{number}", number=int(number), label=_LABELS[label])
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_descriptor().SerializeToString())
_EXPORTS = {
    name: message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name.capitalize()}"))
    for name in ("logs", "traces", "metrics")
}


class _Probed(Protocol):
    """What the dynamic messages look like where we count; fields are named by their number."""

    f1: list[_Probed]
    f2: list[_Probed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a payload holds."""

    records: int
    """Log records, spans or data points."""
    flat: bool
    """The engine can read all of it."""


def look(signal: SignalName, payload: bytes) -> Look | None:
    """Look at a payload; None when it is not OTLP protobuf of that signal, or hides bytes where the probe sees a message."""
    try:
        message = _EXPORTS[signal].FromString(payload)
    except DecodeError:
        return None
    return Look(records=_COUNTERS[signal](message), flat=message.IsInitialized())


def _items(message: Message) -> Iterator[list[_Probed]]:
    for resource in getattr(message, "f1"):  # noqa: B009 - the message's class is made at run time
        for scope in resource.f2:
            yield scope.f2


def _count_items(message: Message) -> int:
    return sum(map(len, _items(message)))


def _count_points(message: Message) -> int:
    total = 0
    for metrics in _items(message):
        for metric in metrics:
            total += sum(len(getattr(metric, kind).f1) for kind in ("f5", "f7", "f9"))
    return total


_COUNTERS: dict[str, Callable[[Message], int]] = {
    "logs": _count_items,
    "traces": _count_items,
    "metrics": _count_points,
}


def resources_of(payload: bytes, *, pieces_max: int) -> tuple[list[bytes], bytes]:
    """Cut a payload into one payload per resource by its framing; give what no longer frames, or is too much, as the rest."""
    pieces: list[bytes] = []
    at = 0
    while at < len(payload) and len(pieces) < pieces_max:
        end = _end_of_field(payload, at)
        if end is None:
            return pieces, payload[at:]
        pieces.append(payload[at:end])
        at = end
    return pieces, payload[at:]


def _end_of_field(payload: bytes, at: int) -> int | None:
    """Find the end of the length-delimited field 1 that starts here; None when it is something else or cut."""
    if payload[at] != 0x0A:
        return None
    length, shift, at = 0, 0, at + 1
    while True:
        if at >= len(payload) or shift > 35:
            return None
        byte = payload[at]
        length |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            break
    return at + length if at + length <= len(payload) else None
