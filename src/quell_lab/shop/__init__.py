"""The source of the shop: first releases of its services, its settings and its tables.

Owns:  the code that is committed as v1 of every service, and what later commits change in it.
Never: runs in this place; a service process loads what the deploy agent checked out.
"""

from quell_lab.shop._revisions import EDITS as EDITS
from quell_lab.shop._revisions import SETTINGS as SETTINGS
from quell_lab.shop._revisions import Edit as Edit
from quell_lab.shop._revisions import first_release as first_release
from quell_lab.shop._tables import TABLES as TABLES
