"""The composition root: Settings become an App; every organ is built, joined and closed here and nowhere else.

Owns:  the order in which organs are opened and closed, what each is handed, what goes on in the background.
Never: decides anything itself, speaks a protocol, prints.

The door is lazy (PEP 562): who answers an approval waits for no store, no model of incidents and no MCP client to load.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from quell.app._agent_servers import merged as merged
    from quell.app._agents import AgentDesk as AgentDesk
    from quell.app._app import App as App
    from quell.app._app import open_app as open_app
    from quell.app._authority import Authority as Authority
    from quell.app._authority import open_authority as open_authority
    from quell.app._idle_tools import idle_tools as idle_tools
    from quell.app._office import Office as Office
    from quell.app._task_book import TaskBook as TaskBook
    from quell.app._tool_desk import ToolDesk as ToolDesk
    from quell.app._toolset import Toolset as Toolset
    from quell.app._vault import Vault as Vault

_DOOR = {
    "AgentDesk": "_agents",
    "App": "_app",
    "merged": "_agent_servers",
    "Vault": "_vault",
    "open_app": "_app",
    "Authority": "_authority",
    "open_authority": "_authority",
    "Office": "_office",
    "Toolset": "_toolset",
    "ToolDesk": "_tool_desk",
    "idle_tools": "_idle_tools",
    "TaskBook": "_task_book",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell.app' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quell.app.{_DOOR[name]}"), name)
