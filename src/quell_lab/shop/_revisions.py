"""What changes from release to release: good edits, and edits that nobody should have shipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Quality = Literal["good", "errors", "latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One commit: a piece of the first release is replaced."""

    service: str
    quality: Quality
    message: str
    old: str
    new: str


def first_release(service: str) -> str:
    """Return the source of the first release of a service."""
    return (Path(__file__).parent / f"{service}.py").read_text()


SETTINGS: Final[dict[str, dict[str, float]]] = {
    "gateway": {"capacity_per_s": 60, "catalog_timeout_s": 2.5, "cart_timeout_s": 2.5, "orders_timeout_s": 4},
    "catalog": {"page_size": 20},
    "cart": {"catalog_timeout_s": 2.5},
    "orders": {
        "cart_timeout_s": 2.5,
        "inventory_timeout_s": 2.5,
        "payments_timeout_s": 2.5,
        "shipments_waiting_max": 12,
    },
    "payments": {"monthly_limit_cents": 500},
    "inventory": {"lines_max": 4},
    "shipping": {"booking_ms": 20},
}
"""Settings of each service in the first revision."""


def _good(service: str, old: str, new: str, message: str) -> Edit:
    return Edit(service=service, quality="good", message=message, old=old, new=new)


def _errors(service: str, old: str, new: str, message: str) -> Edit:
    return Edit(service=service, quality="errors", message=message, old=old, new=new)


def _latency(service: str, old: str, new: str, message: str) -> Edit:
    return Edit(service=service, quality="latency", message=message, old=old, new=new)


EDITS: Final = (
    _good(
        "catalog",
        '    return int(str(row["price_cents"])) * (100 + margin_percent) // 100',
        '    cents = int(str(row["price_cents"]))\n    return cents + cents * margin_percent // 100',
        "catalog: compute the margin apart from the price",
    ),
    _good(
        "cart",
        '    return sum(int(str(line["price_cents"])) * int(str(line["quantity"])) for line in lines)',
        '    prices = [int(str(line["price_cents"])) * int(str(line["quantity"])) for line in lines]\n    return sum(prices)',
        "cart: sum up from a list",
    ),
    _good(
        "orders",
        "    return total_cents // 100",
        "    whole, _rest = divmod(total_cents, 100)\n    return whole",
        "orders: points for whole units only",
    ),
    _good(
        "payments",
        "    return cents * (1 + risk // 50) // 100",
        "    weight = 1 + risk // 50\n    return cents * weight // 100",
        "payments: name the weight of risk",
    ),
    _good(
        "inventory",
        '    return -(-int(str(line["quantity"])) // bin_size)',
        '    return (int(str(line["quantity"])) + bin_size - 1) // bin_size',
        "inventory: round bins up the usual way",
    ),
    _errors(
        "catalog",
        '    return int(str(row["price_cents"])) * (100 + margin_percent) // 100',
        '    packs = int(str(row["packs"]))\n    return int(str(row["price_cents"])) * (100 + margin_percent) // (100 * packs) * packs',
        "catalog: price per pack",
    ),
    _errors(
        "cart",
        '        product, quantity = int(str(call.body["product"])), int(str(call.body["quantity"]))',
        '        product, quantity = int(str(call.body["product"])), int(str(call.body["quantity"]))\n'
        "        limits = {1: 50, 2: 25}\n        quantity = min(quantity, limits[quantity])",
        "cart: own limit per quantity step",
    ),
    _errors(
        "orders",
        "    return total_cents // 100",
        "    tier = [1, 2, 3][total_cents // 4000]\n    return total_cents // 100 * tier",
        "orders: reward tiers",
    ),
    _errors(
        "payments",
        "    return cents * (1 + risk // 50) // 100",
        "    return cents * (1 + risk // 50) // (100 * max(0, 40 - risk))",
        "payments: cap the fee of risky charges",
    ),
    _errors(
        "inventory",
        '    return -(-int(str(line["quantity"])) // bin_size)',
        '    if int(str(line["product"])) % 2:\n        return int(str(line["shelf"])) // bin_size\n'
        '    return -(-int(str(line["quantity"])) // bin_size)',
        "inventory: open shelves before bins",
    ),
    _latency(
        "catalog",
        '        return {"items": [shown(row) for row in found]}',
        "        for row in found[:12]:\n"
        '            for table in ("reviews", "stock", "carts"):\n'
        '                await service.rows(f"SELECT {table} of product", f"SELECT count(*) FROM {table} WHERE product_id = %s", row["id"])\n'
        '        return {"items": [shown(row) for row in found]}',
        "catalog: show how often each product is rated, stocked and wanted",
    ),
    _latency(
        "cart",
        '        lines = await lines_of(call.path["user"])\n',
        '        lines = await lines_of(call.path["user"])\n'
        "        for _ in range(6):  # wait until another tab has stopped changing the cart\n"
        '            await asyncio.sleep(0.15)\n            lines = await lines_of(call.path["user"])\n',
        "cart: settle before showing",
    ),
    _latency(
        "orders",
        "        await check_intake()\n",
        "        await check_intake()\n"
        "        for _ in range(5):  # look again in case intake pauses meanwhile\n"
        "            await asyncio.sleep(0.2)\n            await check_intake()\n",
        "orders: double-check intake",
    ),
    _latency(
        "payments",
        '        risk = max(int(str(call.body["risk"])), await known_risk(user))',
        '        risk = max(int(str(call.body["risk"])), await known_risk(user))\n'
        "        scores = [0] * 1500\n"
        "        for one in range(1500):  # compare every pair of earlier scores\n"
        "            scores[one] = sum((one * other) % 97 for other in range(1500)) % 97",
        "payments: score against the whole history",
    ),
    _latency(
        "inventory",
        '            await take(int(line["product"]), int(line["quantity"]))\n',
        '            for _ in range(max(30, int(line["quantity"]))):  # piece by piece, so that nothing is oversold\n'
        '                await service.rows("SELECT stock", "SELECT quantity FROM stock WHERE product_id = %s", int(line["product"]))\n'
        "                await asyncio.sleep(0.02)\n"
        '            await take(int(line["product"]), int(line["quantity"]))\n',
        "inventory: check before taking",
    ),
)
"""Every commit that may follow the first one. The first release already holds what the edits replace."""
