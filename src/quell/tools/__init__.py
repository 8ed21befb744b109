"""The only hand: every effect and every outside read is a tool call, and every tool call goes one way.

Owns:  the registry of tools, the one path of a call, MCP connections, sandboxes, retries, the scratchpad.
Never: decides whether a call may happen, holds an approval, lets a model's words choose a class or a pin.
"""

from quell.tools._code import CodeTool as CodeTool
from quell.tools._jwks import fetch_keys as fetch_keys
from quell.tools._mcp import Servers as Servers
from quell.tools._pin_book import Pins as Pins
from quell.tools._registry import Hand as Hand
from quell.tools._registry import LocalHand as LocalHand
from quell.tools._registry import Registry as Registry
from quell.tools._resilience import Resilience as Resilience
from quell.tools._sandbox import Sandbox as Sandbox
from quell.tools._scratchpad import Scratchpad as Scratchpad
from quell.tools._toolbox import Toolbox as Toolbox
from quell.tools._webhook import post_webhook as post_webhook
