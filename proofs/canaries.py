"""Secrets that we hold or are told, looked for in everything that a process leaves behind."""

from __future__ import annotations

import base64
import json
import random
import sqlite3
import string
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa
from tests._postgres import fresh_database, running_postgres

from proofs._proof import Promise, Result, Scale
from proofs._secrets_commands import speak
from proofs._secrets_driver import Task

ROUNDS: dict[Scale, int] = {"ci": 1, "full": 6}
"""Rounds per database, each with secrets of its own."""
_LETTERS = string.ascii_letters + string.digits
_ODD = "/+=&%\"'\\ <>?#:@!$ü|"
_TIMEOUT_S = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """The secrets of one round, by where they come from."""

    held: Mapping[str, str]
    """In the settings or the environment: found in every encoding."""
    told: Mapping[str, str]
    """Known to nobody before a tool tells them: found as they stand, by how they look."""
    environment: Mapping[str, str]
    """The variables in which some of the held ones lie."""
    echoes: tuple[str, ...]
    """Texts that hold them, for tools and models to say."""


def draw(seed: int) -> Canaries:
    """Draw secrets: of plain letters, and with everything that encodings change."""
    chance = random.Random(seed)

    def plain(many: int) -> str:
        return "".join(chance.choices(_LETTERS, k=many))

    def odd() -> str:
        return plain(6) + "".join(chance.sample(_ODD, 5)) + plain(9)

    held = {
        "settings: password": odd(),
        "settings: header": f"Basic-{plain(24)}",
        "settings: server's environment": plain(20),
        "settings: password in the URL of the journal": plain(22),
        "environment: token": odd(),
        "environment: key": plain(32),
        "environment: password in a URL": plain(18),
    }
    environment = {
        "PAGER_TOKEN": held["environment: token"],
        "CLOUD_SECRET_ACCESS_KEY": held["environment: key"],
        "SHOP_DATABASE_URL": f"postgresql://app:{held['environment: password in a URL']}@db.internal/shop",
    }
    told = {
        "forge token": "ghp_" + plain(36),
        "cloud key": "AKIA" + "".join(chance.choices(string.ascii_uppercase + "234567", k=16)),
        "web token": f"eyJ{plain(30)}.{plain(60)}.{plain(43)}",
        "log password": plain(16) + "7a",
        "bearer": plain(34),
    }
    spoken = [
        f"remote: {told['forge token']} used by {told['cloud key']}",
        f"cookie {told['web token']} and password={told['log password']} tried",
        f"> GET / Authorization: Bearer {told['bearer']}",
    ]
    by_secret = [" ".join(f"<{form}>" for form in forms(secret)) for secret in held.values()]
    return Canaries(held=held, told=told, environment=environment, echoes=(*by_secret, *spoken))


def forms(secret: str) -> Iterator[str]:
    """Write a secret as tools, logs and browsers do."""
    raw = secret.encode()
    yield secret
    yield json.dumps(secret)[1:-1]
    yield raw.hex()
    yield raw.hex().upper()
    yield urllib.parse.quote(secret, safe="")
    yield urllib.parse.quote_plus(secret)
    yield "".join(f"%{byte:02X}" for byte in raw)
    for shift in range(3):
        # The whole of it, with neighbours on both sides: what is looked for below is the part that is only its own.
        yield base64.b64encode(b"x" * shift + raw + b"yz").decode()
        yield base64.urlsafe_b64encode(b"x" * shift + raw + b"yz").decode()


