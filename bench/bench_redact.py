"""What redaction costs: megabytes per CPU-second of log-like JSON, with and without held secrets, and of small values.

python -m bench.bench_redact [--json]
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable
from functools import partial

from bench._shown import show
from quell.audit import Redactor
from quell.config import Secret

LINES = 20_000
SECRETS = 200


def lines(dice: random.Random, *, secrets: list[str]) -> bytes:
    """Return log-like JSON with a secret in about one line of a hundred, half of them encoded."""
    made = []
    for number in range(LINES):
        body: dict[str, object] = {
            "at": f"2026-11-20T12:{number // 60 % 60:02}:{number % 60:02}Z",
            "level": dice.choice(("info", "warn", "error")),
            "service": f"service-{number % 40}",
            "message": f"GET /api/v1/items/{dice.randrange(10**6)} took {dice.randrange(500)} ms",
            "trace_id": dice.randbytes(16).hex(),
            "url": f"http://service-{number % 40}:8080/x?page={number}",
        }
        if secrets and number % 100 == 0:
            secret = dice.choice(secrets)
            body["header"] = secret if number % 200 else base64.b64encode(f"u:{secret}".encode()).decode()
        made.append(json.dumps(body))
    return "\n".join(made).encode()


def _mb_per_s(work: Callable[[], object], size_bytes: int) -> float:
    work()
    best_s = float("inf")
    for _ in range(3):
        began_s = time.process_time()
        work()
        best_s = min(best_s, time.process_time() - began_s)
    return size_bytes / 1e6 / best_s


def measure() -> dict[str, float]:
    """Return the throughputs."""
    dice = random.Random(7)
    secrets = [dice.randbytes(15).hex() for _ in range(SECRETS)]
    began_s = time.process_time()
    full = Redactor({f"secret-{number}": Secret(secret) for number, secret in enumerate(secrets)})
    figures = {"hold_200_ms": (time.process_time() - began_s) * 1000}
    exact = Redactor({f"secret-{number}": Secret(secret) for number, secret in enumerate(secrets)}, rules="off")
    clean, dirty = lines(dice, secrets=[]), lines(dice, secrets=secrets)
    small = [json.loads(line) for line in dirty.splitlines()[:4_000]]
    small_bytes = sum(map(len, dirty.splitlines()[:4_000]))
    for name, redactor, data in (
        ("rules_only", Redactor(), clean),
        ("rules_and_200", full, dirty),
        ("only_200", exact, dirty),
    ):
        figures[f"{name}_mb_s"] = _mb_per_s(partial(redactor.raw, data), len(data))
    figures["lines_and_200_mb_s"] = _mb_per_s(
        lambda: [full.raw(line) for line in dirty.splitlines()[:4_000]], small_bytes
    )
    figures["values_and_200_mb_s"] = _mb_per_s(lambda: [full.value(value) for value in small], small_bytes)
    out = full.raw(dirty).decode()
    figures["left"] = sum(secret in out for secret in secrets)
    return {name: round(value, 1) for name, value in figures.items()}


if __name__ == "__main__":
    show(measure(), form="10,.1f")
