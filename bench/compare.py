"""The comparison: measures servers in turn, on the same texts, in several repetitions.

All servers start first, and each is idle while another is measured. A repetition runs each workload on every server.
Each repetition begins with another server, so that a drift of the machine affects all alike.
"""

import os
import platform
import shlex
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, get_args

import psutil
import trio

from bench import report
from bench.contestants import Bare, Contestant, Entry, ServerContestant
from bench.load import Repetition, require_time
from bench.peers import BARE, MAKERS, NAMES, TUNED, TUNING, Common, cortex, llama_server
from bench.records import BenchError
from bench.servers import Server, Spec, Usage, free_ports
from bench.stats import Measures, ratio, summarize
from bench.table import Block
from bench.workloads import Settings, Workload, longest, resolve
from scheduler.machine import processor

# A context is one to two of these larger than needed: an answer may have more tokens when it is sent back as history.
CONTEXT_STEP = 256
TUNING_REPEAT = 2
# If other processes keep more cores than this busy during a block, its output line reports it.
FOREIGN_CORES = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds: `block` for one server, workload and repetition; `total` for the comparison."""

    block: float = 300.0
    total: float = 4 * 3600.0


class OutOfTimeError(Exception):
    """The time limit of the comparison has passed. Blocks that have ended remain valid."""


def entries(names: str, base: Settings) -> list[Entry]:
    """Entries from names such as `single,uniform:8,uniform:32`. Raises BenchError if the names are not valid."""
    found = []
    for name in filter(None, names.split(",")):
        workload, _, users = name.partition(":")
        if workload not in get_args(Workload):
            raise BenchError(f"unknown workload {workload}: use one of {', '.join(get_args(Workload))}")
        if users and not users.isdigit():
            raise BenchError(f"{name}: users must be a number")
        wanted = replace(base, workload=workload, users=int(users or 0))  # type: ignore[arg-type]
        found.append(Entry(name, resolve(wanted)))
    if not found or len({entry.name for entry in found}) < len(found):
        raise BenchError("--workloads is empty or repeats a name")
    return found


def contestants(names: Sequence[str], others: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises BenchError if there is none, or if one is unknown or repeated."""
    for name in names:
        if name not in (*NAMES, *others):
            raise BenchError(f"unknown server {name}: use one of {', '.join((*NAMES, *others))}")
    if not names or len(set(names)) < len(names):
        raise BenchError("--servers is empty or repeats a name")
    return tuple(names)


