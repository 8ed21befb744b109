"""The machine that the shop runs on: processes, network, database, releases, users.

Owns:  starting, watching and restarting processes; the proxy; the deploy agent; the load; the control door of the lab.
Never: tells anybody but the person in front of the lab what it did on purpose.
"""

from quell_lab.host._repository import Repository as Repository
from quell_lab.host._repository import Revision as Revision
from quell_lab.host._repository import edits_of as edits_of
from quell_lab.host._supervisor import Supervisor as Supervisor
