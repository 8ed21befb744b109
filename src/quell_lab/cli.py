"""The `lab` and `demo` commands."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from quell_lab._control import Lab

DIRECTORY = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path(".quell-lab"),
    show_default=True,
    help="Directory of the lab.",
)


def _wants_json(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:  # noqa: FBT001 - click's signature
    """Tell whether JSON is wanted, by `--json` after the command or before it."""
    return value or bool(getattr(context.obj, "is_json", False))


JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_wants_json,
    help="One JSON document on stdout, errors as JSON on stderr.",
)


@click.group()
def lab() -> None:
    """A real little shop to break: `up`, `status`, `break FAULT`, `heal`, `down`."""


@lab.command()
@DIRECTORY
@JSON
@click.option("--endpoint", default="", help="OTLP/HTTP base URL that the shop sends to; empty sends nothing.")
@click.option("--rate", default=20.0, show_default=True, help="Requests a second, on average over the day.")
@click.option("--seed", default=1, show_default=True, help="Seed of the load.")
def up(directory: Path, as_json: bool, endpoint: str, rate: float, seed: int) -> None:  # noqa: FBT001 - click
    """Start the shop in the background and wait until users shop in it."""
    from quell_lab._control import Lab

    with _lab_errors(as_json):
        running = Lab.start(directory, endpoint=endpoint, rate_per_s=rate, seed=seed)
    _say(
        as_json,
        {"kind": "lab_up", "pid": running.pid},
        f"the shop is up, supervisor {running.pid}, directory {directory}",
    )


@lab.command()
@DIRECTORY
@JSON
def status(directory: Path, as_json: bool) -> None:  # noqa: FBT001 - click
    """Show what runs, and what was broken on purpose."""
    with _lab_errors(as_json):
        found = _running(directory).ask("status")
    if as_json:
        click.echo(json.dumps({"kind": "lab_status", "ok": True, **found}))
        return
    services = found["services"]
    assert isinstance(services, dict)
    for name, service in services.items():
        state = "ready" if service["ready"] else "down"
        click.echo(f"{name:<10} {service['version']:<4} {state:<6} restarts {service['restarts']}  {service['url']}")
    load, broken = found["load"], found["broken"]
    if isinstance(load, dict) and load:
        click.echo(f"users      {load['requests']} requests/s, {load['errors']} failed, p95 {load['p95_ms']} ms")
    if isinstance(broken, dict):
        click.echo(f"broken     {broken['name']}: {broken['subject']}: {broken['detail']} (since {broken['since']})")


@lab.command(name="break")
@click.argument("fault")
@DIRECTORY
@JSON
@click.option("--seed", default=1, show_default=True, help="Chooses the victim and the magnitude.")
def break_(fault: str, directory: Path, as_json: bool, seed: int) -> None:  # noqa: FBT001 - click
    """Put a fault in; `quell lab faults` lists them."""
    from quell_lab.faults import DISTURBANCES, FAULTS

    if fault not in FAULTS and fault not in DISTURBANCES:
        raise click.UsageError(_unknown(fault, [*FAULTS, *DISTURBANCES]))
    with _lab_errors(as_json):
        truth = _running(directory).ask("break", fault=fault, seed=seed)
    _say(
        as_json,
        {"kind": "lab_break", "truth": truth},
        f"{truth['name']}: {truth['subject'] or 'nothing at fault'}: {truth['detail']}",
    )


@lab.command()
@DIRECTORY
@JSON
def heal(directory: Path, as_json: bool) -> None:  # noqa: FBT001 - click
    """Take back what was broken."""
    with _lab_errors(as_json):
        healed = _running(directory).ask("heal")["healed"]
    _say(
        as_json,
        {"kind": "lab_heal", "healed": healed},
        f"healed {healed['name']}" if isinstance(healed, dict) else "nothing was broken",
    )


@lab.command()
@DIRECTORY
@JSON
def down(directory: Path, as_json: bool) -> None:  # noqa: FBT001 - click
    """Stop everything that runs in the directory."""
    from quell_lab._control import Lab

    running = Lab.find(directory)
    if running is not None:
        running.stop()
    _say(as_json, {"kind": "lab_down", "was_up": running is not None}, "down" if running else "nothing was up")


@lab.command()
@JSON
def faults(as_json: bool) -> None:  # noqa: FBT001 - click
    """List what can be broken, and the disturbances that break nothing."""
    from quell_lab.faults import DISTURBANCES, FAULTS

    every = [*FAULTS.values(), *DISTURBANCES.values()]
    if as_json:
        listed = [{"name": each.name, "category": each.category, "title": each.title} for each in every]
        click.echo(json.dumps({"kind": "lab_faults", "ok": True, "faults": listed}))
        return
    for each in every:
        click.echo(f"{each.name:<22} {each.category or 'healthy':<22} {each.title}")


def _running(directory: Path) -> Lab:
    from quell_lab._control import Lab, LabError

    found = Lab.find(directory)
    if found is None:
        raise LabError(f"no lab runs in {directory}; start one with `quell lab up`")
    return found


@contextlib.contextmanager
def _lab_errors(as_json: bool) -> Iterator[None]:  # noqa: FBT001 - private
    from quell_lab._control import LabError

    try:
        yield
    except LabError as error:
        _fail(as_json, error)


def _say(as_json: bool, document: dict[str, object], text: str) -> None:  # noqa: FBT001 - private
    click.echo(json.dumps({"ok": True, **document}) if as_json else text)


@click.command()
@JSON
@click.option("--fault", default="", help="What to break; random by default. `quell lab faults` lists them.")
@click.option("--seed", type=int, default=None, help="Chooses the victim, and the fault when none is given.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".demo"),
    show_default=True,
    help="Directory of the reports.",
)
@click.option("--baseline", default=60.0, show_default=True, help="Seconds that the shop runs healthy first.")
@click.option("--keep", is_flag=True, help="Keep state and logs in OUT/work.")
def demo(  # noqa: PLR0917 - click
    as_json: bool,  # noqa: FBT001 - click
    fault: str,
    seed: int | None,
    out: Path,
    baseline: float,
    keep: bool,  # noqa: FBT001 - click
) -> None:
    """Break a little shop and watch Quell find out why; under three minutes, nothing is left running."""
    from quell_lab._demo import REACH_ERRORS, DemoError, draw, run_demo
    from quell_lab._stages import Stages
    from quell_lab.faults import FAULTS

    if fault and fault not in FAULTS:
        raise click.UsageError(_unknown(fault, [*FAULTS]))
    chosen, chosen_seed = draw(fault, seed, names=[*FAULTS])
    stages = Stages(sys.stderr if as_json else sys.stdout)
    stages.say(
        f"seed {chosen_seed}{f', fault {chosen}' if fault else ''}: repeat with --fault {chosen if fault else 'NAME'} --seed {chosen_seed}"
    )
    try:
        outcome = run_demo(
            fault=chosen,
            seed=chosen_seed,
            out=out,
            keep="yes" if keep else "",
            baseline_s=baseline,
            stages=stages,
        )
    except (DemoError, *REACH_ERRORS) as error:
        _fail(as_json, error)
    truth = outcome.truth
    stages.say(
        f"truth: {truth.category} of {truth.kind} {truth.subject}: {truth.detail} ({truth.name}, seed {truth.seed})"
    )
    stages.say(f"Quell says: {outcome.named}")
    stages.say({"first": "named first", "top 3": "named among the first three", "not": "not named"}[outcome.verdict])
    for path in outcome.paths.values():
        stages.say(f"report: {path}")
    if as_json:
        click.echo(json.dumps(outcome.document()))
    sys.exit(0 if outcome.verdict != "not" else 1)


def _fail(wants_json: bool, error: Exception) -> NoReturn:  # noqa: FBT001 - private
    if wants_json:
        body = {"kind": type(error).__name__, "message": str(error), "hint": "", "exit": 3}
        click.echo(json.dumps({"ok": False, "error": body}), err=True)
    else:
        click.echo(f"error: {error}", err=True)
    sys.exit(3)


def _unknown(fault: str, names: list[str]) -> str:
    near = difflib.get_close_matches(fault, names, n=1)
    return f"no fault is called {fault}; " + (f"did you mean {near[0]}?" if near else "`quell lab faults` lists them")
