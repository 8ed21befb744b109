"""What leaves the harness holds none of its secrets, and little that looks like another one."""

from __future__ import annotations

import base64
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quell.audit import Redactor
from quell.config import Secret
from quell.domain import BoundExceededError

SECRET = "k9/Zq+4w=\"x&y' ü"
HELD = Redactor({"db.password": Secret(SECRET), "token": Secret("tok-7f3a9b2c")})


def test_a_secret_is_replaced_by_its_name_and_nothing_else_changes() -> None:
    assert HELD.text(f"before {SECRET} after tok-7f3a9b2c.") == "before [redacted:db.password] after [redacted:token]."
    assert HELD.raw(b"\xff\x00tok-7f3a9b2c\xfe") == b"\xff\x00[redacted:token]\xfe"
    clean = "nothing here, ünïcödé and 日本 and a lone \ud800"
    assert HELD.text(clean) is clean
    value = {"a": [1, 2.5, None, True, {"b": clean}]}
    assert HELD.value(value) is value


def test_texts_keys_and_numbers_of_a_json_value_are_cleaned() -> None:
    redactor = Redactor({"pin": Secret("48151623"), "token": Secret("tok-7f3a9b2c")})
    value = {"tok-7f3a9b2c": [48151623, 1.0, {"x": ("a tok-7f3a9b2c",)}], "n": 4815162342, "ok": True}
    assert redactor.value(value) == {
        "[redacted:token]": ["[redacted:pin]", 1.0, {"x": ["a [redacted:token]"]}],
        "n": "[redacted:pin]42",
        "ok": True,
    }
    twice = Redactor({"x": Secret("tok-one-1"), "x ": Secret("tok-two-2")})
    assert twice.value({"tok-one-1": 1, "tok-two-2": 2}) == {"[redacted:x]": 1, "[redacted:x_]": 2}
    assert twice.value({"tok-one-1": 1, "a": 3, "%74ok-one-1": 2, "dG9rLW9uZS0x": 4}) == {
        "[redacted:x]": 1,
        "a": 3,
        "%74ok-one-1": 2,
        "[redacted:x]#3": 4,
    }
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(BoundExceededError):
        redactor.value(deep)


def test_secrets_that_are_too_short_are_refused_by_name() -> None:
    redactor = Redactor({"short": Secret("12345"), "empty": Secret(""), "long": Secret("123456")})
    assert redactor.refused == ("short",)
    assert redactor.text("12345 123456") == "12345 [redacted:long]"


def test_credentials_of_the_environment_are_held_by_what_they_are_called_or_hold() -> None:
    redactor = Redactor(
        environment={
            "HOME": "/home/someone",
            "EDITOR": "some-editor",
            "SERVICE_API_KEY": "plain words here",
            "SSH_AUTH_SOCK": "/run/agent.sock",
            "PGURL": "postgresql://me:p%40ssword7@db/x",
        },
        rules="off",
    )
    assert redactor.text("/home/someone some-editor /run/agent.sock") == "/home/someone some-editor /run/agent.sock"
    assert redactor.text("x plain words here") == "x [redacted:env.SERVICE_API_KEY]"
    assert redactor.text("p%40ssword7 p@ssword7") == "[redacted:env.PGURL] [redacted:env.PGURL]"


def test_a_secret_that_comes_later_is_held_from_then_on() -> None:
    redactor = Redactor({"one": Secret("first-secret")})
    large = "." * 50_000 + " later-secret"
    assert redactor.text(large) == large
    redactor.hold("two", Secret("later-secret"))
    assert redactor.text(large).endswith("[redacted:two]")
    assert redactor.text("later-secret") == "[redacted:two]"


def test_secrets_that_overlap_leave_nothing_of_either() -> None:
    redactor = Redactor({"one": Secret("abcdefgh"), "two": Secret("fghijklm"), "three": Secret("defg hi")})
    assert redactor.text("xabcdefghijklmy") == "x[redacted:one]y"
    assert redactor.text("abcdefgh" * 2) == "[redacted:one][redacted:one]"


