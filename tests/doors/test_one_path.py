"""There is one way to the world: a walk over the syntax of the product shows that there is no other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "src" / "quell"
TOOLBOX, REGISTRY = "tools/_toolbox.py", "tools/_registry.py"
OUTSIDE = {"mcp", "httpx2", "socket", "subprocess", "requests", "urllib3", "aiohttp", "paramiko", "asyncssh"}
"""Modules that reach out of the process."""
ROOMS_THAT_REACH_OUT = ("tools/", "signals/", "server/", "models/")


def _files() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PRODUCT.rglob("*.py")):
        yield str(path.relative_to(PRODUCT)), ast.parse(path.read_text(encoding="utf-8"))


def _uses(tree: ast.Module, attribute: str) -> list[str]:
    """Return whose attribute of that name is used: called, or handed on to be called."""
    return [
        ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.ctx, ast.Load)
    ]


@pytest.mark.parametrize(
    ("attribute", "owners", "allowed"),
    [
        ("perform", ("ledger",), {TOOLBOX}),
        ("use", ("hand",), {TOOLBOX}),
        ("enter", ("guard",), {TOOLBOX}),
        ("call", ("servers",), {REGISTRY}),
        ("on_intent", ("guard",), {TOOLBOX}),
        ("on_start", ("guard",), {TOOLBOX}),
        ("on_end", ("guard",), {TOOLBOX}),
        ("consume", ("approvals",), {"governance/_guard.py"}),
        # Calls of models are no tool calls: what they may cost is reserved where they are asked.
        ("reserve", ("budgets",), {"governance/_guard.py", "agent/_accounts.py"}),
        ("admit", ("policy",), {"governance/_guard.py"}),
    ],
)
def test_every_step_of_the_path_is_taken_in_one_place(
    attribute: str, owners: tuple[str, ...], allowed: set[str]
) -> None:
    found = {
        name
        for name, tree in _files()
        for used in _uses(tree, attribute)
        if any(owner in used.lower() for owner in owners)
    }
    assert found == allowed


def test_no_room_but_those_four_imports_what_reaches_out_of_the_process() -> None:
    wrong = [
        f"{name}: {module}"
        for name, tree in _files()
        for module in _imported(tree)
        if module.split(".")[0] in OUTSIDE and not name.startswith(ROOMS_THAT_REACH_OUT)
    ]
    assert not wrong, wrong


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_path_is_one_function_that_a_reader_can_hold_in_the_head() -> None:
    tree = ast.parse((PRODUCT / TOOLBOX).read_text(encoding="utf-8"))
    toolbox = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Toolbox")
    public = [
        node.name
        for node in toolbox.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    assert public == ["catalog", "renew", "call", "retain", "propose", "edit"]
    named = {
        node.name: {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
        for node in toolbox.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    only_ask = ("propose", "edit", "_edit", "_rewritten", "_requested")
    assert not any(named[name] & {"_decided", "_act", "_read", "_sent", "hand"} for name in only_ask), (
        "they ask people; what people allow goes through `call`"
    )
