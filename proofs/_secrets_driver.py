"""One process that holds secrets and is made to repeat them in every way it has: reads, effects, refusals, approvals, runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import TypeAdapter

from quell import telemetry
from quell.app import Authority, open_authority
from quell.audit import Redactor
from quell.config import Secret, Settings
from quell.domain import (
    ApprovalStatus,
    CallRequest,
    Fence,
    OutcomeKind,
    Parked,
    Principal,
    QuellError,
    Recovery,
    ResourceRule,
    StepError,
    Tool,
    ToolCall,
    ToolCaller,
    ToolClass,
    ToolOutcome,
)
from quell.governance import Approvals
from quell.runs import Done, Next, RunContext, Runs, system_clock
from quell.tools import LocalHand

_LARGE = 4_000
"""Repetitions of a line that make a result too large to be given whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the parent wants: where, with which secrets in the settings, and what the world answers."""

    state_dir: str
    out_dir: str
    """What leaves the process goes here, a file each."""
    url: str
    password: str
    header: str
    server_env: str
    held: int
    """How many of the echoes hold what the process holds; the rest is known to nobody before it is told."""
    echoes: tuple[str, ...]
    """Texts in which the secrets stand: every tool result, error, argument and word of this process is made of them."""
    mutant: str = ""


@contextmanager
def broken(mutant: str) -> Iterator[None]:
    """Switch one net off, as the tests of the proof want it."""
    same: Callable[..., Any] = lambda _self, value: value  # noqa: E731 - one line for three methods
    flaws: dict[str, list[Any]] = {
        "": [],
        "redactor off": [patch.object(Redactor, name, same) for name in ("text", "value", "raw")],
        "rules off": [patch("quell.audit._redact.spans_by_rule", lambda _data: [])],
        "only plain forms": [patch("quell.audit._redact.forms_of", lambda secret: frozenset({secret.encode()}))],
        "log unclean": [patch("quell.telemetry._text.Redactor.text", same)],
    }
    for flaw in flaws[mutant]:
        flaw.start()
    yield


@dataclass(slots=True)
class World:
    """Tools that answer with what they should not know."""

    echoes: tuple[str, ...]
    number: int = 0
    told: list[str] = field(default_factory=list)

    async def use(self, request: CallRequest, _key: str) -> ToolOutcome:
        echo = self.echoes[self.number % len(self.echoes)]
        self.number += 1
        call = request.call
        plain = ToolOutcome(call=call.id, tool=call.tool, kind=OutcomeKind.OK, content=echo, size_bytes=len(echo))
        match json.loads(call.arguments)["service"]:
            case "fails":
                return replace(plain, kind=OutcomeKind.TOOL_ERROR, content="", detail=f"it said: {echo}")
            case "raises":
                raise ConnectionError(f"cannot reach {echo}")
            case "is-json":
                content = json.dumps({"nested": {"value": [echo, {echo: "as a key"}]}, "inner": json.dumps([echo])})
                return replace(plain, content=content, is_json=True, size_bytes=len(content))
            case "is-large":
                content = f"line of a log\n{echo}\n" * _LARGE
                return replace(plain, content=content, size_bytes=len(content))
        return plain


def tools() -> list[Tool]:
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"service": {"type": "string"}, "note": {"type": "string"}},
            "required": ["service"],
            "additionalProperties": False,
        }
    )
    look = Tool(
        name="logs_search",
        server="metrics",
        original="logs_search",
        description="a look",
        input_schema=schema,
        tool_class=ToolClass.READ,
        recovery=Recovery.NATURAL,
        resource=ResourceRule(name="/service"),
        result_max_bytes=8_000_000,
        pin="sha256:look",
    )
    fetch = replace(look, name="fetch", original="fetch", tool_class=ToolClass.EGRESS, pin="sha256:fetch")
    scale = replace(
        look,
        name="scale",
        original="scale",
        tool_class=ToolClass.REVERSIBLE,
        recovery=Recovery.KEYED,
        revert="scale",
        pin="sha256:scale",
    )
    return [look, fetch, scale]


@dataclass(slots=True, kw_only=True)
class Drive:
    """Everything this process does, and what of it leaves."""

    task: Task
    runs: Runs
    authority: Authority
    run: str = ""
    fence: Fence | None = None
    calls: int = 0
    deeds: int = 0

    def leave(self, name: str, told: object) -> None:
        """Write down what a model, a person or a service gets to see."""
        self.deeds += 1
        text = told if isinstance(told, str) else repr(told)
        with (Path(self.task.out_dir) / name).open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text + "\n")

    async def call(self, tool: str, *, service: str = "web", **told: Any) -> ToolOutcome | Parked:
        """Call a tool; what comes back goes to the model."""
        self.calls += 1
        arguments = told.pop("arguments", None) or json.dumps({"service": service, **told.pop("more", {})})
        wanted = ToolCall(id=told.pop("id", f"call-{self.calls}"), tool=tool, arguments=arguments)
        principal = Principal(user="ann", roles=("operator",), agent="sre", agent_tools=("*",))
        caller = ToolCaller(principal=principal, run=self.run, fence=self.fence)
        ended = await self.authority.toolbox.call(wanted, caller=caller, **told)
        self.leave("model.txt", ended)
        return ended

    async def approved(self, service: str, **told: Any) -> ToolOutcome | Parked:
        """Want an effect, show the question to people and services, have it approved, and do it."""
        self.calls += 1
        asked = await self.call("scale", service=service, id=f"effect-{self.calls}", **told)
        if not isinstance(asked, Parked):
            return asked
        self.decide(asked, "approve", "looks good")
        return await self.call("scale", service=service, id=asked.call, **told)

    def decide(self, asked: Parked, verdict: Any, reason: str) -> None:
        approvals, by = self.authority.guard.approvals, Principal(user="bob", roles=("approver",))
        with self.runs.database.writing() as connection:
            approval = approvals.find(connection, asked.approval, tenant="local")
            assert approval is not None
            for form in ("text", "json", "markdown"):
                self.leave("question.txt", approvals.show(approval, form=form))
            hook = Approvals.webhook("https://example.test/hook", secret=Secret("k" * 40))
            at = system_clock()
            for message in (hook.request(approval, request_id="r1", at=at), hook.slack(approval, link="", at=at)):
                self.leave("webhook.txt", message.body.decode())
            done = approvals.decide(
                connection, asked.approval, by=by, verdict=verdict, digest_seen=asked.digest, reason=reason
            )
        self.leave("answer.txt", done)


async def drive_tools(drive: Drive) -> None:
    """Let tools repeat secrets in results and errors, of reads and of effects."""
    for kind in ("plain", "is-json", "fails", "raises", "is-large"):
        for _ in drive.task.echoes if kind != "is-large" else drive.task.echoes[:3]:
            await _outlived(drive.call("logs_search", service=kind))
    for kind in ("plain", "is-json", "fails", "raises"):
        # As many as the copilot's caps let through in an hour.
        for _ in drive.task.echoes[:2]:
            await _outlived(drive.approved(kind))
    pads = [line for line in _lines(drive, "model.txt") if "handle='" in line]
    handles = {line.partition("handle='")[2].partition("'")[0] for line in pads} - {""}
    for handle in handles:
        for tool, more in (("scratchpad_head", {}), ("scratchpad_grep", {"pattern": "line|[A-Za-z]{8}"})):
            await _outlived(drive.call(tool, arguments=json.dumps({"handle": handle, **more})))


async def drive_words(drive: Drive) -> None:
    """Let a model repeat secrets in everything that it words: names, ids, arguments, reasons, plans."""
    for echo in drive.task.echoes[: drive.task.held]:
        await _outlived(drive.call(echo))
        await _outlived(drive.call("logs_search", id=echo[:60]))
        await _outlived(drive.call("logs_search", more={"note": echo}))
        await _outlived(drive.call("logs_search", arguments=json.dumps({"service": 1, echo: echo})))
        await _outlived(drive.call("logs_search", arguments=echo))
        await _outlived(drive.call("fetch", more={"note": echo}))
        await _outlived(
            drive.call("scale", explanation=f"I do it because {echo}", diff=f"-a\n+{echo}", facts=(("owner", echo),))
        )
        plan = json.dumps([{"tool": "scale", "arguments": {"service": "web", "note": echo}}])
        await _outlived(drive.call("scale", more={"note": f"x {echo}"}, revert=plan))
    asked = await drive.call("scale", service="rejected", explanation=drive.task.echoes[0])
    if isinstance(asked, Parked):
        drive.decide(asked, "reject", f"never with {drive.task.echoes[0]}")
        await drive.call("scale", service="rejected", id=asked.call, explanation=drive.task.echoes[0])
    with drive.runs.database.reading() as connection:
        listed = drive.authority.guard.approvals.listed(connection, tenant="local")
        drive.leave("list.json", [a for a in listed if a.status is ApprovalStatus.REQUESTED])
        for one in listed:
            drive.leave("question.txt", drive.authority.guard.approvals.show(one, form="text"))


async def drive_logs(drive: Drive) -> None:
    """Let libraries log secrets, and spans and metrics carry them."""
    for echo in drive.task.echoes:
        logging.getLogger("a.library").warning("could not log in with %s", echo)
        try:
            raise ConnectionError(f"dsn={echo}")  # noqa: TRY301 - the traceback is what this is about
        except ConnectionError:
            logging.getLogger("a.library").exception("it broke")
        with suppress(ConnectionError), telemetry.span("execute_tool", {"gen_ai.tool.name": echo}) as span:
            span.put("quell.run", echo)
            raise ConnectionError(f"in a span: {echo}")
        telemetry.count("quell.tool.calls", outcome="ok", tool=echo)
        drive.deeds += 4


async def drive_run(drive: Drive) -> None:
    """Let a durable run keep what tools said, and fail of what the world said."""

    async def heal(context: RunContext) -> Next:
        drive.run, drive.fence = context.run.id, context.fence
        await drive_tools(drive)
        await drive_words(drive)
        echo = drive.task.echoes[0]

        async def look() -> str:
            seen = await drive.call("logs_search")
            return seen.content if isinstance(seen, ToolOutcome) else ""

        async def break_down() -> str:
            raise ConnectionError(f"no route to {echo}")

        kept = await context.step("look", look, returns=str, timeout_s=30)
        with suppress(StepError):
            await context.step("break", break_down, returns=str, timeout_s=5, attempts=2)
        await context.emit("run.noted", key="said", said=kept)
        if context.arguments["ends"] == "badly":
            raise ConnectionError(f"the whole run broke on {echo}")
        return Done(result={"told": kept})

    drive.runs.register("heal", heal)
    await drive.runs.launch()
    for ends in ("well", "badly"):
        run = await drive.runs.start("heal", subject="web", arguments={"ends": ends})
        ended = await drive.runs.wait(run.id, timeout_s=120)
        drive.leave("run.json", ended)
        for event in await drive.runs.events(run=run.id, limit=10_000):
            drive.leave("run.json", asdict(event))
        for step in await drive.runs.steps(run.id):
            drive.leave("run.json", asdict(step))


def export(drive: Drive) -> None:
    """Take the audit log out, as for an auditor."""
    audit = drive.authority.guard.audit
    audit.flush()
    assert audit.verify().is_intact
    for line in audit.export():
        drive.leave("export.jsonl", line)
    for record in audit.records():
        drive.leave("audit.txt", record)


async def drive_servers(drive: Drive) -> None:
    """Ask servers for tools that cannot be reached with their secrets."""
    for name in drive.authority.settings.mcp.servers:
        try:
            drive.leave("servers.txt", await drive.authority.servers.offers(name))
        except QuellError as error:
            drive.leave("servers.txt", f"{error} {error.hint}")
    drive.leave("servers.txt", drive.authority.servers.status())


async def _outlived(call: Awaitable[object]) -> None:
    """Go on whatever a call raises; what it says is for the caller's own log."""
    try:
        await call
    except Exception as error:  # noqa: BLE001 - nothing that a tool raises may end the drive
        logging.getLogger("a.caller").warning("a call raised %s", type(error).__name__)


