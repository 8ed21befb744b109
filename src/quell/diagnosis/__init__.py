"""Conclude from evidence what broke, where, and since when.

Owns:  the ranking of causes, the confidence of a claim, the catalogue of what can be done.
Never: reads a signal, asks a model, opens a socket, or reads a clock; it knows no service by name.
"""

from quell.diagnosis._catalogue import CATALOGUE as CATALOGUE
from quell.diagnosis._catalogue import Advice as Advice
from quell.diagnosis._catalogue import next_steps as next_steps
from quell.diagnosis._diagnose import diagnose as diagnose
from quell.diagnosis._explain import assert_cited as assert_cited
from quell.diagnosis._explain import explain as explain
from quell.diagnosis._weights import THRESHOLDS as THRESHOLDS
from quell.diagnosis._weights import WEIGHTS as WEIGHTS
