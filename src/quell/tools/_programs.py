"""The tool `run_code`: a program of a model over results in its own scratchpad, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping

from quell.domain import (
    BoundExceededError,
    OutcomeKind,
    PadOwner,
    PadReading,
    RefusedError,
    ResourceRule,
    Tool,
    UsageError,
    WorldError,
    own_read,
)
from quell.tools._code import CodeTool
from quell.tools._scratchpad import Reader, Scratchpad
from quell.tools._scratchpad_files import is_handle
from quell.tools._scratchpad_text import TOKEN_BYTES

NAME = "run_code"
_INPUTS_MAX = 16
_PROGRAM_MAX = 32_000
_INPUTS_MAX_BYTES = 8_000_000
_TIMEOUT_S = 30.0
_DESCRIPTION = (
    "Run a small Python program over results that were put aside. Every input is a variable: the handle of a result "
    "stands for the whole of it, parsed when it is JSON; any other value for itself. The program sets `result`, and may "
    "print. json, re and math work; there are no files, no network, no packages, no clock and no chance."
)
_SCHEMA = {
    "type": "object",
    "properties": {
        "program": {
            "type": "string",
            "minLength": 1,
            "maxLength": _PROGRAM_MAX,
            "description": "Python; sets `result`",
        },
        "inputs": {
            "type": "object",
            "maxProperties": _INPUTS_MAX,
            "additionalProperties": True,
            "description": "Name of a variable = handle of a result, or a JSON value",
        },
    },
    "required": ["program"],
    "additionalProperties": False,
}


def definition() -> Tool:
    """Define the tool for the registry: a read that touches nothing, and may be sent again."""
    resource = ResourceRule(kind="Result")
    return own_read(NAME, description=_DESCRIPTION, takes=_SCHEMA, resource=resource, timeout_s=_TIMEOUT_S)


def program_reader(code: CodeTool, pad: Scratchpad) -> Reader:
    """Return what runs a program of the arguments over results of one owner."""

    async def read(owner: PadOwner, arguments: Mapping[str, object], *, tokens_max: int | None = None) -> PadReading:
        program, inputs = arguments["program"], arguments.get("inputs", {})
        assert isinstance(program, str), "checked by the schema"
        assert isinstance(inputs, dict), "checked by the schema"
        try:
            given = await _read_inputs(pad, owner, inputs)
            found = await code.run(program, inputs=given)
        except RefusedError as error:
            return PadReading(kind=OutcomeKind.DENIED, detail=_said(error))
        except (UsageError, BoundExceededError) as error:
            return PadReading(kind=OutcomeKind.TOOL_ERROR, detail=_said(error))
        except WorldError as error:
            return PadReading(kind=OutcomeKind.TRANSPORT_ERROR, detail=_said(error))
        told_max_bytes = (tokens_max or pad.limits.reading_tokens) * TOKEN_BYTES
        return _told(found.result, found.printed, bytes_max=told_max_bytes)

    return read


async def _read_inputs(pad: Scratchpad, owner: PadOwner, inputs: Mapping[str, object]) -> dict[str, str]:
    """Read what handles stand for, one after the other: all of them together stay within one bound."""
    given: dict[str, str] = {}
    left_bytes = _INPUTS_MAX_BYTES
    for name, value in inputs.items():
        if isinstance(value, str) and is_handle(value):
            given[name] = await pad.whole(owner, value, bytes_max=left_bytes)
        else:
            given[name] = json.dumps(value, ensure_ascii=False)
        left_bytes = max(0, left_bytes - len(given[name].encode("utf-8", "replace")))
    return given


def _told(result: str, printed: str, *, bytes_max: int) -> PadReading:
    """Say what a program came to, whole or not at all: half of a result would be taken for the whole."""
    if result == "null" and not printed:
        detail = "the program set no `result` and printed nothing"
        return PadReading(kind=OutcomeKind.EMPTY, detail=detail)
    content = json.dumps({"printed": printed, "result": json.loads(result)}, ensure_ascii=False, separators=(",", ":"))
    content = content.encode("utf-8", "replace").decode("utf-8")
    size_bytes = len(content.encode())
    if size_bytes > bytes_max:
        detail = f"the program told {size_bytes:,} bytes, and {bytes_max:,} are the most; set and print a summary"
        return PadReading(kind=OutcomeKind.TOOL_ERROR, detail=detail)
    return PadReading(kind=OutcomeKind.OK, content=content, is_json=True)


def _said(error: RefusedError | UsageError | BoundExceededError | WorldError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)
