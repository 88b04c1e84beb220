"""`zonerd completion`: what a shell needs to complete zonerd's words."""

import click
from click.shell_completion import get_completion_class


@click.command(epilog='Example: eval "$(zonerd completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    completion = get_completion_class(shell)
    if completion is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(completion(ctx.find_root().command, {}, "zonerd", "_ZONERD_COMPLETE").source())
