"""A client of ClickHouse over HTTP: the embedded owner and any real server alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeAlias, TypeVar

import httpx2
import msgspec

from quell import telemetry
from quell.domain import StoreError
from quell.signals._trust import trusted

T = TypeVar("T")
Parameter: TypeAlias = str | int | float | datetime | Sequence[str] | Sequence[int]

_GRACE_S = 2.0
_CONNECTIONS = 16
_ROW_SETTINGS = {
    "default_format": "JSONEachRow",
    "date_time_output_format": "iso",
    "output_format_json_quote_64bit_integers": "0",
    "output_format_json_validate_utf8": "1",
    "wait_end_of_query": "1",
}
_CODE = re.compile(r"Code: (\d+)")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0", "\b": "\\b", "\f": "\\f"})
_READONLY = 164
_HINTS = {
    60: "the table does not exist in this store; `quell doctor` lists what there is",
    159: "narrow the window or raise store.query_timeout_s",
    _READONLY: "the store's user must be allowed to change settings (readonly=2 or 0)",
    202: "the store is busy; try again in a moment",
    241: "narrow the window or raise store.memory_max_mb",
    516: "check store.user and store.password",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the store listens and who we are there."""

    url: str
    user: str = "quell"
    password: str = field(default="", repr=False)
    database: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShape:
    """What DESCRIBE says of one table."""

    name: str
    columns: Mapping[str, str]
    """Column name to type."""
    sorting_key: str
    generation: Literal["a", "b", "c", ""]
    """Of `otel_logs`, by its columns: a has TimestampTime, b also EventName, c has no TimestampTime; empty for other tables."""
    attributes: Literal["map", "json", ""]
    """How attributes are kept; empty for tables without any."""


Schema: TypeAlias = Mapping[str, TableShape]
"""Shape of every table of ours and of the exporter's that exists, by name."""


class _Column(msgspec.Struct):
    table: str
    name: str
    type: str


class _Table(msgspec.Struct):
    name: str
    sorting_key: str


def parameter_text(value: Parameter) -> str:
    """Write a bound parameter as the HTTP interface reads it: escaped text."""
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, datetime):
        assert value.tzinfo is not None, "a bound time must be aware"
        moment = value.astimezone(UTC).replace(tzinfo=None)
        return moment.isoformat(sep=" ", timespec="microseconds" if moment.microsecond else "seconds")
    if isinstance(value, (int, float)):
        return repr(value)
    return "[" + ",".join(_element(item) for item in value) + "]"


def _element(item: str | int) -> str:
    if isinstance(item, int):
        return str(item)
    return "'" + item.replace("\\", "\\\\").replace("'", "\\'") + "'"


