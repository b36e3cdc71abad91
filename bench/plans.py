"""What a comparison measures, and what it has measured so far: the content of comparison.json."""

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.blocks import Limits
from bench.contestants import Entry
from bench.servers import Spec
from bench.table import Block
from scheduler.machine import processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compare. `servers` are names of `bench.peers.NAMES`, of `others` and of `variants`.

    The first server is compared with each of the others.
    """

    model_path: Path
    servers: tuple[str, ...]
    others: Mapping[str, str]  # URLs of servers that already run, by name
    entries: tuple[Entry, ...]
    extra: Mapping[str, tuple[str, ...]]  # the user's flags by server
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # Cortex with other flags, by name
    threads: int
    repeat: int
    seed: int
    salt: int
    limits: Limits
    out: Path


@dataclass(slots=True)
class Comparison:
    """The results so far."""

    specs: list[Spec] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    tuning: dict[str, float] = field(default_factory=dict)
    """Tokens per second by flags of llama-server, the best first."""
    drafting: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same of the llama-server that drafts, by entry: tokens per second of a stream."""
    cut_short: str = ""
    interrupted: bool = False


def machine() -> dict[str, object]:
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }


def document(plan: Plan, done: Comparison, command: str, started: str) -> dict[str, Any]:
    """The content of comparison.json. The report needs nothing else."""
    return {
        "command": command,
        "started": started,
        "cut_short": done.cut_short,
        "machine": machine(),
        "versions": {name: version(name) for name in ("cortex-server", "llama-cpp-python")},
        "model": plan.model_path.name,
        "threads": plan.threads,
        "repeat": plan.repeat,
        "seed": plan.seed,
        "salt": plan.salt,
        "limits": asdict(plan.limits),
        "servers": [
            {"name": spec.name, "note": spec.note, "command": _relative(spec.command), "fields": dict(spec.fields)}
            for spec in done.specs
        ],
        "tuning_tokens_per_s": done.tuning,
        "drafting_tokens_per_s": done.drafting,
        "workloads": [{"name": entry.name, "settings": asdict(entry.settings)} for entry in plan.entries],
        "blocks": [asdict(block) for block in done.blocks],
    }


def _relative(command: Sequence[str]) -> str:
    """The command with paths relative to this folder, so that the file does not contain the user's paths."""
    return shlex.join(command).replace(f"{Path.cwd()}/", "")
