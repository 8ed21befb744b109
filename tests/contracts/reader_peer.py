"""A server on the loop-back address that misbehaves in any way that is asked for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, bytes]
Behaviour = Callable[[str, bytes], Reply | str]
"""From path and body to a reply, or to one of `hang`, `drop`, `half`."""


@contextmanager
def peer(behaviour: Behaviour) -> Iterator[str]:
    """Serve until left; gives the URL."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(b"")

        def do_POST(self) -> None:
            self._reply(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def _reply(self, body: bytes) -> None:
            reply = behaviour(self.path, body)
            if reply == "hang":
                over.wait(10)
            elif reply == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif reply == "half":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"status":"succ')
                self.wfile.flush()
                time.sleep(0.05)
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                assert isinstance(reply, tuple)
                self.send_response(reply[0])
                self.send_header("Content-Length", str(len(reply[1])))
                self.end_headers()
                self.wfile.write(reply[1])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
