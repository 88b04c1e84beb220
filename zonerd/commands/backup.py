"""`zonerd backup`: a checked copy of the history and the answers, while zonerd runs or not."""

from pathlib import Path

import click

from zonerd import backup
from zonerd.cli import Session
from zonerd.commands import lines
from zonerd.commands.progress import bar
from zonerd.store.database import ROLLUPS


@click.command(
    short_help="Copy the history and the answers, checked, while all runs.",
    epilog="Example: zonerd backup /srv/backup/zonerd --keep 7",
)
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Then remove all but the N newest of its copies.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(session: Session, dest: Path, keep: int | None, as_json: bool) -> None:
    """Copy events.db and rollups.db into a new folder DEST/<time, UTC>, checked, beside a running zonerd or none.

    Writes below DEST only (which is made; it may lie in the data directory, and is better on another disk), and the
    success to backup.json, for the watchdog's /metrics. The folder gets its name, which is all of stdout, once the copy
    is whole. While it is made what the pipeline writes stays in the WAL. --keep removes copies of this history alone.
    To restore: stop, put both files in the place of the old ones, `-wal` and `-shm` away, start.

    Exits 69 while there is no history or a disk fails, 78 if a file is damaged, DEST cannot serve or is too small.
    """
    config = session.config
    total = backup.total_bytes(config.data_dir)
    with bar(total, quiet=session.verbosity < 0) as screen:
        made = backup.back_up(config, dest, keep, screen.advance)
    lines.write([lines.as_json(made.as_object()) if as_json else str(made.path)])
    if session.verbosity >= 0 and not as_json:
        for line in _told(made):
            click.echo(line, err=True)


def _told(made: backup.Backup) -> list[str]:
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in made.files.items())
    told = [f"{sizes}; checked, {made.took_s:.1f} s"]
    if ROLLUPS.name not in made.files:
        told.append(f"without {ROLLUPS.name}, which is not there; it is made anew from events.db")
    elif made.rebuild:
        told.append(f"restored, the answers will be counted anew: {made.rebuild}")
    return told + [f"removed {path}" for path in made.removed]
