"""Answers and gaps as JSON and back: the only place that knows how the kinds of rows are told apart on the wire."""

from __future__ import annotations

import msgspec

from quell.domain import (
    Answer,
    AttributeDiff,
    EdgeShift,
    Exemplar,
    FlowBreak,
    Gap,
    MetricShift,
    Observation,
    ObservedChange,
    OperationShift,
    PatternShift,
    Question,
    StoreError,
)

_ROWS: dict[str, type[Observation]] = {
    "operation_shift": OperationShift,
    "edge_shift": EdgeShift,
    "pattern_shift": PatternShift,
    "attribute_diff": AttributeDiff,
    "flow_break": FlowBreak,
    "metric_shift": MetricShift,
    "observed_change": ObservedChange,
    "exemplar": Exemplar,
}
_DECODERS = {kind: msgspec.json.Decoder(row) for kind, row in _ROWS.items()}
_ENCODER = msgspec.json.Encoder(order="deterministic")


class _Kind(msgspec.Struct):
    kind: str


class _AnswerWire(msgspec.Struct, kw_only=True):
    question: Question
    source: str
    query: str
    rows: tuple[msgspec.Raw, ...]
    truncated: bool
    partial: str


class _Wire(msgspec.Struct, kw_only=True):
    answer: _AnswerWire | None = None
    gap: Gap | None = None


def encode_answer(answer: Answer | Gap) -> bytes:
    """Write an answer or a gap as canonical JSON: the same value gives the same bytes."""
    return _ENCODER.encode({"gap": answer} if isinstance(answer, Gap) else {"answer": answer})


def decode_answer(raw: bytes) -> Answer | Gap:
    """Read back what `encode_answer` wrote. Raises StoreError when it is something else."""
    try:
        wire = msgspec.json.decode(raw, type=_Wire)
        if wire.gap is not None:
            return wire.gap
        if wire.answer is not None:
            return Answer(
                question=wire.answer.question,
                source=wire.answer.source,
                query=wire.answer.query,
                rows=tuple(decode_row(row) for row in wire.answer.rows),
                truncated=wire.answer.truncated,
                partial=wire.answer.partial,
            )
    except (msgspec.DecodeError, KeyError) as error:
        raise StoreError(f"not a recorded answer: {error}") from error
    raise StoreError("not a recorded answer: neither answer nor gap")


def encode_row(row: Observation) -> bytes:
    """Write one row as canonical JSON; its SHA-256 is the digest of the evidence."""
    return _ENCODER.encode(row)


def decode_row(raw: bytes | msgspec.Raw) -> Observation:
    """Read one row back by its `kind`."""
    kind = msgspec.json.decode(raw, type=_Kind).kind
    return _DECODERS[kind].decode(raw)
