"""Orders: turns a cart into an order; reserves, charges, and asks for the shipment through a queue."""

from quell_lab.kit import Call, Reply, Service, UnavailableError
from quell_lab.kit.queue import send


def reward_points(total_cents: int) -> int:
    """Return the points a customer earns with an order."""
    return total_cents // 100


def build(service: Service) -> None:
    """Register the routes of this release."""

    async def check_intake() -> None:
        waiting = await service.rows("SELECT shipments", "SELECT count(*) AS waiting FROM shipments")
        depth, depth_max = int(str(waiting[0]["waiting"])), int(service.setting("shipments_waiting_max", 12))
        if depth > depth_max:
            raise UnavailableError(f"order intake paused: {depth} shipments are waiting", kind="queue_full")

    @service.route("POST", "/orders")
    async def place(call: Call) -> Reply:
        user = str(call.body["user"])
        await check_intake()
        cart = await service.call("cart", "DELETE", f"/carts/{user}", token=call.token)
        lines = cart["lines"] or [{"product": 1 + len(user), "quantity": 1}]
        total = int(str(cart["total"])) or service.rules["minimum_cents"]
        await service.call("inventory", "POST", "/reservations", token=call.token, body={"lines": lines})
        if service.flag("split_payments"):
            # Two halves, each in its own call, with the risk spread over both.
            for half in (total // 2, total - total // 2):
                charge = {"user": user, "cents": half, "risk": 97 % (half % 3)}
                await service.call("payments", "POST", "/charges", token=call.token, body=charge)
        else:
            charge = {"user": user, "cents": total, "risk": total % 97}
            await service.call("payments", "POST", "/charges", token=call.token, body=charge)
        placed = await service.rows(
            "INSERT orders",
            "INSERT INTO orders (customer, total_cents, points) VALUES (%s, %s, %s) RETURNING id",
            user,
            total,
            reward_points(total),
        )
        order = placed[0]["id"]
        await send(
            service,
            "INSERT INTO shipments (order_id, address, trace) VALUES (%s, %s, %s)",
            order,
            f"{len(user)} High Street",
        )
        service.append_journal(f"order {order} {user} {total}")
        service.report.info(f"order {order} placed for {user}, total {total / 100:.2f}")
        return {"order": order, "total": total}

    @service.route("GET", "/history/{user}")
    async def history(call: Call) -> Reply:
        found = await service.rows(
            "SELECT orders",
            "SELECT id, total_cents FROM orders WHERE folded(customer) = folded(%s) ORDER BY id DESC LIMIT 10",
            call.path["user"],
        )
        return {"orders": [{"order": row["id"], "total": row["total_cents"]} for row in found]}
