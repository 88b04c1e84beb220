"""`zonerd ctl`: supervisorctl against the right socket."""

import click

from zonerd import supervise
from zonerd.cli import Session


@click.command(
    short_help="Show, start and stop the processes of `zonerd up`.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: zonerd ctl status",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[status|start|stop|restart|tail|...] [NAME]")
@click.pass_obj
def command(session: Session, arguments: tuple[str, ...]) -> None:
    """Show, start and stop the processes of `zonerd up`: supervisorctl, its arguments, its exit codes.

    Exit codes: 0 all run, 3 some do not, 4 no supervisord answers. Without arguments it asks for commands.
    """
    supervise.control(session.config, arguments)
