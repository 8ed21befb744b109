"""The command line in this process, on a real state directory that is filled through the real path."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quell.app import Authority, open_authority
from quell.cli import main
from quell.config import load
from quell.domain import (
    AutonomyScope,
    Fence,
    Parked,
    Principal,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
    Trial,
    TrialOutcome,
    TrialSource,
)
from quell.runs import Done, Next, RunContext, Runs, system_clock
from tests import _canaries
from tests._tool_server import DEFINITIONS

SERVER = Path(__file__).parents[1] / "_tool_server.py"
SECRET = f"hunter2-{_canaries.IN_SETTINGS}"
AGENT = Principal(
    user="ann",
    roles=("operator",),
    agent="sre",
    agent_tools=("*",),
    workflow="heal",
    workflow_digest="w1",
    workflow_tools=("*",),
)
SETTINGS = """
[identity]
api_keys = true

[governance]
anchor_file = "anchor.jsonl"

[mcp.servers.small]
transport = "stdio"
cmd = [{python}, {server}, "tools.json"]
sandbox = "off"
env = {{ TOKEN = {secret} }}

[[tool]]
server = "small"
name = "logs"
effect = "read"
recovery = "natural"
resource = "/service"

[[tool]]
server = "small"
name = "restart"
effect = "reversible"
recovery = "natural"
resource = "/service"
revert = "restart"

[[tool]]
server = "small"
name = "drop_lost"
effect = "irreversible"
recovery = "blind"
resource = "/service"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        read = json.loads(self.out)
        assert isinstance(read, dict)
        return read

    @property
    def error(self) -> dict[str, Any]:
        read = json.loads(self.err.strip().splitlines()[-1])["error"]
        assert isinstance(read, dict)
        assert read["exit"] == self.code
        return read


