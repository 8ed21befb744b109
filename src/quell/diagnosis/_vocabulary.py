"""Words that systems use for the ways they fail: generic hints, never proof."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

VOCABULARY: Final[Mapping[str, re.Pattern[str]]] = MappingProxyType(
    {
        name: re.compile(words, re.IGNORECASE)
        for name, words in {
            "memory": r"out of memory|outofmemory|\boom\b|oom.?kill|memoryerror|cannot allocate memory|heap space|\benomem\b",
            "descriptors": r"too many open files|\bemfile\b|\benfile\b|file descriptor|errno 24\b",
            "disk": r"no space left|\benospc\b|disk (?:is )?full|disk quota|quota exceeded|errno 28\b|could not extend file",
            "certificate": r"certificate.{0,40}(?:expired|not yet valid|verify failed)|cert(?:ificate)?_?expired|"
            r"certificate_verify_failed|tls.{0,20}expired|ssl.{0,40}(?:expired|verify failed)",
            "clock": r"(?:token|jwt|signature|request).{0,40}(?:expired|not yet valid|from the future|used before|in the future)|"
            r"not yet valid|issued in the future|clock (?:skew|drift)|timestamp.{0,30}(?:future|skew|too old|out of range)|requesttimetooskewed",
            "lock": r"deadlock|lock.?(?:wait.)?timeout|canceling statement|could not obtain lock|could not serialize|waiting for .{0,20}lock|"
            r"locknotavailable|lock contention",
            "pool": r"pool.{0,40}(?:timed? ?out|exhausted|limit|empty|full|wait)|(?:timed? ?out|waiting|unable).{0,40}\b(?:pool|acquir\w+)\b|"
            r"queuepool|no available connection|too many (?:clients|connections)|remaining connection slots|pooltimeout",
            "slow_query": r"slow (?:query|statement)|statement timeout|query.{0,30}timed? ?out|seq(?:uential)? scan|full table scan|duration: <\*>",
            "refused": r"connection.?refused|\beconnrefused\b|no route to host|name or service not known|all connection attempts failed|errno 111\b",
            "network": r"connection.?reset|\beconnreset\b|broken pipe|read.?timeout|connect.?timeout|timed? ?out|unreachable|server disconnected|"
            r"remoteprotocolerror",
            "queue": r"queue.{0,40}(?:full|backlog|behind|lag|grow)|backlog|consumer lag|backpressure|lag(?:ging)? behind",
            "crash": r"segmentation fault|\bsigsegv\b|\bsigabrt\b|panic|core dumped|fatal error|unhandled|uncaught|traceback|exiting",
            "config": r"(?:invalid|missing|unknown|bad|unexpected).{0,40}(?:config\w*|setting|option|environment variable|parameter)|"
            r"config\w*.{0,30}(?:invalid|missing|error)|misconfigur",
            "load": r"rate limit|too many requests|overload|throttl|load shed|shedding|concurrency limit",
        }.items()
    }
)
"""Symptom name -> what its wording looks like, whatever the product or language."""

_EXHAUSTED_TYPES: Final = re.compile(
    r"too.?many.?open|emfile|enfile|enospc|no.?space|out.?of.?memory|enomem", re.IGNORECASE
)
_STORE_TYPES: Final = re.compile(
    r"(?<![bc])lock|statement|serializ|query.?cancel|40001|40p01|55p03|57014", re.IGNORECASE
)
_POOL_TYPES: Final = re.compile(r"pool", re.IGNORECASE)
_CONNECTION_TYPES: Final = re.compile(
    r"time.?d?_?.?out|connection|reset|refused|unreachable|broken.?pipe|eof|aborted|disconnect|network|protocol|dns|gaierror"
    r"|connect(?:error|timeout)|readerror|deadline",
    re.IGNORECASE,
)
LOCK_TYPES: Final = re.compile(r"(?<![bc])lock|55p03|40p01", re.IGNORECASE)
"""Blocks and clocks are no locks."""
REFUSED_TYPES: Final = re.compile(r"refused|connecterror|no.?route|unreachable|gaierror|dns", re.IGNORECASE)
CERTIFICATE_TYPES: Final = re.compile(
    r"SSL|TLS|Ssl(?![a-z])|Tls(?![a-z])|(?<![A-Za-z])(?:ssl|tls)|(?i:certificate|x509|(?<![a-z])cert(?![a-z]))|Cert(?![a-z])"
)
"""Names run words together, and `BusinessLogic` is no matter of SSL."""
Nature: TypeAlias = Literal["exhausted", "statement", "certificate", "way", "pool", "inside", "unknown"]


def nature_of(types: Sequence[str]) -> Nature:
    """Say where calls with these error types fail; the most telling type decides, not the most frequent one.

    `exhausted`: the caller itself ran out of something; `statement`: the store gave a statement up; `way`: between the two; `pool`: the
    caller waited for a connection of its own and nothing else happened; `inside`: the callee answered with an error.
    """
    told: tuple[tuple[Nature, re.Pattern[str]], ...] = (
        ("exhausted", _EXHAUSTED_TYPES),
        ("statement", _STORE_TYPES),
        ("certificate", CERTIFICATE_TYPES),
    )
    for nature, words in told:
        if any(words.search(t) for t in types):
            return nature
    if any(_CONNECTION_TYPES.search(t) and not _POOL_TYPES.search(t) for t in types):
        return "way"
    if any(_POOL_TYPES.search(t) for t in types):
        return "pool"
    return "inside" if types else "unknown"


STATEMENT: Final = re.compile(
    r"^\s*(?:select|insert|update|delete|with|call|copy|begin|commit|rollback|merge|upsert|replace|truncate|alter|create|lock|vacuum|explain)\b(?!\s*/)"
    r"(?!\s*https?:)",
    re.IGNORECASE,
)
"""Names of client spans that are statements for a database rather than requests."""


def symptoms_in(text: str) -> frozenset[str]:
    """Name the failure modes whose wording occurs in a log template."""
    return frozenset(name for name, words in VOCABULARY.items() if words.search(text))
