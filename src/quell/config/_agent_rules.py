"""What the types of an agent file cannot say: what must stand together, and what is allowed but unwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from quell.config._agent_settings import (
    AgentSettings,
    EmbeddingSettings,
    GitSkills,
    HitlRoute,
    LlmSettings,
    ScratchpadSettings,
    VectorStoreSettings,
)
from quell.config._toml import TomlFile
from quell.domain import Problem, is_transport_header, matches_globset

_KEYED = ("openai", "anthropic", "gemini", "openrouter")
_RESERVED_HEADERS = frozenset(
    {"content-type", "accept", "mcp-session-id", "host", "content-length", "transfer-encoding"}
)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_GIT_URL = re.compile(r"(https|ssh)://[^\s/?#]+/[^\s?#]+|file:///[^\s?#]+|[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^\s?#]+")
_GIT_NAME = re.compile(r"(?!.*(\.\.|//|@\{|\.lock(/|$)))[A-Za-z0-9_][A-Za-z0-9._/+@-]*(?<![./])")
_ROUTE_TIMEOUTS: Mapping[str, int] = {"conversational": 60, "webhook": 300}


def rules(agent: AgentSettings, file: TomlFile) -> Iterator[Problem]:
    """Yield what must not be."""

    def problem(path: str, reason: str, hint: str = "") -> Problem:
        return Problem(path=path, reason=reason, hint=hint, source=file.source(path))

    found: list[tuple[str, str, str]] = [
        *_identity(agent),
        *_llms(agent),
        *_numbers(agent),
        *_scratchpads(agent),
        *_workers(agent),
        *_servers(agent),
        *_stores(agent),
        *_people(agent.hitl.route if agent.hitl else None),
        *_patterns(agent),
        *_confinements(agent),
        *_skills(agent),
    ]
    for each in found:
        yield problem(*each)


def lint(agent: AgentSettings, file: TomlFile) -> Iterator[Problem]:
    """Yield what may be and is probably not meant."""
    timeouts, at = agent.orchestration.timeouts, "orchestration.timeouts"
    per_call, quiet = timeouts.per_call_timeout_secs, timeouts.stream_inactivity_timeout_secs
    told: list[tuple[str, str, str]] = []
    if agent.orchestration.enabled and not per_call and not quiet:
        told.append((at, "neither timeout is set", "only the run's own deadline ends a task that hangs"))
    if per_call and quiet >= per_call:
        told.append((f"{at}.stream_inactivity_timeout_secs", "is never reached: the call ends before", ""))
    route = agent.hitl.route if agent.hitl else None
    if route is not None and per_call:
        waits = route.timeout_secs if route.timeout_secs is not None else _ROUTE_TIMEOUTS[route.mode]
        if waits >= per_call:
            told.append(("hitl.route.timeout_secs", "is longer than a task may take", "raise per_call_timeout_secs"))
    told += _unasked(agent)
    told += _unused(agent)
    told += _moving(agent)
    for index, store in enumerate(agent.vector_stores):
        if store.type == "in_memory":
            hint = "`quell memory ingest DIR` fills it; in AURA it is always empty"
            told.append((f"vector_stores.{index}.type", "is empty until it is filled", hint))
    for path, reason, hint in told:
        yield Problem(path=path, reason=reason, hint=hint, source=file.source(path))


def _identity(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    if not agent.agent.name.strip():
        yield "agent.name", "must not be empty", "it is the agent's id where there is no alias"
    if any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in agent.id):
        yield "agent.alias" if agent.agent.alias else "agent.name", "must not hold control characters", ""


def _llms(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    yield from _llm(agent.agent.llm, "agent.llm")
    for name, worker in agent.orchestration.worker.items():
        if worker.llm is not None:
            yield from _llm(worker.llm, f"orchestration.worker.{name}.llm")
    for index, llm in enumerate(agent.quell.fallback):
        yield from _llm(llm, f"quell.fallback.{index}")
    if agent.quell.small is not None:
        yield from _llm(agent.quell.small, "quell.small")


def _llm(llm: LlmSettings, path: str) -> Iterator[tuple[str, str, str]]:
    if llm.provider != "builtin" and not llm.model.strip():
        yield f"{path}.model", "required and not there", "name a model of the provider"
    if llm.provider in _KEYED and not llm.api_key:
        yield f"{path}.api_key", "must not be empty", 'write api_key = "{{ env.NAME }}"'
    if llm.provider == "bedrock" and not llm.region:
        yield f"{path}.region", "required and not there", 'such as "eu-central-1"'
    if llm.base_url and not _is_url(llm.base_url):
        yield f"{path}.base_url", "must be a URL such as http://127.0.0.1:11434", ""
    for key in ("max_tokens", "context_window", "requests_per_minute", "tokens_per_minute"):
        number = getattr(llm, key)
        if number is not None and number <= 0:
            yield f"{path}.{key}", "must be more than 0", ""
    for key in ("first_token_timeout_s", "inactivity_timeout_s"):
        if not getattr(llm, key) > 0:
            yield f"{path}.{key}", "must be more than 0", ""


def _numbers(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    table, orchestration, quell = agent.agent, agent.orchestration, agent.quell
    whole: dict[str, int | None] = {
        "agent.turn_depth": table.turn_depth,
        "agent.nudge_turns_remaining": table.nudge_turns_remaining,
        "orchestration.max_planning_cycles": orchestration.max_planning_cycles,
        "orchestration.max_plan_parse_retries": orchestration.max_plan_parse_retries,
        "orchestration.timeouts.per_call_timeout_secs": orchestration.timeouts.per_call_timeout_secs,
        "orchestration.timeouts.stream_inactivity_timeout_secs": orchestration.timeouts.stream_inactivity_timeout_secs,
        "quell.budget.tokens": quell.budget.tokens,
        "quell.budget.calls": quell.budget.calls,
    }
    whole |= {f"orchestration.worker.{name}.turn_depth": each.turn_depth for name, each in orchestration.worker.items()}
    for path, number in whole.items():
        if number is not None and number < 0:
            yield path, "must not be negative", ""
    if quell.parallel_max < 1:
        yield "quell.parallel_max", "must be at least 1", ""
    if not quell.budget.minutes > 0 or (quell.budget.usd is not None and quell.budget.usd < 0):
        yield "quell.budget", "must leave something to spend", ""


def _scratchpads(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    yield from _scratchpad(agent.agent.scratchpad, agent.agent.llm, agent.runs_dir, "agent")
    for name, worker in agent.orchestration.worker.items():
        if worker.scratchpad is not None or worker.llm is not None:
            pad, llm = worker.scratchpad or agent.agent.scratchpad, worker.llm or agent.agent.llm
            yield from _scratchpad(pad, llm, agent.runs_dir, f"orchestration.worker.{name}")


def _scratchpad(pad: ScratchpadSettings, llm: LlmSettings, directory: str, path: str) -> Iterator[tuple[str, str, str]]:
    if not pad.enabled:
        return
    if not directory:
        yield f"{path}.scratchpad", "needs a directory", 'write memory_dir = "…" at the top of the file'
    if llm.context_window is None:
        yield f"{path}.llm.context_window", "is needed by the scratchpad", "how many tokens the model takes"


def _workers(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    workers, first = agent.orchestration.worker, dict[str, str]()
    stores = {store.name for store in agent.vector_stores}
    wanted = {"orchestration.coordinator_vector_stores": agent.orchestration.coordinator_vector_stores}
    for name, worker in workers.items():
        path = f"orchestration.worker.{name}"
        if not name.strip():
            yield path, "a worker needs a name", ""
        other = first.setdefault(name.casefold(), name)
        if other != name:
            yield path, f"the name is that of {other!r} but for its case", "plans name workers whatever the case"
        wanted[f"{path}.vector_stores"] = worker.vector_stores
    for path, names in wanted.items():
        for name in names:
            if name not in stores:
                hint = f"the stores are: {', '.join(sorted(stores))}" if stores else "add it under [[vector_stores]]"
                yield path, f"there is no vector store {name!r}", hint
    if agent.orchestration.enabled and not workers:
        yield "orchestration.worker", "a coordinator has no workers", "add [orchestration.worker.NAME]"
    default = agent.quell.default_worker
    if default and default.casefold() not in first:
        yield "quell.default_worker", f"there is no worker {default!r}", f"the workers are: {', '.join(workers)}"


def _servers(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    for name, server in agent.mcp.servers.items():
        path = f"mcp.servers.{name}"
        wanted = "cmd" if server.transport == "stdio" else "url"
        if not getattr(server, wanted):
            yield f"{path}.{wanted}", f"a server over {server.transport} needs `{wanted}`", ""
        if server.url and not _is_url(server.url):
            yield f"{path}.url", "must be a URL such as http://127.0.0.1:8080/mcp", ""
        for glob, each in server.scratchpad.items():
            if each.min_tokens < 0:
                yield f"{path}.scratchpad.{glob}.min_tokens", "must not be negative", ""


def _stores(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    first: dict[str, int] = {}
    for index, store in enumerate(agent.vector_stores):
        path = f"vector_stores.{index}"
        if first.setdefault(store.name, index) != index:
            yield f"{path}.name", f"the name {store.name!r} is taken", "tools are named by it"
        for key in _needed(store):
            if not getattr(store, key):
                yield f"{path}.{key}", "required and not there", f"a {store.type} store needs it"
        if store.embedding_model is not None:
            yield from _embedding(store.embedding_model, f"{path}.embedding_model")


def _needed(store: VectorStoreSettings) -> tuple[str, ...]:
    return {
        "in_memory": ("embedding_model",),
        "qdrant": ("embedding_model", "url", "collection_name"),
        "bedrock_kb": ("knowledge_base_id", "region"),
    }[store.type]


def _embedding(model: EmbeddingSettings, path: str) -> Iterator[tuple[str, str, str]]:
    if model.provider == "openai" and not model.api_key:
        yield f"{path}.api_key", "must not be empty", 'write api_key = "{{ env.NAME }}"'
    if model.provider == "bedrock" and not model.region:
        yield f"{path}.region", "required and not there", ""


def _people(route: HitlRoute | None) -> Iterator[tuple[str, str, str]]:
    if route is None:
        return
    if route.mode == "webhook" and not _is_url(route.url):
        yield "hitl.route.url", "a webhook needs a URL", "such as https://approvals.example.com/hook"
    if route.timeout_secs is not None and route.timeout_secs <= 0:
        yield "hitl.route.timeout_secs", "must be more than 0", ""
    for name in route.tool_headers_from_response:
        if name.lower() in _RESERVED_HEADERS:
            path = f"hitl.route.tool_headers_from_response.{name}"
            yield path, "is a header of the protocol itself", "choose another name"


def _patterns(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    for index, pattern in enumerate(agent.hitl.require_approval if agent.hitl else ()):
        try:
            matches_globset("", pattern)
        except ValueError as error:
            yield f"hitl.require_approval.{index}", f"is no pattern: {error}", "such as kubectl_* or {get,list}_*"


def _confinements(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    for name, bounds in agent.quell.servers.items():
        path = f"quell.servers.{name}"
        if name not in agent.mcp.servers:
            known = ", ".join(agent.mcp.servers) or "none"
            yield path, f"there is no server {name!r} in this file", f"its servers are: {known}"
        for key in ("connect_timeout_s", "call_timeout_s"):
            if not getattr(bounds, key) > 0:
                yield f"{path}.{key}", "must be more than 0", ""


def _unused(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    if agent.agent.context:
        yield "agent.context", "is read and never used, as in AURA", "say it in system_prompt"
    if agent.tools.custom_tools:
        yield "tools.custom_tools", "is read and never used, as in AURA", ""
    if agent.hitl is not None and agent.hitl.route is not None and agent.hitl.route.tool_headers_from_response:
        hint = "headers of a server are `headers` and `headers_from_request` of it"
        yield "hitl.route.tool_headers_from_response", "is read and not used", hint


def _git_skills(agent: AgentSettings) -> Iterator[tuple[str, GitSkills]]:
    for index, source in enumerate(agent.agent.skills.git):
        yield f"agent.skills.git.{index}", source
    for name, worker in agent.orchestration.worker.items():
        for index, source in enumerate(worker.skills.git if worker.skills is not None else ()):
            yield f"orchestration.worker.{name}.skills.git.{index}", source


def _skills(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    for path, source in _git_skills(agent):
        if not _GIT_URL.fullmatch(source.url) or source.url.startswith("-"):
            yield f"{path}.url", "must be an address of https, ssh or file", "such as https://git.example.com/skills"
        elif "@" in source.url.partition("://")[2].partition("/")[0] and not source.url.startswith("ssh:"):
            yield f"{path}.url", "must not hold credentials", "git's own credential store has them"
        if not _COMMIT.fullmatch(source.ref) and not _GIT_NAME.fullmatch(source.ref):
            yield f"{path}.ref", "is no commit id and no name", "40 digits of a commit, a branch or a tag"
        parts = source.path.split("/") if source.path else []
        if any(part in {"", ".", ".."} or part.lower() == ".git" for part in parts) or not source.path.isprintable():
            yield f"{path}.path", "must be a directory in the repository", "such as skills/sre, without ./ and ../"


def _moving(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    """Yield the names of commits that can come to mean something else: what a person pinned is used."""
    for path, source in _git_skills(agent):
        if not _COMMIT.fullmatch(source.ref):
            hint = "`quell skill list` tells which commit is pinned; `quell skill pin` pins what it means now"
            yield f"{path}.ref", "is a name that can move: only the commit that a person pinned is loaded", hint


def _unasked(agent: AgentSettings) -> Iterator[tuple[str, str, str]]:
    """Yield what of the servers is passed over, and that people will be asked about every call of theirs."""
    for name, server in agent.mcp.servers.items():
        for header in server.headers:
            if is_transport_header(header):
                yield f"mcp.servers.{name}.headers.{header}", "belongs to the transport, which sets it itself", ""
        for header in server.headers_from_request:
            if is_transport_header(header):
                yield f"mcp.servers.{name}.headers_from_request.{header}", "belongs to the transport: left out", ""
    quell = agent.quell
    has_class = quell.reads or quell.hints == "believe" or any(each.catalogue for each in quell.servers.values())
    if agent.mcp.servers and not has_class:
        hint = 'name what only reads, such as reads = ["get_*", "list_*"] under [quell]'
        yield "mcp.servers", "none of its tools is known to read: two people are asked about every call", hint


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
