"""Open telemetry for one process: log lines and the log file at once, OpenTelemetry when it has somewhere to go."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TextIO, TypeAlias

from quell.config import Secret, Settings
from quell.telemetry._active import (
    NOTHING,
    Attribute,
    Exporter,
    Kind,
    Parent,
    Signal,
    Span,
    install,
    is_quiet,
    uninstall,
)
from quell.telemetry._catalogue import EVENTS, EventSpec, Level, Scalar, Value
from quell.telemetry._env import content_max_chars_of, goes_out
from quell.telemetry._lines import ORDER, Cell, Style, line_of
from quell.telemetry._logfile import LogFile
from quell.telemetry._text import Redactor

if TYPE_CHECKING:
    from quell.telemetry._otel import OpenTelemetry

Clock: TypeAlias = Callable[[], datetime]

_TEXT_MAX = 2000
_TRACEBACK_MAX = 20_000
_SECRET_MAX = 8_192
"""Looked through beyond what is kept of a text: a secret that is cut in two is not known any more."""


class Telemetry:
    """What one process tells about itself. Build it with `open_telemetry`; close it when the process ends."""

    def __init__(
        self,
        settings: Settings,
        *,
        role: Literal["serve", "command"],
        service_version: str,
        instance: str,
        clock: Clock,
        env: Mapping[str, str],
        stderr: TextIO | None,
        clean: Callable[[str], str],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._env = env
        self._stderr = stderr
        self._style = _style_of(settings, env=env, stderr=stderr)
        self._level = ORDER[_level_of(settings.telemetry.level, role=role)]
        self._redactor = Redactor(_secrets_in(settings), clean=clean)
        own = settings.state_dir / "logs" / "quell.log"
        self._file = LogFile(
            Path(settings.telemetry.log_file) if settings.telemetry.log_file else own,
            bytes_max=int(settings.telemetry.log_file_max_mb * 1024 * 1024),
        )
        self._resource = {"service.name": "quell", "service.version": service_version, "service.instance.id": instance}
        self._otel: OpenTelemetry | None = None
        self._routing = _LibraryLogs(self)
        self._content_max_chars = content_max_chars_of(settings.telemetry, env=env)
        if goes_out(env):
            for problem in self._engine().send_out(env):
                self._write("telemetry.rerouted", EVENTS["telemetry.rerouted"], run="", body={"reason": problem})

    @property
    def dropped(self) -> Mapping[str, int]:
        """How much was lost so far, by what: `spans`, `logs`, `metrics`, `lines` of the log file."""
        lost = dict(self._otel.dropped) if self._otel is not None else {}
        return lost | {"lines": self._file.lost}

    def attach(self, export: Exporter) -> None:
        """Send Quell's own telemetry to `export` from now on, in OTLP protobuf; a no-op when settings say so.

        Call it in the event loop that `export` belongs to. What `export` does is muted, so that it cannot feed itself.
        """
        if self._settings.telemetry.enabled:
            self._engine().attach(export)

    async def flush(self) -> None:
        """Send what is queued, within a few seconds; call it before what `attach` was given is closed."""
        if self._otel is not None:
            await self._otel.flush()

    async def close(self) -> None:
        """Send what is left, within a few seconds, and go back to doing nothing."""
        if self._otel is not None:
            await self._otel.close()
        self.close_now()

    def close_now(self) -> None:
        """Go back to doing nothing at once; what was not sent is lost."""
        if self._otel is not None:
            self._otel.abandon()
        uninstall(self)
        self._routing.remove()
        self._file.close()

    def _engine(self) -> OpenTelemetry:
        if self._otel is None:
            # OpenTelemetry costs 60 ms of CPU to load, and most commands end without needing it.
            from quell.telemetry._otel import OpenTelemetry  # noqa: PLC0415

            self._otel = OpenTelemetry(
                resource=self._resource, env=self._env, on_drop=self._tell_drop, redact=self._redactor.text
            )
        return self._otel

    def _tell_drop(self, signal: Signal, records: int, reason: str) -> None:
        body: dict[str, Value] = {"signal": signal, "records": records, "reason": reason}
        self._write("telemetry.dropped", EVENTS["telemetry.dropped"], run="", body=self._clean(body))

    # what quell.telemetry's functions call

    @property
    def is_listening(self) -> bool:
        """Whether spans and metrics go anywhere."""
        return self._otel is not None

    @property
    def is_recording(self) -> bool:
        """Whether what is said may stand in spans."""
        return self._content_max_chars > 0

    def content(self, text: str) -> str:
        """Return a text as it may stand in a span: cleaned first and cut then, so that no half of a secret stays."""
        most = self._content_max_chars
        return self._redactor.text(text[: most + _SECRET_MAX])[:most] if most else ""

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, Attribute], *, parent: Parent | None, kind: Kind
    ) -> Iterator[Span]:
        """Time a piece of work."""
        engine = self._otel
        if engine is None:
            yield NOTHING
            return
        with engine.span(name, self._attributes(attributes), parent=parent, kind=kind) as opened:
            yield _CleanSpan(opened, self._redactor)

    def count(self, name: str, n: float, attributes: Mapping[str, Scalar]) -> None:
        """Add to a counter or a level."""
        if self._otel is not None:
            self._otel.count(name, n, self._labels(attributes))

    def measure(self, name: str, value: float, attributes: Mapping[str, Scalar]) -> None:
        """Take one value into a histogram, or set a gauge."""
        if self._otel is not None:
            self._otel.measure(name, value, self._labels(attributes))

    def event(self, name: str, spec: EventSpec, *, run: str, body: Mapping[str, Value]) -> None:
        """Write one event to stderr, to the log file and as an OpenTelemetry log record."""
        cleaned = self._clean(body)
        self._write(name, spec, run=run, body=cleaned)
        if self._otel is not None and not is_quiet() and spec.level != "debug":
            self._otel.log(name, spec.level, run=run, body=cleaned)

    def inject(self, headers: MutableMapping[str, str]) -> None:
        """Write the current place in the trace into headers."""
        if self._otel is not None:
            self._otel.inject(headers)

    def _write(self, name: str, spec: EventSpec, *, run: str, body: Mapping[str, Cell]) -> None:
        at = self._clock()
        self._file.write(line_of(at, spec.level, name, run=run, body=body, style="json"))
        if self._stderr is None or ORDER[spec.level] < self._level:
            return
        shown = {key: value for key, value in body.items() if key != "traceback"}
        try:
            self._stderr.write(line_of(at, spec.level, name, run=run, body=shown, style=self._style) + "\n")
            self._stderr.flush()
        except (OSError, ValueError):
            self._stderr = None

    def _clean(self, body: Mapping[str, Value]) -> dict[str, Cell]:
        return {key: self._cell(key, value) for key, value in body.items()}

    def _cell(self, key: str, value: Value) -> Cell:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            cut = _TRACEBACK_MAX if key == "traceback" else _TEXT_MAX
            return self._redactor.value(key, str(value))[:cut]
        return [self._redactor.value(key, str(item))[:_TEXT_MAX] for item in value]

    def _attributes(self, attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
        return {key: _cleaned(self._redactor, key, value) for key, value in attributes.items()}

    def _labels(self, attributes: Mapping[str, Scalar]) -> dict[str, Scalar]:
        return {
            key: self._redactor.value(key, value)[:_TEXT_MAX] if isinstance(value, str) else value
            for key, value in attributes.items()
        }


def open_telemetry(
    settings: Settings,
    *,
    role: Literal["serve", "command"],
    service_version: str,
    instance: str,
    clock: Clock,
    env: Mapping[str, str],
    console: Literal["stderr", "off"] = "stderr",
    clean: Callable[[str], str] = str,
) -> Telemetry:
    """Make `span`, `count` and `event` speak for this process; at most one Telemetry is open at a time.

    A command shows only errors on stderr (its own messages stand there) unless another level than `info` was asked for.
    `clean` takes secrets out of every text, in whatever encoding; plain ones of the settings go in any case.
    `OTEL_EXPORTER_OTLP_ENDPOINT` in `env` sends everything there as well, over OTLP; the other names of OpenTelemetry
    for exporters are heeded too.
    """
    opened = Telemetry(
        settings,
        role=role,
        service_version=service_version,
        instance=instance,
        clock=clock,
        env=env,
        stderr=sys.stderr if console == "stderr" else None,
        clean=clean,
    )
    try:
        install(opened)
    except BaseException:
        # It would go on writing what libraries log, beside the one that is open and with its own idea of secrets.
        opened.close_now()
        raise
    return opened


class _RawSpan(Protocol):
    def put(self, key: str, value: Attribute) -> None:
        """Add an attribute as it is."""


class _CleanSpan:
    def __init__(self, span: _RawSpan, redactor: Redactor) -> None:
        self._span = span
        self._redactor = redactor

    def put(self, key: str, value: Attribute) -> None:
        """Add an attribute without secrets."""
        self._span.put(key, _cleaned(self._redactor, key, value))

    def put_content(self, key: str, text: str) -> None:
        """Add content as it is."""
        if text:
            self._span.put(key, text)


def _cleaned(redactor: Redactor, key: str, value: Attribute) -> Attribute:
    if isinstance(value, str):
        return redactor.value(key, value)[:_TEXT_MAX]
    if isinstance(value, bool | int | float):
        return value
    return [redactor.value(key, each)[:_TEXT_MAX] for each in value]


class _LibraryLogs(logging.Handler):
    """Brings what libraries log at WARNING and above into the one stream of events."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(level=logging.WARNING)
        self._telemetry = telemetry
        self._is_writing = False
        logging.getLogger().addHandler(self)

    def remove(self) -> None:
        """Stop listening."""
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as an event; never raise into the library that logged."""
        if self._is_writing:
            return
        self._is_writing = True
        try:
            body: dict[str, Value] = {
                "logger": record.name,
                "severity": record.levelname.lower(),
                "message": record.getMessage(),
            }
            if record.exc_info and record.exc_info[0] is not None:
                body["traceback"] = logging.Formatter().formatException(record.exc_info)
            self._telemetry.event("library.logged", EVENTS["library.logged"], run="", body=body)
        except Exception as error:  # noqa: BLE001 - a log line that cannot be formatted must not break who wrote it
            self._tell_broken(record, error)
        finally:
            self._is_writing = False

    def _tell_broken(self, record: logging.LogRecord, error: Exception) -> None:
        """Write what of a record can be; the standard library would print its arguments to stderr as they are."""
        with suppress(Exception):
            message = f"{record.msg} (a log line of {record.pathname}:{record.lineno} is broken: {error})"
            body: dict[str, Value] = {
                "logger": record.name,
                "severity": record.levelname.lower(),
                "message": message,
            }
            self._telemetry.event("library.logged", EVENTS["library.logged"], run="", body=body)


def _style_of(settings: Settings, *, env: Mapping[str, str], stderr: TextIO | None) -> Style:
    if settings.telemetry.log_format != "auto":
        return settings.telemetry.log_format
    if env.get("NO_COLOR"):
        return "plain"
    if env.get("FORCE_COLOR"):
        return "colour"
    return "colour" if stderr is not None and stderr.isatty() else "plain"


def _level_of(level: Level, *, role: Literal["serve", "command"]) -> Level:
    return "error" if role == "command" and level == "info" else level


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, Secret):
        if value:
            yield value.reveal()
    elif isinstance(value, tuple):
        for item in value:
            yield from _secrets_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _secrets_in(getattr(value, each.name))
