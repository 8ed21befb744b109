"""The house keeps its own rules: doors, sizes, words, and nothing of any bench in the product."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
FILES = sorted(SRC.rglob("*.py"))
PACKAGES = sorted(path.parent for path in (SRC / "quell").glob("*/__init__.py"))
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
DOOR_NAMES_MAX = 12
WIDE_ON_PURPOSE = {"domain": "it is the language", "config": "the settings classes are one family"}
FORBIDDEN_WORDS = {"manager", "helper", "helpers", "utils", "common", "base", "info", "process", "handle"}
UNITLESS = {"timeout", "delay", "interval", "duration"}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_a_package_says_what_it_owns_and_never_does_behind_a_small_door(package: Path) -> None:
    tree = _tree(package / "__init__.py")
    words = ast.get_docstring(tree) or ""
    assert "Owns:" in words, f"{package.name}/__init__.py does not say what it owns"
    assert "Never:" in words, f"{package.name}/__init__.py does not say what it never does"
    names = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for alias in names if not alias.name.startswith("_")), "re-export as `X as X`"
    if package.name not in WIDE_ON_PURPOSE:
        assert len({alias.name for alias in names}) <= DOOR_NAMES_MAX


def test_files_and_functions_stay_small() -> None:
    long = [f"{_name(path)}: {n} lines" for path in FILES if (n := len(path.read_text().splitlines())) > FILE_LINES_MAX]
    for path in FILES:
        for function in _functions(_tree(path)):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                long.append(f"{_name(path)}:{function.lineno} {function.name}: {lines} lines")
    assert not long, "\n".join(long)


def test_names_are_the_fields_words() -> None:
    wrong = []
    for path in FILES:
        if path.stem.strip("_") in FORBIDDEN_WORDS:
            wrong.append(f"{_name(path)}: module name")
        for function in _functions(_tree(path)):
            arguments = [*function.args.args, *function.args.kwonlyargs]
            wrong += [
                f"{_name(path)}:{function.lineno} parameter {argument.arg}: say the unit"
                for argument in arguments
                if argument.arg in UNITLESS
            ]
    assert not wrong, "\n".join(wrong)


def test_the_product_knows_no_bench_and_no_lab() -> None:
    """Service, fault and data-set names belong outside `src/quell`."""
    lab_names = {"nezha", "petshop", "sockshop", "cloudopsbench", "loghub", "opensre", "quell_lab"}
    found = [
        f"{_name(path)}: {word}"
        for path in FILES
        if path.is_relative_to(SRC / "quell")
        for word in lab_names
        if word in path.read_text().lower()
    ]
    assert not found, "\n".join(found)


def test_importing_the_root_loads_no_third_party_module() -> None:
    code = (
        "import sys; before = set(sys.modules); import quell; "
        "print(sorted(m for m in set(sys.modules) - before if not m.startswith('quell')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_open_ends_in_the_product() -> None:
    marks = ("TODO", "FIXME", "XXX", "NotImplementedError", "pragma: no cover")
    found = [
        f"{_name(path)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if any(mark in line for mark in marks)
    ]
    assert not found, "\n".join(found)
