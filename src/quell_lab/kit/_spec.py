"""What the platform tells a service process at its start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

SPEC_VARIABLE: Final = "SHOP_SPEC"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """Where a callee is reached."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """Everything one service process needs to start."""

    service: str
    version: str
    instance: str
    host: str
    endpoint: str
    """OTLP/HTTP base URL; empty exports nothing."""
    release: str
    """Path of the release file to load."""
    descriptor: int
    """Inherited descriptor of the bound listening socket."""
    peers: dict[str, PeerSpec]
    conninfo: str
    database_address: tuple[str, int]
    pool_size: int
    flags: str
    settings: str
    conditions: str
    certificate: str
    """PEM to serve with; empty serves plain HTTP."""
    certificate_key: str
    authority: str
    """PEM of the authority that calls are checked against."""
    token_secret: str
    spool: str
    spool_limit_kb: int
    memory_limit_mb: int
    descriptor_limit: int

    def encode(self) -> str:
        return json.dumps(asdict(self))


def decode_spec(raw: str) -> ProcessSpec:
    """Parse what `ProcessSpec.encode` wrote."""
    fields: dict[str, Any] = json.loads(raw)
    fields["peers"] = {name: PeerSpec(**peer) for name, peer in fields["peers"].items()}
    host, port = fields["database_address"]
    fields["database_address"] = (host, port)
    return ProcessSpec(**fields)
