# SPDX-License-Identifier: Apache-2.0
"""`hami completion bash|zsh|fish`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script: `source <(hami completion bash)`."""
    from hami_framework.cli.root import root

    complete = get_completion_class(shell)
    if complete is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(complete(root, {}, "hami", "_HAMI_COMPLETE").source())
