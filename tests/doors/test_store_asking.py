"""The embedded store through its door: asked by our client and by ClickHouse's own."""

from __future__ import annotations

import asyncio
import gzip
import os
import secrets
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import clickhouse_connect
import httpx2
import msgspec
import pytest

from quell.config import Secret, StoreSettings
from quell.domain import ConfigError, StoreError
from quell.signals import Store, _trust
from tests._live_store import LiveStore, now
from tests.doors._authority_house import certificate

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStore]:
    live = LiveStore(tmp_path_factory.mktemp("store"))
    yield live
    live.close()


class Mixed(msgspec.Struct):
    small: int
    big: int
    at: datetime
    words: list[str]
    text: str
    nothing: float | None


def test_rows_come_back_as_the_types_that_were_asked_for(live: LiveStore) -> None:
    at = datetime(2026, 11, 20, 6, 30, 15, 123456, tzinfo=UTC)
    words = ["plain", "it's", "a\\b", "tab\there", "line\nbreak"]
    sql = """SELECT {small:UInt8} AS small, toUInt64(18446744073709551615) AS big, {at:DateTime64(6)} AS at,
        {words:Array(String)} AS words, {text:String} AS text, CAST(nan AS Float64) AS nothing"""
    (row,) = live.rows(sql, Mixed, {"small": 7, "at": at, "words": words, "text": "q'\"\\ \t\n{x:Int8}; DROP"})
    assert (row.small, row.big, row.at, row.words) == (7, 2**64 - 1, at, words)
    assert row.text == "q'\"\\ \t\n{x:Int8}; DROP"
    assert row.nothing is None


class Number(msgspec.Struct):
    n: int


def test_a_bound_value_is_never_sql(live: LiveStore) -> None:
    evil = "x' OR 1=1; DROP TABLE otel_logs; --"
    (row,) = live.rows(
        "SELECT count() AS n FROM otel_logs WHERE ServiceName = {service:String}", Number, {"service": evil}
    )
    assert row.n == 0
    assert (
        live.rows("SELECT count() AS n FROM system.tables WHERE name = 'otel_logs' AND database = 'default'", Number)[
            0
        ].n
        == 1
    )


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT * FROM there_is_no_such_table", 60),
        ("SELEC 1", 62),
        ("SELECT sleep(3)", 159),
        ("SELECT groupArray(number) FROM numbers(2000000000)", 241),
    ],
)
def test_a_refusal_carries_the_engines_number(live: LiveStore, sql: str, code: int) -> None:
    with pytest.raises(StoreError) as caught:
        live.run(lambda: live.store.client.rows(sql, row=dict, timeout_s=20 if code == 241 else 1))
    assert caught.value.code == code


def test_an_answer_of_another_shape_is_an_error_and_not_a_guess(live: LiveStore) -> None:
    with pytest.raises(StoreError, match="unexpected"):
        live.rows("SELECT 'seven' AS n", Number)


def test_a_setting_of_one_query_does_not_stay_for_the_next(live: LiveStore) -> None:
    for _ in range(8):
        with pytest.raises(StoreError):
            live.run(
                lambda: live.store.client.rows("SELECT sleepEachRow(0.1) FROM numbers(20)", row=dict, timeout_s=0.2)
            )
    assert {row["n"] for row in live.rows("SELECT sum(sleepEachRow(0.1)) AS n FROM numbers(5)", dict)} == {0}


def test_the_shape_of_every_table_is_known(live: LiveStore) -> None:
    schema = live.store.client.schema
    assert schema["otel_logs"].generation == "b"
    assert schema["otel_logs"].attributes == "map"
    assert schema["otel_logs"].columns["Timestamp"] == "DateTime64(9)"
    assert schema["otel_traces"].sorting_key.startswith("ServiceName, SpanName")
    assert {
        "quell_patterns_5s",
        "quell_patterns_1m",
        "quell_red_5s",
        "quell_red_1m",
        "quell_calls",
        "quell_edges_1m",
        "quell_changes",
    } <= set(schema)


