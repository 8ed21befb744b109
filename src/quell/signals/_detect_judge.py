"""The detector's judgement: from what is seen and what is remembered to alerts, with no input or output of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from quell.config import DetectionSettings
from quell.domain import Alert, Symptom, fingerprint_of, new_id
from quell.signals._detect_gauges import signs_of_gauges
from quell.signals._detect_signs import View, sign_of_exits, sign_of_silence, signs_of_calls, signs_of_patterns
from quell.signals._detect_state import BUCKET_S, Buckets, DetectorState, Episode, Heartbeat, Sign
from quell.signals._reader_text import escape_line

_LAG_MAX_S = 15.0
_HOLD_STRENGTH = 0.5
_ROLLOUT_S = 15.0
_ROLLOUT_PATIENCE_S = 10.0
_SLOW_PATIENCE_S = 8.0
_SLOW_TO_CONFIRM = frozenset({Symptom.LATENCY, Symptom.TRAFFIC})
"""A moment's shortage of processor time slows everything down; trouble lasts longer."""
_SUMMARY_CHARS = 300
_LABEL_CHARS = 200
_CLOCK_JUMP_S = 30.0


def judge(
    state: DetectorState, buckets: Buckets, at: datetime, *, settings: DetectionSettings, salt: bytes = b""
) -> tuple[DetectorState, list[Alert]]:
    """Return the new memory, and the alerts that newly fire or newly resolve at this look.

    The same state, buckets, time and salt give the same alerts with the same ids, so that a replay repeats itself.
    """
    now = at.timestamp()
    if now < state.looked_at - _CLOCK_JUMP_S:
        # The clock was set back: what was only suspected is forgotten, what has fired is kept open.
        kept = tuple(replace(known, bad_at=now, since=min(known.since, now)) for known in state.episodes if known.alert)
        state = DetectorState(looked_at=now, episodes=kept, troubled=())
    signs = _strongest(_signs(state, buckets, now=now, settings=settings))
    episodes, alerts, troubled = [], [], list(state.troubled)
    for key in sorted(signs.keys() | {(episode.service, episode.symptom) for episode in state.episodes}):
        known = next((episode for episode in state.episodes if (episode.service, episode.symptom) == key), None)
        episode, alert = _step(known, signs.get(key), now=now, settings=settings, rollouts=buckets.rollouts, salt=salt)
        if alert is not None:
            alerts.append(alert)
        if episode is not None:
            episodes.append(episode)
        elif alert is not None and known is not None:
            troubled.append((known.service, known.since, known.bad_at))
    oldest = now - 60 * settings.baseline_minutes
    return (
        DetectorState(
            looked_at=now,
            episodes=tuple(episodes),
            troubled=tuple(stretch for stretch in troubled if stretch[2] >= oldest),
        ),
        alerts,
    )


def state_of(known: Sequence[Alert]) -> DetectorState:
    """Rebuild the memory from alerts that were firing when the last detector ended."""
    episodes = [
        Episode(
            service=alert.service,
            symptom=alert.symptom,
            since=alert.starts_at.timestamp(),
            bad_at=alert.received_at.timestamp(),
            looks=1,
            alert=alert,
        )
        for alert in known
        if alert.status == "firing" and alert.source == "detector"
    ]
    return DetectorState(episodes=tuple(sorted(episodes, key=lambda episode: (episode.service, episode.symptom))))


