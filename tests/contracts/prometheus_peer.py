"""A real Prometheus, a real Alertmanager and a tiny exporter, for one test; everything ends with it."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def http(answer: Callable[[str, bytes], bytes]) -> Iterator[int]:
    """Serve what `answer` says to path and body; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(b"")

        def do_POST(self) -> None:
            self._reply(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def _reply(self, body: bytes) -> None:
            reply = answer(self.path, body)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def program(command: list[str], *, ready_url: str, directory: Path) -> Iterator[None]:
    """Run a program until left, once it says that it is ready."""
    with (directory / "out.log").open("wb") as log:
        child = subprocess.Popen(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: _is_up(ready_url), within_s=30)
            yield
        finally:
            child.terminate()
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def until(holds: Callable[[], bool], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass(slots=True)
class Watched:
    """What runs, and what it was told."""

    url: str
    posted: list[bytes] = field(default_factory=list)

    def get(self, path: str) -> object:
        with urllib.request.urlopen(self.url + path, timeout=5) as reply:
            return json.load(reply)


@contextmanager
def prometheus(directory: Path, *, metrics: Callable[[], str], rules: str = "") -> Iterator[Watched]:
    """Run a Prometheus that scrapes `metrics`; with rules, an Alertmanager too whose webhook posts are kept."""
    with ExitStack() as stack:
        port, watched_posts = free_port(), []  # type: int, list[bytes]
        exporter = stack.enter_context(http(lambda _path, _body: metrics().encode()))
        config = f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
scrape_configs:
  - job_name: shop
    honor_timestamps: true
    static_configs: [{{targets: ["127.0.0.1:{exporter}"]}}]
"""
        if rules:
            manager = _alertmanager(stack, directory, posts=watched_posts)
            (directory / "rules.yml").write_text(rules)
            config += f"rule_files: [{directory / 'rules.yml'}]\n"
            config += f'alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{manager}"]}}]}}]}}\n'
        (directory / "prometheus.yml").write_text(config)
        command = [
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
        ]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        url = f"http://127.0.0.1:{port}"
        stack.enter_context(program(command, ready_url=f"{url}/-/ready", directory=directory))
        yield Watched(url=url, posted=watched_posts)


def _alertmanager(stack: ExitStack, directory: Path, *, posts: list[bytes]) -> int:
    def keep(_path: str, body: bytes) -> bytes:
        posts.append(body)
        return b""

    hook, port = stack.enter_context(http(keep)), free_port()
    (directory / "alertmanager.yml").write_text(f"""
route: {{receiver: quell, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}
receivers: [{{name: quell, webhook_configs: [{{url: "http://127.0.0.1:{hook}/", send_resolved: true}}]}}]
""")
    home = directory / "am"
    home.mkdir()
    command = [
        "prometheus-alertmanager",
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={home}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    stack.enter_context(program(command, ready_url=f"http://127.0.0.1:{port}/-/ready", directory=home))
    return port
