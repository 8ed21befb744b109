"""`quell serve`."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, put_record
from quell.cli._root import QuellCommand
from quell.cli._session import Session
from quell.cli._signals import TerminatedError

if TYPE_CHECKING:
    from quell.app import App

_NEW_MAX, _YOUNG_MAX, _OLD_MAX = 20_000, 20, 50
"""Objects before the newest are looked at, and how often that is before older ones are."""


@click.command("serve", cls=QuellCommand)
@click.option("--host", metavar="ADDRESS", help="Address to listen on; loopback only.")
@click.option("--port", metavar="PORT", help="TCP port; 0 takes a free one.")
@click.pass_obj
def serve_command(session: Session, *, host: str | None, port: str | None) -> int:
    """Receive telemetry and alerts, detect, investigate; until Ctrl-C or SIGTERM.

    When it answers it says so on stderr and in STATE_DIR/serve.json. Exit 3 when the port or the state directory is
    taken. SIGTERM ends it with 0.
    """
    if host is not None:
        session.overrides["server.host"] = host
    if port is not None:
        session.overrides["server.port"] = port

    async def use(app: App) -> int:
        from quell.server import serve

        def ready(url: str) -> None:
            _settle()
            if session.is_json:
                put_record("ready", url=url, pid=os.getpid(), state_dir=str(app.settings.state_dir))
            note(f"ready: {url} (pid {os.getpid()}, state in {app.settings.state_dir})")

        await serve(app, on_ready=ready)
        return ExitCode.DONE

    try:
        return session.with_app(use, role="serve", agents="open")
    except TerminatedError:
        note("stopped")
        return ExitCode.DONE
    except KeyboardInterrupt:
        note("stopped")
        return ExitCode.INTERRUPTED


def _settle() -> None:
    """Spare the collector what stays for ever, and let it look less often: each look at all of it stops every stream."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_MAX, _YOUNG_MAX, _OLD_MAX)
