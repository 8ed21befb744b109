"""The command line: parse, call the rooms below, print.

Owns:  commands, options, exit codes, what stands on stdout and what on stderr.
Never: decides anything about production, opens a socket, loads what a command does not use.
"""

from quell.cli._exit import ExitCode as ExitCode
from quell.cli._main import main as main
