"""What the pages show is true: every block of Python in them runs, here or in the test of its topic."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorial"
"""Their files are written down and used as a reader would: test_docs_tutorial.py."""
WITH_PYTHON = [
    page
    for page in sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
    if "\n```python\n" in page.read_text() and page.parent != TUTORIALS
]
TOLD_ELSEWHERE = {
    "approvals.md": "test_approval_docs.py",
    "autonomy.md": "test_identity_docs.py",
    "connect-an-mcp-server.md": "test_mcp_docs.py",
    "effects.md": "test_ledger_docs.py",
    "identity.md": "test_identity_docs.py",
    "use-your-client.md": "../clients/test_client_docs.py",
    "write-a-policy.md": "test_policy_docs.py",
}


@pytest.mark.timeout(60)  # the page about sandboxes starts a program
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_examples_of_every_page_run(page: Path) -> None:
    if page.name in TOLD_ELSEWHERE:
        assert page.name in (Path(__file__).parent / TOLD_ELSEWHERE[page.name]).read_text()
        return
    for example in Sybil(parsers=[PythonCodeBlockParser()], pattern="*.md").parse(page).examples():
        example.evaluate()
