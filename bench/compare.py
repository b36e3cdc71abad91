"""The comparison: measures servers in turn, on the same texts, in several repetitions.

All servers start first, and each is idle while another is measured. A repetition runs each workload on every server.
Each repetition begins with another server, so that a drift of the machine affects all alike.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import get_args

from bench.blocks import OutOfTimeError, measure
from bench.contestants import Bare, Contestant, Entry, ForEntry, ServerContestant
from bench.load import require_time
from bench.peers import BARE, DRAFTING, DRAFTING_FLAGS, MAKERS, NAMES, TUNED, Common, cortex, llama_server
from bench.plans import Comparison, Plan
from bench.records import BenchError
from bench.servers import Spec, free_ports, running
from bench.signals import until_signal
from bench.table import Block
from bench.tuning import best_drafting, tune
from bench.workloads import REPEATING, Settings, Workload, longest, resolve

# A context is one to two of these larger than needed: an answer may have more tokens when it is sent back as history.
CONTEXT_STEP = 256
# If other processes keep more cores than this busy during a block, its output line reports it.
FOREIGN_CORES = 0.2


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
        if name not in (*NAMES, DRAFTING, *others):
            raise BenchError(f"unknown server {name}: use one of {', '.join((*NAMES, DRAFTING, *others))}")
    if not names or len(set(names)) < len(names):
        raise BenchError("--servers is empty or repeats a name")
    return tuple(names)


def context_needed(found: Sequence[Entry]) -> int:
    need = max(longest(entry.settings) for entry in found)
    return (need // CONTEXT_STEP + 2) * CONTEXT_STEP


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
            done.specs = specs_of(plan, common)  # fails before anything is measured
            if TUNED in plan.servers and TUNED not in plan.extra:
                done.tuning = await tune(common, logs, plan.seed, plan.salt, print_line)
            if DRAFTING in plan.servers and DRAFTING not in plan.extra:
                done.drafting = await best_drafting(
                    common, plan.entries, logs, plan.seed, plan.salt, plan.limits.block, print_line
                )
            done.specs = specs_of(plan, common, shlex.split(next(iter(done.tuning), "")), best_of(done.drafting))
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
        stream = block.figures.get("stream_tokens_per_s")
        if stream is not None and block.workload.partition(":")[0] in REPEATING:
            figures += f", {stream:.1f} tokens/s of a stream"
        name = f"{block.workload} {block.repetition + 1}, {block.server}"
        foreign = block.figures.get("foreign_cores") or 0.0
        disturbed = f" (disturbed: other processes kept {foreign:.1f} cores busy)" if foreign > FOREIGN_CORES else ""
        print_line(f"{len(done.blocks)} of {total}: {name}: {block.trouble or figures}{disturbed}")

    async with running(done.specs, logs, print_line) as servers:
        by_name: dict[str, Contestant] = {server.spec.name: ServerContestant(server) for server in servers}
        if done.drafting:
            chosen = {entry: by_name[drafting_name(flags)] for entry, flags in best_of(done.drafting).items()}
            by_name[DRAFTING] = ForEntry(DRAFTING, chosen)
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


def best_of(drafting: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The best flags for each entry, from rates by flags, the best first."""
    return {entry: next(iter(rates)) for entry, rates in drafting.items()}


def drafting_name(flags: str) -> str:
    """The name of a llama-server with flags that draft."""
    return f"{DRAFTING}-{shlex.split(flags)[-1]}"


def specs_of(
    plan: Plan,
    common: Common,
    tuned: Sequence[str] = (),
    drafting: Mapping[str, str] = MappingProxyType({}),
) -> list[Spec]:
    """`tuned`: flags of the tuned llama-server. `drafting`: those of the one that drafts, by entry.

    Raises BenchError if a server is not built.
    """
    specs = []
    ports = iter(free_ports(len(plan.servers) + len(DRAFTING_FLAGS)))
    for name in plan.servers:
        if name in plan.others:
            specs.append(Spec(name=name, url=plan.others[name], note="already running"))
        elif name in plan.variants:
            specs.append(cortex(common, next(ports), name, plan.variants[name]))
        elif name == BARE:
            continue  # not a server
        elif name == TUNED:
            specs.append(llama_server(common, next(ports), TUNED, tuned))
        elif name == DRAFTING and drafting:
            specs += [
                llama_server(common, next(ports), drafting_name(flags), shlex.split(flags))
                for flags in dict.fromkeys(drafting.values())
            ]
        elif name == DRAFTING:
            specs.append(llama_server(common, next(ports), DRAFTING))
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
