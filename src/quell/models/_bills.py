"""What a call can cost at most: who is paid, for how many tokens in and out, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quell.domain import ModelRequest
from quell.models._model import Model
from quell.models._open import ChosenModel
from quell.models._ways import ChainModel, SchemaCallModel, Wrapped

_UNBOUNDED_TOKENS = 32_768
"""What an answer is taken for where neither request nor settings bound it, and the window leaves room for more."""
_EXACT, _ESTIMATED = 1.1, 1.3
"""How far a count may be off: frames of messages and tools are the provider's own, words without a tokenizer are guessed."""
_FRAME_TOKENS = 64
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens", "num_predict")
_NESTED = ("options", "generationConfig", "generation_config", "inferenceConfig")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What one model may take for a call."""

    provider: str
    model: str
    input_tokens: int
    """With room for what the count may be off."""
    counted_tokens: int
    """As counted: a report of far less is no report."""
    output_tokens: int


def bills_of(model: Model, request: ModelRequest) -> tuple[Bill, ...]:
    """Return what a call may come to: one bill for each model that may be asked."""
    return tuple(_bills(model, request))


def _bills(model: Model, request: ModelRequest) -> Iterator[Bill]:
    if isinstance(model, ChainModel):
        for each in model.models:
            yield from _bills(each, request)
    elif isinstance(model, ChosenModel):
        yield from _bills(model.inner, model.chosen(request))
    elif isinstance(model, SchemaCallModel):
        yield from _bills(model.inner, model.written(request))
    elif isinstance(model, Wrapped):
        yield from _bills(model.inner, request)
    else:
        yield _bill(model, request)


def _bill(model: Model, request: ModelRequest) -> Bill:
    counted = model.counter.count(request)
    most = int(counted * (_EXACT if model.counter.is_exact else _ESTIMATED)) + _FRAME_TOKENS
    output = _cap(request)
    if output is None:
        left = _UNBOUNDED_TOKENS if model.window is None else max(model.window - counted, 1)
        output = min(left, _UNBOUNDED_TOKENS)
    return Bill(
        provider=model.provider,
        model=model.name,
        input_tokens=most,
        counted_tokens=counted,
        output_tokens=output,
    )


def _cap(request: ModelRequest) -> int | None:
    """Return the most tokens of an answer; what is merged into the body wins there, so it wins here."""
    tables = [request.extra, *(request.extra.get(key) for key in _NESTED)]
    found = [table[key] for table in tables if isinstance(table, Mapping) for key in _CAPS if key in table]
    numbers = [each for each in found if isinstance(each, int) and each > 0]
    return max(numbers, default=request.output_max_tokens)
