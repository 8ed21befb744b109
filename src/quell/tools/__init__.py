"""The only hand: every effect and every outside read is a tool call, and every tool call goes one way.

Owns:  the registry of tools, the one path of a call, MCP connections, sandboxes, retries, the scratchpad.
Never: decides whether a call may happen, holds an approval, lets a model's words choose a class or a pin.
"""

from quell.tools._resilience import Resilience as Resilience
from quell.tools._scratchpad import Scratchpad as Scratchpad
