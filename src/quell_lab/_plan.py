"""What stands in the shop: services, edges, limits, and where the lab keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DATABASE: Final = "postgres"
QUEUE: Final = "shipments"
PLATFORM: Final = "platform"
CERTIFICATE_NAME: Final = "shop.internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """One service of the shop."""

    name: str
    callees: tuple[str, ...]
    """Services it calls; the database comes on top."""
    uses_database: bool = True
    tls: bool = False
    """Whether it serves TLS."""
    pool_size: int = 4
    memory_limit_mb: int = 190
    descriptor_limit: int = 160
    spool_limit_kb: int = 8192
    """Size of the volume that holds its journal."""


SERVICES: Final[dict[str, ServiceSpec]] = {
    spec.name: spec
    for spec in (
        ServiceSpec(name="gateway", callees=("catalog", "cart", "orders"), uses_database=False),
        ServiceSpec(name="catalog", callees=()),
        ServiceSpec(name="cart", callees=("catalog",), tls=True),
        ServiceSpec(name="orders", callees=("cart", "inventory", "payments")),
        ServiceSpec(name="payments", callees=(), tls=True),
        ServiceSpec(name="inventory", callees=(), tls=True),
        ServiceSpec(name="shipping", callees=()),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One directed connection that runs through the proxy."""

    caller: str
    callee: str

    @property
    def name(self) -> str:
        """Name it `caller->callee`."""
        return f"{self.caller}->{self.callee}"


def edges() -> tuple[Edge, ...]:
    """Return every edge of the shop, the entry of the load first."""
    found = [Edge(caller="users", callee="gateway")]
    for spec in SERVICES.values():
        found += [Edge(caller=spec.name, callee=callee) for callee in spec.callees]
        if spec.uses_database:
            found.append(Edge(caller=spec.name, callee=DATABASE))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the lab keeps its files. Nothing that Quell reads lies here."""

    root: Path

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def flags(self) -> Path:
        return self.root / "flags.json"

    @property
    def control(self) -> Path:
        return self.root / "control.json"

    @property
    def truth(self) -> Path:
        return self.root / "truth.json"

    @property
    def targets(self) -> Path:
        """Scrape targets in Prometheus' file_sd format."""
        return self.root / "prometheus_targets.json"

    @property
    def load_figures(self) -> Path:
        return self.root / "load.json"

    def checkout(self, service: str, revision: str) -> Path:
        return self.root / "checkouts" / service / revision

    def settings(self, service: str) -> Path:
        return self.root / "settings" / f"{service}.json"

    def conditions(self, service: str) -> Path:
        return self.root / "conditions" / f"{service}.json"

    def certificate(self, service: str) -> Path:
        return self.root / "certificates" / f"{service}.pem"

    def spool(self, service: str) -> Path:
        return self.root / "spool" / service

    def log(self, name: str) -> Path:
        return self.root / "log" / f"{name}.log"
