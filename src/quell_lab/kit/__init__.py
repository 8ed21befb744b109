"""What the code of a release builds upon: a service with routes, database, calls, flags, settings and telemetry.

Owns:  the process of one service, its OpenTelemetry, its client, its pool, its journal.
Never: decides what the shop sells, or knows that anybody breaks it.
"""

from quell_lab.kit._errors import RefusedError as RefusedError
from quell_lab.kit._errors import ShopError as ShopError
from quell_lab.kit._errors import UnavailableError as UnavailableError
from quell_lab.kit._service import Call as Call
from quell_lab.kit._service import Reply as Reply
from quell_lab.kit._service import Service as Service
from quell_lab.kit._spec import SPEC_VARIABLE as SPEC_VARIABLE
from quell_lab.kit._spec import PeerSpec as PeerSpec
from quell_lab.kit._spec import ProcessSpec as ProcessSpec
from quell_lab.kit._telemetry import Signals as Signals
from quell_lab.kit._telemetry import open_signals as open_signals
