"""A little shop to break: services, load, faults and releases. The product never imports it.

Owns:  the shop, breaking and healing it, the truth about what was broken, and driving the product with it.
Never: reaches into the product; it sends OTLP, speaks HTTP and runs commands like anybody else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quell_lab._control import Lab as Lab
    from quell_lab._control import LabError as LabError
    from quell_lab._product import ProductError as ProductError
    from quell_lab._product import Server as Server
    from quell_lab._truth import Truth as Truth
    from quell_lab._verdict import blames as blames
    from quell_lab._verdict import claim as claim
    from quell_lab._verdict import finding_of as finding_of
    from quell_lab._verdict import hypotheses_of as hypotheses_of
    from quell_lab._verdict import verdict_on as verdict_on
    from quell_lab.faults import DISTURBANCES as DISTURBANCES
    from quell_lab.faults import FAULTS as FAULTS

# Names are loaded when they are used: every process of the shop imports this package, and few need all of it.
_DOOR = {
    "DISTURBANCES": "quell_lab.faults",
    "FAULTS": "quell_lab.faults",
    "Lab": "quell_lab._control",
    "LabError": "quell_lab._control",
    "ProductError": "quell_lab._product",
    "Server": "quell_lab._product",
    "Truth": "quell_lab._truth",
    "blames": "quell_lab._verdict",
    "claim": "quell_lab._verdict",
    "finding_of": "quell_lab._verdict",
    "hypotheses_of": "quell_lab._verdict",
    "verdict_on": "quell_lab._verdict",
}


def __getattr__(name: str) -> object:
    """Load a name of the door."""
    if name not in _DOOR:
        raise AttributeError(name)
    return getattr(import_module(_DOOR[name]), name)
