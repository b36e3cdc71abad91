"""The processor of this machine, and the memory of this process."""

import os
import platform
from pathlib import Path

import psutil


def cores() -> int:
    """Returns the number of physical cores that this process may use."""
    usable = hardware_threads()
    return min(usable, psutil.cpu_count(logical=False) or usable)


def hardware_threads() -> int:
    """Returns the number of hardware threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def anonymous_bytes() -> int:
    """Returns the resident memory of this process that is no part of a file; 0 if the system does not say it."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared) if hasattr(memory, "shared") else 0
