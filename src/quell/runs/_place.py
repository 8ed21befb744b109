"""The place in a trace that a run was started at: kept with its arguments, so that every life of it goes on in that trace."""

from __future__ import annotations

from collections.abc import Mapping

from quell import telemetry

_KEY = "quell.place"


def with_place(arguments: Mapping[str, object], *, run: str, kind: str) -> Mapping[str, object]:
    """Return arguments that know where in a trace the run is started; outside of every trace one begins with it."""
    assert _KEY not in arguments, f"{_KEY!r} is no argument of a run"
    place: dict[str, str] = {}
    telemetry.inject(place)
    if not place:
        about = {"quell.run": run, "quell.run.kind": kind, "openinference.span.kind": "CHAIN"}
        with telemetry.span("quell.start", about):
            telemetry.inject(place)
    return {**arguments, _KEY: place} if place else arguments


def without_place(arguments: Mapping[str, object]) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """Return the arguments as they were given, and the place."""
    place = arguments.get(_KEY)
    if not isinstance(place, dict):
        return arguments, {}
    return {key: value for key, value in arguments.items() if key != _KEY}, {
        str(key): str(value) for key, value in place.items()
    }
