"""Keep the account of what was decided and done, and let no secret into it.

Owns:  the audit log (chain, tree, signed checkpoints, bodies, export, verification), and redaction of whatever is kept or leaves.
Never: decides anything, opens a socket, starts a process, reads a clock it was not handed.

The door is lazy (PEP 562): who only redacts waits for no cryptography to load.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from quell.audit._audit import Audit as Audit
    from quell.audit._redact import Redactor as Redactor

_DOOR = {"Audit": "_audit", "Redactor": "_redact"}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell.audit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quell.audit.{_DOOR[name]}"), name)
