"""How an engine ended: the reason in one line, and whether a request may be the cause."""

import signal
from dataclasses import dataclass
from typing import Final

from scheduler.crash_record import EXIT_CRASHED, CrashRecord

CRASH_SIGNALS: Final = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)
"""A process causes these signals itself. All others come from outside."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an engine ended."""

    how: str
    """What follows "the engine", for example `crashed (SIGABRT)`."""
    detail: str = ""
    """The engine's own reason in one line; empty if it gave none."""
    crashed: bool = False
    """Whether something that the engine computed may be the cause. Otherwise something outside is."""
    suspects: frozenset[int] = frozenset()
    """The requests that it was computing. If it crashed, one of them may be the cause."""

    @property
    def reason(self) -> str:
        """What follows "the engine", with the detail."""
        return f"{self.how}: {self.detail}" if self.detail else self.how

    @property
    def cause(self) -> str:
        """The detail, or how it ended if there is none."""
        return self.detail or self.how


UNKNOWN: Final = Ending("closed its connection")


def ending_of(returncode: int, record: CrashRecord) -> Ending:
    """How a process ended, by its return code (negative for a signal) and its crash record."""
    if returncode >= 0:
        crashed = returncode == EXIT_CRASHED
        how = "crashed" if crashed else f"exited with code {returncode}" if returncode else "exited"
        return Ending(how, record.reason, crashed, record.request_ids)
    name = _signal_name(-returncode)
    if -returncode in CRASH_SIGNALS:
        return Ending(f"crashed ({name})", record.reason, True, record.request_ids)
    if -returncode == signal.SIGKILL:
        return Ending(f"was killed ({name}), perhaps because memory ran out")
    return Ending(f"was ended by {name}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
