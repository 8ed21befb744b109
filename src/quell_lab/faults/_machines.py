"""Faults of the machines below the services, and of the services that run on them."""

from __future__ import annotations

from quell_lab._plan import DATABASE
from quell_lab.faults._kind import Done, pick
from quell_lab.host import Supervisor

WITH_RULES = (
    ("payments", "charge_max_cents"),
    ("catalog", "margin_percent"),
    ("cart", "quantity_max"),
    ("inventory", "bin_size"),
    ("orders", "minimum_cents"),
)
WITH_JOURNAL = ("payments", "orders", "cart", "inventory", "catalog")
BUSY = ("catalog", "orders", "gateway", "cart", "payments")


async def crash_loop(shop: Supervisor, seed: int) -> Done:
    service, rule = pick(WITH_RULES, seed)
    await shop.execute(
        f"UPDATE rules SET value = replace(value, '0', 'O') || ' ca' WHERE service = '{service}' AND name = '{rule}'",
    )
    original = {
        "charge_max_cents": 9_000_000,
        "margin_percent": 12,
        "quantity_max": 50,
        "bin_size": 6,
        "minimum_cents": 499,
    }

    async def undo() -> None:
        await shop.execute(
            f"UPDATE rules SET value = '{original[rule]}' WHERE service = '{service}' AND name = '{rule}'"
        )

    return Done(
        kind="service", subject=service, detail=f"rule {rule} of {service} cannot be parsed any more", undo=undo
    )


async def dependency_down(shop: Supervisor, seed: int) -> Done:
    name = pick((DATABASE, "payments", "catalog", "inventory"), seed)
    if name == DATABASE:
        await shop.stop_database()
        return Done(kind="database", subject=name, detail="stopped, not restarted", undo=shop.start_database)
    await shop.stop_service(name)
    return Done(kind="service", subject=name, detail="stopped, not restarted", undo=lambda: shop.start_service(name))


async def cpu_hog(shop: Supervisor, seed: int) -> Done:
    return _conditions(shop, pick(BUSY, seed), "threads that burn CPU in its process", burn_threads=2 + seed % 2)


async def memory_leak(shop: Supervisor, seed: int) -> Done:
    service = pick(("orders", "catalog", "cart", "payments", "gateway"), seed)
    return _conditions(shop, service, "memory that is not given back", leak_mb_per_s=22 + 3 * (seed % 3))


async def connection_leak(shop: Supervisor, seed: int) -> Done:
    service = pick(("catalog", "orders", "payments", "cart"), seed)
    return _conditions(shop, service, "database connections that are not given back", connection_leak_share=0.35)


async def disk_full(shop: Supervisor, seed: int) -> Done:
    return _conditions(
        shop, pick(WITH_JOURNAL, seed), "payload dumps fill the volume of the journal", spool_mb_per_tick=1.5
    )


async def descriptor_leak(shop: Supervisor, seed: int) -> Done:
    service = pick(WITH_JOURNAL, seed + 1)
    done = _conditions(shop, service, "file descriptors that are not given back", leak_descriptors_per_s=60)

    async def undo() -> None:
        await done.undo()
        # With no descriptor left, the process cannot even read that the leak has ended.
        await shop.replace_process(service)

    return Done(kind=done.kind, subject=done.subject, detail=done.detail, undo=undo)


async def clock_skew(shop: Supervisor, seed: int) -> Done:
    service = pick(("payments", "cart", "inventory", "catalog", "orders"), seed)
    offset_s = (-1 if seed % 2 else 1) * (150 + 30 * (seed % 4))
    return _conditions(shop, service, f"its clock is off by {offset_s} s", clock_offset_s=offset_s)


async def certificate_expired(shop: Supervisor, seed: int) -> Done:
    service = pick(("payments", "inventory", "cart"), seed)
    shop.use_certificate(service, "expired")

    async def undo() -> None:
        shop.use_certificate(service, "valid")

    return Done(kind="service", subject=service, detail="serves with an expired certificate", undo=undo)


async def chatter(shop: Supervisor, seed: int) -> Done:
    done = _conditions(shop, pick(BUSY, seed), "a harmless warning is logged again and again", late_refresh_share=0.6)
    return Done(kind="", subject="", detail=done.detail, undo=done.undo)


def _conditions(shop: Supervisor, service: str, detail: str, **conditions: float) -> Done:
    shop.set_conditions(service, **conditions)

    async def undo() -> None:
        shop.set_conditions(service)

    return Done(kind="service", subject=service, detail=detail, undo=undo)
