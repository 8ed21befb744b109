"""Agent files: AURA's TOML loads unchanged, what is wrong is told all at once, what is odd is told as well."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quell.config import AgentFiles, AgentSettings, LlmSettings, Secret, load_agents
from quell.config._agents import _LLM_KEYS, _allowed
from quell.domain import ConfigError

LEAST = """
[agent]
name = "Least"
system_prompt = "Help."
[agent.llm]
provider = "openai"
api_key = "k"
model = "m"
"""


def _load(tmp_path: Path, *texts: str, env: Mapping[str, str] | None = None) -> AgentFiles:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.toml").write_text(text)
    return load_agents(tmp_path, env=env or {})


def _mistakes(tmp_path: Path, *texts: str, env: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, *texts, env=env)
    return [(each.path, each.reason) for each in caught.value.problems]


def test_the_least_file_has_the_defaults_of_the_original(tmp_path: Path) -> None:
    (agent,) = _load(tmp_path, LEAST).agents
    assert (agent.id, agent.agent.turn_depth, agent.agent.mcp_filter, agent.agent.hidden) == ("Least", 5, None, False)
    assert agent.mcp.sanitize_schemas
    orchestration = agent.orchestration
    assert (orchestration.max_planning_cycles, orchestration.max_plan_parse_retries) == (3, 3)
    assert (orchestration.duplicate_call_nudge_threshold, orchestration.duplicate_call_block_threshold) == (3, 5)
    assert (orchestration.tools_in_planning, orchestration.max_tools_per_worker) == ("summary", 10)
    artifacts = orchestration.artifacts
    assert (artifacts.result_artifact_threshold, artifacts.result_summary_length) == (4000, 2000)
    assert (artifacts.session_history_turns, artifacts.max_session_runs) == (3, 20)
    pad = agent.agent.scratchpad
    assert (pad.enabled, pad.context_safety_margin, pad.max_extraction_tokens, pad.turn_depth_bonus) == (
        False,
        0.2,
        10_000,
        6,
    )
    assert agent.hitl is None


def test_a_directory_is_read_in_the_order_of_names_and_an_empty_one_is_an_error(tmp_path: Path) -> None:
    found = _load(tmp_path, LEAST, LEAST.replace("Least", "Second"))
    assert [agent.id for agent in found.agents] == ["Least", "Second"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no agent"):
        load_agents(empty, env={})


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (LEAST, "the name 'Least' is the name of"),
        (LEAST.replace('name = "Least"', 'name = "Other"\nalias = "Least"'), "the alias 'Least' is the name of"),
    ],
)
def test_ids_are_unique_over_all_files(tmp_path: Path, second: str, told: str) -> None:
    ((path, reason),) = _mistakes(tmp_path, LEAST, second)
    assert path in {"agent.name", "agent.alias"}
    assert reason.startswith(told)


def test_references_are_filled_in_and_those_that_are_not_set_are_told_together_with_lines_to_copy(
    tmp_path: Path,
) -> None:
    text = LEAST.replace('"k"', '"{{ env.KEY }}"').replace('"m"', "\"{{ env.MODEL | default: 'small' }}\"")
    text += '# api_key = "{{ env.COMMENTED_OUT }}"\n[mcp.servers.a]\ntransport = "sse"\nurl = "{{ env.URL }}"\n'
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert caught.value.hint == "export KEY=...; export URL=..."
    assert len(caught.value.problems) == 2
    (agent,) = _load(tmp_path, text, env={"KEY": 'se"cret\n[x]', "URL": "http://h/mcp"}).agents
    assert agent.agent.llm.api_key == Secret('se"cret\n[x]')
    assert agent.agent.llm.model == "small"
    assert "se" + '"cret' not in repr(agent)


def test_numbers_and_switches_are_taken_as_other_tools_write_them_and_no_further(tmp_path: Path) -> None:
    text = LEAST.replace(
        "[agent.llm]",
        'turn_depth = 8.0\nhidden = "true"\nnudge_last_turn = "false"\n[agent.llm]\ncontext_window = 8000.0',
    )
    (agent,) = _load(tmp_path, text).agents
    assert (agent.agent.turn_depth, agent.agent.hidden, agent.agent.nudge_last_turn) == (8, True, False)
    assert agent.agent.llm.context_window == 8000
    for wrong in ("turn_depth = 8.5", "turn_depth = -1", 'turn_depth = "8"', 'hidden = "yes"'):
        found = _mistakes(tmp_path, LEAST.replace("[agent.llm]", f"{wrong}\n[agent.llm]"))
        assert [path for path, _ in found] == [f"agent.{wrong.partition(' ')[0]}"]
    worker = LEAST + '[orchestration.worker.w]\ndescription = "d"\npreamble = "p"\nturn_depth = 10.0\n'
    assert [path for path, _ in _mistakes(tmp_path, worker)] == ["orchestration.worker.w.turn_depth"]


def test_no_filter_is_all_tools_and_an_empty_one_is_none(tmp_path: Path) -> None:
    assert (
        _load(tmp_path, LEAST.replace("[agent.llm]", "mcp_filter = []\n[agent.llm]")).agents[0].agent.mcp_filter == ()
    )
    assert _load(tmp_path, LEAST).agents[0].agent.mcp_filter is None


def test_the_old_place_of_the_model_is_told_with_the_new_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, '[llm]\nprovider = "openai"\n' + LEAST)
    (problem,) = caught.value.problems
    assert problem.path == "llm"
    assert "[agent.llm]" in problem.hint


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (LEAST.replace("[agent.llm]", "turn_dept = 3\n[agent.llm]"), "agent.turn_dept"),
        (LEAST + "temprature = 1.0\n", "agent.llm.temprature"),
        (LEAST + 'region = "x"\n', "agent.llm.region"),
        (LEAST + "[orchestration.timeouts]\nper_call = 1\n", "orchestration.timeouts.per_call"),
        (LEAST + "[quell]\non_disconect = 1\n", "quell.on_disconect"),
    ],
)
def test_unknown_keys_are_refused_where_the_original_refuses_them(tmp_path: Path, text: str, path: str) -> None:
    assert [found for found, _ in _mistakes(tmp_path, text)] == [path]


def test_what_the_original_passes_over_in_silence_is_told_with_what_was_probably_meant(tmp_path: Path) -> None:
    text = (
        "surprise = 1\n" + LEAST + "[orchestration]\nenabled = true\nquality_threshold = 0.8\nmax_planing_cycles = 2\n"
        '[orchestration.timeouts]\nper_call_timeout_secs = 5\n[orchestration.worker.w]\ndescription = "d"\n'
        'preamble = "p"\nmcp_filtr = []\n'
    )
    found = _load(tmp_path, text)
    assert found.agents[0].orchestration.max_planning_cycles == 3
    assert [(each.path, each.hint) for each in found.warnings] == [
        ("surprise", ""),
        ("orchestration.quality_threshold", "AURA has no quality score any more; take it out"),
        ("orchestration.max_planing_cycles", "did you mean `max_planning_cycles`?"),
        ("orchestration.worker.w.mcp_filtr", "did you mean `mcp_filter`?"),
    ]


def test_keys_in_their_old_places_win_over_the_new_ones_and_the_top_level_directory_over_both(tmp_path: Path) -> None:
    flat = (
        LEAST
        + '[orchestration]\nmemory_path = "/flat"\nmax_session_runs = 5\n[orchestration.artifacts]\nmax_session_runs = 7\n'
    )
    (agent,) = _load(tmp_path, flat).agents
    assert (agent.runs_dir, agent.orchestration.artifacts.max_session_runs) == ("/flat", 5)
    (agent,) = _load(tmp_path, 'memory_dir = "/top"\n' + flat).agents
    assert agent.runs_dir == "/top"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (LEAST.replace('"k"', '""'), "agent.llm.api_key"),
        (LEAST.replace('"m"', '" "'), "agent.llm.model"),
        (LEAST.replace('"Least"', '""'), "agent.name"),
        (LEAST.replace('"openai"', '"bedrock"').replace('api_key = "k"', ""), "agent.llm.region"),
        (LEAST + "[agent.scratchpad]\nenabled = true\n", "agent.scratchpad"),
        (LEAST + "[agent.scratchpad]\nenabled = true\n", "agent.llm.context_window"),
        (LEAST + '[orchestration.worker.W]\ndescription = "d"\npreamble = "p"\n[orchestration.worker.w]\ndescription = "d"\npreamble = "p"\n', "orchestration.worker.w"),
        (LEAST + '[orchestration]\ncoordinator_vector_stores = ["docs"]\n', "orchestration.coordinator_vector_stores"),
        (LEAST + '[[vector_stores]]\nname = "docs"\ntype = "qdrant"\n', "vector_stores.0.url"),
        (LEAST + '[mcp.servers.a]\ntransport = "stdio"\n', "mcp.servers.a.cmd"),
        (LEAST + '[mcp.servers.a]\ntransport = "sse"\n', "mcp.servers.a.url"),
        (LEAST + '[hitl.route]\nmode = "webhook"\n', "hitl.route.url"),
        (LEAST + '[hitl.route]\nmode = "webhook"\nurl = "https://h"\ntool_headers_from_response = { Host = "x" }\n', "hitl.route.tool_headers_from_response.Host"),
        (LEAST + '[quell]\ndefault_worker = "nobody"\n', "quell.default_worker"),
        (LEAST + '[quell.servers.nobody]\nsandbox = "off"\n', "quell.servers.nobody"),
        (LEAST + '[hitl]\nrequire_approval = ["ok", "{no"]\n', "hitl.require_approval.1"),
        (LEAST.replace('"openai"', '"mistral"'), "agent.llm.provider"),
    ],
)  # fmt: skip
def test_what_must_stand_together_is_checked(tmp_path: Path, text: str, path: str) -> None:
    assert path in [found for found, _ in _mistakes(tmp_path, text)]


def test_a_table_without_globs_still_opens_the_gate(tmp_path: Path) -> None:
    (agent,) = _load(tmp_path, LEAST + "[hitl]\n").agents
    assert agent.hitl is not None
    assert agent.hitl.require_approval == ()


def test_timeouts_that_never_act_are_told(tmp_path: Path) -> None:
    text = LEAST + (
        "[orchestration]\nenabled = true\n[orchestration.timeouts]\nper_call_timeout_secs = 30\n"
        'stream_inactivity_timeout_secs = 30\n[orchestration.worker.w]\ndescription = "d"\npreamble = "p"\n[hitl.route]\nmode = "conversational"\n'
    )
    paths = [each.path for each in _load(tmp_path, text).warnings]
    assert paths == ["orchestration.timeouts.stream_inactivity_timeout_secs", "hitl.route.timeout_secs"]


def test_tables_of_quell_itself_may_stand_in_the_same_file(tmp_path: Path) -> None:
    found = _load(
        tmp_path, 'state_dir = "x"\n' + LEAST + '[server]\nport = 1\n[[prometheus]]\nname = "p"\nurl = "http://h"\n'
    )
    assert found.warnings == ()


def test_an_agent_without_key_and_network_is_a_file_of_five_lines(tmp_path: Path) -> None:
    text = '[agent]\nname = "Q"\nsystem_prompt = ""\n[agent.llm]\nprovider = "builtin"\n'
    assert _load(tmp_path, text).agents[0].agent.llm.provider == "builtin"


# every file that the schema allows

_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8).filter(
    lambda text: "{{" not in text
)
_NAME = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=6)


_SHAPED: Mapping[str, st.SearchStrategy[object]] = {
    "url": st.just("https://h/x"),
    "base_url": st.just("http://h/x"),
    "ref": st.sampled_from(["main", "refs/tags/v1.2", "a" * 40]),
    "path": st.sampled_from(["", "skills/sre"]),
    "require_approval": st.sampled_from(["kubectl_*", "{get,list}_?", "[!a-c]x", "\\*"]),
}


def _value(hint: object, key: str) -> st.SearchStrategy[object]:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in {UnionType, typing.Union}:
        return _value(next(each for each in inside if each is not NoneType), key)
    if origin is typing.Literal:
        return st.sampled_from(inside)
    if isinstance(hint, type) and is_dataclass(hint):
        return _table(hint)
    if origin is tuple:
        # A server over stdio has a program, so that the rule about it is kept.
        return st.lists(_value(inside[0], key), min_size=1 if key == "cmd" else 0, max_size=2)
    if origin is not None:
        return st.dictionaries(_NAME, _value(inside[1], key), max_size=2)
    numbers = st.integers(1, 10_000)
    kinds: dict[object, st.SearchStrategy[object]] = {
        str: _SHAPED.get(key, _TEXT.map(lambda text: "x" + text)),
        Secret: _TEXT.map(lambda text: "s" + text),
        bool: st.booleans(),
        int: numbers,
        float: st.floats(0.01, 0.9),
        object: st.one_of(numbers, st.booleans(), _TEXT),
    }
    return kinds[hint]


def _table(owner: type) -> st.SearchStrategy[dict[str, object]]:
    if owner is LlmSettings:
        return st.sampled_from(sorted(_LLM_KEYS)).flatmap(_llm)
    hints = typing.get_type_hints(owner)
    return _some({each.name: _value(hints[each.name], each.name) for each in fields(owner)}, needed=_needed(owner))


def _llm(provider: str) -> st.SearchStrategy[dict[str, object]]:
    hints = typing.get_type_hints(LlmSettings)
    names = [name for name in _allowed(LlmSettings, {"provider": provider}) if name != "provider"]
    needed: set[str] = {name for name in ("api_key", "model", "region", "context_window") if name in names}
    table = _some({name: _value(hints[name], name) for name in names}, needed=needed)
    return table.map(lambda found: {"provider": provider, **found})


def _some(values: Mapping[str, st.SearchStrategy[object]], *, needed: set[str]) -> st.SearchStrategy[dict[str, object]]:
    must = {key: each for key, each in values.items() if key in needed}
    may = {key: each for key, each in values.items() if key not in needed}
    return st.fixed_dictionaries(must, optional=may)


def _needed(owner: type) -> set[str]:
    """Return the keys that a table needs, and those that a rule wants beside them."""
    extra = {"AgentMcpServer": {"cmd", "url"}, "VectorStoreSettings": {"url", "collection_name", "knowledge_base_id", "region", "embedding_model"}, "EmbeddingSettings": {"api_key", "region"}, "HitlRoute": {"url"}}  # fmt: skip
    instance_defaults = {each.name for each in fields(owner) if each.default.__class__.__name__ == "_MISSING_TYPE" and each.default_factory.__class__.__name__ == "_MISSING_TYPE"}  # fmt: skip
    return instance_defaults | extra.get(owner.__name__, set())


def _toml(tree: Mapping[str, object], prefix: str = "") -> str:
    """Write a tree as TOML: values first, then tables."""
    lines, below = [], []
    for key, value in tree.items():
        name = json.dumps(key, ensure_ascii=False)
        if isinstance(value, dict):
            below.append(f"[{prefix}{name}]\n{_toml(value, f'{prefix}{name}.')}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            below += [f"[[{prefix}{name}]]\n{_toml(each, f'{prefix}{name}.')}" for each in value]
        else:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join([*lines, *below]) + "\n"


def _same(read: object, written: object) -> bool:
    """Tell whether what was read is what was written; what was not written has its default."""
    if isinstance(read, Secret):
        return read.reveal() == written
    if isinstance(written, dict):
        if isinstance(read, Mapping):
            return read.keys() == written.keys() and all(_same(read[key], written[key]) for key in written)
        return all(_same(getattr(read, key), value) for key, value in written.items())
    if isinstance(written, list):
        assert isinstance(read, tuple)
        return len(read) == len(written) and all(map(_same, read, written))
    return read == written


@pytest.mark.timeout(120)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=_table(AgentSettings))
def test_every_file_that_the_schema_allows_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
) -> None:
    tree["memory_dir"] = "/tmp"
    _make_sound(tree)
    (agent,) = _load(tmp_path_factory.mktemp("agents"), _toml(tree)).agents
    assert _same(agent, tree)


def _make_sound(tree: dict[str, typing.Any]) -> None:
    """Let names that have to be distinct be distinct, and names that refer to something refer to nothing."""
    for number, store in enumerate(tree.get("vector_stores", [])):
        store["name"] += f"-{number}"
    orchestration = tree.get("orchestration", {})
    orchestration.pop("coordinator_vector_stores", None)
    if orchestration.get("enabled") and not orchestration.get("worker"):
        orchestration["worker"] = {"w": {"description": "d", "preamble": "p"}}
    for worker in orchestration.get("worker", {}).values():
        worker.pop("vector_stores", None)
    tree.get("quell", {}).pop("default_worker", None)
    known = tree.get("mcp", {}).get("servers", {})
    if "servers" in tree.get("quell", {}):
        tree["quell"]["servers"] = {name: each for name, each in tree["quell"]["servers"].items() if name in known}
