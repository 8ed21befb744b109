"""A small tool server over pipes, whose tools stand in a file that a test may change: `python _tool_server.py FILE`.

It tells everything that it was given. A tool whose name ends in `_lost` dies in the middle of a call: nobody sees how it ended.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SERVICE = {"type": "string", "enum": ["web", "api", "pay"]}


def definition(name: str, description: str, **properties: object) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"service": SERVICE, **properties},
        "required": ["service", *properties],
        "additionalProperties": False,
    }
    return {"name": name, "description": description, "inputSchema": schema}


DEFINITIONS = [
    definition("logs", "Read the log lines of a service.", query={"type": "string", "maxLength": 5000}),
    definition("restart", "Restart every unit of a service."),
    definition("drop_lost", "Drop a volume of a service.", volume={"type": "string", "maxLength": 200}),
]


def answer(message: dict[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"name": "small", "version": "1"}
    match message["method"]:
        case "initialize":
            told: dict[str, Any] = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": about,
            }
        case "tools/list":
            told = {"tools": tools}
        case "tools/call":
            if message["params"]["name"].endswith("_lost"):
                os._exit(1)
            said = {"ok": True, "environment": dict(os.environ)}
            told = {"content": [{"type": "text", "text": json.dumps(said)}]}
        case _:
            error = {"code": -32601, "message": "Method not found"}
            return {"jsonrpc": "2.0", "id": message["id"], "error": error}
    return {"jsonrpc": "2.0", "id": message["id"], "result": told}


def main(file: Path) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            sys.stdout.write(json.dumps(answer(message, json.loads(file.read_text()))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