def traces(secret: str) -> set[bytes]:
    """Return what betrays a secret: plain, base64 at three alignments, URL and hex."""
    raw = secret.encode()
    found = {raw, raw.hex().encode(), raw.hex().upper().encode()}
    found |= {json.dumps(secret)[1:-1].encode(), json.dumps(secret, ensure_ascii=False)[1:-1].encode()}
    found |= {urllib.parse.quote(secret, safe=kept).encode() for kept in ("", "/")}
    found |= {urllib.parse.quote_plus(secret).encode(), "".join(f"%{byte:02X}" for byte in raw).encode()}
    for shift in range(3):
        # Whole groups of three bytes that lie inside of the secret.
        first = (3 - shift) % 3
        inside = raw[first : first + (len(raw) - first) // 3 * 3]
        found |= {base64.b64encode(inside), base64.urlsafe_b64encode(inside)}
    return {trace for trace in found if len(trace) >= 8}


def places(root: Path) -> Iterator[tuple[str, bytes]]:
    """Give every file below a directory, names included."""
    for path in sorted(root.rglob("*")):
        yield f"the name of {path.name}", str(path.relative_to(root)).encode("utf-8", "surrogateescape")
        if path.is_file():
            yield str(path.relative_to(root)), path.read_bytes()


def rows_of(url: str, *, state_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Give every table of the journal as its rows say it: pages of a file may tear a text in two."""
    if url:
        engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
        try:
            with engine.connect() as connection:
                tables = connection.execute(
                    sa.text("SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT LIKE 'pg_%'")
                ).all()
                for schema, table in tables:
                    found = connection.exec_driver_sql(f'SELECT * FROM "{schema}"."{table}"').all()
                    yield f"table {table}", _written(found)
        finally:
            engine.dispose()
        return
    for path in state_dir.rglob("*"):
        if path.is_file() and path.read_bytes().startswith(b"SQLite format 3"):
            reader = sqlite3.connect(path)
            try:
                for (table,) in reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    yield f"table {table}", _written(reader.execute(f'SELECT * FROM "{table}"').fetchall())
            finally:
                reader.close()


def _written(rows: Iterable[Iterable[object]]) -> bytes:
    cells = (cell for row in rows for cell in row)
    return b"\n".join(cell if isinstance(cell, bytes) else str(cell).encode("utf-8", "replace") for cell in cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one process did, and what it left where it should not."""

    deeds: int
    places: int
    leaks: tuple[str, ...]
    """What was found in which place."""


def drive(seed: int, *, server_url: str = "", mutant: str = "") -> Round:
    """Let one process do everything with secrets of its own, and look for them in all that it left."""
    canaries = draw(seed)
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quell-secrets-")))
        state_dir, out_dir = base / "state", base / "out"
        for directory in (state_dir, out_dir):
            directory.mkdir()
        bare = stack.enter_context(fresh_database(server_url)) if server_url else ""
        task = Task(
            state_dir=str(state_dir),
            out_dir=str(out_dir),
            url=_with_password(bare, canaries.held["settings: password in the URL of the journal"]) if bare else "",
            password=canaries.held["settings: password"],
            header=canaries.held["settings: header"],
            server_env=canaries.held["settings: server's environment"],
            echoes=canaries.echoes,
            held=len(canaries.held),
            mutant=mutant,
        )
        ended = _run(task, environment=canaries.environment)
        # A journal in a file has no password in its URL, and so nobody holds that one then.
        held = {
            name: secret for name, secret in canaries.held.items() if server_url or not name.endswith("of the journal")
        }
        seen = [("stdout", ended.stdout), ("stderr", ended.stderr), *places(base), *rows_of(bare, state_dir=state_dir)]
        leaks = [*_leaks(held, seen), *_leaks(canaries.told, seen, is_plain=True)]
        if ended.returncode != 0:
            leaks.append(f"the process failed: {ended.stderr[-2000:].decode(errors='replace')}")
            return Round(deeds=0, places=len(seen), leaks=tuple(leaks))
        told = json.loads(ended.stdout.splitlines()[-1])
        return Round(deeds=told["deeds"], places=len(seen), leaks=tuple(leaks))


def command(seed: int) -> Round:
    """Let real commands and a real server speak, and look for the secrets of their file and their environment."""
    canaries = draw(seed)
    with tempfile.TemporaryDirectory(prefix="quell-secrets-") as directory:
        base = Path(directory)
        said = list(speak(base, secrets=canaries.held, environment=canaries.environment))
        seen = [*said, *places(base / "state"), *rows_of("", state_dir=base / "state")]
        held = {name: secret for name, secret in canaries.held.items() if not name.endswith("of the journal")}
        return Round(deeds=len(said), places=len(seen), leaks=tuple(_leaks(held, seen)))


def _run(task: Task, *, environment: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    here = Path(__file__).parents[1]
    paths = {"PYTHONPATH": f"{here / 'src'}:{here}", "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": task.state_dir}
    return subprocess.run(
        [sys.executable, "-m", "proofs._secrets_driver"],
        input=json.dumps(asdict(task)).encode(),
        capture_output=True,
        cwd=here,
        env={**paths, **environment},
        check=False,
        timeout=_TIMEOUT_S,
    )


def _with_password(url: str, password: str) -> str:
    parsed = sa.make_url(url)
    return parsed.set(password=password).render_as_string(hide_password=False)


def _leaks(secrets: Mapping[str, str], seen: list[tuple[str, bytes]], *, is_plain: bool = False) -> Iterator[str]:
    for name, secret in secrets.items():
        looked_for = {secret.encode()} if is_plain else traces(secret)
        for place, content in seen:
            for trace in looked_for:
                at = content.find(trace)
                if at >= 0:
                    yield f"{name} in {place}: …{_around(content, at, len(trace))}…"
                    break


def _around(content: bytes, at: int, length: int) -> str:
    """Quote where it stood; these secrets are nobody's."""
    return content[max(at - 60, 0) : at + length + 20].decode("utf-8", "replace")


def keep_in(scale: Scale, seed: int) -> Result:
    """Drive rounds on both databases, and as many of real commands."""
    chance = random.Random(seed)
    rounds = [drive(chance.randrange(2**32)) for _ in range(ROUNDS[scale])]
    with running_postgres() as server_url:
        rounds += [drive(chance.randrange(2**32), server_url=server_url) for _ in range(ROUNDS[scale])]
    rounds += [command(chance.randrange(2**32)) for _ in range(ROUNDS[scale])]
    leaks = [leak for one in rounds for leak in one.leaks]
    held, told = len(draw(0).held), len(draw(0).told)
    return Result(
        cases=sum(one.deeds for one in rounds),
        violations=len(leaks),
        is_exhaustive=False,
        note=f"things said or written; {held} held and {told} told secrets per round looked for in"
        f" {sum(one.places for one in rounds)} files, tables and streams",
        failures=tuple(leaks[:5]),
    )


PROMISES = (
    Promise(
        name="secrets-never-leave",
        promise="What Quell holds as a secret is in nothing that it writes, shows or sends, however it is encoded.",
        try_it=keep_in,
    ),
)
