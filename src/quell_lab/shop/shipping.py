"""Shipping: takes shipments from the queue, one after the other, and books them with the carrier."""

import asyncio

from quell_lab.kit import Service, ShopError
from quell_lab.kit.queue import Message, take, watch_queue

IDLE_S = 0.2


def street_number(address: str) -> int:
    """Return the number of the house, which the carrier asks for."""
    return int(address.split(" ", 1)[0])


def build(service: Service) -> None:
    """Register the worker of this release."""

    async def book(message: Message) -> None:
        number = street_number(message.address)
        await asyncio.sleep(service.setting("booking_ms", 20) / 1000 + service.condition("carrier_delay_s"))
        await service.rows(
            "INSERT bookings",
            "INSERT INTO bookings (order_id, label) VALUES (%s, %s)",
            message.order_id,
            f"L{message.order_id}-{number}",
        )
        service.append_journal(f"book {message.order_id}")
        service.report.info(f"shipment of order {message.order_id} booked")

    async def work() -> None:
        while True:
            try:
                taken = await take(service, book)
            except ShopError as error:
                service.report.error(f"cannot take shipments: {error}", cause=error)
                taken = False
            if not taken:
                await asyncio.sleep(IDLE_S)

    service.background.append(work)
    watch_queue(service)
