"""The queue that lives in PostgreSQL: sent with the order, taken in order, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind, Status, StatusCode

from quell_lab.kit._errors import ShopError
from quell_lab.kit._service import Service
from quell_lab.kit._telemetry import PROPAGATOR, Reading

QUEUE = "shipments"
RETRY_S = 0.5
_ATTRIBUTES = {"messaging.system": "postgresql", "messaging.destination.name": QUEUE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One shipment to be booked."""

    id: int
    order_id: int
    address: str


async def send(service: Service, sql: str, order: object, address: str) -> None:
    """Put one message into the queue, with the trace it belongs to."""
    with service.signals.tracer.start_as_current_span(
        f"send {QUEUE}",
        kind=SpanKind.PRODUCER,
        attributes={**_ATTRIBUTES, "messaging.operation.type": "send"},
        record_exception=False,
    ):
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier)
        await service.rows("INSERT shipments", sql, order, address, carrier.get("traceparent", ""))


async def take(service: Service, book: Callable[[Message], Awaitable[None]]) -> bool:
    """Take the oldest message; tell whether there was one. One that fails stays at the head and is tried again."""
    found = await service.rows(
        "SELECT shipments",
        "SELECT id, order_id, address, trace FROM shipments ORDER BY id LIMIT 1",
    )
    if not found:
        return False
    row = found[0]
    message = Message(id=int(str(row["id"])), order_id=int(str(row["order_id"])), address=str(row["address"]))
    parent = PROPAGATOR.extract({"traceparent": str(row["trace"])})
    scope = otel_context.attach(parent)
    try:
        await _book(service, message, book)
    finally:
        otel_context.detach(scope)
    return True


async def _book(service: Service, message: Message, book: Callable[[Message], Awaitable[None]]) -> None:
    with service.signals.tracer.start_as_current_span(
        f"consume {QUEUE}",
        kind=SpanKind.CONSUMER,
        attributes={**_ATTRIBUTES, "messaging.operation.type": "process"},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            await book(message)
            await service.rows("DELETE shipments", "DELETE FROM shipments WHERE id = %s", message.id)
        except (ShopError, ValueError) as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            span.record_exception(error)
            service.report.warn(f"shipment of order {message.order_id} not booked, will try again: {error}")
            await asyncio.sleep(RETRY_S)


def watch_queue(service: Service) -> None:
    """Report how long the queue is and how old its head."""
    state = {"depth": 0.0, "age": 0.0}
    labels = {"messaging.destination.name": QUEUE}

    def reading(name: str) -> Callable[[], Iterable[Reading]]:
        return lambda: [(state[name], labels)]

    service.signals.gauge("queue.depth", "{message}", reading("depth"))
    service.signals.gauge("queue.oldest_age", "s", reading("age"))

    async def look() -> None:
        while True:
            try:
                found = await service.rows(
                    "SELECT queue depth",
                    "SELECT count(*) AS depth, COALESCE(extract(epoch FROM now() - min(sent_at)), 0) AS age FROM shipments",
                )
                state.update(depth=float(str(found[0]["depth"])), age=float(str(found[0]["age"])))
            except ShopError as error:
                service.report.warn(f"queue depth unknown: {error}")
            await asyncio.sleep(1.5)

    service.background.append(look)
