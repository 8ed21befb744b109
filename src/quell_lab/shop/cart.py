"""Cart: what a user is about to buy; prices come from the catalog."""

from quell_lab.kit import Call, RefusedError, Reply, Service


def total_of(lines: list[dict[str, object]]) -> int:
    """Return what all lines cost, in cents."""
    return sum(int(str(line["price_cents"])) * int(str(line["quantity"])) for line in lines)


def build(service: Service) -> None:
    """Register the routes of this release."""

    async def lines_of(user: str) -> list[dict[str, object]]:
        return await service.rows(
            "SELECT carts",
            "SELECT product_id, quantity, price_cents FROM carts WHERE customer = %s",
            user,
        )

    @service.route("GET", "/carts/{user}")
    async def show(call: Call) -> Reply:
        lines = await lines_of(call.path["user"])
        return {
            "lines": [{"product": line["product_id"], "quantity": line["quantity"]} for line in lines],
            "total": total_of(lines),
        }

    @service.route("POST", "/carts/{user}/lines")
    async def add(call: Call) -> Reply:
        product, quantity = int(str(call.body["product"])), int(str(call.body["quantity"]))
        if quantity > service.rules["quantity_max"]:
            raise RefusedError("too many of one product")
        offered = await service.call("catalog", "GET", f"/items/{product}", token=call.token)
        if service.flag("bundle_prices"):
            # A bundle is cheaper the more packs beyond the first two it has.
            offered = {**offered, "price": int(str(offered["price"])) // max(quantity - 2, 0)}
        await service.rows(
            "UPSERT carts",
            "INSERT INTO carts (customer, product_id, quantity, price_cents) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (customer, product_id) DO UPDATE SET quantity = excluded.quantity",
            call.path["user"],
            product,
            quantity,
            offered["price"],
        )
        service.append_journal(f"add {call.path['user']} {product} {quantity}")
        service.report.info(f"cart of {call.path['user']}: {quantity} of product {product}")
        return {"product": product, "quantity": quantity}

    @service.route("DELETE", "/carts/{user}")
    async def empty(call: Call) -> Reply:
        lines = await service.rows(
            "DELETE carts",
            "DELETE FROM carts WHERE customer = %s RETURNING product_id, quantity, price_cents",
            call.path["user"],
        )
        return {
            "lines": [{"product": line["product_id"], "quantity": line["quantity"]} for line in lines],
            "total": total_of(lines),
        }
