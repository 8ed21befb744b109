"""The HTTP face: telemetry and alerts in, incidents, runs, events and reports out.

Owns:  routes, limits, the form of errors on the wire, streams of events.
Never: decides anything, listens beyond loopback, lets a page of another site in.
"""

from quell.server._asgi import asgi as asgi
from quell.server._serve import serve as serve
