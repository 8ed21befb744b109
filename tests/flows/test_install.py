"""`pip install quell` alone works in a new environment and stays small."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEGABYTES_MAX = 280


@pytest.mark.flow
@pytest.mark.timeout(300)
def test_the_core_alone_installs_into_a_small_environment_and_works_without_extras(tmp_path: Path) -> None:
    home = tmp_path / "new"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-input", "-c", ROOT / "requirements" / "dev.lock", ROOT],
        check=True,
        capture_output=True,
        timeout=240,
    )
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"environment: {size / 1e6:.0f} MB")
    assert size <= MEGABYTES_MAX * 1_000_000
    installed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "chdb" not in installed
    told = subprocess.run([home / "bin" / "quell", "--help"], capture_output=True, text=True, check=True, timeout=20)
    assert "investigate" in told.stdout
    doctor = subprocess.run(
        [home / "bin" / "quell", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert doctor.returncode == 1
    assert "quell[embedded]" in doctor.stdout
