"""What `cortex tune` found fastest for a model on this machine: kept in a file, used where a user says nothing.

`python -P -m scheduler.llama.tuning CONFIG SECONDS` measures it for about so long, and says how far it is and what it
found: one JSON object per line.
"""

import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from scheduler.config import EngineConfig
from scheduler.errors import ModelError
from scheduler.llama.context import Context, Model
from scheduler.llama.version import place_of
from scheduler.machine import cores, hardware_threads
from scheduler.plan import StepError
from scheduler.sizing import DEFAULT_BATCH_TOKENS

_log = logging.getLogger("cortex.engine")

ROUNDS: Final = 3
WORTHWHILE: Final = 0.97
"""Of the default's time; another setting that takes no less may as well owe it to the moment."""
BATCH_TOKENS: Final = (128, 256, 512, 1024)
PROMPT_TOKENS: Final = 256
NUM_SEQS: Final = 8
NUM_STEPS: Final = 8
KV_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class Tuning:
    threads: int
    batch_tokens: int
    """Token budget of a step."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.threads not in range(1, 1025) or self.batch_tokens not in BATCH_TOKENS:
            raise ValueError(f"out of range: {self}")


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds, in the median of some rounds."""

    threads: dict[int, float]
    """For prompts and answers of some sequences, by threads."""
    batch_tokens: dict[int, float]
    """For one long prompt, by the budget of the steps that read it."""
    prompt_tokens: int
    """How long that was."""


