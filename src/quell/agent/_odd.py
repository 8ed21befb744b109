"""Words in results that are aimed at whoever reads them: they are flagged, told, and change nothing that code decides."""

from __future__ import annotations

import re
from collections.abc import Mapping

from quell.domain import is_hidden

_LOOKED_AT_CHARS = 20_000
_SIGNS: Mapping[str, re.Pattern[str]] = {
    "it tells its reader to leave instructions aside": re.compile(
        r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}?\b(?:instruction|prompt|rule|guideline|polic|context|"
        r"everything (?:above|before)|previous|prior|earlier)",
        re.IGNORECASE,
    ),
    "it poses as somebody of the conversation": re.compile(
        r"<\|[a-z_]{2,24}\|>|\[/?INST\]|<</?SYS>>|</?(?:system|assistant|developer|result|digest|tool_call|tool_response|"
        r"function_calls)\b|<function=|\[notice\b|^\s*(?:system|assistant|developer)\s*:|"
        r"#{2,}\s*(?:system|instruction|assistant)|\b(?:new|updated|system) (?:instructions?|prompt|message) ?:",
        re.IGNORECASE | re.MULTILINE,
    ),
    "it tells its reader what to do": re.compile(
        r"\byou (?:are now|must now|must call|must run|must use|should now call)\b|"
        r"\b(?:you|ai|assistant|agent|llm|model)\b[^.\n]{0,30}?\b(?:must|should|need to|have to)\b[^.\n]{0,20}?"
        r"\b(?:call|run|execute|invoke|delete|send|restart|approve)\b|"
        r"\b(?:call|invoke|use|run|execute) the (?:tool|function)\b|"
        r"\bdo not (?:tell|inform|mention|alert|warn)\b[^.\n]{0,30}?\b(?:user|operator|human|anyone|person|people)\b|"
        r"\bwithout (?:asking|telling|approval|confirmation)\b",
        re.IGNORECASE,
    ),
}


def warning_of(text: str) -> str:
    """Say what is odd about a text that came from outside; empty: nothing that is known. A warning is no proof."""
    looked_at = text[:_LOOKED_AT_CHARS]
    found = [what for what, sign in _SIGNS.items() if sign.search(looked_at)]
    if not looked_at.isascii() and any(is_hidden(letter) and letter not in "\n\r\t" for letter in looked_at):
        found.append("it hides characters")
    return "; ".join(found)
