"""The job: alerts become incidents, incidents are investigated, and a person gets a case file.

Owns:  which alerts are one incident, the stages of incidents, investigations as durable runs, case files and reports.
Never: decides a cause (diagnosis does), reads telemetry but through readers, opens a socket, changes production.
"""

from quell.incidents._desk import Desk as Desk
from quell.incidents._model import CaseFile as CaseFile
from quell.incidents._model import Curve as Curve
from quell.incidents._model import CurveAsk as CurveAsk
from quell.incidents._model import Request as Request
from quell.incidents._render import render as render
from quell.incidents._request import request_of_alerts as request_of_alerts
