"""Configuration of tool servers, tools and identities: named tables, tables of secrets, and what must stand together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quell.config import Secret, explain, explain_all, load, schema, version_of
from quell.domain import ConfigError

GOOD = """
[governance]
pack = "reversible-auto"
services = 12

[mcp.servers.cluster]
transport = "http_streamable"
url = "http://127.0.0.1:9000/mcp"
headers = { Authorization = "Bearer {{ env.CLUSTER_TOKEN }}" }

[mcp.servers.files]
transport = "stdio"
cmd = ["files-server"]
env = { LEVEL = "1" }

[[tool]]
server = "cluster"
name = "scale"
effect = "reversible"
recovery = "natural"
resource = "/service"

[[cap]]
kind = "usd"
limit = 2.5
per = ["agent", "day"]

[[identity.oidc]]
issuer = "https://id.example"
audience = "quell"
jwks_url = "https://id.example/keys"
roles = { sre = "approver" }
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "quell.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_servers_are_named_tables_and_their_headers_are_secrets(tmp_path: Path) -> None:
    loaded = load(_write(tmp_path, GOOD), env={"CLUSTER_TOKEN": "s3cr3t-value"})
    servers = loaded.settings.mcp.servers
    assert servers["cluster"].headers == {"Authorization": Secret("Bearer s3cr3t-value")}
    assert servers["files"].env["LEVEL"].reveal() == "1"
    assert loaded.settings.identity.oidc[0].roles == {"sre": "approver"}
    told = json.dumps([each.value for each in explain_all(loaded)])
    assert "s3cr3t" not in told
    assert explain("mcp.servers.cluster.headers", loaded=loaded).value == {"Authorization": "(set)"}
    assert explain("mcp.servers.cluster.url", loaded=loaded).origin.startswith("file:")
    assert explain("mcp.servers.files.sandbox", loaded=loaded).value == "best_effort"


def test_what_a_server_is_told_counts_in_the_version_and_a_secret_only_by_being_there(tmp_path: Path) -> None:
    first = version_of(load(_write(tmp_path, GOOD), env={"CLUSTER_TOKEN": "one"}).settings)
    assert version_of(load(_write(tmp_path, GOOD), env={"CLUSTER_TOKEN": "two"}).settings) == first
    other = GOOD.replace("127.0.0.1:9000", "127.0.0.1:9001")
    assert version_of(load(_write(tmp_path, other), env={"CLUSTER_TOKEN": "one"}).settings) != first


@pytest.mark.parametrize(
    ("change", "path", "told"),
    [
        (("cmd = [", "url = ["), "mcp.servers.files.url", "has no `url`"),
        (('cmd = ["files-server"]\n', ""), "mcp.servers.files.cmd", "needs `cmd`"),
        (("servers.files", "servers.Files"), "mcp.servers.Files", "lower-case"),
        (("headers =", "heders ="), "mcp.servers.cluster.heders", "unknown key"),
        (('server = "cluster"', 'server = "clutser"'), "tool.0.server", "there is no server"),
        (("cmd = [", 'stands_for = "clutser"\ncmd = ['), "mcp.servers.files.stands_for", "no other server"),
        (("cmd = [", 'stands_for = "files"\ncmd = ['), "mcp.servers.files.stands_for", "no other server"),
        (('recovery = "natural"', 'recovery = "probeable"'), "tool.0.probe", "needs `probe`"),
        (('resource = "/service"', 'resource = "service"'), "tool.0.resource", "JSON pointer"),
        (('effect = "reversible"', 'effect = "reversable"'), "tool.0.effect", "one of"),
        (
            ('resource = "/service"', 'destination = "/url"\neffect2 = 1'),
            "tool.0.effect2",
            "unknown key",
        ),
        (('per = ["agent", "day"]', 'per = ["agent", "week"]'), "cap.0.per.1", "tells no accounts apart"),
        (('pack = "reversible-auto"', 'pack = "yolo"'), "governance.pack", "one of"),
        (("services = 12\n", ""), "governance.services", "share of services"),
        (("jwks_url =", "jwks ="), "identity.oidc.0.jwks_url", "required"),
    ],
)
def test_mistakes_about_tools_are_told_with_their_place(
    change: tuple[str, str], path: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(_write(tmp_path, GOOD.replace(*change)), env={"CLUSTER_TOKEN": "x"})
    found = {problem.path: problem.reason for problem in raised.value.problems}
    assert told in found[path], found
    assert all("quell.toml" in problem.source for problem in raised.value.problems)


def test_a_misspelled_key_of_a_named_table_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(_write(tmp_path, GOOD.replace("headers =", "heders =")), env={"CLUSTER_TOKEN": "x"})
    assert "headers" in raised.value.problems[0].hint


def test_the_schema_holds_named_tables(tmp_path: Path) -> None:
    told = schema()
    text = json.dumps(told)
    servers = told["properties"]["mcp"]["properties"]["servers"]  # type: ignore[index] # JSON
    assert servers["additionalProperties"]["properties"]["headers"]["additionalProperties"]["writeOnly"] is True
    assert servers["additionalProperties"]["required"] == ["transport"]
    assert '"oidc"' in text


def test_one_key_of_a_named_table_is_not_set_from_the_environment_and_the_refusal_says_where_it_can_be() -> None:
    with pytest.raises(ConfigError) as raised:
        load(None, env={"QUELL_MCP__SERVERS__CLUSTER__URL": "http://127.0.0.1:1", "HOME": ""})
    (problem,) = raised.value.problems
    assert "quell.toml" in problem.hint
