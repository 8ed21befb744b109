"""A quell.toml is read into frozen settings, from every source, in a fixed order of precedence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quell.config import Loaded, Settings, explain, explain_all, load, schema, version_of
from quell.domain import ConfigError, UsageError


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load(text: str, env: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None) -> Loaded:
    Path("quell.toml").write_text(text)
    return load(None, env=env or {}, overrides=overrides)


def test_no_file_at_all_is_the_defaults() -> None:
    assert load(None, env={}).settings == Settings()
    assert set(load(None, env={}).origins.values()) == {"default"}


def test_a_reference_takes_the_environment_or_its_default() -> None:
    text = """
    [store]
    user = "{{ env.NAME }}"
    database = "db_{{env.PART}}_{{ env.ABSENT | default: 'x y' }}"
    """
    store = _load(text, {"NAME": "ann", "PART": "a"}).settings.store
    assert (store.user, store.database) == ("ann", "db_a_x y")


def test_outside_quotes_a_reference_may_be_a_number_or_a_truth_value() -> None:
    text = """
    [server]
    port = {{ env.PORT }}
    [detection]
    enabled = {{ env.ON | default: 'true' }}
    interval_s = {{ env.EVERY | default: "1.5" }}
    [store]
    user = {{ env.WHO }}
    """
    read = _load(text, {"PORT": "9", "ON": "false", "WHO": "bob"}).settings
    assert (read.server.port, read.detection.enabled, read.detection.interval_s, read.store.user) == (
        9,
        False,
        1.5,
        "bob",
    )


def test_a_reference_in_a_comment_does_not_have_to_exist() -> None:
    assert _load("# {{ env.NOWHERE }}\nstate_dir = 's' # {{ env.NOWHERE }}").settings.state_dir == Path("s")


@pytest.mark.parametrize("quotes", ['"', "'", '"""', "'''", ""])
@given(value=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=40, deadline=None)
def test_no_value_of_the_environment_can_write_toml(quotes: str, value: str) -> None:
    """Whatever the variable holds, it becomes the value of that one key; a number stays a number outside quotes."""
    Path("quell.toml").write_text(f"[store]\nuser = {quotes}{{{{ env.V }}}}{quotes}\n")
    told: list[str] = []
    read = Settings()
    try:
        read = load(None, env={"V": value}).settings
    except ConfigError as error:
        told = [problem.path for problem in error.problems]
    if told:
        assert not quotes
        assert told == ["store.user"], "outside quotes the type alone can be wrong"
    else:
        assert read == dataclasses.replace(Settings(), store=dataclasses.replace(Settings().store, user=value))


def test_the_nearest_source_wins_and_says_so(tmp_path: Path) -> None:
    user = tmp_path / "home" / ".config" / "quell" / "quell.toml"
    user.parent.mkdir(parents=True)
    user.write_text("[server]\nport = 1\nin_flight_max = 1\nbody_max_mb = 1.0\n[store]\nthreads_max = 1\n")
    project = "[server]\nport = 2\nin_flight_max = 2\nbody_max_mb = 2.0\n"
    env = {"HOME": str(tmp_path / "home"), "QUELL_SERVER__PORT": "3", "QUELL_SERVER__IN_FLIGHT_MAX": "3"}
    loaded = _load(project, env, {"server.port": "4"})
    server = loaded.settings.server
    assert (server.port, server.in_flight_max, server.body_max_mb, loaded.settings.store.threads_max) == (4, 3, 2.0, 1)
    assert [loaded.origins[f"server.{key}"] for key in ("port", "in_flight_max", "body_max_mb", "host")] == [
        "flag",
        "env QUELL_SERVER__IN_FLIGHT_MAX",
        "file:quell.toml:4",
        "default",
    ]
    assert loaded.origins["store.threads_max"] == f"file:{user}:6"
    assert loaded.files == (user, Path("quell.toml"))


def test_the_users_file_also_lies_where_xdg_says(tmp_path: Path) -> None:
    file = tmp_path / "xdg" / "quell" / "quell.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[server]\nport = 5\n")
    assert load(None, env={"XDG_CONFIG_HOME": str(tmp_path / "xdg")}).settings.server.port == 5


