"""What the audit log says of an approval: used, ended, void. A row can be set back to what it was; the log can not, unseen.

Who writes the database can undo a mark in a row, and every signature in it was true once. The same mark in the log is
a link of its chain: taking it out is what `quell audit verify` names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from quell.audit import Audit
from quell.domain import Approval, ApprovalStatus, AuditEntry, AuditKind, AuditRecord, Consumption, RefusedError
from quell.runs import Connection

_VOID = frozenset({ApprovalStatus.REJECTED.value, ApprovalStatus.SUPERSEDED.value})
_USES = frozenset({AuditKind.EFFECT.value, AuditKind.DECISION.value})


def use_of(used: Consumption | None) -> dict[str, object]:
    """Return what the record of a use says of it; nothing when nobody had to be asked."""
    return {} if used is None else {"approval": used.approval, "used": used.position, "voters": list(used.voters)}


def void_entry(audit: Audit, approval: Approval, *, reason: str) -> AuditEntry:
    """Write down that an approval is void."""
    body = {"approval": approval.id, "digest": approval.digest, "status": "superseded", "reason": reason}
    return audit.entry(AuditKind.APPROVAL, run=approval.terms.run, principal="", body=body)


def check(connection: Connection, approval: Approval, *, position: int) -> None:
    """Check that the log knows of no end of an approval, and that its calls were used in their order.

    Raises RefusedError when the log says otherwise than the rows: somebody set them back.
    """
    used, ended, is_void = set(), set(), False
    for kind, body in _said(connection, approval):
        if kind in _USES:
            used.add(body.get("used", 0))
        elif kind == AuditKind.OUTCOME:
            ended.add(body.get("call"))
        elif kind == AuditKind.APPROVAL:
            is_void = is_void or body.get("status") in _VOID
    before = {asked.call.id for asked in approval.terms.calls[:position]}
    if is_void or used != set(range(position)) or not before <= ended:
        raise RefusedError(
            f"the audit log says otherwise of approval {approval.id} than its rows: they were set back",
            hint="nothing was done; see `quell audit list --run` and `quell audit verify`, and ask anew",
            code="gone",
        )


def _said(connection: Connection, approval: Approval) -> Iterator[tuple[str, dict[str, object]]]:
    found: list[AuditRecord] = Audit.naming(connection, approval.id, run=approval.terms.run)
    for record in found:
        body = json.loads(record.body)
        if isinstance(body, dict) and body.get("approval") == approval.id:
            yield record.kind, body
