"""What Quell emits about itself: spans, metrics and events.

Owns:  the catalogues of events and metrics, the log lines and the log file, redaction, OpenTelemetry, W3C trace context.
Never: reports about its own exporting, raises because it could not write, prints a secret, loads OpenTelemetry before it is opened.
"""

from quell.telemetry import _genai
from quell.telemetry._active import Exporter as Exporter
from quell.telemetry._active import count as count
from quell.telemetry._active import event as event
from quell.telemetry._active import extract as extract
from quell.telemetry._active import inject as inject
from quell.telemetry._active import measure as measure
from quell.telemetry._active import quiet as quiet
from quell.telemetry._active import span as span
from quell.telemetry._catalogue import EVENTS as EVENTS
from quell.telemetry._open import Telemetry as Telemetry
from quell.telemetry._open import open_telemetry as open_telemetry

genai = _genai
"""Spans and metrics of agents."""
