"""Short-lived signed tokens that services show to each other."""

from __future__ import annotations

import hashlib
import hmac

LIFETIME_S = 60
LEEWAY_S = 10


def issue(subject: str, *, secret: str, now_s: float) -> str:
    """Sign that `subject` called now."""
    stem = f"{subject}.{int(now_s)}"
    return f"{stem}.{_signature(stem, secret)}"


def rejection(token: str, *, secret: str, now_s: float) -> str:
    """Say why the token cannot be accepted; empty when it can."""
    stem, _, signature = token.rpartition(".")
    _, _, issued = stem.rpartition(".")
    if not issued.isdigit() or not hmac.compare_digest(signature, _signature(stem, secret)):
        return "signature does not match"
    age_s = now_s - int(issued)
    if age_s < -LEEWAY_S:
        return f"issued {-age_s:.0f} s in the future"
    if age_s > LIFETIME_S:
        return f"expired {age_s - LIFETIME_S:.0f} s ago"
    return ""


def _signature(stem: str, secret: str) -> str:
    return hmac.new(secret.encode(), stem.encode(), hashlib.sha256).hexdigest()[:24]
