"""Rows 1 and 2 of the acceptance list: AURA's files load unchanged, and their agents are listed as AURA lists them.

AURA's own 21 files are not at hand. The files beside this test use every key that its schema documents, in every shape
that it documents; the first test below holds that against the schema itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from quell.config import AgentSettings, load_agents
from quell.config._agents import _fields_of, own_tables
from quell.domain import ConfigError
from tests.aura._bench import a_shop, played, says, server_of
from tests.doors._desk_bench import agents_of, file_of
from tests.doors._model_bench import provider
from tests.doors._wire_bench import a_wire, settings_of

pytestmark = pytest.mark.timeout(60)
FILES = Path(__file__).with_name("files")
ENV = {
    f"AURA_ROW_{name}": f"value-of-{name}"
    for name in ("OPENAI_KEY", "LOGS_TOKEN", "ANTHROPIC_KEY", "OPENROUTER_KEY", "CLUSTER_TOKEN", "GEMINI_KEY")
}
IDS = ["incident-response/logs", "helm", "sre", "reader", "careful", "asking", "legacy"]


def _loaded() -> dict[str, AgentSettings]:
    return {agent.id: agent for agent in load_agents(FILES, env=ENV).agents}


def _keys(tree: Mapping[str, object], owner: type, path: str) -> Iterator[str]:
    """Yield the schema's keys that a file uses, `*` for names of named tables."""
    for key, value in tree.items():
        if key not in _fields_of(owner):
            continue
        below, kind = _fields_of(owner)[key]
        at = f"{path}{key}"
        yield at
        if below is None:
            continue
        match kind, value:
            case "named", dict():
                for each in value.values():
                    yield from _keys(each, below, f"{at}.*.")
            case "list", list():
                for each in value:
                    yield from _keys(each, below, f"{at}.")
            case _, dict():
                yield from _keys(value, below, f"{at}.")


def _all(owner: type, path: str) -> Iterator[str]:
    for key, (below, kind) in _fields_of(owner).items():
        at = f"{path}{key}"
        yield at
        if below is not None:
            yield from _all(below, f"{at}.*." if kind == "named" else f"{at}.")


_OURS = (
    "constrained_calls",
    "first_token_timeout_s",
    "inactivity_timeout_s",
    "requests_per_minute",
    "tokens_per_minute",
    ".proxy",
    ".prompt_cache",
    ".skills.git",
    ".skills.git.url",
    ".skills.git.ref",
    ".skills.git.path",
)
"""Keys of ours in a table of theirs."""


def _llm_alike(path: str) -> str:
    """Write keys of a worker's model as those of the agent's: one schema."""
    return path.replace("orchestration.worker.*.llm.", "agent.llm.")


def test_row_1_the_files_use_every_key_of_the_schema() -> None:
    assert own_tables() >= {"agent", "mcp", "vector_stores", "tools", "orchestration", "hitl", "memory_dir"}
    used = {
        _llm_alike(key)
        for file in FILES.glob("*.toml")
        for key in _keys(tomllib.loads(file.read_text()), AgentSettings, "")
    }
    known = {_llm_alike(key) for key in _all(AgentSettings, "") if not key.startswith("quell")}
    known = {key for key in known if not key.endswith(_OURS)}
    assert known - used == set()


def test_row_1_every_file_loads_unchanged_with_its_id_its_filters_and_its_workers() -> None:
    agents = _loaded()
    assert list(agents) == IDS
    assert {name: each.agent.mcp_filter for name, each in agents.items()} == {
        "incident-response/logs": ("get_*", "list_?ods"),
        "helm": None,
        "sre": None,
        "reader": (),
        "careful": None,
        "asking": None,
        "legacy": None,
    }
    workers = agents["sre"].orchestration.worker
    assert list(workers) == ["logs", "cluster", "thinker"]
    assert [workers[name].mcp_filter for name in workers] == [("query_*",), (), None]
    assert [workers[name].vector_stores for name in workers] == [("runbooks", "kb"), (), ()]
    assert agents["sre"].orchestration.coordinator_vector_stores == ("runbooks",)
    assert [store.type for store in agents["sre"].vector_stores] == ["qdrant", "bedrock_kb", "in_memory"]


def test_row_1_floats_of_helm_quoted_switches_and_old_places_mean_what_they_mean_in_aura() -> None:
    agents = _loaded()
    helm = agents["helm"].agent
    assert (helm.turn_depth, helm.hidden, helm.nudge_last_turn, helm.nudge_turns_remaining) == (12, True, False, 3)
    assert (helm.llm.max_tokens, helm.llm.context_window) == (8000, 200_000)
    legacy = agents["legacy"]
    artifacts = legacy.orchestration.artifacts
    assert (legacy.runs_dir, artifacts.result_artifact_threshold, artifacts.max_session_runs) == (
        "/tmp/legacy-memory",
        1500,
        5,
    )
    assert artifacts.session_history_turns == 1
    assert agents["sre"].runs_dir == "/tmp/aura-memory", "the top-level directory wins"
    logs = agents["incident-response/logs"]
    assert logs.agent.llm.api_key.reveal() == "value-of-OPENAI_KEY"
    assert logs.agent.llm.model == "gpt-5"
    assert logs.mcp.servers["logs"].headers["Authorization"].reveal() == "Bearer value-of-LOGS_TOKEN"


