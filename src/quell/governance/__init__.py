"""Decide whether an action may happen, and keep the account of it.

Owns:  frozen calls, policy and verdicts, identities, approvals, budgets, autonomy, the audit log, redaction.
Never: performs an action, opens a socket, starts a process, reads a clock it was not handed.
"""

from quell.governance._approvals import Approvals as Approvals
from quell.governance._arguments import freeze as freeze
from quell.governance._arguments import pin_of as pin_of
from quell.governance._audit import Audit as Audit
from quell.governance._autonomy import Autonomy as Autonomy
from quell.governance._budgets import Budgets as Budgets
from quell.governance._guard import Guard as Guard
from quell.governance._guard import Passage as Passage
from quell.governance._identity import Identities as Identities
from quell.governance._policy import PolicySet as PolicySet
from quell.governance._redact import Redactor as Redactor
from quell.governance._switches import Switches as Switches
