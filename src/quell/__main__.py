"""`python -m quell` is `quell`."""

import signal

# Until main() listens itself, Ctrl-C shall end this process without a traceback of half-loaded modules.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from quell.cli import main  # noqa: E402 - the signal first, see above

if __name__ == "__main__":
    main()
