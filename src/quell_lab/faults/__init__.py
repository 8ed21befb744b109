"""What can go wrong in the shop, on purpose, with known truth.

Owns:  the catalogue of faults and of healthy disturbances, putting one in, and healing it completely.
Never: tells the shop's telemetry that anything was done on purpose.
"""

from quell_lab.faults._catalogue import DISTURBANCES as DISTURBANCES
from quell_lab.faults._catalogue import FAULTS as FAULTS
from quell_lab.faults._saboteur import Saboteur as Saboteur
