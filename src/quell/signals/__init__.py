"""The eyes: the telemetry store, the receiver, the readers and what is curated from them.

Owns:  the store owner process, ingest and rollups, typed questions and their answers, detection, briefings.
Never: decides what caused an incident, changes production.
"""

from quell.signals._client import StoreClient as StoreClient
from quell.signals._receiver import Receiver as Receiver
from quell.signals._store import Store as Store
