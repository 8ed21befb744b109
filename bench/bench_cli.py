"""What `quell --help` costs: processor time of whole processes, and the modules that they load.

python -m bench.bench_cli
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

ROUNDS = 21
HEAVY = (
    "pydantic",
    "pydantic_core",
    "asyncio",
    "rich",
    "starlette",
    "sqlalchemy",
    "dbos",
    "msgspec",
    "opentelemetry",
    "httpx2",
    "numpy",
)
_MODULES = """
import sys
from quell.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""


def environment(bytecode: str) -> dict[str, str]:
    """Return an environment in which Python keeps bytecode, as an installed program has it, in a place of our own."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME", "COVERAGE_PROCESS_START"}
    return {key: value for key, value in os.environ.items() if key not in dropped} | {"PYTHONPYCACHEPREFIX": bytecode}


def cpu_ms(command: Sequence[str], *, env: Mapping[str, str]) -> float:
    """Run a command and return its user and system time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def modules_of_help(*, env: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of all modules that are loaded when `quell --help` has been printed."""
    told = subprocess.run([sys.executable, "-c", _MODULES], env=env, capture_output=True, text=True, check=True)
    return told.stderr.split()


def measure() -> dict[str, object]:
    """Measure bare Python and `quell --help` in turns, so that both meet the same machine."""
    with tempfile.TemporaryDirectory() as bytecode:
        env = environment(bytecode)
        help_, bare = [sys.executable, "-m", "quell", "--help"], [sys.executable, "-c", "pass"]
        for command in (help_, bare):
            cpu_ms(command, env=env)
        pairs = [(cpu_ms(help_, env=env), cpu_ms(bare, env=env)) for _ in range(ROUNDS)]
        loaded = modules_of_help(env=env)
    return {
        "help_cpu_ms": round(statistics.median(pair[0] for pair in pairs), 1),
        "help_cpu_ms_min": round(min(pair[0] for pair in pairs), 1),
        "bare_python_cpu_ms": round(statistics.median(pair[1] for pair in pairs), 1),
        "modules": len(loaded),
        "heavy_modules": len({name.partition(".")[0] for name in loaded} & set(HEAVY)),
        "rounds": ROUNDS,
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