def _lines(drive: Drive, name: str) -> list[str]:
    path = Path(drive.task.out_dir) / name
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def settings_of(task: Task) -> Settings:
    """Say what an operator would have written."""
    servers = {
        "away": {
            "transport": "http_streamable",
            "url": "http://127.0.0.1:9/mcp",
            "headers": {"authorization": task.header},
            "connect_timeout_s": 1.0,
        },
        "broken": {
            "transport": "stdio",
            "cmd": ["/bin/sh", "-c", 'echo "starting with $TOKEN" >&2; exit 3'],
            "env": {"TOKEN": task.server_env},
            "sandbox": "off",
            "connect_timeout_s": 2.0,
        },
    }
    written = {
        "state_dir": task.state_dir,
        "journal": {"url": task.url, "lease_s": 5.0},
        "store": {"password": task.password},
        "mcp": {"servers": servers},
        "telemetry": {"level": "debug"},
    }
    return TypeAdapter(Settings).validate_python(written, strict=False)


@asynccontextmanager
async def opened(task: Task) -> Any:
    """Open what a serving process opens."""
    out = Path(task.out_dir)
    settings = settings_of(task)
    redactor = Redactor.of(settings, environment=os.environ)
    told = telemetry.open_telemetry(
        settings,
        role="serve",
        service_version="1",
        instance="drive",
        clock=system_clock,
        env=os.environ,
        clean=redactor.text,
    )

    async def keep(signal: str, body: bytes) -> None:
        with (out / f"otlp-{signal}.bin").open("ab") as file:
            file.write(body)

    told.attach(keep)
    runs = await Runs.open(
        settings.journal,
        state_dir=settings.state_dir,
        clock=system_clock,
        entropy=os.urandom,
        version="v1",
        clean=redactor.text,
    )
    world = World(echoes=task.echoes)
    authority = await open_authority(
        runs,
        settings,
        clock=system_clock,
        entropy=os.urandom,
        env=os.environ,
        builtin=[(tool, LocalHand(tool.name, world.use)) for tool in tools()],
    )
    try:
        yield Drive(task=task, runs=runs, authority=authority)
    finally:
        await authority.close()
        await runs.close()
        await told.close()


async def play(task: Task) -> None:
    """Do everything once, and print how much that was."""
    with broken(task.mutant):
        async with opened(task) as drive:
            await drive_logs(drive)
            await drive_servers(drive)
            await drive_run(drive)
            await asyncio.to_thread(export, drive)
            print(json.dumps({"deeds": drive.deeds, "calls": drive.calls}))


def main() -> None:
    """Read the task from standard input."""
    wanted = json.load(sys.stdin)
    asyncio.run(play(Task(**{**wanted, "echoes": tuple(wanted["echoes"])})))


if __name__ == "__main__":
    main()
