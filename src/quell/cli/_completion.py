"""`quell completion`."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from quell.cli._output import put_document
from quell.cli._root import QuellCommand, root
from quell.cli._session import Session


@click.command("completion", cls=QuellCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def completion_command(session: Session, shell: str) -> int:
    """Print the completion script of a shell.

    For bash: quell completion bash >> ~/.bashrc
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # The script itself: bash's own class would first start a bash to ask for its version.
    script = ShellComplete.source(kind(root, {}, "quell", "_QUELL_COMPLETE"))
    if session.is_json:
        put_document("completion", shell=shell, script=script)
    else:
        click.echo(script)
    return 0
