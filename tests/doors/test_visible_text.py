"""What strangers wrote, made visible: the same characters are hidden for every reader."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from quell.domain import is_hidden, one_line, printable, printable_json, spelled

HIDING = {
    "terminal code": "\x1b",
    "delete": "\x7f",
    "soft hyphen": "\u00ad",
    "arabic letter mark, which turns the direction": "\u061c",
    "hangul filler, which is blank": "\u3164",
    "tag letter, which carries text unseen": "\U000e0041",
    "selector, which carries bytes unseen": "\U000e0105",
    "annotation anchor": "\ufff9",
    "line separator": "\u2028",
    "private use": "\ue000",
}


@pytest.mark.parametrize("name", HIDING)
def test_a_hidden_character_is_spelled_out_in_lines_and_in_tables(name: str) -> None:
    letter = HIDING[name]
    assert printable(f"a{letter}b") == f"a{spelled(letter)}b"
    assert one_line(f"a{letter}b", chars_max=40) == f"a{spelled(letter)}b"
    assert spelled(letter).isascii()


def test_every_character_of_unicode_that_is_no_letter_mark_number_or_sign_is_spelled_out() -> None:
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            assert is_hidden(letter), hex(code)


@pytest.mark.parametrize("text", ["plain", "Grüße", "日本語", "⚠\ufe0f disk", "a\u0301", "…"])
def test_honest_text_stays_what_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_line_is_one_line_of_bounded_length_however_long_the_text() -> None:
    assert one_line("a\r\n\tb   c", chars_max=40) == "a b c"
    long = one_line("word " * 1_000_000, chars_max=20)
    assert len(long) == 20
    assert long.endswith("…")


@pytest.mark.parametrize("name", HIDING)
def test_a_json_document_shows_what_hides_and_stays_the_same_to_a_program(name: str) -> None:
    told = {"a": f"x{HIDING[name]}y\ud800", "honest": "Grüße ⚠\ufe0f"}
    document = printable_json(json.dumps(told, ensure_ascii=False, indent=2))
    assert not any(is_hidden(letter) for letter in document if letter != "\n")
    assert json.loads(document) == told
    assert "Grüße ⚠\ufe0f" in document
