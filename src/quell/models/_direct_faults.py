"""What errors of pydantic-ai and of the SDKs below it mean; they are known by name, so that none of them is loaded here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from quell.domain import ModelError, ModelFault
from quell.models._faults import HINTS, by_words, fault_of_answer, shown

_BY_NAME: Mapping[str, ModelFault] = {
    "ModelContextWindowExceededError": ModelFault.OVERFLOW,
    "ModelAuthenticationError": ModelFault.AUTH,
    "ModelNotFoundError": ModelFault.NOT_FOUND,
    "ModelRateLimitError": ModelFault.RATE_LIMITED,
    "ModelQuotaExceededError": ModelFault.QUOTA,
    "ModelUnavailableError": ModelFault.OVERLOADED,
    "ModelServerError": ModelFault.OVERLOADED,
    "ModelTimeoutError": ModelFault.TIMEOUT,
    "ModelRequestTimeout": ModelFault.TIMEOUT,
    "ModelConnectionError": ModelFault.UNREACHABLE,
    "ModelRequestRejectedError": ModelFault.INVALID,
    "ContentFilterError": ModelFault.FILTERED,
    "UnexpectedModelBehavior": ModelFault.BAD_ANSWER,
    "UserError": ModelFault.INVALID,
    "ImportError": ModelFault.INVALID,
    "NoCredentialsError": ModelFault.AUTH,
    "PartialCredentialsError": ModelFault.AUTH,
    "ProfileNotFound": ModelFault.AUTH,
    "TokenRetrievalError": ModelFault.AUTH,
    "UnauthorizedSSOTokenError": ModelFault.AUTH,
    "ReadTimeoutError": ModelFault.TIMEOUT,
    "TimeoutException": ModelFault.TIMEOUT,
    "TimeoutError": ModelFault.TIMEOUT,
    "ConnectionError": ModelFault.UNREACHABLE,
    "TransportError": ModelFault.UNREACHABLE,
    "OSError": ModelFault.UNREACHABLE,
}
_SENT = frozenset({"read", "write"})


def fault_of(error: Exception, *, said: bool, now: datetime) -> ModelError:
    """Say what an error means: by the most exact name of its kind that is known, by its words where no name is."""
    words = shown(str(error) or type(error).__name__)
    fault = next((_BY_NAME[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _BY_NAME), None)
    status = getattr(error, "status_code", 0)
    status = status if isinstance(status, int) else 0
    if fault is None or (fault is ModelFault.INVALID and status):
        # The words of a refusal say more than its status, as they do for other providers.
        headers = getattr(error, "headers", None) or {}
        told = fault_of_answer(status, headers=headers, body=_body(error, words), now=now) if status else None
        fault = told.fault if told is not None else fault or by_words(words, status=0) or ModelFault.BAD_ANSWER
    if fault is ModelFault.UNREACHABLE and (said or getattr(error, "phase", None) in _SENT):
        fault = ModelFault.BROKEN_STREAM
    after_s = getattr(error, "retry_after", None)
    return ModelError(
        f"the provider answered {status}: {words}" if status else words,
        fault=fault,
        said=said,
        status=status,
        retry_after_s=float(after_s) if isinstance(after_s, int | float) else None,
        hint=HINTS.get(fault, ""),
    )


def _body(error: Exception, words: str) -> bytes:
    body = getattr(error, "body", None)
    return json.dumps(body, default=str).encode() if body is not None else words.encode()
