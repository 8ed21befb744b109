"""What `quell doctor` checks of models: whether each that an agent names is reached and offered; none is asked anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from quell.cli._check import Check
from quell.cli._init_senses import KEYS

if TYPE_CHECKING:
    from quell.config import AgentSettings, LlmSettings
    from quell.domain import ModelError

_LIST_S = 5.0
_AT_ONCE = 8
_TOLD_MAX = 5
_TOLD_MAX_CHARS = 300
_SHORT_LISTS = frozenset({"anthropic", "bedrock", "openrouter"})
"""Providers that take names which their lists do not have: aliases, inference profiles, variants."""

Offers: TypeAlias = "tuple[str, ...] | Exception"
"""What a provider offers, or why nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """A model, and for what an agent has it."""

    name: str
    llm: LlmSettings
    agent: str
    place: Literal["first", "spare", "other"]
    """`first`: it answers, with spares behind it where the file names some."""


async def model_checks(agents: Sequence[AgentSettings], *, env: Mapping[str, str]) -> list[Check]:
    """Look at every model of every agent; a provider is asked once for each key and address."""
    if not agents:
        return [Check(name="model", status="ok", detail="no agent names one: builtin answers, and needs nothing")]
    uses = [use for agent in agents for use in _uses(agent)]
    gate, lists = asyncio.Semaphore(_AT_ONCE), dict[str, Awaitable[Offers]]()
    for use in uses:
        place = _account(use.llm)
        if place not in lists:
            lists[place] = asyncio.ensure_future(_offers(use.llm, env=env, gate=gate))
    found = {place: await each for place, each in lists.items()}
    checks = [_judged(use, found[_account(use.llm)], env=env) for use in uses]
    return list(_weighed(uses, checks))


def _uses(agent: AgentSettings) -> Iterator[_Use]:
    def use(what: str, llm: LlmSettings, place: Literal["first", "spare", "other"] = "other") -> _Use:
        return _Use(name=" ".join(filter(None, ("model", agent.id, what))), llm=llm, agent=agent.id, place=place)

    yield use("", agent.agent.llm, "first")
    for number, llm in enumerate(agent.quell.fallback, start=1):
        yield use(f"fallback {number}", llm, "spare")
    if agent.quell.small is not None:
        yield use("small", agent.quell.small)
    for name, worker in agent.orchestration.worker.items():
        if worker.llm is not None:
            yield use(f"worker {name}", worker.llm)


def _account(llm: LlmSettings) -> str:
    """Return what tells lists of models apart."""
    key = llm.api_key.reveal()
    return repr((llm.provider, llm.base_url, llm.region, llm.profile, llm.proxy.reveal(), key))


async def _offers(llm: LlmSettings, *, env: Mapping[str, str], gate: asyncio.Semaphore) -> Offers:
    from quell.domain import QuellError
    from quell.models import list_models, open_model
    from quell.runs import system_clock

    try:
        # Says what is not installed, or no address, before anybody is asked.
        await open_model(llm, clock=system_clock, env=env).close()
        async with gate:
            return await list_models(llm, clock=system_clock, env=env, timeout_s=_LIST_S)
    except QuellError as error:
        return error


def _judged(use: _Use, offers: Offers, *, env: Mapping[str, str]) -> Check:
    llm = use.llm
    if llm.provider == "builtin":
        return Check(name=use.name, status="ok", detail="builtin needs no key and no network")
    about = f"{llm.provider}/{llm.model}{_place_of(llm)}, {_key_of(llm, env=env)}"
    if isinstance(offers, Exception):
        return _failed(use, offers, about=about)
    if _is_offered(llm, offers):
        return Check(name=use.name, status="ok", detail=f"{about}: it answers and offers it")
    near = _near(llm.model, offers)
    hint = f"check `model`: {'there is ' + near if near else 'it offers none'}; `quell init` lists all"
    detail = f"{about}: it answers, and its list has no such model"
    if llm.provider in _SHORT_LISTS:
        return Check(name=use.name, status="warn", detail=f"{detail}; it may still take the name", hint=hint)
    return Check(name=use.name, status="bad", detail=detail, hint=hint)