def tuned(config: EngineConfig, model: Model) -> EngineConfig:
    """The configuration, with what was found for this model and machine where the user left it open."""
    path = _path(config, model)
    if path is None or not path.exists():
        return config
    try:
        tuning = Tuning(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        _log.warning("what was tuned is left out: %s: %s", path, error)
        return config
    return dataclasses.replace(
        config,
        threads=config.threads or tuning.threads,
        batch_tokens=config.batch_tokens or tuning.batch_tokens,
    )


def keep(config: EngineConfig, model: Model, tuning: Tuning) -> None:
    """For the next engines. Raises OSError."""
    path = _path(config, model)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(orjson.dumps(asdict(tuning), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    unfinished.replace(path)


def _path(config: EngineConfig, model: Model) -> Path | None:
    return Path(config.tuning_folder) / f"{place_of(config, model)}.json" if config.tuning_folder else None


class Probe(Protocol):
    """What the sweep measures with."""

    def prompt(self, num_tokens: int, batch_tokens: int) -> float:
        """Seconds to read a prompt in steps of so many tokens."""

    def answers(self) -> float:
        """Seconds of NUM_STEPS steps that continue NUM_SEQS answers."""

    def use_threads(self, count: int) -> None: ...


def sweep(probe: Probe, seconds: float, say: Callable[[int, int], None]) -> tuple[Tuning, Measured]:
    """Measure threads, then steps with the best of these. `say` is told what is done, and of how much.

    Rounds are interleaved, as the machine's own speed changes. A slow model's prompts are shorter, so that all of it
    takes about so long; other steps than the default ones are not tried where there is no time for these.
    Raises StepError.
    """
    probe.use_threads(cores())
    probe.prompt(64, 64)  # only touches the weights
    token_seconds = min(probe.prompt(64, 64) for _ in range(3)) / 64
    sizes = _affordable(seconds / token_seconds)
    counts = thread_counts()
    rounds = range(ROUNDS)
    done, total = 0, ROUNDS * (len(counts) + len(sizes))

    by_threads: dict[int, list[float]] = {count: [] for count in counts}
    for count in (count for _ in rounds for count in counts):
        probe.use_threads(count)
        reading = probe.prompt(PROMPT_TOKENS, PROMPT_TOKENS)
        by_threads[count].append(reading + probe.answers())
        say(done := done + 1, total)
    threads = fastest(by_threads, cores())

    probe.use_threads(threads)
    by_size: dict[int, list[float]] = {size: [] for size in sizes}
    for size in (size for _ in rounds for size in sizes):
        by_size[size].append(probe.prompt(max(sizes), size))
        say(done := done + 1, total)
    batch_tokens = fastest(by_size, DEFAULT_BATCH_TOKENS) if sizes else DEFAULT_BATCH_TOKENS
    return Tuning(threads, batch_tokens), Measured(_medians(by_threads), _medians(by_size), max(sizes, default=0))


def fastest(seconds: dict[int, list[float]], default: int) -> int:
    """The setting with the shortest median, or the default if that gains too little."""
    medians = _medians(seconds)
    best = min(medians, key=lambda setting: medians[setting])
    return best if medians[best] < WORTHWHILE * medians[default] else default


def thread_counts() -> list[int]:
    """All cores, all hardware threads, and half of the cores: the rest may be slower ones."""
    return sorted({max(1, cores() // 2), cores(), hardware_threads()})


def _affordable(num_tokens: float) -> list[int]:
    """Steps to try, if so many tokens can be computed in all: every size reads a prompt as long as the largest."""
    for sizes in (BATCH_TOKENS, BATCH_TOKENS[:-1]):
        if ROUNDS * len(sizes) * sizes[-1] <= num_tokens:
            return list(sizes)
    return []


def _medians(seconds: dict[int, list[float]]) -> dict[int, float]:
    return {setting: median(each) for setting, each in seconds.items()}


class ContextProbe:
    """On llama.cpp, with a context of its own."""

    def __init__(self, config: EngineConfig, model: Model) -> None:
        """Raises ModelError."""
        self._context = Context(
            model,
            config,
            kv_tokens=KV_TOKENS,
            num_ids=NUM_SEQS,
            num_outputs=NUM_SEQS,
            batch_tokens=max(BATCH_TOKENS),
            threads=cores(),
        )

    def use_threads(self, count: int) -> None:
        self._context.use_threads(count)

    def prompt(self, num_tokens: int, batch_tokens: int) -> float:
        started = time.perf_counter()
        for start in range(0, num_tokens, batch_tokens):
            length = min(batch_tokens, num_tokens - start)
            self._decode(np.arange(start, start + length), np.zeros(length), num_outputs=1)
        seconds = time.perf_counter() - started
        self._context.remove(0, 0, -1)
        return seconds

    def answers(self) -> float:
        started = time.perf_counter()
        for position in range(NUM_STEPS):
            self._decode(np.full(NUM_SEQS, position), np.arange(NUM_SEQS), num_outputs=NUM_SEQS)
        seconds = time.perf_counter() - started
        for sequence_id in range(NUM_SEQS):
            self._context.remove(sequence_id, 0, -1)
        return seconds

    def _decode(self, positions: NDArray[Any], ids: NDArray[Any], *, num_outputs: int) -> None:
        context, length = self._context, len(positions)
        context.tokens[:length] = 0
        context.positions[:length] = positions
        context.ids[:length] = ids
        context.outputs[:length] = 0
        context.outputs[length - num_outputs : length] = 1
        context.decode(length)
        context.logits(num_outputs).argmax()  # waits for the GPU

    def close(self) -> None:
        self._context.close()


def main() -> int:
    logging.basicConfig(level=logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a word
    config, seconds = EngineConfig(**orjson.loads(sys.argv[1])), float(sys.argv[2])
    try:
        model = Model(config.model_path, config.gpu_layers)
        probe = ContextProbe(config, model)
        tuning, measured = sweep(probe, seconds, lambda done, total: _say({"done": done, "total": total}))
        keep(config, model, tuning)
    except (ModelError, StepError, OSError) as error:
        _say({"error": str(error)})
        return 1
    _say({"tuning": asdict(tuning), "measured": asdict(measured)})
    return 0


def _say(message: dict[str, object]) -> None:
    sys.stdout.buffer.write(orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
