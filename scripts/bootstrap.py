"""Make a virtual environment and install what is needed into it: `bootstrap.py VENV lab|dev`.

Runs on a bare `python3`: standard library only. Debian's python3 comes without ensurepip; then pip is taken from
wherever the machine has one (pip, virtualenv or uv), and as root on Debian from the python3-venv package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.lock"
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
    sys.exit(f"error: this python3 cannot make a virtual environment\n{HINT}")


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
    packages = ["-e", f"{ROOT}[lab]"]
    packages = ["-r", str(LOCK), *packages] if wanted == "dev" else ["-c", str(LOCK), *packages]
    if not run(*pip, "install", "--quiet", *packages):
        sys.exit("error: the installation failed\nhint: see pip's message above; a package index must be reachable")


if __name__ == "__main__":
    main()
