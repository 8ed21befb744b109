"""Decide whether an action may happen, and keep the account of it.

Owns:  frozen calls, policy and verdicts, identities, approvals, budgets, autonomy, the audit log, redaction.
Never: performs an action, opens a socket, starts a process, reads a clock it was not handed.
"""

from quell.governance._audit import Audit as Audit
from quell.governance._redact import Redactor as Redactor
