"""Faults between the services: network, database sessions, queue, users."""

from __future__ import annotations

import psycopg

from quell_lab._plan import DATABASE, QUEUE
from quell_lab.faults._kind import Done, pick
from quell_lab.host import Supervisor

SLOW_EDGES = ("orders->payments", "gateway->catalog", "catalog->postgres", "gateway->cart", "orders->inventory")
LOSSY_EDGES = ("orders->inventory", "gateway->cart", "cart->postgres", "gateway->orders", "cart->catalog")
INDEXES = (
    ("reviews_folded", "reviews", "CREATE INDEX reviews_folded ON reviews (folded(body))"),
    ("orders_folded", "orders", "CREATE INDEX orders_folded ON orders (folded(customer), id)"),
)
BAD_ADDRESS = "14-b High Street"


async def added_latency(shop: Supervisor, seed: int) -> Done:
    edge = pick(SLOW_EDGES, seed)
    delay_s = 0.25 + 0.05 * (seed % 3)
    await shop.wire(edge, delay_s=delay_s, jitter_s=0.05)
    detail = f"every segment takes {delay_s * 1000:.0f} ms longer, each way"
    return Done(kind="edge", subject=edge, detail=detail, undo=lambda: shop.wire(edge, delay_s=0.0, jitter_s=0.0))


async def packet_loss(shop: Supervisor, seed: int) -> Done:
    edge = pick(LOSSY_EDGES, seed)
    if seed % 2:
        await shop.wire(edge, cut=True)
        return Done(
            kind="edge", subject=edge, detail="nothing passes any more", undo=lambda: shop.wire(edge, cut=False)
        )
    await shop.wire(edge, loss=0.6)
    detail = "six of ten segments are lost and sent again later"
    return Done(kind="edge", subject=edge, detail=detail, undo=lambda: shop.wire(edge, loss=0.0))


async def slow_query(shop: Supervisor, seed: int) -> Done:
    index, table, restore = pick(INDEXES, seed)
    await shop.execute(f"DROP INDEX {index}")

    async def undo() -> None:
        await shop.execute(restore)
        # Statistics of an expression go with its index; without them the planner may still walk the whole table.
        await shop.execute(f"ANALYZE {table}")

    return Done(kind="database", subject=DATABASE, detail=f"index {index} dropped", undo=undo)


async def table_lock(shop: Supervisor, seed: int) -> Done:
    table = pick(("stock", "carts", "payments", "products", "orders"), seed)
    session = await psycopg.AsyncConnection.connect(shop.postgres.conninfo())
    await session.execute("SET application_name = 'migration'")
    await session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
    return Done(kind="database", subject=DATABASE, detail=f"a session holds a lock on {table}", undo=session.close)


async def queue_backlog(shop: Supervisor, seed: int) -> Done:
    if seed % 2:
        # At the head: everything that comes later waits behind it.
        await shop.execute(
            "INSERT INTO shipments (id, order_id, address, trace) OVERRIDING SYSTEM VALUE"
            f" VALUES (-{seed}, 1, '{BAD_ADDRESS}', '')",
        )
        return Done(
            kind="queue",
            subject=QUEUE,
            detail="a message that cannot be booked stands at the head",
            undo=lambda: shop.execute("DELETE FROM shipments WHERE id < 0"),
        )
    shop.set_conditions("shipping", carrier_delay_s=4)

    async def undo() -> None:
        shop.set_conditions("shipping")

    return Done(kind="queue", subject=QUEUE, detail="the consumer takes 4 s for each message", undo=undo)


async def traffic_spike(shop: Supervisor, seed: int) -> Done:
    route = pick(("product", "products", "search"), seed)
    await shop.load(burst_route=route, burst_per_s=95.0 + 10 * (seed % 3))
    return Done(
        kind="service",
        subject="gateway",
        detail=f"five times the traffic, on {route}",
        undo=lambda: shop.load(burst_per_s=0.0),
    )


async def hour_of_day(shop: Supervisor, seed: int) -> Done:
    factor = 1.15 if seed % 2 else 0.85
    await shop.load(factor=factor)
    return Done(kind="", subject="", detail=f"load times {factor:g}, as on any day", undo=lambda: shop.load(factor=1.0))
