"""The eyes: the telemetry store, the receiver, the readers and what is curated from them.

Owns:  the store owner process, ingest and rollups, typed questions and their answers, detection, briefings.
Never: decides what caused an incident, changes production.

The door is lazy (PEP 562): who asks an agent waits for no detector, and for no numbers before telemetry is read.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from quell.signals._alertmanager import parse_alertmanager as parse_alertmanager
    from quell.signals._brief import brief as brief
    from quell.signals._brief import pack as pack
    from quell.signals._codec import decode_answer as decode_answer
    from quell.signals._codec import encode_answer as encode_answer
    from quell.signals._detect import Detector as Detector
    from quell.signals._prometheus import PrometheusReader as PrometheusReader
    from quell.signals._reader import Reader as Reader
    from quell.signals._receiver import Receiver as Receiver
    from quell.signals._series import ClickHouseReader as ClickHouseReader
    from quell.signals._store import Store as Store
    from quell.signals._survey import survey as survey

_DOOR = {
    "parse_alertmanager": "_alertmanager",
    "brief": "_brief",
    "pack": "_brief",
    "decode_answer": "_codec",
    "encode_answer": "_codec",
    "Detector": "_detect",
    "PrometheusReader": "_prometheus",
    "Reader": "_reader",
    "Receiver": "_receiver",
    "ClickHouseReader": "_series",
    "Store": "_store",
    "survey": "_survey",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell.signals' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quell.signals.{_DOOR[name]}"), name)
