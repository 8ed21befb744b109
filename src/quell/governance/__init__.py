"""Decide whether an action may happen, and keep the account of it.

Owns:  frozen calls, policy and verdicts, identities, approvals, budgets, autonomy, the audit log, redaction.
Never: performs an action, opens a socket, starts a process, reads a clock it was not handed.
"""

from quell.governance._arguments import freeze as freeze
from quell.governance._arguments import pin_of as pin_of
from quell.governance._policy import PolicySet as PolicySet