def _place_of(llm: LlmSettings) -> str:
    """Say where it is, when the file does: who may stand in an address before its host is nobody's business."""
    scheme, _, rest = llm.base_url.partition("://")
    return f" at {scheme}://{rest.rpartition('@')[2]}" if llm.base_url else ""


def _key_of(llm: LlmSettings, *, env: Mapping[str, str]) -> str:
    """Say whether there is a key, and in which variable; never the key."""
    key = llm.api_key.reveal()
    if not key:
        return "no key is set" if llm.provider in KEYS else "no key needed"
    holders = sorted(name for name, value in env.items() if value == key)
    return f"its key is set ({holders[0]})" if holders else "its key is set (in the file)"


def _failed(use: _Use, error: Exception, *, about: str) -> Check:
    from quell.domain import ModelError, ModelFault

    key = use.llm.api_key.reveal()
    words = " ".join(str(error).split())[:_TOLD_MAX_CHARS]
    detail = f"{about}: {words.replace(key, '***') if key else words}"
    hint = str(getattr(error, "hint", ""))
    if not isinstance(error, ModelError):
        return Check(name=use.name, status="bad", detail=detail, hint=hint)
    if error.fault in {ModelFault.NOT_FOUND, ModelFault.BAD_ANSWER, ModelFault.INVALID}:
        hint = "whether it has the model shows when it is asked; check `base_url` if that fails"
        return Check(name=use.name, status="warn", detail=f"{detail}; it answers and has no list of models", hint=hint)
    if error.fault in {ModelFault.RATE_LIMITED, ModelFault.OVERLOADED}:
        return Check(name=use.name, status="warn", detail=detail, hint=hint or "it is busy: try again later")
    return Check(name=use.name, status="bad", detail=detail, hint=_hint(use.llm, error) or hint)


def _hint(llm: LlmSettings, error: ModelError) -> str:
    from quell.domain import ModelFault

    if error.fault is ModelFault.AUTH:
        variable = KEYS.get(llm.provider, ("",))[0]
        if llm.api_key.reveal():
            return "the key is refused: make a new one at the provider, or see whether it belongs to this address"
        return f'set `api_key = "{{{{ env.{variable} }}}}"` and that variable' if variable else "set `api_key`"
    if error.fault in {ModelFault.UNREACHABLE, ModelFault.TIMEOUT}:
        ours = "start it, or check" if llm.base_url or llm.provider == "ollama" else "check the network, a proxy and"
        return f"{ours} `base_url`: nothing answers there as a provider does"
    return ""


def _is_offered(llm: LlmSettings, offers: Sequence[str]) -> bool:
    names = {llm.model, llm.model.removeprefix("models/")}
    if llm.provider == "ollama":
        names.add(f"{llm.model}:latest")
    if llm.provider == "openrouter":
        names.add(llm.model.partition(":")[0])
    return not names.isdisjoint(offers)


def _near(model: str, offers: Sequence[str]) -> str:
    """Return names that may be meant, or the first that there are."""
    from difflib import get_close_matches

    told = get_close_matches(model, offers, n=_TOLD_MAX, cutoff=0.5) or list(offers[:_TOLD_MAX])
    return ", ".join(name[:100] for name in told)


def _weighed(uses: Sequence[_Use], checks: Sequence[Check]) -> Iterator[Check]:
    """Yield the checks by what depends on them: an agent does without a model as long as another of its chain answers."""
    answering = {
        use.agent for use, check in zip(uses, checks, strict=True) if use.place != "other" and check.status != "bad"
    }
    for use, check in zip(uses, checks, strict=True):
        if check.status == "bad" and use.place != "other" and use.agent in answering:
            yield replace(check, status="warn", detail=f"{check.detail}; another of its chain answers")
        else:
            yield check
