"""Runs a command that gets SIGTERM when the process that started it has ended, however it ended (Linux only).

Usage: `python launcher.py PARENT-PID PROGRAM ARGUMENT...`. A program of its own, because a process with threads, such
as a Ray actor, must not run Python between fork and exec.
"""

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> None:
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it had ended before
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - runs what our own process asks for


if __name__ == "__main__":
    main(sys.argv[1:])
