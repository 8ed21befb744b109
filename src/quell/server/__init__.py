"""The HTTP face: telemetry and alerts in; incidents, runs, events and reports out; people's authority both ways.

Owns:  routes and what each takes of its caller, limits, the form of errors on the wire, streams of events.
Never: decides anything, begins a route for nobody, listens beyond loopback without identities, lets other sites in.
"""

from quell.server._asgi import asgi as asgi
from quell.server._mcp import serve_mcp as serve_mcp
from quell.server._serve import serve as serve
