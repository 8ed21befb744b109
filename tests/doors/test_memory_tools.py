"""Skills and documents as agents have them: tools behind the guard, asked on behalf of a person."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quell.app import open_authority
from quell.app._memory import open_store, search_hand, skill_hands
from quell.config import EmbeddingSettings, Settings, VectorStoreSettings
from quell.domain import ConfigError, OutcomeKind, Parked, Principal, Tool, ToolCall, ToolCaller, ToolClass, ToolOutcome
from quell.memory import Library, Shelf, Skills
from quell.runs import Runs
from quell.tools import LocalHand, Toolbox
from tests.conftest import FakeClock
from tests.doors._memory_bench import in_loop

pytestmark = pytest.mark.timeout(60)  # a whole authority on a real journal


@asynccontextmanager
async def opened(at: Path, clock: FakeClock, hands: Sequence[tuple[Tool, LocalHand]]) -> AsyncIterator[Toolbox]:
    settings = Settings(state_dir=at / "state")
    runs = await Runs.open(
        settings.journal, state_dir=settings.state_dir, clock=clock, entropy=os.urandom, version="v1"
    )
    try:
        authority = await open_authority(runs, settings, clock=clock, entropy=os.urandom, env={}, builtin=hands)
        try:
            yield authority.toolbox
        finally:
            await authority.close()
    finally:
        await runs.close()


async def call(
    box: Toolbox, tool: str, *, roles: tuple[str, ...] = ("viewer",), tenant: str = "local", **arguments: object
) -> ToolOutcome:
    asks = Principal(
        user="ann", tenant=tenant, roles=roles, agent="sre", agent_tools=("*",), workflow="w", workflow_tools=("*",)
    )
    wanted = ToolCall(id=os.urandom(4).hex(), tool=tool, arguments=json.dumps(arguments))
    came = await box.call(wanted, caller=ToolCaller(principal=asks, run="run_1"))
    assert not isinstance(came, Parked)
    return came


@pytest.fixture
def library(tmp_path: Path, clock: FakeClock) -> Library:
    for name, roles in (("open", ()), ("closed", ("sre",))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(f"# {name}\n\nRestart the {name} turbine.")
        os.utime(tmp_path / name / "a.md", (clock().timestamp() - 86_400 * 3,) * 2)
        Library(tmp_path / "state", clock=clock).ingest(tmp_path / name, store="documents", roles=roles)
    return Library(tmp_path / "state", clock=clock)


@in_loop
async def test_an_agent_finds_what_the_person_behind_it_may_see(
    tmp_path: Path, clock: FakeClock, library: Library
) -> None:
    hand = search_hand(Shelf(library, name="documents"), clock=clock, context_prefix="Runbooks.")
    assert hand[0].name == "search_documents"
    assert hand[0].tool_class is ToolClass.READ
    assert hand[0].description.startswith("Runbooks. ")
    async with opened(tmp_path, clock, [hand]) as box:
        found = await call(box, "search_documents", query="turbine")
        assert found.kind is OutcomeKind.OK, found
        assert found.is_json
        (one,) = json.loads(found.content)
        assert set(one) == {"score", "text", "metadata"}
        assert one["text"] == "Restart the open turbine."
        assert one["metadata"]["source"] == str(tmp_path / "open" / "a.md")
        assert one["metadata"]["heading"] == "open"
        assert one["metadata"]["age_days"] == 3
        assert one["metadata"]["version"].startswith("sha256:")
        more = await call(box, "search_documents", roles=("viewer", "sre"), query="turbine")
        assert len(json.loads(more.content)) == 2
        first = await call(box, "search_documents", roles=("viewer", "sre"), query="turbine", limit=1)
        assert len(json.loads(first.content)) == 1
        nothing = await call(box, "search_documents", tenant="acme", query="turbine")
        assert "Nothing in documents" in nothing.content
        assert (await call(box, "search_documents", query="turbine", limit=21)).kind is not OutcomeKind.OK


@in_loop
async def test_an_agent_loads_its_skills_and_no_others(tmp_path: Path, clock: FakeClock) -> None:
    for agent in ("sre", "dba"):
        home = tmp_path / agent / f"{agent}-work"
        home.mkdir(parents=True)
        (home / "SKILL.md").write_text(f"---\nname: {agent}-work\ndescription: d\n---\nAs {agent}.")
        (home / "list.txt").write_text("first")
    shelves = {agent: Skills.load([tmp_path / agent]) for agent in ("sre", "dba")}
    hands = skill_hands(lambda request: shelves[request.caller.principal.agent])
    async with opened(tmp_path, clock, hands) as box:
        found = await call(box, "load_skill", name="sre-work")
        assert found.kind is OutcomeKind.OK
        assert "As sre." in found.content
        assert "not by the system" in found.content
        assert "first" in (await call(box, "read_skill_file", name="sre-work", path="list.txt")).content
        other = await call(box, "load_skill", name="dba-work")
        assert other.kind is OutcomeKind.TOOL_ERROR
        assert "sre-work" in other.detail
        outside = await call(box, "read_skill_file", name="sre-work", path="../../dba/dba-work/list.txt")
        assert outside.kind is OutcomeKind.TOOL_ERROR


@in_loop
async def test_an_agents_file_names_its_stores(tmp_path: Path, clock: FakeClock, library: Library) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n.txt").write_text("The harbour pilot.")
    library.ingest(tmp_path / "notes", store="notes")
    embedding = EmbeddingSettings(provider="openai", model="m")
    settings = VectorStoreSettings(name="notes", type="in_memory", embedding_model=embedding)
    store = open_store(settings, library=library, clock=clock, env={})
    hand = search_hand(store, clock=clock)
    assert hand[0].name == "vector_search_notes"
    async with opened(tmp_path, clock, [hand]) as box:
        (one,) = json.loads((await call(box, "vector_search_notes", query="pilot")).content)
        assert one["text"] == "The harbour pilot."
    with pytest.raises(ConfigError, match="no name of a tool"):
        search_hand(Shelf(library, name="a b"), clock=clock)
    with pytest.raises(ConfigError, match="embedding_model"):
        open_store(VectorStoreSettings(name="q", type="qdrant"), library=library, clock=clock, env={})