@dataclass(slots=True, kw_only=True)
class Desk:
    """A person at a terminal in one directory."""

    at: Path
    ids: dict[str, str] = field(default_factory=dict)
    fence: Fence | None = None

    def copied(self, to: Path) -> Desk:
        """Return the same state in another directory."""
        shutil.copytree(self.at, to, dirs_exist_ok=True)
        return Desk(at=to, ids=dict(self.ids), fence=self.fence)

    def quell(self, *arguments: str, env: Mapping[str, str] | None = None) -> Told:
        out, err = io.StringIO(), io.StringIO()
        kept = dict(os.environ)
        for name in [name for name in os.environ if name.startswith(("QUELL_", "XDG_", "NO_COLOR", "FORCE_COLOR"))]:
            del os.environ[name]
        os.environ |= {"HOME": str(self.at), **(env or {})}
        try:
            with chdir(self.at), _signals_kept(), redirect_stdout(out), redirect_stderr(err):
                main(list(arguments))
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(kept)
        _canaries.SEARCH.text(f"what `quell {' '.join(arguments)}` said", out.getvalue() + err.getvalue())
        return Told(code=code, out=out.getvalue(), err=err.getvalue())

    def done(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run a command that has to end well, and return its stdout."""
        told = self.quell(*arguments, env=env)
        assert told.code == 0, told
        return told.out

    def key(self, user: str, *roles: str) -> dict[str, str]:
        """Make a key for another person, and return what makes a command theirs."""
        flags = [flag for role in roles for flag in ("--role", role)]
        return {"QUELL_API_KEY": self.done("key", "new", user, *flags).strip()}

    def offer(self, definitions: list[dict[str, Any]] = DEFINITIONS) -> None:
        """Write down what the tool server offers."""
        (self.at / "tools.json").write_text(json.dumps(definitions))

    def configure(self) -> None:
        """Write a quell.toml with a tool server and keys."""
        self.offer()
        text = SETTINGS.format(
            python=json.dumps(sys.executable), server=json.dumps(str(SERVER)), secret=json.dumps(SECRET)
        )
        (self.at / "quell.toml").write_text(text)

    def pin_all(self) -> None:
        """Pin every tool of the server."""
        for each in DEFINITIONS:
            self.done("tool", "pin", "small", each["name"], "--yes")

    def fill(self) -> None:
        """Let an agent read, be parked, be refused, and lose sight of an effect."""
        self.configure()
        self.pin_all()
        with chdir(self.at):
            asyncio.run(self._with_authority(self._work))

    def call(self, name: str, tool: str, **arguments: object) -> ToolOutcome | Parked:
        """Let the agent call a tool, in the run that is held."""
        came: list[ToolOutcome | Parked] = []

        async def use(_runs: Runs, authority: Authority) -> None:
            caller = ToolCaller(principal=AGENT, run=self.ids["run"], fence=self.fence)
            wanted = ToolCall(id=name, tool=tool, arguments=json.dumps(arguments))
            came.append(await authority.toolbox.call(wanted, caller=caller))

        with chdir(self.at):
            asyncio.run(self._with_authority(use))
        return came[0]

    async def _with_authority(self, work: Callable[[Runs, Authority], Awaitable[None]]) -> None:
        settings = load(None, env={"HOME": str(self.at)}, overrides={}).settings
        runs = await Runs.open(
            settings.journal, state_dir=settings.state_dir, clock=system_clock, entropy=os.urandom, version="v1"
        )
        runs.register("heal", _nothing)
        try:
            authority = await open_authority(runs, settings, clock=system_clock, entropy=os.urandom, env={})
            try:
                await work(runs, authority)
            finally:
                await authority.close()
        finally:
            await runs.close()

    async def _work(self, runs: Runs, authority: Authority) -> None:
        run = (await runs.start("heal", subject="web", arguments={})).id
        with runs.database.writing() as connection:
            connection.run("UPDATE quell_runs SET status = 'running', token = 't' WHERE id = :run", run=run)
            row = connection.one("SELECT dispatch FROM quell_runs WHERE id = :run", run=run)
        self.fence = Fence(run=run, dispatch=row.dispatch, token="t")
        caller = ToolCaller(principal=AGENT, run=run, fence=self.fence)

        async def call(name: str, tool: str, **arguments: object) -> ToolOutcome | Parked:
            wanted = ToolCall(id=name, tool=tool, arguments=json.dumps(arguments))
            return await authority.toolbox.call(wanted, caller=caller)

        self.ids["run"] = run
        await call("c1", "logs", service="web", query="error")
        await call("c2", "logs", service="web", query="with ghp_0123456789abcdefghijABCDEFGHIJ012345 in it")
        await call("c3", "no_such_tool", service="web")
        one = await call("c4", "restart", service="web")
        two = await call("c5", "drop_lost", service="pay", volume="v1\u202e\u0430")
        lost = await call("c6", "drop_lost", service="api", volume="v2")
        assert isinstance(one, Parked)
        assert isinstance(two, Parked)
        assert isinstance(lost, Parked)
        self.ids |= {"restart": one.approval, "drop": two.approval}
        self.ids |= {"restart_digest": one.digest, "drop_digest": two.digest}
        with runs.database.writing() as connection:
            for user in ("bob", "eve"):
                authority.guard.approvals.decide(
                    connection,
                    lost.approval,
                    by=Principal(user=user, roles=("approver",)),
                    verdict="approve",
                    digest_seen=lost.digest,
                )
        ended = await call("c6", "drop_lost", service="api", volume="v2")
        assert isinstance(ended, ToolOutcome)
        self.ids["effect"] = _effect(authority, run)
        await call("c7", "logs", service="api", query="x" * 3000)
        self._try(authority)

    def _try(self, authority: Authority) -> None:
        """Let the workflow be right often enough for the next level."""
        scope = AutonomyScope(workflow_digest="w1", action_class=ToolClass.REVERSIBLE, environment="production")
        with authority.runs.database.writing() as connection:
            for number in range(60):
                trial = Trial(ref=f"t{number}", outcome=TrialOutcome.VERIFIED_OK, source=TrialSource.LIVE)
                by = Principal(user="bob", roles=("operator",))
                authority.guard.autonomy.record(connection, scope, trial, agreed_by=by)


def _effect(authority: Authority, run: str) -> str:
    with authority.runs.database.reading() as connection:
        (effect,) = authority.guard.ledger.entries(connection, run=run)
    return effect.key


async def _nothing(_context: RunContext) -> Next:
    return Done(result={})


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Give the test runner its signal handlers back: `main` sets those of a whole process."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