def test_lists_and_tables_can_come_from_the_environment_as_a_whole() -> None:
    env = {"QUELL_PROMETHEUS": '[{name = "a", url = "http://h:1", metrics = ["x"]}]'}
    (source,) = load(None, env=env).settings.prometheus
    assert (source.name, source.url, source.metrics) == ("a", "http://h:1", ("x",))


def test_variables_of_others_are_left_alone() -> None:
    assert load(None, env={"QUELL_CONFIG": "x", "QUELL_LAB": "1"}).settings == Settings()


def test_a_home_directory_is_meant_by_a_tilde() -> None:
    assert _load("state_dir = '~/quell'", {"HOME": "/home/ann"}).settings.state_dir == Path("/home/ann/quell")


def test_settings_are_frozen() -> None:
    read = load(None, env={}).settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.server.port = 1  # type: ignore[misc]  # that it is refused is the point


def test_every_key_is_explained_with_value_origin_meaning_type_and_default() -> None:
    loaded = _load("[server]\nport = 0\n")
    told = explain("server.port", loaded=loaded)
    assert (told.value, told.origin, told.default, told.type) == (0, "file:quell.toml:2", 7433, "whole number")
    assert "free one" in told.meaning
    assert told.variable == "QUELL_SERVER__PORT"
    assert explain("detection.window_s", loaded=loaded).unit == "seconds"
    for each in explain_all(loaded):
        assert each.meaning, f"{each.key} has no meaning: write a docstring under the field"
        if each.type in {"number", "whole number"}:
            assert each.range, f"{each.key} is a number without a range"


def test_a_key_of_a_list_of_tables_is_explained_with_and_without_its_number() -> None:
    loaded = _load('[[prometheus]]\nname = "a"\nurl = "http://h"\n')
    assert explain("prometheus.0.name", loaded=loaded).value == "a"
    assert explain("prometheus.name", loaded=loaded).default == "(required)"
    with pytest.raises(UsageError):
        explain("prometheus.1.name", loaded=loaded)


def test_asking_for_a_key_that_is_none_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        explain("server.prot", loaded=load(None, env={}))
    assert "server.port" in caught.value.hint


def test_the_version_is_the_content_without_the_secrets() -> None:
    text = '[store]\npassword = "{{ env.PW }}"\n'
    one, two = (version_of(_load(text, {"PW": value}).settings) for value in ("aaaa1111", "bbbb2222"))
    assert one == two
    assert one != version_of(Settings()), "whether a secret is set counts"
    assert version_of(_load("[server]\nport = 1").settings) != version_of(_load("[server]\nport = 2").settings)
    assert version_of(_load("[server]\nport = 1").settings) == version_of(
        load(None, env={"QUELL_SERVER__PORT": "1"}).settings
    )


def test_the_schema_knows_every_key_and_refuses_others() -> None:
    told = schema()
    properties = told["properties"]
    assert isinstance(properties, dict)
    assert told["additionalProperties"] is False
    assert {field.name for field in dataclasses.fields(Settings)} == set(properties)
    port = properties["server"]["properties"]["port"]
    assert (port["type"], port["minimum"], port["maximum"], port["default"]) == ("integer", 0, 65_535, 7433)
    assert properties["store"]["properties"]["password"]["writeOnly"] is True
    assert properties["prometheus"]["items"]["required"] == ["name", "url"]


@pytest.mark.parametrize("reference", ["{{ env.X | default: 'a b' }}", '{{ env.X | default: "a b" }}'])
@pytest.mark.parametrize("quote", ["'", '"', "'''", '"""'])
def test_the_quotes_of_a_default_do_not_end_the_text_around_it(reference: str, quote: str) -> None:
    Path("quell.toml").write_text(f'[store]\nuser = {quote}<{reference}>{quote} # it\'s "fine"\n')
    assert load(None, env={}).settings.store.user == "<a b>"
    assert load(None, env={"X": "it's"}).settings.store.user == "<it's>"
