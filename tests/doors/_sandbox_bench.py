"""Start small programs in real sandboxes, behind one wall or both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from quell.domain import SandboxPolicy
from quell.tools import Sandbox

MACHINE = Sandbox.capabilities()
PYTHON = os.path.realpath(sys.executable)
WALLS = {
    "both": MACHINE,
    "bubblewrap": replace(MACHINE, landlock=0),
    "landlock": replace(MACHINE, bubblewrap="", problem="left out by the test"),
}
_NO_BUBBLEWRAP = pytest.mark.skipif(
    not MACHINE.bubblewrap, reason=f"left out: needs bwrap (Debian package bubblewrap): {MACHINE.problem}"
)
_NO_LANDLOCK = pytest.mark.skipif(not MACHINE.landlock, reason="left out: the kernel has no Landlock")

needs_bubblewrap = _NO_BUBBLEWRAP
behind_each_wall = pytest.mark.parametrize(
    "wall",
    [
        pytest.param("both", marks=[_NO_BUBBLEWRAP, _NO_LANDLOCK]),
        pytest.param("bubblewrap", marks=_NO_BUBBLEWRAP),
        pytest.param("landlock", marks=_NO_LANDLOCK),
    ],
)


def sandbox(wall: str, **policy: Any) -> Sandbox:
    need = "best_effort" if wall == "landlock" else "required"
    return Sandbox(SandboxPolicy(**{"need": need, **policy}), machine=WALLS[wall])


def python(code: str, *arguments: str) -> Sequence[str]:
    return (PYTHON, "-I", "-S", "-c", code, *arguments)


def run(
    box: Sandbox, command: Sequence[str], *, environment: Mapping[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Start it as a starter would that adds its own variables to those that it was given."""
    wrapped = box.wrap(command, environment={"PATH": "/usr/bin:/bin", **(environment or {})})
    try:
        return subprocess.run(
            wrapped.argv,
            env={**wrapped.environment, "ADDED_BY_THE_STARTER": "canary"},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            **more,
        )
    finally:
        box.release(wrapped)
