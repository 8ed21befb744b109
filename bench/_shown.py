"""How one part of the benchmarks prints its figures when it is run by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping


def show(figures: Mapping[str, float], *, form: str) -> None:
    """Print the figures, each in this form, or as JSON where that is asked for."""
    if "--json" in sys.argv[1:]:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:42} {value:{form}}")
