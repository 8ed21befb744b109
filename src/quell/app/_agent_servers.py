"""The servers and tools of agent files: what joins the deployment, and what each agent is offered of it."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from quell.config import AgentMcpServer, AgentSettings, McpServerSettings, Settings, WorkerSettings
from quell.domain import ASK_PEOPLE, SpillRule, SpillTable, Tool, is_transport_header, matches_glob

FILE_TOOLS = ("read_file", "list_dir")
_SKILL_TOOLS = ("load_skill", "read_skill_file")
_LIBRARY, _STORE = "search_documents", "vector_search_"
_SENSE, _RESULT = "Production", "Result"
"""On what our own tools act: what goes on in production, results that were put aside."""
_ROUTE_S: Mapping[str, float] = {"conversational": 60.0, "webhook": 300.0}
_NAME_MAX = 32
_MARK_CHARS = 6
_FOREIGN = re.compile(r"[^a-z0-9]+")


def merged(
    settings: Settings, agents: Sequence[AgentSettings], *, kept: Mapping[str, McpServerSettings] | None = None
) -> tuple[Settings, Mapping[str, Mapping[str, str]]]:
    """Return settings that have the servers of agent files too, and per agent: name in its file -> name there.

    An agent whose file names none has those of the deployment, never those of another agent's file. The same server
    under the same name is there once. What several files say of who pins and what reads, counts only as
    far as all of them say it; where the deployment itself names the server, its word alone counts. `kept` are servers
    that runs still call by these names: they stay, and another server has another name beside them. Whichever has
    another name than its file gave it stands for the one of that name.
    """
    servers = {**(kept or {}), **settings.mcp.servers}
    said: set[str] = set()
    names: dict[str, dict[str, str]] = {}
    for agent in agents:
        own = names.setdefault(agent.id, {} if agent.mcp.servers else {name: name for name in settings.mcp.servers})
        for name, server in agent.mcp.servers.items():
            wanted = _settings_of(name, server, agent, state_dir=settings.state_dir)
            own[name] = taken = _name_for(name, wanted, agent=agent.id, servers=servers)
            given = _clean(name, mark=_mark_of(name, agent.id))
            wanted = replace(wanted, stands_for=given if given != taken else "")
            if taken not in settings.mcp.servers:
                servers[taken] = _strictest(servers[taken], wanted) if taken in said else wanted
                said.add(taken)
    return replace(settings, mcp=replace(settings.mcp, servers=servers)), names


def offered(
    tools: Iterable[Tool],
    agent: AgentSettings,
    servers: Mapping[str, str],
    *,
    worker: WorkerSettings | None = None,
    set_aside: Literal["nothing", "something"] = "nothing",
) -> tuple[str, ...]:
    """Return the names of those tools that an agent, or one of its workers, may be offered.

    `servers` maps the names of its file to those of the settings, as `merged` gives them. Filters judge the original
    names of servers' tools. `set_aside` says whether this run has a result in the scratchpad already: then the tools
    that read it are there, whatever the file says.
    """
    own_servers = set(servers.values())
    is_coordinator = worker is None and agent.orchestration.enabled
    globs = agent.agent.mcp_filter if worker is None or worker.mcp_filter is None else worker.mcp_filter
    ours = _ours(agent, worker)
    pad = worker.scratchpad if worker is not None and worker.scratchpad is not None else agent.agent.scratchpad
    reads_results = pad.enabled or set_aside == "something"

    def may(tool: Tool) -> bool:
        if is_coordinator and (tool.server or tool.resource.kind == _SENSE):
            return False  # what is to be looked up or done, its workers do
        if tool.server:
            return tool.server in own_servers and (
                globs is None or any(matches_glob(tool.original, glob) for glob in globs)
            )
        if tool.resource.kind == _RESULT:
            return reads_results
        return tool.resource.kind == _SENSE or tool.name in ours

    return tuple(tool.name for tool in tools if may(tool))


def ask_first_of(agent: AgentSettings) -> tuple[str, ...]:
    """Return the patterns of an agent's file for `ToolCaller.ask_first`: what people approve call by call."""
    return agent.hitl.require_approval if agent.hitl is not None else ()


def people_s_of(agent: AgentSettings) -> float:
    """Return for `ToolCaller.people_s` how long people have for each call of an agent; 0: its file has no route for it."""
    route = agent.hitl.route if agent.hitl is not None else None
    if route is None:
        return 0.0
    return float(route.timeout_secs if route.timeout_secs is not None else _ROUTE_S[route.mode])


def spill_of(
    agent: AgentSettings, servers: Mapping[str, str], *, worker: WorkerSettings | None = None
) -> SpillTable | None:
    """Return for `ToolCaller.spill` when results are put aside; None where the file does not turn its scratchpad on."""
    pad = worker.scratchpad if worker is not None and worker.scratchpad is not None else agent.agent.scratchpad
    if not pad.enabled:
        return None
    rules = tuple(
        SpillRule(server=servers[name], glob=glob, min_tokens=each.min_tokens)
        for name, server in agent.mcp.servers.items()
        if name in servers
        for glob, each in server.scratchpad.items()
    )
    return SpillTable(rules=rules, reading_tokens=max(1, pad.max_extraction_tokens))


