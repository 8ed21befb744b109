"""Small programs over results of tools: they reach nothing, end at their limits, and their errors teach."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from quell.domain import BoundExceededError, CodeResult, QuellError, UsageError
from quell.tools import CodeTool

pytest.importorskip("pydantic_monty", reason="left out: needs the extra `code`")


pytestmark = pytest.mark.timeout(30)  # real programs, on machines that may be busy


@asynccontextmanager
async def tool(**limits: float) -> AsyncIterator[CodeTool]:
    async with CodeTool(**{"time_max_s": 0.4, **limits}) as made:  # type: ignore[arg-type]
        yield made


def run(program: str, *, inputs: dict[str, str] | None = None, **limits: float) -> CodeResult:
    async def go() -> CodeResult:
        async with tool(**limits) as made:
            return await made.run(program, inputs=inputs or {})

    return asyncio.run(go())


def test_a_program_works_on_its_inputs_and_tells_its_result_and_what_it_printed() -> None:
    rows = json.dumps([{"service": "a", "errors": 3}, {"service": "b", "errors": 4}])
    told = run(
        "print('rows', len(rows))\nresult = {'total': sum(r['errors'] for r in rows), 'names': [r['service'] for r in rows]}",
        inputs={"rows": rows},
    )
    assert told == CodeResult(result='{"names":["a","b"],"total":7}', printed="rows 2\n")


def test_the_same_program_comes_to_the_same_whatever_the_day() -> None:
    program = """
import datetime, random
result = [str(datetime.datetime.now()), str(datetime.date.today()), random.random()]
"""
    assert run(program) == run(program)


@pytest.mark.parametrize(
    "program",
    [
        "open('/etc/passwd').read()",
        "open('/tmp/made', 'w')",
        "import os\nos.environ['PATH']",
        "import os\nos.listdir('/')",
        "from pathlib import Path\nPath('/etc/passwd').read_text()",
        "import socket",
        "import subprocess",
        "import ctypes",
        "__import__('os').system('true')",
        "().__class__.__base__.__subclasses__()",
    ],
)
def test_a_program_reaches_nothing_but_its_inputs(program: str) -> None:
    with pytest.raises(UsageError, match="the program failed"):
        run(f"{program}\nresult = 'reached'")


@pytest.mark.parametrize(
    ("program", "match"),
    [
        ("while True: pass", "seconds"),
        ("x = 10 ** (10 ** 7)", "seconds"),
        ("a = []\nfor i in range(10): a = [a] * 1000\nresult = a", "seconds|memory"),
        ("x = [0] * 10**9", "bytes of memory"),
        ("x = 'a' * 10**9", "bytes of memory"),
        ("def f(n): return f(n + 1)\nf(0)", "depth"),
        ("a = []\nfor i in range(100_000): a = [a]\nresult = a", "depth"),
        ("for i in range(10_000): print('x' * 100)", "prints"),
        ("result = 'x' * 100_000", "result of the program"),
    ],
)
def test_a_program_ends_at_its_limits(program: str, match: str) -> None:
    with pytest.raises(BoundExceededError, match=match) as caught:
        run(program)
    assert caught.value.limit > 0
    assert caught.value.hint


@pytest.mark.parametrize(
    ("program", "message", "hint"),
    [
        ("x = 1\nresult = x / 0", "in line 2: ZeroDivisionError", "mend"),
        ("def", "in line 1", "mend"),
        ("x = 1\ny = row", "in line 2: NameError: name 'row'", "only the inputs"),
        ("import pandas", "No module named 'pandas'", "no packages"),
        ("result = {1, 2}", "set is not JSON", "set `result`"),
        ("result = float('nan')", "NaN is no number", "set `result`"),
        ("a = []\na.append(a)\nresult = a", "Circular", "mend"),
        ("x = '\ud800'", "is no text", "halves"),
    ],
)
def test_an_error_says_where_and_what_to_do(program: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run(program)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"rows": "{"}, "is no JSON"),
        ({"rows": "[" * 100_000}, "is no JSON"),
        ({"result": "1"}, "cannot name an input"),
        ({"a b": "1"}, "cannot name an input"),
        ({"__x": "1"}, "cannot name an input"),
        ({"rows": '"\\ud800"'}, "no text|failed"),
    ],
)
def test_inputs_that_cannot_be_variables_are_refused(inputs: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run("result = 1", inputs=inputs)


def test_programs_and_inputs_that_are_too_large_are_refused() -> None:
    with pytest.raises(BoundExceededError, match="the program with"):
        run("#" * 40_000)
    with pytest.raises(BoundExceededError, match="its inputs with"):
        run("result = 1", inputs={"rows": f'"{"x" * 10_000_000}"'})


def test_one_program_leaves_nothing_to_the_next_and_a_runaway_blocks_nobody() -> None:
    async def go() -> None:
        async with tool(programs_max=2) as made:
            runaway = asyncio.ensure_future(made.run("secret = 1\nwhile True: pass", inputs={}))
            ticks = 0
            while not runaway.done():
                # The loop goes on, and so do other programs.
                await asyncio.sleep(0)
                told = await made.run("result = 1", inputs={})
                assert told.result == "1"
                ticks += 1
            assert ticks > 1
            assert isinstance(runaway.exception(), BoundExceededError)
            with pytest.raises(UsageError, match="NameError"):
                await made.run("result = secret", inputs={})

    asyncio.run(go())


def test_a_caller_that_is_cancelled_keeps_its_turn_until_its_program_has_ended() -> None:
    async def go() -> None:
        async with tool(programs_max=1) as made:
            first = asyncio.ensure_future(made.run("while True: pass", inputs={}))
            await asyncio.sleep(0.1)
            first.cancel()
            assert (await made.run("result = 2", inputs={})).result == "2"
            assert first.cancelled()

    asyncio.run(go())


def test_many_programs_at_once_all_come_to_their_own_results() -> None:
    async def go() -> None:
        async with tool(programs_max=2) as made:
            calls: list[Awaitable[CodeResult]] = [
                made.run("result = n * n", inputs={"n": str(number)}) for number in range(30)
            ]
            assert [told.result for told in await asyncio.gather(*calls)] == [str(n * n) for n in range(30)]

    asyncio.run(go())


def test_without_the_extra_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["pydantic_monty"] = None
from quell.domain import ConfigError
from quell.tools import CodeTool
try:
    CodeTool()
except ConfigError as error:
    print(error, "|", error.hint)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "running programs needs the extra `code` | pip install 'quell[code]'\n"


def test_what_the_door_loads_is_light() -> None:
    code = "import sys, quell.tools; print('pydantic_monty' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_every_way_to_fail_is_an_error_of_ours() -> None:
    programs: list[str] = [
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "import sys\nsys.exit(1)",
        "raise TimeoutError('x')",
    ]
    for program in programs:
        with pytest.raises(QuellError):
            run(program)