def test_of_a_secret_that_was_cut_no_more_than_half_is_left() -> None:
    redactor = Redactor({"key": Secret("c0rrect-h0rse/battery+st4ple")}, rules="off")
    for form in (b"c0rrect-h0rse/battery+st4ple", b"c0rrect-h0rse/battery+st4ple".hex().encode()):
        for many in range(len(form) // 2 + 1, len(form)):
            for after in ("", "…", " (cut)", '"}'):
                told = f"refused: {form[:many].decode()}{after}"
                assert redactor.text(told) == f"refused: [redacted:key]{after}"
                assert redactor.value([told, "more"]) == [f"refused: [redacted:key]{after}", "more"]
    assert redactor.text("c0rrect-h0rse was meant") == "c0rrect-h0rse was meant"


def test_every_line_of_a_key_of_many_lines_is_held() -> None:
    lines = [base64.b64encode(random.Random(number).randbytes(48)).decode() for number in range(4)]
    redactor = Redactor({"key": Secret("\n".join(lines) + "\n")}, rules="off")
    for text in ("\n".join(lines), "\r\n".join(lines), json.dumps("\n".join(lines)), f"line: {lines[2]} end"):
        assert not any(line in redactor.text(text) for line in lines)


def test_a_marker_of_ours_is_left_alone_and_hides_nothing_of_others() -> None:
    redactor = Redactor({"redacted": Secret("redacted"), "one": Secret("s3cr3t-value")})
    once = redactor.text("password=s3cr3t-value; [redacted:s3cr3t-value] [redacted:one] redacted")
    assert "s3cr3t" not in once
    assert redactor.text(once) == once
    assert redactor.text("[redacted:one]") == "[redacted:one]"


LOOKS_SECRET = [
    ("aws_id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("key ghp_" + "a1B2" * 9, "a1B2a1B2"),
    ("xoxb-123456789012-abcdefABCDEF", "123456789012"),
    ("sk_live_" + "x9Y8" * 6, "x9Y8x9Y8"),
    ("use sk-proj-" + "x9Y8" * 6, "x9Y8x9Y8"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJzdWIi"),
    ("Authorization: Bearer abcDEF123456.xyz-789", "abcDEF123456"),
    ("AUTHORIZATION: BEARER " + "a" * 24, "a" * 24),
    ('{"Authorization": "Basic dXNlcjpwYXNz"}', "dXNlcjpwYXNz"),
    ("postgres://admin:s3cr3tpw@db:5432/x", "s3cr3tpw"),
    ("redis://:s3cr3tpw@cache", "s3cr3tpw"),
    ("password=hunter2hunter", "hunter2hunter"),
    ("Password: 'hunter2hunter'", "hunter2hunter"),
    ('{\\"db_password\\":\\"hunter2,hunter\\"}', "hunter2,hunter"),
    ("PGPASSWORD=hunter2hunter psql", "hunter2hunter"),
    ("client_secret = 9f8e7d6c5b4a3f2e1d0c", "9f8e7d6c5b4a"),
    ("api-key: zX9yW8vU7tS6rQ5p", "zX9yW8vU7tS6"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEabc+/\nDEF==\n-----END RSA PRIVATE KEY-----", "MIIEabc"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNzaC1r\\ncut here", "b3BlbnNzaC1r"),
]
LOOKS_FINE = [
    "token bucket: max_tokens=4096 tokens: 12",
    "the password must be changed; password: required",
    "secretName: web-tls-certificate",
    "https://example.org:8080/path?x=1@y",
    "task-scheduler-with-a-long-name disk-usage-of-the-node-pool",
    "Bearer token missing, bearer authentication required",
    "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b, trace_id=4bf92f3577b34da6a3ce929d0e0e4736",
    'password="${DB_PASSWORD}" pwd=<hidden> passwd: ********',
]


@pytest.mark.parametrize(("text", "secret"), LOOKS_SECRET)
def test_what_looks_like_a_credential_is_redacted(text: str, secret: str) -> None:
    redactor = Redactor()
    once = redactor.text(text)
    assert secret not in once
    assert "[redacted:" in once
    assert redactor.text(once) == once
    assert secret not in json.dumps(redactor.value({"a": [text]}))


@pytest.mark.parametrize("text", LOOKS_FINE)
def test_what_only_speaks_of_credentials_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_a_value_is_judged_by_the_key_that_it_stands_under() -> None:
    value = {
        "password": "x y z",
        "db": {"apiKey": "zX9yW8vU7tS6rQ5p", "token": "short", "password": "[redacted:password]"},
    }
    cleaned = Redactor().value(value)
    assert cleaned == {
        "password": "[redacted:password]",
        "db": {"apiKey": "[redacted:credential]", "token": "short", "password": "[redacted:password]"},
    }
    assert Redactor().value(cleaned) == cleaned


@given(st.text(alphabet="abk9/Zq+4w=\"x&y' ütok-7f3a9b2c:\\[]redacted@", max_size=120), st.data())
def test_redaction_is_idempotent_and_pieces_make_no_difference(noise: str, drawn: st.DataObject) -> None:
    redactor = Redactor({"db.password": Secret(SECRET), "token": Secret("tok-7f3a9b2c")}, rules="off")
    at = drawn.draw(st.integers(0, len(noise)))
    text = noise[:at] + drawn.draw(st.sampled_from([SECRET, "tok-7f3a9b2c", json.dumps(SECRET)])) + noise[at:]
    once = redactor.text(text)
    assert redactor.text(once) == once
    stream = redactor.stream()
    out, rest = "", text
    while rest:
        size = drawn.draw(st.integers(1, 9))
        out, rest = out + stream.feed(rest[:size]), rest[size:]
    assert out + stream.close() == once


@pytest.mark.parametrize(("text", "secret"), LOOKS_SECRET)
def test_rules_also_hold_for_a_text_in_pieces(text: str, secret: str) -> None:
    for size in (1, 2, 5, 13):
        stream = Redactor().stream()
        whole = f"line one of it\n{text}\nand a line after it, with more words to come than were seen before"
        out = "".join(stream.feed(whole[at : at + size]) for at in range(0, len(whole), size)) + stream.close()
        assert secret not in out
        assert out == Redactor().text(whole)


def test_a_stream_gives_back_soon_and_keeps_little() -> None:
    stream = HELD.stream()
    fed = given_back = kept = 0
    for number in range(4_000):
        piece = f"word{number} " if number < 2_000 else "unbroken" * 40
        fed += len(piece)
        given_back += len(stream.feed(piece))
        kept = max(kept, fed - given_back)
    assert kept < 70_000
    assert given_back + len(stream.close()) == fed


HOSTILE = [
    "eyJ" * 100_000,
    "eyJ" + "a" * 300_000,
    "-----BEGIN PRIVATE KEY-----" * 10_000,
    "://a:" * 60_000,
    "://" + "a" * 300_000,
    "password" * 40_000,
    "password=" * 40_000,
    "token:\\" * 40_000,
    "bearer " * 40_000,
    "authorization: basic " * 15_000,
    "ghp_" * 75_000,
    "tok-7f3a9b2" * 27_000,
    "[redacted:token]" * 20_000,
]


def test_no_text_makes_redaction_explode() -> None:
    """Work that grew with the square of the length would not end within the time limit of a test."""
    for text in HOSTILE:
        once = HELD.text(text)
        assert HELD.text(once) == once