def _ours(agent: AgentSettings, worker: WorkerSettings | None) -> frozenset[str]:
    """Return the names of our own tools that a file turns on."""
    skills = worker.skills if worker is not None and worker.skills is not None else agent.agent.skills
    if worker is not None:
        stores = worker.vector_stores
    elif agent.orchestration.enabled:
        stores = agent.orchestration.coordinator_vector_stores
    else:
        stores = tuple(store.name for store in agent.vector_stores)
    return frozenset(
        (
            _LIBRARY,
            *(f"{_STORE}{name}" for name in stores),
            *(_SKILL_TOOLS if skills.local or skills.git else ()),
            *(FILE_TOOLS if agent.tools.filesystem else ()),
            *((ASK_PEOPLE,) if agent.hitl is not None else ()),
        )
    )


def _settings_of(name: str, server: AgentMcpServer, agent: AgentSettings, *, state_dir: Path) -> McpServerSettings:
    """Say a server of an agent file in the words of the settings."""
    quell, is_stdio = agent.quell, server.transport == "stdio"
    bounds = quell.servers.get(name)
    command = tuple(_from_here((*server.cmd, *server.args)))
    found = McpServerSettings(
        transport=server.transport,
        cmd=command[: len(server.cmd)] if is_stdio else (),
        args=command[len(server.cmd) :] if is_stdio else (),
        env=server.env if is_stdio else {},
        url="" if is_stdio else server.url,
        # What belongs to the transport is its own: AURA's files often say it again.
        headers={} if is_stdio else {key: each for key, each in server.headers.items() if not is_transport_header(key)},
        headers_from_request={}
        if is_stdio
        else {key: each for key, each in server.headers_from_request.items() if not is_transport_header(key)},
        network="host",
        readable=tuple(_named(command, state_dir=state_dir)) if is_stdio else (),
        pin=quell.pin,
        reads=quell.reads,
        hints=quell.hints,
    )
    if bounds is None:
        return found
    return replace(
        found,
        sandbox=bounds.sandbox,
        network=bounds.network,
        readable=(*found.readable, *bounds.readable),
        writable=bounds.writable,
        catalogue=bounds.catalogue,
        connect_timeout_s=bounds.connect_timeout_s,
        call_timeout_s=bounds.call_timeout_s,
    )


def _from_here(command: Sequence[str]) -> Iterator[str]:
    """Yield a command line with files named from the root: a confined program does not begin where Quell did."""
    for place, word in enumerate(command):
        is_file = ("/" in word or place > 0) and not word.startswith("-") and _is_there(word) and Path(word).is_file()
        yield str(Path(word).absolute()) if is_file else word


def _named(command: Sequence[str], *, state_dir: Path) -> Iterator[str]:
    """Yield what a command line names: a confined program must read it, or it could not even begin.

    A file stands for its directory, for programs load what lies beside them, unless that holds our own state or is
    somebody's whole home.
    """
    kept, home = state_dir.absolute().resolve(), Path.home()
    program = shutil.which(command[0]) if command else None
    venv = Path(program).absolute().parent.parent if program else None
    found = [venv] if venv is not None and (venv / "pyvenv.cfg").is_file() else []
    for word in command[1:]:
        if "/" not in word or not _is_there(word):
            continue
        path = Path(word).absolute()
        beside = path if path.is_dir() else path.parent
        is_wide = beside in {Path("/"), home, *home.parents} or kept.is_relative_to(beside.resolve())
        found.append(path if is_wide else beside)
    for path in dict.fromkeys(found):
        real = path.resolve()
        is_system = real == Path("/") or real.parts[1] in {"proc", "sys", "dev"}
        if not (is_system or kept.is_relative_to(real) or real.is_relative_to(kept)):
            yield str(path)


def _is_there(word: str) -> bool:
    """Tell whether a word of a command line names something; many are no paths, and too long or odd to be one."""
    try:
        return Path(word).exists()
    except (OSError, ValueError):
        return False


def _name_for(name: str, wanted: McpServerSettings, *, agent: str, servers: Mapping[str, McpServerSettings]) -> str:
    """Return the name under which a server stands: its own, or where another has that, with the agent's beside it."""
    mark = _mark_of(name, agent)
    qualified = _clean(f"{name}-{agent}", mark=mark)
    # One more than there are servers: the last of them is free.
    marks = [mark, *(_mark_of(name, agent, str(number)) for number in range(len(servers)))]
    others = (f"{qualified[: _NAME_MAX - 1 - _MARK_CHARS].rstrip('-')}-{each}" for each in marks)
    return next(
        candidate
        for candidate in (_clean(name, mark=mark), qualified, *others)
        if candidate not in servers or _definition(servers[candidate]) == _definition(wanted)
    )


def _mark_of(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_MARK_CHARS]


def _clean(name: str, *, mark: str) -> str:
    """Make a name that servers may have; `client` is that of the tools which chat clients bring."""
    clean = _FOREIGN.sub("-", name.lower()).strip("-")
    if len(clean) > _NAME_MAX:
        clean = f"{clean[: _NAME_MAX - 1 - _MARK_CHARS].rstrip('-')}-{mark}"
    return clean if clean not in {"", "client"} else f"{clean or 'server'}-{mark}"


def _definition(server: McpServerSettings) -> McpServerSettings:
    """Return what makes a server the one it is, without what is said of its tools."""
    return replace(server, pin="by_person", reads=(), hints="ignore", stands_for="")


def _strictest(one: McpServerSettings, other: McpServerSettings) -> McpServerSettings:
    return replace(
        one,
        pin="first_use" if one.pin == other.pin == "first_use" else "by_person",
        reads=tuple(glob for glob in one.reads if glob in other.reads),
        hints="believe" if one.hints == other.hints == "believe" else "ignore",
    )
