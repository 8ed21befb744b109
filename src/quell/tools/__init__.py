"""The only hand: every effect and every outside read is a tool call, and every tool call goes one way.

Owns:  the registry of tools, the one path of a call, MCP connections, sandboxes, retries, the scratchpad.
Never: decides whether a call may happen, holds an approval, lets a model's words choose a class or a pin.

The door is lazy (PEP 562): who only knows pins or servers waits for no SDK to load.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from quell.tools._code import CodeTool as CodeTool
    from quell.tools._git import Git as Git
    from quell.tools._jwks import fetch_keys as fetch_keys
    from quell.tools._mcp import Servers as Servers
    from quell.tools._pin_book import Pins as Pins
    from quell.tools._registry import LocalHand as LocalHand
    from quell.tools._registry import Registry as Registry
    from quell.tools._resilience import Resilience as Resilience
    from quell.tools._sandbox import Sandbox as Sandbox
    from quell.tools._scratchpad import Scratchpad as Scratchpad
    from quell.tools._toolbox import Toolbox as Toolbox
    from quell.tools._webhook import post_webhook as post_webhook

_DOOR = {
    "CodeTool": "_code",
    "Git": "_git",
    "LocalHand": "_registry",
    "Pins": "_pin_book",
    "Registry": "_registry",
    "Resilience": "_resilience",
    "Sandbox": "_sandbox",
    "Scratchpad": "_scratchpad",
    "Servers": "_mcp",
    "Toolbox": "_toolbox",
    "fetch_keys": "_jwks",
    "post_webhook": "_webhook",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell.tools' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quell.tools.{_DOOR[name]}"), name)