def context_needed(found: Sequence[Entry]) -> int:
    need = max(longest(entry.settings) for entry in found)
    return (need // CONTEXT_STEP + 2) * CONTEXT_STEP


def block_of(repetition: Repetition, usage: Usage) -> tuple[Measures, str]:
    """The figures of a block, and the reason if they do not count."""
    figures = report.figures(repetition)
    records = report.all_records([repetition])
    tokens = sum(record.completion_tokens for record in records)
    figures |= {
        "cpu_s": usage.cpu_s or None,
        "cpu_s_per_token": ratio(usage.cpu_s or None, tokens),
        "memory_bytes": usage.memory_bytes or None,
    }
    errors = Counter(record.error for record in records if record.error is not None)
    if not errors:
        return figures, ""
    ((error, _),) = errors.most_common(1)
    return figures, f"{errors.total()} of {len(records)} requests failed: {error}"


async def measure(
    contestants: Sequence[Contestant],
    found: Sequence[Entry],
    *,
    repeat: int,
    seed: int,
    salt: int,
    limits: Limits,
    on_block: Callable[[Block], object],
) -> None:
    """Calls `on_block` with each block as it ends. Raises OutOfTimeError at the total time limit.

    A contestant that fails a whole workload, or exceeds the time limit of a block, does not run that workload again.
    """
    deadline = trio.current_time() + limits.total
    given_up: set[tuple[str, str]] = set()
    for repetition, entry in product(range(repeat), found):
        first = repetition % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            if (contestant.name, entry.name) in given_up:
                continue
            if trio.current_time() > deadline:
                raise OutOfTimeError(f"stopped after {limits.total:.0f} s, in repetition {repetition + 1} of {repeat}")
            # With the workload's name, `uniform:8` and `uniform:32` send different texts.
            rng = Random(f"{seed}/{salt}/{entry.name}/{repetition}")
            async with trio.open_nursery() as nursery:
                for each in contestants:
                    nursery.start_soon(each.rest)
            figures: Measures = {}
            began, busy = trio.current_time(), _busy_seconds()
            try:
                played, usage = await contestant.play(entry, rng, limits.block)
                figures, trouble = block_of(played, usage)
                others = _busy_seconds() - busy - (0.0 if usage.is_ours else usage.cpu_s)
                figures["foreign_cores"] = ratio(max(0.0, others), trio.current_time() - began)
            except BenchError as error:
                trouble = str(error)
            if trouble and trio.current_time() - began >= limits.block:
                trouble = f"not done in {limits.block:.0f} s: {trouble}"
                given_up.add((contestant.name, entry.name))
            elif trouble and not figures.get("completion_tokens"):
                given_up.add((contestant.name, entry.name))
            on_block(Block(contestant.name, entry.name, repetition, figures, trouble))


@asynccontextmanager
async def running(
    specs: Sequence[Spec], logs: Path, print_line: Callable[[str], object]
) -> AsyncIterator[list[Server]]:
    """Starts the servers and always stops them. A server that cannot start is started again for its first block."""
    servers = [Server(spec, logs / f"{spec.name}.log") for spec in specs]
    try:
        for server in servers:
            print_line(f"starting {server.spec.name}")
            try:
                await server.start()
            except BenchError as error:
                print_line(str(error))
        yield servers
    finally:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            for server in servers:
                nursery.start_soon(server.stop)


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


def _busy_seconds() -> float:
    """CPU seconds of the whole machine since it started, without this process."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice) - time.process_time()


def machine() -> dict[str, object]:
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }


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
    cut_short: str = ""
    interrupted: bool = False


async def compare(plan: Plan, print_line: Callable[[str], object]) -> Comparison:
    """After a signal or at the time limit, returns the results so far. Raises BenchError if it cannot begin."""
    done = Comparison()
    for entry in plan.entries:
        require_time(entry.settings, plan.limits.block)
    logs = plan.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="cortex-bench-") as scratch:
        common = Common(
            model_path=plan.model_path,
            threads=plan.threads,
            context=context_needed(plan.entries),
            scratch=Path(scratch),
            extra=plan.extra,
            end_tokens=lambda: end_tokens(plan.model_path),
        )
        async with until_signal(print_line) as scope:
            done.specs = specs_of(plan, common)
            if TUNED in plan.servers and TUNED not in plan.extra:
                done.tuning = await tune(common, logs, plan.seed, plan.salt, print_line)
                done.specs = specs_of(plan, common, shlex.split(next(iter(done.tuning))))
            await _measured(plan, done, logs, print_line)
        if scope.cancelled_caught:
            done.cut_short, done.interrupted = "stopped by a signal", True
    return done


async def _measured(plan: Plan, done: Comparison, logs: Path, print_line: Callable[[str], object]) -> None:
    total = plan.repeat * len(plan.entries) * len(plan.servers)

    def on_block(block: Block) -> None:
        done.blocks.append(block)
        rate, ttft = block.figures.get("tokens_per_s"), block.figures.get("ttft_p99_s")
        figures = "" if rate is None or ttft is None else f"{rate:.1f} tokens/s, TTFT p99 {ttft:.2f} s"
        name = f"{block.workload} {block.repetition + 1}, {block.server}"
        foreign = block.figures.get("foreign_cores") or 0.0
        disturbed = f" (disturbed: other processes kept {foreign:.1f} cores busy)" if foreign > FOREIGN_CORES else ""
        print_line(f"{len(done.blocks)} of {total}: {name}: {block.trouble or figures}{disturbed}")

    async with running(done.specs, logs, print_line) as servers:
        by_name = {server.spec.name: ServerContestant(server) for server in servers}
        bare = partial(Bare, plan.model_path, plan.threads, context_needed(plan.entries))
        try:
            await measure(
                [by_name.get(name) or bare() for name in plan.servers],
                plan.entries,
                repeat=plan.repeat,
                seed=plan.seed,
                salt=plan.salt,
                limits=plan.limits,
                on_block=on_block,
            )
        except OutOfTimeError as error:
            done.cut_short = str(error)
            print_line(done.cut_short)


def specs_of(plan: Plan, common: Common, tuned: Sequence[str] = ()) -> list[Spec]:
    """Raises BenchError if a server is not built."""
    specs = []
    ports = iter(free_ports(len(plan.servers)))
    for name in plan.servers:
        if name in plan.others:
            specs.append(Spec(name=name, url=plan.others[name], note="already running"))
        elif name in plan.variants:
            specs.append(cortex(common, next(ports), name, plan.variants[name]))
        elif name == BARE:
            continue  # not a server
        elif name == TUNED:
            specs.append(llama_server(common, next(ports), TUNED, tuned))
        else:
            specs.append(MAKERS[name](common, next(ports)))
    return specs


def end_tokens(model_path: Path) -> list[int]:
    # Imported here because it loads llama.cpp.
    from scheduler.llama.model import Model

    model = Model(str(model_path), 0)
    try:
        return sorted(model.eog_tokens)
    finally:
        model.close()


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
        "workloads": [{"name": entry.name, "settings": asdict(entry.settings)} for entry in plan.entries],
        "blocks": [asdict(block) for block in done.blocks],
    }


def _relative(command: Sequence[str]) -> str:
    """The command with paths relative to this folder, so that the file does not contain the user's paths."""
    return shlex.join(command).replace(f"{Path.cwd()}/", "")


@asynccontextmanager
async def until_signal(print_line: Callable[[str], object]) -> AsyncIterator[trio.CancelScope]:
    """SIGINT, SIGTERM and SIGHUP cancel the body and do not end the program, so that servers are stopped."""
    error: Exception | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            inside = trio.CancelScope()

            async def listen() -> None:
                async for number in signals:
                    print_line(f"{signal.Signals(number).name}: stopping the servers")
                    inside.cancel()

            nursery.start_soon(listen)
            with inside:
                try:
                    yield inside
                except (BenchError, OSError) as raised:
                    error = raised  # raised below: the nursery would wrap it in a group
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error
