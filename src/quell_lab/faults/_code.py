"""Faults and disturbances that somebody ships: releases, settings, flags."""

from __future__ import annotations

from quell_lab.faults._kind import Done, pick
from quell_lab.host import Supervisor, edits_of
from quell_lab.shop import SETTINGS, Edit

BAD_SETTINGS = (
    ("orders", "payments_timeout_s", 0.001),
    ("cart", "catalog_timeout_s", 0.001),
    ("gateway", "capacity_per_s", 5.0),
    ("catalog", "page_size", -5.0),
    ("orders", "shipments_waiting_max", -1.0),
    ("gateway", "orders_timeout_s", 0.002),
)
BAD_FLAGS = (
    ("split_payments", "orders"),
    ("bundle_prices", "cart"),
    ("related_products", "catalog"),
    ("risk_scoring_v2", "payments"),
    ("nearest_warehouse", "inventory"),
)
HARMLESS_SETTINGS = (
    ("orders", "shipments_waiting_max", 16.0),
    ("catalog", "page_size", 18.0),
    ("gateway", "capacity_per_s", 64.0),
)


async def release_with_errors(shop: Supervisor, seed: int) -> Done:
    return await _release(shop, pick(edits_of("errors"), seed))


async def release_with_latency(shop: Supervisor, seed: int) -> Done:
    return await _release(shop, pick(edits_of("latency"), seed))


async def good_release(shop: Supervisor, seed: int) -> Done:
    done = await _release(shop, pick(edits_of("good"), seed))
    return Done(kind="", subject="", detail=done.detail, undo=done.undo)


async def wrong_setting(shop: Supervisor, seed: int) -> Done:
    service, key, value = pick(BAD_SETTINGS, seed)
    return await _setting(shop, service, key, value)


async def harmless_setting(shop: Supervisor, seed: int) -> Done:
    service, key, value = pick(HARMLESS_SETTINGS, seed)
    done = await _setting(shop, service, key, value)
    return Done(kind="", subject="", detail=done.detail, undo=done.undo)


async def reload_without_change(shop: Supervisor, seed: int) -> Done:
    services = tuple(SETTINGS)
    for service in (pick(services, seed), pick(services, seed + 3)):
        shop.touch_settings(service)

    async def undo() -> None:
        return

    return Done(kind="", subject="", detail="settings written again, unchanged", undo=undo)


async def flag_on(shop: Supervisor, seed: int) -> Done:
    key, service = pick(BAD_FLAGS, seed)
    shop.set_flag(key, "on")

    async def undo() -> None:
        shop.set_flag(key, "off")

    return Done(kind="flag", subject=key, detail=f"flag {key} turned on, read by {service}", undo=undo)


async def _release(shop: Supervisor, edit: Edit) -> Done:
    revision = shop.repository.edit(edit)
    if not await shop.deploy(edit.service, revision):
        raise RuntimeError(f"{edit.service} {revision.tag} did not become ready")

    async def undo() -> None:
        restored = shop.repository.restore(edit.service)
        assert restored is not None, "the bad release is still the newest"
        await shop.deploy(edit.service, restored)

    return Done(kind="service", subject=edit.service, detail=f"{revision.tag} deployed: {edit.message}", undo=undo)


async def _setting(shop: Supervisor, service: str, key: str, value: float) -> Done:
    await shop.configure(service, shop.repository.set(service, key, value))
    good = SETTINGS[service][key]

    async def undo() -> None:
        await shop.configure(service, shop.repository.set(service, key, good))

    return Done(kind="service", subject=service, detail=f"{key} set to {value:g} instead of {good:g}", undo=undo)
