"""Simulated runs: the workloads of `bench cluster` on nodes in virtual time."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from bench.cluster.accounting import ALONE, Counts, Run
from bench.cluster.routers import Choice
from bench.records import BenchError
from bench.simulation.fleet import Fleet, closed_loop, open_loop
from bench.simulation.routing import ROUTERS, Thresholds
from bench.stats import Measures, ratio
from bench.workloads import Session, Settings, sessions, shared


def numbers_of_nodes(most: int) -> list[int]:
    """1, 2, 4 and so on, up to `most`."""
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]


def simulated(
    settings: Settings,
    choice: Choice | None,
    num_nodes: int,
    thresholds: Thresholds,
    seed: str,
    num_prompts: int = 1,
) -> Run:
    """Plays a workload on nodes in virtual time. The same arguments give the same numbers. None: one node alone.

    Raises BenchError if there is no model of the policy.
    """
    policy = choice.policy if choice else next(iter(ROUTERS))
    if policy not in ROUTERS:
        raise BenchError(f"--policies {choice}: the policies that can be simulated are {', '.join(ROUTERS)}")
    fleet = Fleet(num_nodes, ROUTERS[policy](thresholds), Random(f"{seed} clients"))
    scripts = _sessions(settings, Random(seed), num_prompts)
    if settings.workload == "trace":
        open_loop(fleet, scripts)
    else:
        closed_loop(fleet, scripts, settings.users)
    fleet.run()
    counts = [
        Counts(
            requests=len(node.simulator.requests),
            prompt_tokens=sum(len(request.prompt.tokens) for request in node.simulator.requests),
            computed_tokens=node.simulator.scheduler.statistics().prefill_tokens,
        )
        for node in fleet.nodes
    ]
    return Run(policy=str(choice or ALONE), workload=settings.workload, nodes=tuple(counts), measures=_measures(fleet))


def _sessions(settings: Settings, rng: Random, num_prompts: int) -> Sequence[Session]:
    """The workload's sessions. `shared` may have several shared prompts: its users ask with each of them in turn."""
    if settings.workload != "shared" or num_prompts == 1:
        return sessions(settings, rng)[0]
    groups = [shared(settings, rng, -(-settings.requests // num_prompts)) for _ in range(num_prompts)]
    mixed = [session for group in groups for session in group]
    rng.shuffle(mixed)
    return mixed[: settings.requests]


def _measures(fleet: Fleet) -> Measures:
    requests = fleet.requests
    waits = [request.ttft for request in requests if request.ttft is not None]
    p50, p99 = map(float, np.percentile(waits, (50, 99)))
    return {
        "errors": 0.0,
        "ttft_p50_s": p50,
        "ttft_p99_s": p99,
        "tokens_per_s": ratio(sum(request.num_tokens for request in requests), fleet.now),
        "wall_s": fleet.now,
    }


def predicted(run: Run, settings: Settings, choice: Choice | None, thresholds: Thresholds, seed: str) -> Run:
    """The measured run with what the simulator says about it; unchanged if there is no model of its policy."""
    if choice is not None and choice.policy not in ROUTERS:
        return run
    model = simulated(settings, choice, len(run.nodes), thresholds, seed)
    return replace(run, predicted=model.total)
