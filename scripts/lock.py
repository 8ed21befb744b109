"""Renew requirements/dev.lock: every version that the development environment uses, without index addresses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Resolve the project, its lab extra and the dev group, and write the result."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "lab", "--group", "dev"]
    options = [
        "--universal",
        "--python-version",
        "3.11",
        "--no-emit-index-url",
        "--no-emit-find-links",
        "--no-header",
        "--quiet",
    ]
    subprocess.run([*command, *options, "--no-annotate", "-o", "requirements/dev.lock"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
