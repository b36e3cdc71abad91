"""What the commands have in common."""

import shlex
import sys

from rich.console import Console

# Exit codes: every request failed; nothing could be measured; stopped by a signal.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def command_line() -> str:
    """How this very run can be repeated."""
    return shlex.join(["python", "-m", "bench", *sys.argv[1:]])


def wide() -> Console:
    """A pipe has no width to fit into."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
