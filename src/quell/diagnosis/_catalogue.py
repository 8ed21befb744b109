"""What each kind of cause means and what can be done about it, in general."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from quell.domain import Category, Diagnosis, Outcome, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One kind of cause, for people."""

    title: str
    meaning: str
    steps: tuple[str, ...]
    """What to do, in order; `{subject}` stands for the object at fault."""


def _a(title: str, meaning: str, *steps: str) -> Advice:
    return Advice(title=title, meaning=meaning, steps=steps)


CATALOGUE: Final[Mapping[Category, Advice]] = MappingProxyType(
    {
        Category.CRASH_LOOP: _a(
            "Crash loop",
            "The process ends unplanned again and again; its callers fail while it is away.",
            "Read the last log lines of {subject} before each exit, and its exit code.",
            "Stop the restarts from hurting: take {subject} out of rotation, or let callers use their fallback.",
            "Return {subject} to the last version or configuration that stayed up; if neither changed, look for the input that kills it.",
            "Verify: no exit of {subject} for several restart intervals, and the errors of its callers are back at the baseline.",
        ),
        Category.BAD_RELEASE: _a(
            "Bad release",
            "A release came shortly before the trouble, and the trouble arises in what was released.",
            "Roll {subject} back to the version before.",
            "Hold further releases of {subject} until the difference between the two versions is understood.",
            "Verify: errors and latency of {subject} and its callers return to the baseline within a few minutes after the rollback.",
        ),
        Category.BAD_CONFIG: _a(
            "Bad configuration",
            "A configuration change came shortly before the trouble, and the trouble arises in what was configured.",
            "Set the changed key of {subject} back to its former value, and restart it if it reads its configuration only at start.",
            "Add a check that would have refused the value.",
            "Verify: errors and latency of {subject} return to the baseline after the value is back.",
        ),
        Category.BAD_FLAG: _a(
            "Feature flag",
            "A flag was switched shortly before the trouble, and the trouble arises behind it.",
            "Switch {subject} back to its former variant.",
            "Find out which path the flag opens before it is switched again, for a small part of the traffic first.",
            "Verify: errors and latency return to the baseline within seconds after the switch.",
        ),
        Category.DEPENDENCY_DOWN: _a(
            "Dependency down",
            "Something that others call takes no calls any more.",
            "Start {subject} again, and read why it ended: its last log lines, its exit code, the host it ran on.",
            "Until it is back, let callers fail fast or use their fallback.",
            "Verify: {subject} accepts connections, and its callers' errors are back at the baseline.",
        ),
        Category.NETWORK_LATENCY: _a(
            "Network latency",
            "Calls take long between two services although the called one answers as fast as before.",
            "Measure the round trip on {subject} from the caller's host, and compare with another path to the same callee.",
            "Look at what lies between: proxy, load balancer, mesh sidecar, network policy, zone placement.",
            "Route around the slow path or move the caller, and shorten timeouts so that callers do not pile up.",
            "Verify: the time that the callee does not account for on {subject} is back at the baseline.",
        ),
        Category.NETWORK_LOSS: _a(
            "Network loss",
            "Calls between two services get lost although the called one is well.",
            "Check the path of {subject}: firewall and network policies, proxy, name resolution, packet loss counters.",
            "Undo the newest network change on that path; route around it meanwhile.",
            "Verify: calls on {subject} are answered again, with no timeouts or resets for several minutes.",
        ),
        Category.CPU_SATURATION: _a(
            "Processor saturated",
            "The service has no processor time left, and its own work takes longer.",
            "Find what burns the time in {subject}: a profile, the threads on top, other processes on the host.",
            "Add instances of {subject} or give it more processor, or stop what burns.",
            "Verify: processor use of {subject} is below its limit and its own latency is back at the baseline.",
        ),
        Category.MEMORY_EXHAUSTION: _a(
            "Memory used up",
            "The service uses all memory that it may, until it slows down or is killed.",
            "Take a heap profile of {subject} before the next kill if that is possible.",
            "Restart {subject} to win time, and raise its limit only if the growth has an end.",
            "Look for the release or input with which the growth began.",
            "Verify: memory of {subject} levels off well below its limit over a time that is longer than the last climb.",
        ),
        Category.POOL_EXHAUSTION: _a(
            "Connection pool exhausted",
            "Every connection of a pool is taken, and calls wait for one.",
            "Find who holds the connections of {subject}: long transactions, connections that are never given back.",
            "Restart {subject} to free them; raise the pool only as far as the store behind can take.",
            "Verify: no calls wait for a connection in {subject}, and its latency is back at the baseline.",
        ),
        Category.SLOW_QUERY: _a(
            "Slow query",
            "Statements take far longer in the database, for everybody who sends them.",
            "List the longest running statements of {subject}, and read the plan of the one that carries the added time.",
            "Stop it if it is not needed; add the missing index, or refresh statistics, if the plan reads too many rows.",
            "Verify: query time and rows read of {subject} are back at the baseline.",
        ),
        Category.LOCK_CONTENTION: _a(
            "Lock contention",
            "Statements wait for locks that somebody else holds.",
            "Find the session that blocks the others in {subject}: who holds the lock, since when, doing what.",
            "End that session if it can be repeated; then shorten its transaction or take its locks in one order.",
            "Verify: no statement of {subject} waits for a lock, and query time is back at the baseline.",
        ),
        Category.DISK_FULL: _a(
            "Disk full",
            "There is no space left where the service writes.",
            "Find what grew on the volume of {subject}: logs, temporary files, spools; remove or move what can go.",
            "Grow the volume, and add rotation or retention for what grew.",
            "Verify: free space on the volume of {subject} stays, and writes succeed.",
        ),
        Category.DESCRIPTOR_EXHAUSTION: _a(
            "Descriptors used up",
            "The process has opened as many files and sockets as it may.",
            "List what {subject} holds open, by kind and peer: sockets that are never closed stand out.",
            "Restart {subject} to free them; raise the limit only if the use is rightful.",
            "Verify: open descriptors of {subject} level off well below the limit.",
        ),
        Category.TRAFFIC_SPIKE: _a(
            "Traffic spike",
            "Far more calls come in than the system is sized for.",
            "See who sends them to {subject}: one client, one route, one region.",
            "Limit the rate or shed what is least important; add instances where the load saturates.",
            "Verify: latency and errors are back at the baseline at the load that stays.",
        ),
        Category.CERTIFICATE_EXPIRED: _a(
            "Certificate expired",
            "Callers refuse the certificate because its last day is over.",
            "Renew the certificate of {subject} and make it load the new one.",
            "Find out why the renewal did not happen, and alert on the days that are left.",
            "Verify: handshakes with {subject} succeed, and the new last day is far away.",
        ),
        Category.CLOCK_SKEW: _a(
            "Clock off",
            "The clock of a host is wrong, so tokens, certificates or timestamps are refused.",
            "Compare the clock of {subject} with its time source, and bring its synchronisation back.",
            "Step the clock only when the service can take a jump; else restart it afterwards.",
            "Verify: the offset of {subject} is below a second, and the refusals stopped.",
        ),
        Category.QUEUE_BACKLOG: _a(
            "Queue backlog",
            "More is put into a queue than is taken out, and what waits gets older.",
            "Look at the consumers of {subject}: are they running, how long does one message take, does one message block the rest?",
            "Add consumers, or set aside the message that blocks; slow the producers if the backlog threatens them.",
            "Verify: depth and age of {subject} fall, and stay at the baseline once it is worked off.",
        ),
        Category.NOVEL: _a(
            "Unknown kind of trouble",
            "It is clear where the trouble arises, and no known kind of cause fits.",
            "Read the cited evidence about {subject}, then its newest error lines and one slow or failed trace through it.",
            "Ask what is different about {subject} since the onset: input, data, hosts, what it depends on.",
            "If it hurts and nothing else helps, restart one instance of {subject} and compare it with the others.",
            "Verify: whatever is done, the errors and latency of {subject} return to the baseline and stay there.",
        ),
    }
)
"""Category -> title, meaning and what to do."""

_HEALTHY = (
    "Nothing needs to be done now. Keep watching until one whole baseline length has passed without an alert.",
    "If people still report trouble, ask again with the service and the time that they name.",
    "If an alert brought this up, look at its threshold: what fired did not reach any user.",
)
_INCONCLUSIVE = (
    "Close the gaps that the report lists first: each hides evidence.",
    "Ask again with a wider window, so that the onset and some healthy time before it are inside.",
    "Walk from the worst symptom downwards: its slowest or failing callee, then that one's.",
    "Compare with what was changed by hand and left no event: infrastructure, network, data, third parties.",
)


def next_steps(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Answer *What can I do next?* for a diagnosis, in words that hold for any system."""
    finding = diagnosis.finding
    if finding.outcome is Outcome.HEALTHY:
        return _HEALTHY
    if finding.outcome is not Outcome.CAUSE_FOUND or finding.category is None or finding.subject is None:
        hints = tuple(f"Check first: {h.statement}" for h in diagnosis.hypotheses[:2])
        return (*hints, *_INCONCLUSIVE)
    name = one_line(finding.subject.name, chars_max=120) or "it"
    return tuple(step.replace("{subject}", name) for step in CATALOGUE[finding.category].steps)
