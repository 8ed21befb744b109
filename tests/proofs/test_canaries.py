"""The proof of secrets holds, and sees a redactor that is off, without rules, without encodings, or not asked by the logs."""

from __future__ import annotations

import base64
import random
import urllib.parse

import pytest
from proofs.canaries import PROMISES, draw, drive, forms, traces

from tests._postgres import ENVIRONMENT

SEED = random.randrange(1_000_000)


@pytest.mark.timeout(180)
def test_no_secret_is_in_anything_that_is_written_shown_or_sent(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, postgres_url)
    print(f"seed {SEED}")
    result = PROMISES[0].try_it("ci", SEED)
    assert result.violations == 0, result.failures
    assert result.cases > 2_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("mutant", "places"),
    [
        ("redactor off", ("stderr", "out/model.txt", "out/export.jsonl", "out/webhook.txt", "table quell_effects")),
        ("rules off", ("out/model.txt", "out/export.jsonl", "table quell_effects")),
        ("only plain forms", ("stderr", "out/model.txt", "table quell_effects")),
        ("log unclean", ("stderr", "state/logs/quell.log", "out/otlp-logs.bin", "out/otlp-traces.bin")),
    ],
)
def test_the_proof_sees(mutant: str, places: tuple[str, ...]) -> None:
    print(f"seed {SEED}")
    leaks = drive(SEED, mutant=mutant).leaks
    for place in places:
        assert any(f" in {place}:" in leak for leak in leaks), f"nothing found in {place}: {leaks[:3]}"


def test_what_is_looked_for_betrays_a_secret_in_every_form_that_is_said() -> None:
    for secret in draw(SEED).held.values():
        looked_for = traces(secret)
        for form in forms(secret):
            assert any(trace in form.encode() for trace in looked_for), form
        longer = f"user:{secret}@host".encode()
        assert any(trace in base64.b64encode(longer) for trace in looked_for)
        assert any(trace in urllib.parse.quote(longer).encode() for trace in looked_for)
