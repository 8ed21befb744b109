"""The HTTP face: telemetry and alerts in; incidents, runs, events and reports out; people's authority both ways.

Owns:  routes and what each takes of its caller, limits, the form of errors on the wire, streams of events, its client.
Never: decides anything, begins a route for nobody, listens beyond loopback without identities, lets other sites in.

The door is lazy (PEP 562): who only calls a server loads none.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from quell.server._asgi import asgi as asgi
    from quell.server._client import ServerClient as ServerClient
    from quell.server._client import Stream as Stream
    from quell.server._client import refusal_of as refusal_of
    from quell.server._mcp import serve_mcp as serve_mcp
    from quell.server._serve import serve as serve

_DOOR = {
    "asgi": "_asgi",
    "ServerClient": "_client",
    "Stream": "_client",
    "refusal_of": "_client",
    "serve_mcp": "_mcp",
    "serve": "_serve",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell.server' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quell.server.{_DOOR[name]}"), name)
