"""Strangers' text is shown as one visible line, never longer than asked."""

from __future__ import annotations

import time
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from quell.signals._reader_text import escape_line, quote


@given(st.text(), st.integers(0, 300))
@example("<|>", 50)
@example("a\u202eb`c`\x00\n", 50)
@example("e" + "\u0301" * 40, 50)
def test_a_line_is_visible_short_and_stays_as_it_is_when_escaped_again(text: str, chars_max: int) -> None:
    line = escape_line(text, chars_max=chars_max)
    assert len(line) <= chars_max
    assert all(unicodedata.category(letter)[0] != "C" and letter not in "`\u2028\u2029" for letter in line)
    assert "<|" not in line
    assert "|>" not in line
    assert escape_line(line, chars_max=chars_max) == line


def test_a_quote_cannot_be_closed_from_inside() -> None:
    assert quote('say "yes"', chars_max=50) == "\"say 'yes'\""


def test_ten_megabytes_cost_no_more_than_what_is_shown() -> None:
    began = time.process_time()
    assert len(escape_line("\x1b" * 10_000_000, chars_max=200)) == 200
    assert time.process_time() - began < 0.2