def test_the_clickhouse_client_of_others_works_against_the_owner(live: LiveStore) -> None:
    endpoint = live.store.client.endpoint
    port = int(endpoint.url.rsplit(":", 1)[1])
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=port, username="anybody", password=endpoint.password, compress="gzip"
    )
    try:
        client.command(
            "CREATE TABLE IF NOT EXISTS peer (a UInt32, b String, m Map(String, String)) ENGINE = MergeTree ORDER BY a"
        )
        client.insert("peer", [[1, "one", {"k": "v"}], [2, "zwei'\\", {}]], column_names=["a", "b", "m"])
        found = client.query("SELECT * FROM peer WHERE b = {b:String}", parameters={"b": "zwei'\\"})
        assert found.result_rows == [(2, "zwei'\\", {})]
        assert client.query("SELECT m FROM peer ORDER BY a").result_rows[0] == ({"k": "v"},)
        with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError, match="UNKNOWN_TABLE"):
            client.query("SELECT * FROM nowhere")
    finally:
        client.close()


def _post(live: LiveStore, **how: object) -> httpx2.Response:
    return httpx2.post(live.store.client.endpoint.url + "/", **how)  # type: ignore[arg-type] # the test's own values


def test_only_who_has_the_token_is_answered(live: LiveStore) -> None:
    assert httpx2.get(live.store.client.endpoint.url + "/ping").text == "Ok.\n"
    refused = _post(live, content="SELECT 1", headers={"X-ClickHouse-Key": secrets.token_urlsafe(32)})
    assert refused.status_code == 403
    assert refused.headers["X-ClickHouse-Exception-Code"] == "516"
    token = live.store.client.endpoint.password
    assert _post(live, content="SELECT 1", auth=("default", token)).text == "1\n"
    assert (live.state_dir / "store.json").stat().st_mode & 0o777 == 0o600


def test_a_gzip_body_is_read_and_a_broken_one_refused(live: LiveStore) -> None:
    headers = {"X-ClickHouse-Key": live.store.client.endpoint.password, "Content-Encoding": "gzip"}
    assert _post(live, content=gzip.compress(b"SELECT 40 + 2"), headers=headers).text == "42\n"
    assert _post(live, content=b"SELECT 1", headers=headers).status_code == 415
    assert _post(live, content=b"x", headers={**headers, "Content-Encoding": "br"}).status_code == 415


def test_many_ask_at_once(live: LiveStore) -> None:
    async def ask() -> list[list[Number]]:
        return await asyncio.gather(
            *(live.store.client.rows(f"SELECT {n} AS n", row=Number, timeout_s=20) for n in range(60))
        )

    assert [rows[0].n for rows in live.run(ask)] == list(range(60))


def test_ctrl_c_is_not_for_the_owner_and_it_is_small_at_rest(live: LiveStore) -> None:
    status = live.run(live.store.status)
    os.kill(status.pid, signal.SIGINT)
    assert live.rows("SELECT 1 AS n", Number)[0].n == 1
    after = live.run(live.store.status)
    assert (after.pid, after.state, after.restarts) == (status.pid, "ready", 0)
    assert 0 < after.memory_bytes < 1500 << 20


def test_a_second_owner_of_one_directory_leaves_at_once(live: LiveStore) -> None:
    limits = '{"memory_max_mb":500,"threads_max":1,"query_timeout_s":5,"retention_hours":1,"rollup_retention_days":1,"disk_max_mb":100}'
    command = [sys.executable, "-m", "quell.signals._owner", "--state-dir", str(live.state_dir), "--limits", limits]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=40).returncode == 75
    assert live.rows("SELECT 1 AS n", Number)[0].n == 1


def test_a_second_store_shares_the_owner_and_leaves_it_to_the_first(live: LiveStore) -> None:
    async def visit() -> int:
        other = await Store.open(StoreSettings(), state_dir=live.state_dir, clock=now)
        pid = (await other.status()).pid
        await other.close()
        return pid

    assert live.run(visit) == live.run(live.store.status).pid
    assert live.rows("SELECT 1 AS n", Number)[0].n == 1


_GENERATIONS = {
    "a": "Timestamp DateTime64(9), TimestampTime DateTime DEFAULT toDateTime(Timestamp), ServiceName String, ResourceAttributes Map(String, String)",
    "b": "Timestamp DateTime64(9), TimestampTime DateTime DEFAULT toDateTime(Timestamp), ServiceName String, ResourceAttributes Map(String, String), EventName String",
    "c": "Timestamp DateTime64(9), ServiceName String, ResourceAttributes JSON, EventName String",
}


