"""Webhooks on AURA's wire: what is signed, and every way in which a signature is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from quell.config import Secret
from quell.domain import Approval, Asker, ConfigError, RefusedError
from quell.governance import Approvals
from tests import _authority as a
from tests.conftest import FakeClock

SECRET, SECOND, WRONG = (Secret(letter * 32) for letter in "abc")
YES = b'{"approved":true}'


@pytest.fixture
def desk(tmp_path: Path, clock: FakeClock) -> Iterator[a.Desk]:
    with a.desk(tmp_path, clock=clock) as opened:
        yield opened


@pytest.fixture
def approval(desk: a.Desk) -> Approval:
    return desk.ask(explanation="it is slow")


def by_hand(body: bytes, *, context: str, timestamp: str, secret: Secret) -> str:
    """Sign as the wire says, without any of our code."""
    signed = f"{timestamp}.{context}.".encode() + body
    return "sha256=" + hmac.new(secret.reveal().encode(), signed, hashlib.sha256).hexdigest()


def signed(
    approval: Approval, clock: FakeClock, *, body: bytes = YES, secret: Secret = SECRET, at_s: float = 0
) -> list[tuple[str, str]]:
    timestamp = str(int(clock.at.timestamp() + at_s))
    context = f"approval-decision:{Approvals.decision_id_of(approval.id)}"
    return [
        ("x-aura-timestamp", timestamp),
        ("X-AURA-SIGNATURE-256", by_hand(body, context=context, timestamp=timestamp, secret=secret)),
    ]


def test_a_request_is_auras_own(approval: Approval, clock: FakeClock) -> None:
    hook = Approvals.webhook(
        "https://approve.example/hook", secret=SECRET, headers={"X-Team": "sre", "x-aura-timestamp": "1"}
    )
    message = hook.request(approval, request_id="req_1", at=clock.at, forwarded={"X-User": "ana", "X-Bad": "a\r\nb: c"})
    body, headers = json.loads(message.body), dict(message.headers)
    decision = Approvals.decision_id_of(approval.id)
    assert body == {
        "version": 1,
        "decision_id": decision,
        "request_id": "req_1",
        "scope": {"kind": "single", "session_id": "run_1"},
        "origin": {"kind": "config_gate", "matched_pattern": "effects-ask"},
        "items": [{"tool_name": "scale", "arguments": {"replicas": 6}, "tool_call_intent": "it is slow"}],
    }
    of_a_conversation = hook.request(
        approval, request_id="req_1", at=clock.at, asker=Asker(run="run_1", session="cs_1")
    )
    assert json.loads(of_a_conversation.body)["scope"]["session_id"] == "cs_1"
    assert uuid.UUID(decision).version == 7
    assert uuid.UUID(decision).variant == uuid.RFC_4122
    assert Approvals.approval_id_of(decision) == approval.id
    timestamp = str(int(clock.at.timestamp()))
    assert headers["X-Aura-Timestamp"] == timestamp
    assert headers["X-Aura-Signature-256"] == by_hand(
        message.body, context=f"approval-request:{decision}", timestamp=timestamp, secret=SECRET
    )
    assert headers["X-Team"] == "sre"
    assert headers["X-User"] == "ana"
    assert "X-Bad" not in headers
    assert "x-aura-timestamp" not in headers
    assert SECRET.reveal() not in repr(message)


def test_both_secrets_are_taken_while_they_rotate(approval: Approval, clock: FakeClock) -> None:
    hook = Approvals.webhook("https://approve.example/hook", secret=SECRET, secondary=SECOND)
    for secret in (SECRET, SECOND):
        told = hook.answer(YES, headers=signed(approval, clock, secret=secret), approval=approval.id, at=clock.at)
        assert told.approved


def test_every_signature_that_does_not_hold_is_refused_in_the_same_words(
    desk: a.Desk, approval: Approval, clock: FakeClock
) -> None:
    hook = Approvals.webhook("https://approve.example/hook", secret=SECRET, secondary=SECOND, tolerance_s=300)
    other = desk.ask(a.asked(2))
    good = signed(approval, clock)
    request = hook.request(approval, request_id="r", at=clock.at)
    hostile: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
        "nothing": (YES, []),
        "no timestamp": (YES, good[1:]),
        "no signature": (YES, good[:1]),
        "wrong key": (YES, signed(approval, clock, secret=WRONG)),
        "empty key": (YES, signed(approval, clock, secret=Secret(""))),
        "too old": (YES, signed(approval, clock, at_s=-301)),
        "too new": (YES, signed(approval, clock, at_s=301)),
        "other body": (b'{"approved":false}', good),
        "other decision": (YES, signed(other, clock)),
        "other direction": (request.body, list(request.headers)),
        "timestamp twice": (YES, [good[0], *good]),
        "signature twice": (YES, [*good, good[1]]),
        "other timestamp": (YES, [("x-aura-timestamp", str(int(clock.at.timestamp()) + 1)), good[1]]),
        "timestamp with a sign": (YES, [("x-aura-timestamp", "+" + good[0][1]), good[1]]),
        "timestamp in other digits": (YES, [("x-aura-timestamp", "١٧٦"), good[1]]),
        "no prefix": (YES, [good[0], (good[1][0], good[1][1].removeprefix("sha256="))]),
        "cut short": (YES, [good[0], (good[1][0], good[1][1][:-2])]),
        "no hex": (YES, [good[0], (good[1][0], "sha256=" + "g" * 64)]),
    }
    words = set()
    for name, (body, headers) in hostile.items():
        with pytest.raises(RefusedError) as refused:
            hook.answer(body, headers=headers, approval=approval.id, at=clock.at)
        assert refused.value.code == "unauthenticated", name
        words.add(f"{refused.value} {refused.value.hint}")
    assert len(words) == 1
    assert hook.answer(YES, headers=good, approval=approval.id, at=clock.at).approved
    for at_s in (-300, 300):
        hook.answer(YES, headers=signed(approval, clock, at_s=at_s), approval=approval.id, at=clock.at)


def test_a_signature_is_taken_once(desk: a.Desk, approval: Approval, clock: FakeClock) -> None:
    hook = Approvals.webhook("https://approve.example/hook", secret=SECRET)
    told = hook.answer(YES, headers=signed(approval, clock), approval=approval.id, at=clock.at)
    with desk.database.writing(durability="written") as connection:
        desk.approvals.take_signature(connection, told.signature)
    with pytest.raises(RefusedError) as again, desk.database.writing(durability="written") as connection:
        desk.approvals.take_signature(connection, told.signature)
    assert again.value.code == "unauthenticated"
    clock.forward(seconds=timedelta(days=3).total_seconds())
    with desk.database.writing(durability="written") as connection:
        desk.approvals.expire(connection)
        assert connection.one("SELECT COUNT(*) AS number FROM quell_approval_replays").number == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"yes",
        b"[]",
        b"{}",
        b'{"approved":"true"}',
        b'{"approved":1}',
        b'{"approved":true,"reason":1}',
        b'{"approved":true,"by":"bo"}',
        b'{"approved":false,"approved":true}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"approved":true,"reason":"' + b"x" * 1_000_001 + b'"}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_an_answer_that_says_anything_else_approves_nothing(approval: Approval, clock: FakeClock, body: bytes) -> None:
    hook = Approvals.webhook("http://localhost/hook", secret=Secret(""))
    with pytest.raises(RefusedError, match="cannot be read"):
        hook.answer(body, headers=[], approval=approval.id, at=clock.at)


def test_an_answer_without_a_secret_is_read_plainly(approval: Approval, clock: FakeClock) -> None:
    hook = Approvals.webhook("http://localhost/hook", secret=Secret(""))
    told = hook.answer(b'{"approved":false,"reason":"payday"}', headers=[], approval=approval.id, at=clock.at)
    assert (told.approved, told.reason, told.signature) == (False, "payday", "")
    assert not hook.is_signed


def test_settings_that_would_not_protect_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        Approvals.webhook(
            "http://approve.example/hook",
            secret=Secret(""),
            secondary=Secret("short"),
            tolerance_s=0,
            headers={"X-Bad": "a\nb", "bad name": "x"},
        )
    assert [problem.path.split(".")[-1] for problem in refused.value.problems] == [
        "webhook_url",
        "webhook_secondary",
        "webhook_secondary",
        "tolerance_s",
        "'X-Bad'",
        "'bad name'",
    ]
    for url in ("ftp://x/", "approve.example", "https://"):
        with pytest.raises(ConfigError):
            Approvals.webhook(url, secret=SECRET)
    with pytest.raises(ConfigError, match="webhook"):
        Approvals.webhook("http://approve.example/", secret=SECRET)


def test_a_decision_id_that_is_none_is_unknown() -> None:
    with pytest.raises(RefusedError) as refused:
        Approvals.approval_id_of("../../etc/passwd")
    assert refused.value.code == "unknown"


def test_a_chat_gets_the_question_whole_or_a_link(desk: a.Desk, clock: FakeClock) -> None:
    hook = Approvals.webhook("https://chat.example/hook", secret=Secret(""))
    small = desk.ask(explanation="<!channel> & <https://evil|approve>")
    text = json.loads(hook.slack(small, link="https://quell/a/1", at=clock.at).body)["text"]
    assert text.startswith(f"*Approval {small.id}*")
    assert "<" not in text
    assert "&lt;!channel&gt; &amp;" in text
    assert '"replicas": 6' in text
    large = desk.ask(a.asked(2, call=a.frozen(2, arguments='{"x":"' + "y" * 5000 + '"}')))
    text = json.loads(hook.slack(large, link="https://quell/a/2", at=clock.at).body)["text"]
    assert "https://quell/a/2" in text
    assert large.digest in text
    assert "yyyy" not in text


@pytest.mark.parametrize(("kind", "size"), [("hmac", 31), ("ed25519", 31), ("ed25519", 33)])
def test_a_key_of_the_wrong_length_signs_nothing(kind: str, size: int) -> None:
    with pytest.raises(ConfigError, match="bytes"):
        Approvals.signer(b"k" * size, kind=kind)  # type: ignore[arg-type]