def test_row_1_one_file_or_a_directory_and_what_is_passed_over_is_told() -> None:
    (one,) = load_agents(FILES / "05-webhook.toml", env={}).agents
    assert (one.id, one.hitl is not None and one.hitl.route is not None and one.hitl.route.mode) == (
        "careful",
        "webhook",
    )
    told = {each.path for each in load_agents(FILES, env=ENV).warnings if "passed over" in each.reason}
    assert told == {"orchestration.quality_threshold", "old_and_gone"}


def test_row_1_variables_that_are_not_set_are_one_error_that_lists_all_and_comments_need_none() -> None:
    with pytest.raises(ConfigError) as caught:
        load_agents(FILES, env={})
    hint = caught.value.hint
    assert {part.partition("=")[0] for part in hint.split("; ")} == {f"export {name}" for name in ENV}
    told = " ".join(f"{each.path} {each.reason}" for each in caught.value.problems)
    assert "NOT_SET_ANYWHERE" not in told + hint
    assert "COMMENTED_OUT_URL" not in told + hint
    assert "AURA_ROW_MODEL" not in told + hint, "it has a default"


def test_row_2_agents_are_listed_as_models_and_described_and_a_hidden_one_only_answers(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_shop() as shop, provider(says("Here.")) as model:
            url = shop.url.replace("/mcp", "/mcp?token=hush")
            listed = 'alias = "team/sre"\ndescription = "Looks."\ncreated_at = 1755800000000\nmodel_owner = "shop"'
            files = (
                file_of("SRE", model.url, agent=listed, more=server_of(shop).replace(shop.url, url)),
                file_of("secret", model.url, agent="hidden = true"),
                file_of(
                    "crew",
                    model.url,
                    more='[orchestration]\nenabled = true\n[orchestration.worker.logs]\ndescription = "Reads."\npreamble = "x"\n',
                ),
            )
            async with a_wire(settings_of(tmp_path / "state"), agents_of(tmp_path / "agents", *files)) as wire:
                models = (await wire.http.get("/v1/models")).json()
                assert models["object"] == "list"
                first, second = models["data"]
                # AURA tells milliseconds here; OpenAI's clients read seconds, and so do we.
                assert {key: each for key, each in first.items() if key != "quell"} == {
                    "id": "team/sre",
                    "object": "model",
                    "created": 1755800000,
                    "owned_by": "shop",
                    "description": "Looks.",
                }
                assert second["id"] == "crew"
                info = (await wire.http.get("/aura/info")).json()
                sre, crew = info["agents"]
                assert sre["id"] == "team/sre"
                assert (sre["description"], sre["model"]) == ("Looks.", "played")
                assert sre["mcp_servers"] == {
                    "shop": {"transport": "http_streamable", "url": shop.url.removesuffix("/mcp")}
                }
                assert "workers" not in sre
                assert crew["workers"] == [{"name": "logs", "description": "Reads."}]
                assert crew["mcp_servers"] == {}
                assert "hush" not in (await wire.http.get("/aura/info")).text
                assert (await wire.http.get("/aura/info?detail=everything")).status_code == 400
                answer = await wire.ask("Why is the till slow?", model="secret")
                offered = {each["function"]["name"] for each in model.bodies[0]["tools"]}  # type: ignore[attr-defined]  # a list
                assert "get_logs" not in offered, "no server in its file: none of another file's"
                assert answer.json()["choices"][0]["message"]["content"] == "Here."

    played(story)


@pytest.mark.parametrize("detail", ["tools", "tools:summary"])
def test_row_2_tools_of_servers_are_told_with_the_protocols_own_field_names(tmp_path: Path, detail: str) -> None:
    async def story() -> None:
        async with a_shop() as shop, provider(says("Here.")) as model:
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=server_of(shop)))
            async with a_wire(settings_of(tmp_path / "state"), agents) as wire:
                # Nobody has asked yet: AURA connects for this question.
                info = (await wire.http.get(f"/aura/info?detail={detail}")).json()
                tools = {each["name"]: each for each in info["agents"][0]["mcp_servers"]["shop"]["tools"]}
                assert set(tools) == {"get_logs", "get_all", "get_trouble", "watch_rollout", "delete_volume"}
                assert tools["get_logs"]["description"] == "Read the log of a service."
                assert ("inputSchema" in tools["get_logs"]) == (detail == "tools")
                if detail == "tools":
                    assert tools["get_logs"]["inputSchema"]["required"] == ["service"]

    played(story)


def test_row_2_health_has_its_shape(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_wire(settings_of(tmp_path)) as wire:
            told = await wire.http.get("/health")
            health = told.json()
            # AURA answers 200 whatever it says; a probe that only reads the status shall learn it here too.
            assert (told.status_code, health["status"]) == (503, "degraded"), "this one has no store"
            assert health["session_store"]["ping"]["ok"] is True
            assert {"timestamp", "aura_version", "session_store"} <= health.keys()
            assert set(health["session_store"]) >= {"backend", "ping"}

    played(story)
