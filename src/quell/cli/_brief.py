"""`quell brief`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, put_document, put_text
from quell.cli._root import QuellCommand
from quell.cli._session import Session
from quell.cli._values import LENGTH

if TYPE_CHECKING:
    from quell.app import App


@click.command("brief", cls=QuellCommand)
@click.option("--service", multiple=True, metavar="NAME", help="Only these services; all of them without it.")
@click.option("--since", type=LENGTH, metavar="10m", help="How long ago the window begins.")
@click.option("--window", type=LENGTH, metavar="5m", help="How long the window is; it ends now by default.")
@click.option("--baseline", type=LENGTH, metavar="15m", help="How much time before the window is compared with.")
@click.option("--budget", type=click.IntRange(50, 1_000_000), metavar="TOKENS", help="Hard cap of the briefing.")
@click.pass_obj
def brief_command(
    session: Session,
    *,
    service: tuple[str, ...],
    since: float | None,
    window: float | None,
    baseline: float | None,
    budget: int | None,
) -> int:
    """Print what changed, ranked and cited, within a token budget.

    Exit 3 when no source could be reached.
    """
    bounds = session.settings().investigation
    window_s = window or since or bounds.window_minutes * 60
    since_s = since or window_s
    if window_s > since_s:
        raise click.UsageError("--window is longer than --since: it would end in the future")

    async def use(app: App) -> int:
        from quell.domain import Scope, Window
        from quell.runs import system_clock
        from quell.signals import brief

        start = system_clock() - timedelta(seconds=since_s)
        looked_at = Window(start=start, end=start + timedelta(seconds=window_s))
        survey, briefing = await brief(
            app.readers,
            Scope(services=service),
            looked_at,
            looked_at.before(length=timedelta(seconds=baseline or bounds.baseline_minutes * 60)),
            budget_tokens=budget or bounds.budget_tokens,
            timeout_s=bounds.read_timeout_s,
        )
        if session.is_json:
            put_document("briefing", briefing=briefing, window=survey.window, baseline=survey.baseline)
        else:
            put_text(briefing.text)
            note(f"about {briefing.tokens} of {briefing.budget_tokens} tokens")
        asked = [gap for gap in survey.gaps if gap.reason != "unsupported"]
        is_blind = not survey.facts and asked and all(gap.reason in {"failed", "timeout", "refused"} for gap in asked)
        return ExitCode.UNREACHABLE if is_blind else ExitCode.DONE

    return session.with_app(use)
