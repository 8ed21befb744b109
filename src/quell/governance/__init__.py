"""Decide whether an action may happen.

Owns:  frozen calls, policy and verdicts, identities, approvals, budgets, autonomy.
Never: performs an action, opens a socket, starts a process, reads a clock it was not handed.

The door is lazy (PEP 562): who only looks at approvals waits for no policy engine to load.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from quell.governance._approvals import Approvals as Approvals
    from quell.governance._arguments import freeze as freeze
    from quell.governance._arguments import pin_of as pin_of
    from quell.governance._autonomy import Autonomy as Autonomy
    from quell.governance._budgets import Budgets as Budgets
    from quell.governance._guard import Guard as Guard
    from quell.governance._guard import Passage as Passage
    from quell.governance._identity import Identities as Identities
    from quell.governance._policy import PolicySet as PolicySet
    from quell.governance._switches import Switches as Switches

_DOOR = {
    "Approvals": "_approvals",
    "Autonomy": "_autonomy",
    "Budgets": "_budgets",
    "Guard": "_guard",
    "Identities": "_identity",
    "Passage": "_guard",
    "PolicySet": "_policy",
    "Switches": "_switches",
    "freeze": "_arguments",
    "pin_of": "_arguments",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell.governance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quell.governance.{_DOOR[name]}"), name)
