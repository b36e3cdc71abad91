"""Finds the best flags of llama-server, by a measurement before the comparison."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

from bench.contestants import Entry, ServerContestant
from bench.peers import DRAFTING, DRAFTING_FLAGS, TUNED, TUNING, Common, llama_server
from bench.records import BenchError
from bench.servers import free_ports, running
from bench.stats import summarize
from bench.workloads import Settings, resolve

TUNING_REPEAT = 2


async def tune(
    common: Common, logs: Path, seed: int, salt: int, print_line: Callable[[str], object]
) -> dict[str, float]:
    """Tokens per second of llama-server by flags, the best first. Eight users send prompts with nothing in common."""
    entry = Entry("uniform:8", resolve(Settings(workload="uniform", users=8)))
    rates: dict[str, float] = {}
    (port,) = free_ports(1)
    for flags in TUNING:
        spec = llama_server(common, port, TUNED, flags)
        async with running([spec], logs, print_line) as (server,):
            measured = []
            for repetition in range(TUNING_REPEAT):
                rng = Random(f"{seed}/{salt}/tuning/{repetition}")
                try:
                    played, _ = await ServerContestant(server).play(entry, rng, 120.0)
                except BenchError:
                    break
                summary = summarize(played.records)
                measured.append(0.0 if summary.errors else summary.tokens_per_s or 0.0)
            rates[" ".join(flags)] = sum(measured) / TUNING_REPEAT
            print_line(f"{spec.name} {' '.join(flags)}: {rates[' '.join(flags)]:.1f} tokens/s")
    return dict(sorted(rates.items(), key=lambda item: -item[1]))


async def best_drafting(
    common: Common,
    entries: Sequence[Entry],
    logs: Path,
    seed: int,
    salt: int,
    time_limit: float,
    print_line: Callable[[str], object],
) -> dict[str, dict[str, float]]:
    """Tokens per second of a stream, by entry and flags, the best flags first. Each is measured once.

    A server that fails has the rate 0. `time_limit`: seconds for a measurement.
    """
    rates: dict[str, dict[str, float]] = {entry.name: {} for entry in entries}
    (port,) = free_ports(1)
    for flags in DRAFTING_FLAGS:
        spec = llama_server(common, port, DRAFTING, flags)
        async with running([spec], logs, print_line) as (server,):
            for entry in entries:
                rate = 0.0
                with suppress(BenchError):
                    rng = Random(f"{seed}/{salt}/drafting/{entry.name}")
                    played, _ = await ServerContestant(server).play(entry, rng, time_limit)
                    summary = summarize(played.records)
                    rate = 0.0 if summary.errors else summary.stream_tokens_per_s or 0.0
                rates[entry.name][" ".join(flags)] = rate
                print_line(f"{spec.name} {' '.join(flags)}: {entry.name}: {rate:.1f} tokens/s of a stream")
    return {name: dict(sorted(found.items(), key=lambda item: -item[1])) for name, found in rates.items()}
