"""The composition root: Settings become an App; every organ is built, joined and closed here and nowhere else.

Owns:  the order in which organs are opened and closed, what each is handed, what goes on in the background.
Never: decides anything itself, speaks a protocol, prints.
"""

from quell.app._app import App as App
from quell.app._app import Vault as Vault
from quell.app._app import open_app as open_app
from quell.app._authority import Authority as Authority
from quell.app._authority import open_authority as open_authority
from quell.app._office import Office as Office
from quell.app._toolset import Toolset as Toolset
