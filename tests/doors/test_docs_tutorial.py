"""The tutorial about a first approval, done as it says: its files, its commands, one effect."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests._quell import environment, quell

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial" / "first-approval.md").read_text()

pytestmark = [
    pytest.mark.timeout(60),  # ten whole processes, one after another
    pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="left out: the page names /usr/bin/python3"),
]


def _said(*arguments: str, cwd: Path, code: int = 0) -> str:
    told = quell(*arguments, cwd=cwd, env={"PWD": str(cwd)})
    assert told.returncode == code, told.stdout + told.stderr
    return told.stdout


def test_the_tutorial_leads_from_nothing_to_one_approved_effect_even_over_a_kill(tmp_path: Path) -> None:
    files = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    assert set(files) == {"notes.py", "quell.toml", "agent.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes").mkdir()
    assert "unknown" in _said("tool", "diff", "notes", cwd=tmp_path)
    assert "is pinned as reversible" in _said("tool", "pin", "notes", "write_note", "--yes", cwd=tmp_path)
    wish = '{"name": "hello", "text": "hi"}'
    explained = _said("policy", "explain", "write_note", "--role", "operator", "--arguments", wish, cwd=tmp_path)
    assert "copilot.reversible-asked" in explained

    agent = [sys.executable, "agent.py"]
    env = environment(tmp_path, {"PWD": str(tmp_path)})
    with subprocess.Popen(agent, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        asked = first.stdout.readline()
        first.kill()
    identifier = asked.strip().rpartition(" ")[2]
    assert asked.startswith("waits for people: quell approval show apr_")
    (waiting,) = json.loads(_said("approval", "list", "--json", cwd=tmp_path))["approvals"]
    digest = re.search(r"digest +(\w{8})", _said("approval", "show", identifier, cwd=tmp_path))
    assert digest is not None
    assert waiting["digest"].startswith(digest[1])
    _said("approval", "approve", identifier, "--digest", digest[1], cwd=tmp_path)
    again = subprocess.run(agent, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert again.stdout.splitlines()[-1] == '{"kind":"ok","says":"hello is written"}', again.stderr
    assert (tmp_path / "notes" / "hello.txt").read_text() == "first light"

    (effect,) = json.loads(_said("effect", "list", "--json", cwd=tmp_path))["effects"]
    assert (effect["state"], effect["attempts"]) == ("done", 1)
    assert _said("audit", "verify", cwd=tmp_path).startswith("intact")
    (tmp_path / "notes.py").write_text(files["notes.py"].replace("Write a note;", "Write a note!"))
    assert "changed" in _said("tool", "diff", "notes", cwd=tmp_path, code=1)
