"""What Quell emits about itself: spans, metrics and events.

Owns:  the event catalogue, the log lines and the log file, redaction, OpenTelemetry, W3C trace context.
Never: reports about its own exporting, raises because it could not write, prints a secret, loads OpenTelemetry before it is opened.
"""

from quell.telemetry._active import Exporter as Exporter
from quell.telemetry._active import count as count
from quell.telemetry._active import event as event
from quell.telemetry._active import extract as extract
from quell.telemetry._active import inject as inject
from quell.telemetry._active import quiet as quiet
from quell.telemetry._active import span as span
from quell.telemetry._catalogue import EVENTS as EVENTS
from quell.telemetry._catalogue import EventSpec as EventSpec
from quell.telemetry._open import Telemetry as Telemetry
from quell.telemetry._open import open_telemetry as open_telemetry
