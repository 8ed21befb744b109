"""What the environment says of telemetry, in OpenTelemetry's own names; it wins over the settings, as everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args
from urllib.parse import unquote

from quell.config import TelemetrySettings

Out: TypeAlias = Literal["traces", "logs", "metrics"]
_CONTENT_MAX_CHARS = 65_536
_YES, _NO = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})


def goes_out(env: Mapping[str, str]) -> bool:
    """Tell whether any signal goes to a collector."""
    return any(endpoint_of(env, signal) for signal in get_args(Out))


def endpoint_of(env: Mapping[str, str], signal: Out) -> str:
    """Return where a signal goes; empty: nowhere.

    An endpoint of the signal's own is taken as it stands; the common one is the base of all.
    """
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    if env.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip().lower() == "none":
        return ""
    own = env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    common = env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip().rstrip("/")
    return own or (f"{common}/v1/{signal}" if common else "")


def protocol_of(env: Mapping[str, str], signal: Out) -> str:
    """Return the protocol that a signal shall go by, as it was written; empty: nobody said."""
    own = env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "")
    return (own or env.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")).strip().lower()


def headers_of(env: Mapping[str, str], signal: Out) -> dict[str, str]:
    """Return the headers that go along with a signal: the common ones, and its own over them."""
    own = env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_HEADERS", "")
    return _pairs(env.get("OTEL_EXPORTER_OTLP_HEADERS", "")) | _pairs(own)


def names_of(env: Mapping[str, str]) -> dict[str, str]:
    """Return how a collector shall know this service; the own store always knows it as `quell`."""
    named = {
        "service.name": env.get("OTEL_SERVICE_NAME", "").strip(),
        "openinference.project.name": env.get("PHOENIX_PROJECT_NAME", "").strip(),
    }
    return {key: value for key, value in named.items() if value}


def content_max_chars_of(settings: TelemetrySettings, *, env: Mapping[str, str]) -> int:
    """Return how much of each text of conversations and calls is recorded; 0: none."""
    said = env.get("OTEL_RECORD_CONTENT", "").strip().lower()
    is_on = said in _YES or (settings.record_content and said not in _NO)
    longest = env.get("OTEL_CONTENT_MAX_LENGTH", "").strip()
    most = int(longest) if longest.isdigit() else settings.content_max_chars
    return min(most, _CONTENT_MAX_CHARS) if is_on else 0


def _pairs(text: str) -> dict[str, str]:
    """Read `key=value,key=value` with percent-encoded values, as OpenTelemetry writes headers."""
    pairs = (item.partition("=") for item in text.split(",") if "=" in item)
    return {key.strip().lower(): unquote(value.strip()) for key, _, value in pairs}
