"""Gateway: the only door for users; it calls catalog, cart and orders."""

from urllib.parse import urlencode

from quell_lab.kit import Call, Reply, Service


def build(service: Service) -> None:
    """Register the routes of this release."""

    def user_of(call: Call) -> str:
        return call.query.get("user") or str(call.body.get("user", "guest"))

    @service.route("GET", "/products")
    async def products(call: Call) -> Reply:
        token = service.issue_token(user_of(call))
        return await service.call("catalog", "GET", f"/items?page={call.query.get('page', '0')}", token=token)

    @service.route("GET", "/products/{product}")
    async def product(call: Call) -> Reply:
        token = service.issue_token(user_of(call))
        return await service.call("catalog", "GET", f"/items/{call.path['product']}", token=token)

    @service.route("GET", "/search")
    async def search(call: Call) -> Reply:
        token = service.issue_token(user_of(call))
        return await service.call(
            "catalog", "GET", f"/matches?{urlencode({'text': call.query.get('text', '')})}", token=token
        )

    @service.route("GET", "/cart")
    async def show_cart(call: Call) -> Reply:
        user = user_of(call)
        return await service.call("cart", "GET", f"/carts/{user}", token=service.issue_token(user))

    @service.route("POST", "/cart")
    async def add_to_cart(call: Call) -> Reply:
        user = user_of(call)
        body = {"product": call.body["product"], "quantity": call.body["quantity"]}
        return await service.call("cart", "POST", f"/carts/{user}/lines", token=service.issue_token(user), body=body)

    @service.route("POST", "/checkout")
    async def checkout(call: Call) -> Reply:
        user = user_of(call)
        order = await service.call("orders", "POST", "/orders", token=service.issue_token(user), body={"user": user})
        service.report.info(f"checkout of {user} done, order {order['order']}")
        return order

    @service.route("GET", "/orders")
    async def history(call: Call) -> Reply:
        user = user_of(call)
        return await service.call("orders", "GET", f"/history/{user}", token=service.issue_token(user))
