"""Many streams at once through `quell serve`, beside a bare proxy of bytes on the same model and clients.

python -m bench.bench_serve_streams [proxy|off|mark ...]

Every stream brings ten tokens a second. Streams are opened evenly and gently; when all are open, the processor time that
the serving process takes for a token and the way of each token from the model's stamp to the client are measured, for
as long as none has ended. The agent has no tools; `off` and `mark` are its `evidence`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bench.bench_cli import environment

STREAMS = int(os.environ.get("QUELL_BENCH_STREAMS", "1000"))
PER_S = 50.0
EVERY_MS = 100
HOLD_S = 10.0
WARM = 50
_TICKS = os.sysconf("SC_CLK_TCK")
_AGENT = """
[agent]
name = "streams"
system_prompt = "You look after a small shop."

[agent.llm]
provider = "openai"
model = "played"
api_key = "none"
base_url = "http://127.0.0.1:{port}/v1"

[quell]
evidence = "{evidence}"
on_disconnect = "cancel"
"""
_SETTINGS = """
agents = "agent.toml"
state_dir = "state"

[store]
url = "http://127.0.0.1:9"

[server]
port = 0
"""


def tokens_of(streams: int) -> int:
    """Return how many tokens a stream needs so that none ends before all were open and measured."""
    return int((streams / PER_S + HOLD_S + 6) * 1000 / EVERY_MS)


@contextmanager
def running(*command: str, cwd: Path, out: IO[bytes] | int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process as long as it is needed."""
    env = environment(str(cwd.parent / "bytecode")) | {"PYTHONPATH": os.pathsep.join(sys.path[:1] + sys.path)}
    with (cwd / "stderr.txt").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=cwd, env=env, stdout=out, stderr=errors, stdin=subprocess.DEVNULL
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def told(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return the next line that a process tells."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"a process of the bench ended: {process.args!r}"
    found: dict[str, Any] = json.loads(line)
    return found


def cpu_s(process: int) -> float:
    """Return the processor time of a process and its threads, user's and system's."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_kb(process: int) -> int:
    """Return how much memory a process holds."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("Linux tells VmRSS")


def _at(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000, 2)


def _load(place: Path, *, port: int, server: int, upstream: int, streams: int) -> dict[str, float]:
    tokens = tokens_of(streams)
    before_kb = resident_kb(server)
    command = ("bench._stream_roles", "clients", str(port), str(streams), str(PER_S), str(tokens), str(HOLD_S))
    with running(*command, cwd=place) as clients:
        began = told(clients)
        assert (began["open"], began["ended"]) == (streams, 0), f"not all are open: {began}"
        load = os.getloadavg()[0]
        cpu, wall, own, theirs = cpu_s(server), time.monotonic(), cpu_s(upstream), cpu_s(clients.pid)
        ended = told(clients)
        took_s = time.monotonic() - wall
        cpu, own, theirs = cpu_s(server) - cpu, cpu_s(upstream) - own, cpu_s(clients.pid) - theirs
        after_kb = resident_kb(server)
        assert ended["open"] == streams, f"a stream ended too early: {ended}"
        end = told(clients)
    assert end["whole"] == streams, f"{streams - end['whole']} streams were not whole: {end['refused']}"
    return {
        "cpu_us_per_token": round(cpu / ended["tokens"] * 1e6, 1),
        "tokens_per_s": round(ended["tokens"] / took_s),
        "token_p50_ms": _at(end["late_us"], 0.5),
        "token_p99_ms": _at(end["late_us"], 0.99),
        "first_p50_ms": _at(end["first_us"], 0.5),
        "first_p99_ms": _at(end["first_us"], 0.99),
        "kb_per_stream": round((after_kb - before_kb) / streams, 1),
        "server_cores": round(cpu / took_s, 2),
        "upstream_us_per_token": round(own / ended["tokens"] * 1e6, 1),
        "clients_us_per_token": round(theirs / ended["tokens"] * 1e6, 1),
        "load_average": round(load, 1),
    }


def _warm(place: Path, *, port: int) -> None:
    """Let a server load what it loads late."""
    tokens = str(tokens_of(STREAMS))
    command = ("bench._stream_roles", "clients", str(port), str(WARM), "100", tokens, "0.5")
    with running(*command, cwd=place) as clients:
        began = told(clients)
        assert began["open"] == WARM, f"not all are open: {began}"


def _proxy(place: Path, *, upstream: subprocess.Popen[bytes], port: int, streams: int) -> dict[str, float]:
    with running("bench._stream_roles", "proxy", str(port), cwd=place) as proxy:
        there = told(proxy)["port"]
        _warm(place, port=there)
        return _load(place, port=there, server=proxy.pid, upstream=upstream.pid, streams=streams)


def _quell(
    place: Path, *, upstream: subprocess.Popen[bytes], port: int, streams: int, evidence: str
) -> dict[str, float]:
    home = place / f"quell-{evidence}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / "agent.toml").write_text(_AGENT.format(port=port, evidence=evidence))
    (home / "quell.toml").write_text(_SETTINGS)
    with running("quell", "--json", "serve", cwd=home) as server:
        url = told(server)["url"]
        there = int(url.rpartition(":")[2])
        _warm(place, port=there)
        return _load(place, port=there, server=server.pid, upstream=upstream.pid, streams=streams)


def measure(wanted: Sequence[str] = ("proxy", "off", "mark"), *, streams: int = STREAMS) -> dict[str, object]:
    """Return the figures of each server, and the ratios of ours to the proxy's."""
    found: dict[str, object] = {"streams": streams, "opened_per_s": PER_S}
    with tempfile.TemporaryDirectory(dir=Path.cwd() / ".bench" if Path(".bench").is_dir() else None) as directory:
        place = Path(directory)
        model = ("bench._stream_roles", "upstream", str(tokens_of(streams)), str(EVERY_MS))
        with running(*model, cwd=place) as upstream:
            port = told(upstream)["port"]
            for each in wanted:
                if each == "proxy":
                    figures = _proxy(place, upstream=upstream, port=port, streams=streams)
                else:
                    figures = _quell(place, upstream=upstream, port=port, streams=streams, evidence=each)
                found |= {f"{each}_{name}": value for name, value in figures.items()}
    return found | _ratios(found, wanted)


def _ratios(found: Mapping[str, object], wanted: Sequence[str]) -> dict[str, float]:
    def of(name: str) -> float:
        value = found[name]
        assert isinstance(value, int | float)
        return float(value)

    if "proxy" not in wanted:
        return {}
    return {
        f"{each}_{name}": round(figure, 2)
        for each in wanted
        if each != "proxy"
        for name, figure in (
            ("cpu_vs_proxy", of(f"{each}_cpu_us_per_token") / of("proxy_cpu_us_per_token")),
            ("p99_vs_proxy", of(f"{each}_token_p99_ms") / of("proxy_token_p99_ms")),
            ("first_added_ms", of(f"{each}_first_p50_ms") - of("proxy_first_p50_ms")),
        )
    }


def main() -> None:
    """Print the figures."""
    for name, value in measure(sys.argv[1:] or ("proxy", "off", "mark")).items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
