"""The policy packs that come with Quell, and the policies that are built in."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

from quell.domain import PolicySource, UsageError
from quell.governance._policy_source import KERNEL

PACKS = ("copilot", "reversible-auto", "dark-factory")


@cache
def kernel() -> PolicySource:
    """Return the forbids that stand in every set."""
    return PolicySource(name=KERNEL, text=_text("kernel"))


def pack(name: str, *, mode: Literal["enforce", "log"] = "enforce") -> PolicySource:
    """Return a pack by its name. Raises UsageError when there is none of this name."""
    if name not in PACKS:
        raise UsageError(f"there is no policy pack `{name[:40]}`", hint=f"packs: {', '.join(PACKS)}")
    return PolicySource(name=f"pack:{name}", text=_text(name), mode=mode)


def _text(name: str) -> str:
    return (files("quell.governance") / "packs" / f"{name}.cedar").read_text(encoding="utf-8")
