"""Exit codes and helpers that the commands share."""

import shlex
import sys

from rich.console import Console

from bench.records import BenchError

# Exit codes: every request failed; nothing could be measured; stopped by a signal.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def command_line() -> str:
    """The command that repeats this run."""
    return shlex.join(["python", "-m", "bench", *sys.argv[1:]])


def wide() -> Console:
    """A console for wide tables. A pipe has no width, so it gets 200 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """Reads NAME=VALUE of an option that may be repeated. Raises BenchError if one has another form."""
    parts = [each.partition("=") for each in given or ()]
    for name, equals, value in parts:
        if not (name and equals and value):
            raise BenchError(f"{option} {name}{equals}{value}: use NAME=VALUE")
    return {name: value for name, _, value in parts}
