"""Payments: charges a user, and writes the ledger."""

from quell_lab.kit import Call, RefusedError, Reply, Service


def fee_of(cents: int, risk: int) -> int:
    """Return the fee of one charge in cents; risky charges cost more."""
    return cents * (1 + risk // 50) // 100


def build(service: Service) -> None:
    """Register the routes of this release."""

    async def known_risk(user: str) -> int:
        found = await service.rows(
            "SELECT payments",
            "SELECT risk FROM payments WHERE customer = %s ORDER BY id DESC LIMIT 5",
            user,
        )
        return max((int(str(row["risk"])) for row in found), default=0)

    @service.route("POST", "/charges")
    async def charge(call: Call) -> Reply:
        user, cents = str(call.body["user"]), int(str(call.body["cents"]))
        risk = max(int(str(call.body["risk"])), await known_risk(user))
        if cents > service.rules["charge_max_cents"]:
            raise RefusedError("charge above the limit")
        if service.flag("risk_scoring_v2"):
            # The new score weighs a charge against the headroom that is left below the limit of the month.
            headroom = int(service.setting("monthly_limit_cents", 500)) - cents % 1000
            risk = risk * 100 // max(headroom, 0)
        fee = fee_of(cents, risk)
        written = await service.rows(
            "INSERT payments",
            "INSERT INTO payments (customer, cents, fee_cents, risk) VALUES (%s, %s, %s, %s) RETURNING id",
            user,
            cents,
            fee,
            risk % 97,
        )
        service.append_journal(f"charge {written[0]['id']} {user} {cents}")
        service.report.info(f"charge {written[0]['id']} of {cents / 100:.2f} accepted for {user}")
        return {"charge": written[0]["id"], "fee": fee}