@pytest.mark.parametrize("generation", sorted(_GENERATIONS))
def test_a_foreign_database_is_described_and_left_as_it_is(live: LiveStore, generation: str) -> None:
    database = f"foreign_{generation}"
    columns = _GENERATIONS[generation]
    order = (
        "(toStartOfFiveMinutes(Timestamp), ServiceName, Timestamp)"
        if generation == "c"
        else "(ServiceName, TimestampTime, Timestamp)"
    )
    endpoint = live.store.client.endpoint
    settings = StoreSettings(url=endpoint.url, user="default", password=Secret(endpoint.password), database=database)

    async def look() -> None:
        await live.store.client.command(f"CREATE DATABASE {database}", timeout_s=5)
        await live.store.client.command(
            f"CREATE TABLE {database}.otel_logs ({columns}) ENGINE = MergeTree ORDER BY {order}", timeout_s=5
        )
        foreign = await Store.open(settings, state_dir=live.state_dir / "none", clock=now)
        assert set(foreign.client.schema) == {"otel_logs"}
        shape = foreign.client.schema["otel_logs"]
        assert shape.generation == generation
        assert shape.attributes == ("json" if generation == "c" else "map")
        assert not foreign.receives
        assert (await foreign.status()).kind == "remote"
        await foreign.close()

    live.run(look)
    assert not (live.state_dir / "none").exists()


def test_with_leave_the_tables_are_made_in_a_foreign_database(live: LiveStore) -> None:
    endpoint = live.store.client.endpoint
    settings = StoreSettings(
        url=endpoint.url, password=Secret(endpoint.password), database="lent", create_tables="always"
    )

    async def look() -> set[str]:
        await live.store.client.command("CREATE DATABASE lent", timeout_s=5)
        foreign = await Store.open(settings, state_dir=live.state_dir, clock=now)
        assert foreign.receives
        await foreign.close()
        return set(foreign.client.schema)

    assert {"otel_logs", "otel_traces", "quell_red_5s", "quell_edges_1m"} <= live.run(look)


def test_a_store_in_the_clear_that_is_away_costs_no_certificates_however_often_it_is_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    real = ssl.SSLContext.load_verify_locations

    def load(self: ssl.SSLContext, *told: object, **named: object) -> None:
        loaded.append(told)
        real(self, *told, **named)  # type: ignore[arg-type]  # as it was told

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", load)

    for _ in range(3):
        with pytest.raises(StoreError, match="cannot be reached"):
            asyncio.run(Store.open(StoreSettings(url="http://127.0.0.1:9"), state_dir=tmp_path, clock=now))
    assert loaded == []


def test_a_store_behind_tls_that_nobody_vouches_for_is_not_asked(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    named = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1")
    made = ("openssl", "req", "-x509", *named, "-keyout", str(key), "-out", str(certificate))
    subprocess.run(made, check=True, capture_output=True, timeout=20)
    told = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    told.load_cert_chain(certificate, key)
    asked: list[bytes] = []

    async def story() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.read(1))
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=told) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(StoreError, match="certificate"):
                await Store.open(StoreSettings(url=url), state_dir=tmp_path, clock=now)

    asyncio.run(story())
    assert not any(asked), "nothing was said to it"


def test_a_store_that_the_operator_s_own_authority_vouches_for_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority is named as for models, tools and webhooks."""
    public, told = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    _trust._certificates.cache_clear()
    asked: list[bytes] = []

    async def story() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.read(4))
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=told) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(StoreError):
                await Store.open(StoreSettings(url=url), state_dir=tmp_path, clock=now)

    try:
        asyncio.run(story())
    finally:
        _trust._certificates.cache_clear()
    assert asked[0] in {b"GET ", b"POST"}


def test_a_store_that_is_not_there_is_named_with_a_hint(tmp_path: Path) -> None:
    settings = StoreSettings(url="http://127.0.0.1:9", query_timeout_s=1)
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        asyncio.run(Store.open(settings, state_dir=tmp_path, clock=now))
    assert caught.value.hint


def test_without_the_engine_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        asyncio.run(Store.open(StoreSettings(), state_dir=tmp_path, clock=now))
    assert "quell[embedded]" in caught.value.hint
