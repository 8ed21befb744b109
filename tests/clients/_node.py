"""Programs of npm in the lane `node`: a node new enough for them, and where they lie."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests import _canaries


def run_tool(
    name: str, *arguments: str, home: Path, env: Mapping[str, str] | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a program of the lane; what it writes for itself goes below `home`."""
    tools = Path(os.environ["QUELL_NODE_TOOLS"])
    own = {"PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "NO_COLOR": "1"}
    told = subprocess.run(
        [str(tools / "node_modules" / ".bin" / name), *arguments],
        cwd=home,
        env={**os.environ, **own, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    _canaries.SEARCH.text(f"what {name} said", told.stdout + told.stderr)
    return told
