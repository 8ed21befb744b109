"""Run work durably: a run survives any crash and goes on where it stood.

Owns:  the journal (runs, steps, events), leases on executor slots, waits, cancel and resume, retention.
Never: knows what a run is about, opens a socket of its own, starts a process, reads a clock it was not handed.
"""

from quell.runs._clock import system_clock as system_clock
from quell.runs._context import Continue as Continue
from quell.runs._context import Done as Done
from quell.runs._context import JsonObject as JsonObject
from quell.runs._context import Next as Next
from quell.runs._context import RunContext as RunContext
from quell.runs._context import WaitUntil as WaitUntil
from quell.runs._context import Work as Work
from quell.runs._database import Connection as Connection
from quell.runs._database import Database as Database
from quell.runs._ledger import Ledger as Ledger
from quell.runs._runs import Runs as Runs
