"""Runs a program that is not ours, and ends it when the supervisord that started it is gone."""

import os
import subprocess
import sys

from zonerd.shutdown import Shutdown

LOOK_EVERY_S = 0.2
STOPS_WITHIN_S = 5.0


def main() -> int:
    """Run the program of the command line; give its exit code, or 0 if it was asked to stop and did."""
    supervisor = os.environ.get("ZONERD_SUPERVISED", "")
    shutdown = Shutdown(int(supervisor) if supervisor.isdigit() else os.getppid()).install()
    with subprocess.Popen(sys.argv[1:]) as program:  # noqa: S603 - zonerd wrote this command line
        while program.poll() is None and not shutdown.requested:
            shutdown.wait(LOOK_EVERY_S)
        if program.returncode is not None:
            return program.returncode
        program.terminate()
        try:
            program.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            program.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
