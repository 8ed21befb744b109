"""Real `quell` commands and a real server, with secrets in their file and their environment, asked for all they tell."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tests._quell import NOWHERE, end_of, quell, started, wait_for_line

_COMMANDS = (
    ("config", "show"),
    ("config", "check"),
    ("config", "show", "--json"),
    ("doctor",),
    ("doctor", "--json"),
    ("--debug", "brief"),
    ("--debug", "investigate", "why is it slow?"),
    ("run", "list", "--json"),
)
_PATHS = (
    "/health",
    "/api/v1/incidents",
    "/api/v1/incidents/none",
    "/api/v1/runs",
    "/api/v1/runs/none",
    "/api/v1/alerts",
    "/nowhere",
)


def speak(
    directory: Path, *, secrets: Mapping[str, str], environment: Mapping[str, str]
) -> Iterator[tuple[str, bytes]]:
    """Give all that the commands and the server say; what they write goes to `directory`/state."""
    # As a person would write it: quoted as TOML wants it.
    password, header, token = (
        json.dumps(secrets[name])
        for name in ("settings: password", "settings: header", "settings: server's environment")
    )
    good = "\n".join(
        (
            "[server]\nport = 0",
            f'[store]\nurl = "{NOWHERE}"\npassword = {password}',
            f'[[prometheus]]\nname = "away"\nurl = "{NOWHERE}"\nbearer = {header}',
            f'[mcp.servers.away]\ntransport = "http_streamable"\nurl = "{NOWHERE}/mcp"\nheaders.authorization = {token}\n',
        )
    )
    # Mistakes right beside secrets, and secrets where they do not belong: the report must say where, not what.
    bad = f"[store]\npassword = [{password}]\n[server]\nport = {token}\n[mcp.servers.away]\nheaders = {header}\n"
    home = directory / "file"
    home.mkdir(parents=True)
    env = {**environment, "QUELL_STATE_DIR": str(directory / "state")}
    for number, text in enumerate((bad, good)):
        (home / "quell.toml").write_text(text, encoding="utf-8")
        for command in _COMMANDS if number else _COMMANDS[:2]:
            told = quell(*command, cwd=home, env=env)
            yield f"`quell {' '.join(command)}`", f"{told.stdout}\n{told.stderr}".encode()
    with started("serve", cwd=home, env=env) as process:
        line = wait_for_line(process, "http://127.0.0.1:")
        yield "`quell serve`", line.encode()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, f"no address in {line!r}"
        yield from _asked(found[0], token=secrets["settings: header"])
        process.terminate()
        out, err = end_of(process)
        yield "`quell serve`", f"{out}\n{err}".encode()


def _asked(url: str, *, token: str) -> Iterator[tuple[str, bytes]]:
    """Ask a server for everything, and send it what it must refuse."""
    asked = [("GET", path, b"") for path in _PATHS]
    asked += [("POST", path, b"\xff not what it takes") for path in ("/v1/logs", "/webhooks/alertmanager", "/health")]
    for method, path, body in asked:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        try:
            connection.request(method, path, body=body, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            yield f"HTTP {method} {path}", str(answer.headers).encode() + answer.read()
        finally:
            connection.close()