class StoreClient:
    """Asks and fills one store; its endpoint may move while it lives."""

    def __init__(self, endpoint: Endpoint, *, client_id: str, failed: Callable[[], None] = lambda: None) -> None:
        self.endpoint = endpoint
        self.schema: Schema = {}
        """Loaded by `load_schema`; Store.open does that."""
        self._failed = failed
        limits = httpx2.Limits(
            max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=30.0
        )
        self._http = httpx2.AsyncClient(
            headers={"X-Quell-Client": client_id, "User-Agent": "quell"},
            limits=limits,
            trust_env=False,
            verify=trusted(endpoint.url),
        )

    async def rows(
        self, sql: str, *, params: Mapping[str, Parameter] | None = None, row: type[T], timeout_s: float
    ) -> list[T]:
        """Ask, and decode each row into `row` (a msgspec Struct or a dataclass). Times come back aware, in UTC.

        Raises StoreError when the store fails, refuses, is late or answers something else than asked.
        """
        bound = {f"param_{name}": parameter_text(value) for name, value in (params or {}).items()}
        settings = {**_ROW_SETTINGS, "max_execution_time": f"{timeout_s:g}"}
        body = await self._post(sql.encode(), {**settings, **bound}, timeout_s=timeout_s)
        try:
            return msgspec.json.decode(b"[" + b",".join(body.splitlines()) + b"]", type=list[row])  # type: ignore[valid-type] # the row type is a value here
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StoreError(
                f"the store answered something unexpected: {error}",
                hint="the table may have another shape than assumed; `quell doctor` checks it",
            ) from error

    async def insert(
        self,
        table: str,
        payload: bytes,
        *,
        input_format: str,
        settings: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> None:
        """Write rows in one of the engine's input formats; returns when they are in the table."""
        query = f"INSERT INTO {table} FORMAT {input_format}"
        await self._post(
            payload,
            {"query": query, "max_execution_time": f"{timeout_s:g}", "wait_end_of_query": "1", **(settings or {})},
            timeout_s=timeout_s,
        )

    async def command(self, sql: str, *, timeout_s: float) -> None:
        """Run a statement that gives no rows."""
        await self._post(
            sql.encode(), {"wait_end_of_query": "1", "max_execution_time": f"{timeout_s:g}"}, timeout_s=timeout_s
        )

    async def ping(self, *, timeout_s: float) -> bool:
        """Tell whether the store answers, and knows us."""
        try:
            answer = await self._post(b"SELECT 1 FORMAT TabSeparated", {}, timeout_s=timeout_s, grace_s=0.0)
        except StoreError:
            return False
        return answer == b"1\n"  # anybody may have taken a port that is free again

    async def busy(self, *, timeout_s: float) -> bool:
        """Tell whether the embedded owner lives and has no hand free: it answers, only later."""
        try:
            reply = await self._http.post(
                self.endpoint.url + "/quell/busy", headers=_wire(self._identity()), timeout=timeout_s
            )
        except httpx2.HTTPError:
            return False
        return reply.status_code == 200 and reply.content == b"busy\n"

    async def close_store(self, *, timeout_s: float) -> bool:
        """Ask the embedded owner to leave; False when others still use it."""
        try:
            reply = await self._http.post(
                self.endpoint.url + "/quell/close", headers=_wire(self._identity()), timeout=timeout_s
            )
        except httpx2.HTTPError:
            return False
        return reply.status_code == 200 and reply.content.startswith(b"closing")

    async def load_schema(self, *, timeout_s: float) -> Schema:
        """Learn which of the exporter's tables and of our rollups exist, and their shapes."""
        where = "database = currentDatabase() AND (startsWith({c}, 'otel_') OR startsWith({c}, 'quell_'))"
        tables = await self.rows(
            f"SELECT name, sorting_key FROM system.tables WHERE {where.format(c='name')} AND engine != 'MaterializedView' ORDER BY name",
            row=_Table,
            timeout_s=timeout_s,
        )
        columns = await self.rows(
            f"SELECT table, name, type FROM system.columns WHERE {where.format(c='table')} ORDER BY table, position",
            row=_Column,
            timeout_s=timeout_s,
        )
        by_table: dict[str, dict[str, str]] = {}
        for column in columns:
            by_table.setdefault(column.table, {})[column.name] = column.type
        self.schema = {
            table.name: shape_of(table.name, by_table.get(table.name, {}), table.sorting_key) for table in tables
        }
        return self.schema

    def _identity(self) -> dict[str, str]:
        return {"X-ClickHouse-User": self.endpoint.user, "X-ClickHouse-Key": self.endpoint.password}

    async def _post(
        self, content: bytes, query: dict[str, str], *, timeout_s: float, grace_s: float = _GRACE_S
    ) -> bytes:
        address = {"database": self.endpoint.database, **query}
        headers = self._identity()
        telemetry.inject(headers)
        try:
            reply = await self._http.post(
                self.endpoint.url + "/",
                params=address,
                content=content,
                headers=_wire(headers),
                timeout=timeout_s + grace_s,
            )
        except httpx2.TimeoutException as error:
            self._failed()
            raise StoreError(f"the store did not answer within {timeout_s:g} s", hint=_HINTS[159], code=159) from error
        except httpx2.HTTPError as error:
            self._failed()
            raise StoreError(
                f"the store cannot be reached: {error!r}",
                hint="it is restarted when it is embedded; try again in a few seconds, then see `quell doctor`",
            ) from error
        if reply.status_code != 200:
            raise _refusal(reply.text, reply.headers.get("X-ClickHouse-Exception-Code", ""))
        return reply.content

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _wire(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Write headers in UTF-8: a password may have letters of any language."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _refusal(text: str, header: str) -> StoreError:
    found = _CODE.search(text)
    code = int(header) if header.isdigit() else int(found.group(1)) if found else None
    line = text.strip().partition("\n")[0][:500]
    return StoreError(line or "the store refused without a word", hint=_HINTS.get(code or 0, ""), code=code)


def shape_of(name: str, columns: Mapping[str, str], sorting_key: str) -> TableShape:
    """Name the generation and the kind of attributes from the columns of a table."""
    generation: Literal["a", "b", "c", ""] = ""
    if name == "otel_logs":
        generation = "c" if "TimestampTime" not in columns else "b" if "EventName" in columns else "a"
    resource = columns.get("ResourceAttributes", "")
    attributes: Literal["map", "json", ""] = (
        "json" if resource.startswith(("JSON", "Object")) else "map" if resource else ""
    )
    return TableShape(name=name, columns=columns, sorting_key=sorting_key, generation=generation, attributes=attributes)
