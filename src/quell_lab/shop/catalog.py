"""Catalog: what the shop sells, and the search in reviews."""

from collections.abc import Mapping

from quell_lab.kit import Call, RefusedError, Reply, Service

PAGE_SIZE = 20


def price_of(row: Mapping[str, object], margin_percent: int) -> int:
    """Return the price in cents with the margin on it."""
    return int(str(row["price_cents"])) * (100 + margin_percent) // 100


def build(service: Service) -> None:
    """Register the routes of this release."""

    def shown(row: Mapping[str, object]) -> Reply:
        return {"product": row["id"], "title": row["title"], "price": price_of(row, service.rules["margin_percent"])}

    async def page(number: int) -> list[dict[str, object]]:
        start = number * PAGE_SIZE
        return await service.rows(
            "SELECT products",
            "SELECT id, title, price_cents, packs FROM products WHERE id > %s ORDER BY id LIMIT %s",
            start,
            int(service.setting("page_size", PAGE_SIZE)),
        )

    @service.route("GET", "/items")
    async def items(call: Call) -> Reply:
        found = await page(int(call.query.get("page", "0")))
        if service.flag("related_products"):
            # Rank by similarity of titles with everything else that is sold.
            titles = [str(row["title"]) for row in await page(0)] * 20
            related = [(one, other) for one in titles for other in titles if set(one) & set(other) and one < other]
            found = found[: len(related) + 1]
        return {"items": [shown(row) for row in found]}

    @service.route("GET", "/items/{product}")
    async def item(call: Call) -> Reply:
        found = await service.rows(
            "SELECT product",
            "SELECT id, title, price_cents, packs FROM products WHERE id = %s",
            int(call.path["product"]),
        )
        if not found:
            raise RefusedError("no such product", status=404)
        service.append_journal(f"view {found[0]['id']}")
        return shown(found[0])

    @service.route("GET", "/matches")
    async def matches(call: Call) -> Reply:
        found = await service.rows(
            "SELECT reviews",
            "SELECT product_id, stars FROM reviews WHERE folded(body) = folded(%s) LIMIT 20",
            call.query.get("text", ""),
        )
        service.report.info(f"search found {len(found)} reviews")
        return {"matches": [{"product": row["product_id"], "stars": row["stars"]} for row in found]}
