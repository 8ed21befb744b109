"""The proof of redaction finds nothing, and finds every form that is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from proofs.redaction import PROMISES, try_redaction

from quell.audit import Redactor, _redact, _redact_forms
from quell.audit._redact_rules import Span

SEED = 20261120


@pytest.mark.timeout(60)
def test_no_held_secret_is_left_in_any_encoding_or_carrier() -> None:
    print(f"seed {SEED}")
    result = PROMISES[0].try_it("ci", SEED)
    assert (result.violations, result.failures) == (0, ())
    assert result.cases > 5_000


def _no_forms(*_: object) -> list[bytes]:
    return []


def _one_alignment(raw: bytes) -> list[bytes]:
    whole = list(_BASE64(raw))
    return whole[:2]


_BASE64 = _redact_forms._base64

FORMS: dict[str, Callable[..., object]] = {
    "_percent": _no_forms,
    "_json": _no_forms,
    "_html": _no_forms,
    "_base64": _one_alignment,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("left_out", FORMS)
def test_a_redactor_that_leaves_out_an_encoding_is_caught(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redact_forms, left_out, FORMS[left_out])
    assert try_redaction("ci", SEED, count=10).violations > 0


class Forgetful(Redactor):
    """Forgets what it kept of the piece before."""

    def byte_stream(self) -> _redact.ByteStream:
        return _Torn(self)

    def stream(self) -> _redact.TextStream:
        return _redact.TextStream(self.byte_stream())


class _Torn(_redact.ByteStream):
    def _cut(self, data: bytes, spans: list[Span]) -> int:
        return len(data)

    def feed(self, chunk: bytes) -> bytes:
        return self._redactor.raw(chunk)


class Narrow(Redactor):
    """Overlooks keys."""

    def value(self, value: object) -> object:
        return (
            {key: super(Narrow, self).value(under) for key, under in value.items()}
            if isinstance(value, dict)
            else value
        )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mutant", [Forgetful, Narrow])
def test_a_redactor_that_overlooks_a_carrier_is_caught(mutant: type[Redactor]) -> None:
    assert try_redaction("ci", SEED, redactor_class=mutant, count=5).violations > 0