def _signs(state: DetectorState, buckets: Buckets, *, now: float, settings: DetectionSettings) -> Iterable[Sign]:
    starts = [operation.starts[-1] + BUCKET_S for operation in buckets.operations if operation.starts]
    seen_until = min(now, max(max(starts, default=now), now - _LAG_MAX_S))
    beats: dict[str, Heartbeat] = {beat.service: beat for beat in buckets.heartbeats}
    services = {known.service for known in buckets.operations} | {known.service for known in buckets.patterns}
    services |= {known.service for known in buckets.gauges} | set(beats)
    for service in sorted(services):
        open_now = ((known.since, now) for known in state.episodes if known.service == service and known.alert)
        past = ((begin, end) for name, begin, end in state.troubled if name == service)
        view = View(at=now, seen_until=seen_until, settings=settings, troubled=(*open_now, *past))
        operations = [known for known in buckets.operations if known.service == service]
        patterns = [known for known in buckets.patterns if known.service == service]
        gauges = [known for known in buckets.gauges if known.service == service]
        beat = beats.get(service)
        firsts = [known.starts[0] for known in operations if known.starts]
        first_heard = min([*firsts, *([beat.first] if beat else [])], default=now)
        silence = sign_of_silence(operations, beat, service=service, view=view)
        yield from [silence] if silence else []
        yield from signs_of_calls(operations, view=view)
        yield from signs_of_patterns(patterns, view=view, first_heard=first_heard)
        yield from signs_of_gauges(gauges, view=view)
    for service in sorted({service for service, _, _ in buckets.exits}):
        exits = [(at, reason) for name, at, reason in buckets.exits if name == service]
        ended = sign_of_exits(exits, service=service, now=now)
        yield from [ended] if ended else []


def _strongest(signs: Iterable[Sign]) -> dict[tuple[str, Symptom], Sign]:
    """Keep one sign per service and symptom: the strongest, and of equals the first by name."""
    best: dict[tuple[str, Symptom], Sign] = {}
    for sign in signs:
        known = best.get((sign.service, sign.symptom))
        if known is None or (-sign.strength, sign.name, sign.labels) < (-known.strength, known.name, known.labels):
            best[sign.service, sign.symptom] = sign
    return best


def _step(
    known: Episode | None,
    sign: Sign | None,
    *,
    now: float,
    settings: DetectionSettings,
    rollouts: Sequence[tuple[str, float]],
    salt: bytes,
) -> tuple[Episode | None, Alert | None]:
    strength = sign.strength if sign else 0.0
    if known is not None and known.alert is not None:
        if strength >= _HOLD_STRENGTH:
            return replace(known, bad_at=now), None
        if now - known.bad_at < settings.clear_s:
            return known, None
        return None, _resolved(known, known.alert, now=now)
    if sign is None or strength < 1:
        return None, None
    since = min(sign.since, known.since) if known else sign.since
    episode = Episode(
        service=sign.service,
        symptom=sign.symptom,
        since=since,
        bad_at=now,
        looks=known.looks + 1 if known else 1,
    )
    if episode.looks < settings.confirm_looks or now - since < _patience_s(sign.symptom, since, rollouts=rollouts):
        return episode, None
    alert = _firing(sign, since=since, now=now, salt=salt)
    return replace(episode, alert=alert), alert


def _patience_s(symptom: Symptom, since: float, *, rollouts: Sequence[tuple[str, float]]) -> float:
    """Say how long trouble must last; longer right after a rollout anywhere, as a working one disturbs for a moment."""
    near = any(-BUCKET_S <= since - at <= _ROLLOUT_S for _, at in rollouts)
    return _ROLLOUT_PATIENCE_S if near else _SLOW_PATIENCE_S if symptom in _SLOW_TO_CONFIRM else 0.0


def _firing(sign: Sign, *, since: float, now: float, salt: bytes) -> Alert:
    fingerprint = fingerprint_of(source="detector", service=sign.service, symptom=sign.symptom.value, labels={})
    entropy = hashlib.sha256(salt + f"{fingerprint}:{since}:{now}".encode()).digest()[:10]
    received_at = _time(now)
    labels = tuple((key, escape_line(value, chars_max=_LABEL_CHARS)) for key, value in sign.labels)
    return Alert(
        id=new_id("alr", at=received_at, entropy=entropy),
        fingerprint=fingerprint,
        source="detector",
        name=sign.name,
        service=sign.service,
        symptom=sign.symptom,
        severity=sign.severity,
        status="firing",
        summary=escape_line(f"{sign.service}: {sign.summary}", chars_max=_SUMMARY_CHARS),
        starts_at=_time(since),
        ends_at=None,
        received_at=received_at,
        labels=labels,
        value=sign.value,
        expected=sign.expected,
    )


def _resolved(known: Episode, alert: Alert, *, now: float) -> Alert:
    ends = max(known.bad_at, alert.starts_at.timestamp())
    return replace(alert, status="resolved", ends_at=_time(ends), received_at=_time(now))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), tz=UTC)
