"""Measures the fastest settings for a model on this machine (`cortex tune`), and applies saved results.

`python -P -m scheduler.llama.tuning CONFIG SECONDS` measures for about SECONDS. It prints its progress and its result,
one JSON object per line. The result is saved to a file and replaces the defaults of options that a user does not set.
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
from scheduler.llama.context import Context
from scheduler.llama.model import Model
from scheduler.llama.version import place_of
from scheduler.llama.weights import open_model
from scheduler.machine import cores, hardware_threads
from scheduler.plan import StepError
from scheduler.sizing import DEFAULT_BATCH_TOKENS

_log = logging.getLogger("cortex.engine")

ROUNDS: Final = 3
WORTHWHILE: Final = 0.97
"""A setting must take less than this share of the default's time. A smaller gain may be noise."""
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
        """Raises ValueError if a value is out of range."""
        if self.threads not in range(1, 1025) or self.batch_tokens not in BATCH_TOKENS:
            raise ValueError(f"out of range: {self}")


@dataclass(frozen=True, slots=True)
class Measured:
    """Measured times: the median of ROUNDS rounds, in seconds."""

    threads: dict[int, float]
    """Time for a prompt and NUM_STEPS steps of answers, by number of threads."""
    batch_tokens: dict[int, float]
    """Time for one long prompt, by token budget of a step."""
    prompt_tokens: int
    """Length of the long prompt in tokens."""


def tuned(config: EngineConfig, model: Model) -> EngineConfig:
    """Returns the configuration, with saved results of this model and machine for options that the user did not set.

    Logs a warning and ignores a file that cannot be read.
    """
    path = _path(config, model)
    if path is None or not path.exists():
        return config
    try:
        tuning = Tuning(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        _log.warning("ignored an invalid tuning file: %s: %s", path, error)
        return config
    return dataclasses.replace(
        config,
        threads=config.threads or tuning.threads,
        batch_tokens=config.batch_tokens or tuning.batch_tokens,
    )


def keep(config: EngineConfig, model: Model, tuning: Tuning) -> None:
    """Save a result for the next engines. Raises OSError if the file cannot be written."""
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
    """The measurements that the sweep needs."""

    def prompt(self, num_tokens: int, batch_tokens: int) -> float:
        """Returns the seconds for a prompt of `num_tokens` tokens, in steps of `batch_tokens`. Raises StepError."""

    def answers(self) -> float:
        """Returns the seconds for NUM_STEPS steps that continue NUM_SEQS answers. Raises StepError."""

    def use_threads(self, count: int) -> None: ...


def sweep(probe: Probe, seconds: float, say: Callable[[int, int], None]) -> tuple[Tuning, Measured]:
    """Measure numbers of threads, then token budgets with the best number. Calls `say(done, total)` after each run.

    Rounds are interleaved, because the machine's speed changes over time. To keep to about `seconds`, a slow model is
    measured with shorter prompts. If there is not enough time even for these, the default token budget is returned.
    Raises StepError if llama.cpp fails.
    """
    probe.use_threads(cores())
    probe.prompt(64, 64)  # loads the weights
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
    """Returns the setting with the shortest median time, or the default if the gain is too small."""
    medians = _medians(seconds)
    best = min(medians, key=lambda setting: medians[setting])
    return best if medians[best] < WORTHWHILE * medians[default] else default


def thread_counts() -> list[int]:
    """Returns the thread counts to try: half of the cores (others may be slower), all cores, all hardware threads."""
    return sorted({max(1, cores() // 2), cores(), hardware_threads()})


def _affordable(num_tokens: float) -> list[int]:
    """Returns the token budgets to try if there is time for `num_tokens` tokens in total.

    Every budget is measured with a prompt as long as the largest budget.
    """
    for sizes in (BATCH_TOKENS, BATCH_TOKENS[:-1]):
        if ROUNDS * len(sizes) * sizes[-1] <= num_tokens:
            return list(sizes)
    return []


def _medians(seconds: dict[int, list[float]]) -> dict[int, float]:
    return {setting: median(each) for setting, each in seconds.items()}


class ContextProbe:
    """Measures with llama.cpp, in its own context."""

    def __init__(self, config: EngineConfig, model: Model) -> None:
        """Raises ModelError if there is not enough memory for the context."""
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process without a traceback
    config, seconds = EngineConfig(**orjson.loads(sys.argv[1])), float(sys.argv[2])
    try:
        model = open_model(config)
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
