"""Scenarios of tenants that share a machine, and what the scheduler must reach in each."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from random import Random
from typing import Final

import numpy as np

from bench.shares import jain, largest_gap, service_bound
from bench.simulation import turns
from bench.simulation.machine import CPU, MAX_SEQS, VirtualRunner, chunk_seconds, scheduler_for, step_seconds
from bench.simulation.service import Curves, curves_of, service
from bench.simulation.simulator import Prompt, Request, Simulator, Tenant, batch, closed_loop, lines, open_loop
from bench.stats import Measures, ratio
from scheduler.classes import GUARANTEED
from scheduler.fair import QUANTUM
from scheduler.pacing import MIN_CHUNK

VOCABULARY: Final = 49_152
TEMPLATE: Final = list(range(1, 25)), list(range(25, 31))
"""Tokens of the chat template before and after a question."""
LONG: Final = 60, 32
"""Words of a question and tokens of its answer: of the tenant with much work."""
SHORT: Final = 12, 8
"""The same of the tenant with a short question from time to time."""
BOUND: Final = service_bound(sum(map(len, TEMPLATE)) + LONG[0], MAX_SEQS * LONG[1], QUANTUM)
"""Of the gap between two tenants that ask long questions, in tokens at weight 1."""
IN_FLIGHT: Final = 64
LIST_PROMPTS: Final = 1024
LINE: Final = 15, 4
"""Words of a question and tokens of its answer: of a line of a batch."""
LINE_SYSTEM_TOKENS: Final = 110
SYSTEM_TOKENS: Final = 700
IDLE_SECONDS: Final = 10.0
"""How long the short questions are asked without other load."""
CHUNK_CONTEXT: Final = 300
"""Tokens before the chunk of MIN_CHUNK tokens that gaps are compared with: about the middle of the conversations."""
WARM_UP_SECONDS: Final = 15.0
"""Until then there are steps of prompts only, which take much longer than later ones. They do not count as a limit."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a measure must be. Both ends are allowed values."""

    measure: str
    at_least: float = float("-inf")
    at_most: float = float("inf")

    def is_met(self, measures: Measures) -> bool:
        value = measures[self.measure]
        return value is not None and self.at_least <= value <= self.at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a scenario is played."""

    policy: str
    """A name of POLICIES."""
    seconds: float = 60.0
    """Virtual seconds of each phase."""
    lanes: bool = True
    """Whether each sequence has a lane. Otherwise all share a pool."""

    def simulator(self) -> Simulator:
        runner = VirtualRunner(partial(step_seconds, lanes=self.lanes))
        return Simulator(scheduler_for(self.policy, runner.clock, lanes=self.lanes), runner)


@dataclass(frozen=True, slots=True)
class Outcome:
    measures: Measures
    curves: Curves | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    description: str
    run: Callable[[Setup], Outcome]
    limits: tuple[Limit, ...] = field(default=())


def questions(shape: tuple[int, int], rng: Random, system: Sequence[int] = ()) -> Iterator[Prompt]:
    """Questions of random words. They share the template, and the system prompt if there is one."""
    num_words, max_tokens = shape
    before, after = TEMPLATE
    while True:
        words = [rng.randrange(1000, VOCABULARY) for _ in range(num_words)]
        yield Prompt([*before, *system, *words, *after], max_tokens)


# -- one tenant with much work, another one with short questions -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phases:
    """The short questions alone, the load alone, then both together."""

    idle: Simulator
    alone: Simulator
    together: Simulator

    @property
    def idle_ttft(self) -> float:
        """The first question does not count, because nothing is cached for it."""
        return float(np.median([ttft(request, self.idle.now) for request in self.idle.requests[1:]]))


def beside(setup: Setup, load: Callable[[Simulator], None], stranger: Tenant) -> Outcome:
    return Outcome(_compared(_phases(setup, load, stranger), stranger))


def _phases(setup: Setup, load: Callable[[Simulator], None], stranger: Tenant) -> Phases:
    phases = Phases(setup.simulator(), setup.simulator(), setup.simulator())
    load(phases.alone)
    load(phases.together)
    _ask(phases.idle, stranger, IDLE_SECONDS)
    _ask(phases.together, stranger, setup.seconds)
    phases.idle.run(IDLE_SECONDS + 1)
    phases.alone.run(setup.seconds)
    phases.together.run(setup.seconds)
    return phases


def _compared(phases: Phases, stranger: Tenant, of: Collection[str] = ()) -> dict[str, float | None]:
    """`of`: the tenants of the load whose throughput counts; all without any."""
    alone, together, idle_ttft = phases.alone, phases.together, phases.idle_ttft
    ttfts = _ttfts(together, stranger)
    p50, p95 = map(float, np.percentile(ttfts, (50, 95)))
    longest = _longest_step(together)
    counted = of or {each.tenant for each in alone.requests}
    rates = [answer_tokens(each, counted) for each in (alone, together)]
    return {
        "idle_ttft_s": idle_ttft,
        "ttft_p50_s": p50,
        "ttft_p95_s": p95,
        "ttft_max_s": max(ttfts),
        "longest_step_s": longest,
        "preemptions": together.scheduler.statistics().preemptions,
        "alone_tokens_per_s": rates[0],
        "tokens_per_s": rates[1],
        "ttft_p50_ratio": p50 / idle_ttft,
        "ttft_p95_over_step_s": p95 - idle_ttft - longest,
        "ttft_p95_over_chunk_s": p95 - idle_ttft - chunk_seconds(MIN_CHUNK),
        "throughput_ratio": ratio(rates[1], rates[0]),
    }


def _ttfts(simulator: Simulator, tenant: Tenant) -> list[float]:
    return [ttft(each, simulator.now) for each in simulator.requests if each.tenant == tenant.name]


def _longest_step(simulator: Simulator) -> float:
    return max(step.seconds for step in simulator.steps if step.end > WARM_UP_SECONDS)


def _ask(simulator: Simulator, stranger: Tenant, seconds: float) -> None:
    """Once a second, from the start on."""
    open_loop(simulator, stranger, range(int(seconds)), questions(SHORT, Random("stranger")))


def ttft(request: Request, now: float) -> float:
    """The time to the first token. A request without one counts with its wait until now."""
    return now - request.submitted if request.ttft is None else request.ttft


def answer_tokens(simulator: Simulator, tenants: Collection[str] = ()) -> float:
    """Answer tokens a second of these tenants; of all without any."""
    counted = (each.num_tokens for each in simulator.requests if not tenants or each.tenant in tenants)
    return sum(counted) / simulator.now


def flood(setup: Setup) -> Outcome:
    return beside(setup, _flooding(Tenant("A")), Tenant("B"))


def interactive(setup: Setup) -> Outcome:
    return beside(setup, _flooding(Tenant("A", priority=2)), Tenant("B", priority=0))


def _flooding(tenant: Tenant) -> Callable[[Simulator], None]:
    return lambda simulator: closed_loop(simulator, tenant, IN_FLIGHT, questions(LONG, Random(tenant.name)))


def prompts_of_one_request(setup: Setup) -> Outcome:
    def load(simulator: Simulator) -> None:
        batch(simulator, Tenant("A"), list(islice(questions(LONG, Random("list")), LIST_PROMPTS)))

    return beside(setup, load, Tenant("B"))


# -- a batch beside them ---------------------------------------------------------------------------------------------


def lines_of_a_batch(setup: Setup) -> Outcome:
    """As `flood`, with a batch beside it. The lines run already when the flood begins."""
    stranger, flooding, with_lines = Tenant("B"), _flooding(Tenant("A")), _with_lines(Tenant("C", priority=2))

    def load(simulator: Simulator) -> None:
        with_lines(simulator)
        flooding(simulator)

    phases = _phases(setup, load, stranger)
    quiet = setup.simulator()
    with_lines(quiet)
    _ask(quiet, stranger, setup.seconds)
    quiet.run(setup.seconds)
    p50, p95 = map(float, np.percentile(_ttfts(quiet, stranger), (50, 95)))
    steps = [step for step in phases.together.steps if step.end > WARM_UP_SECONDS]
    served, others = (sum(sum(service(steps, name)) for name in names) for names in ("C", "AB"))
    return Outcome(
        _compared(phases, stranger, of={"A"})
        | {
            "lines_only_ttft_p50_s": p50,
            "lines_only_ttft_p95_s": p95,
            "lines_only_ttft_p95_over_step_s": p95 - phases.idle_ttft - _longest_step(quiet),
            "lines_per_s": _num_ended(phases.together, "C") / setup.seconds,
            "lines_only_per_s": _num_ended(quiet, "C") / setup.seconds,
            "lines_share": served / others,
        }
    )


def _num_ended(simulator: Simulator, tenant: str) -> int:
    return sum(each.tenant == tenant and each.ended is not None for each in simulator.requests)


def _with_lines(tenant: Tenant) -> Callable[[Simulator], None]:
    def load(simulator: Simulator) -> None:
        rng = Random("lines")
        system = [rng.randrange(1000, VOCABULARY) for _ in range(LINE_SYSTEM_TOKENS)]
        lines(simulator, tenant, questions(LINE, rng, system))

    return load


# -- shares of tenants that always wait ------------------------------------------------------------------------------


def weights(setup: Setup) -> Outcome:
    """Both tenants flood. The heavy one has three times the weight."""
    tenants = [Tenant("heavy", weight=3.0), Tenant("light")]
    simulator = setup.simulator()
    for tenant in tenants:
        closed_loop(simulator, tenant, IN_FLIGHT, questions(LONG, Random(tenant.name)))
    simulator.run(setup.seconds)
    curves = curves_of(simulator, tenants, BOUND)
    heavy, light = (curves.served[tenant.name][-1] for tenant in tenants)
    gap = largest_gap(*(service(simulator.steps, each.name, each.weight) for each in tenants))
    return Outcome(
        {
            "heavy_tokens": heavy,
            "light_tokens": light,
            "tokens_ratio": ratio(heavy, light),
            "answer_tokens_ratio": ratio(*(answer_tokens(simulator, {each.name}) for each in tenants)),
            "gap_tokens": gap,
            "bound_tokens": BOUND,
            "gap_ratio": gap / BOUND,
            "preemptions": simulator.scheduler.statistics().preemptions,
        },
        curves,
    )


def equal(setup: Setup) -> Outcome:
    """Eight tenants of equal weight keep 8, 16, ... 64 requests in flight."""
    tenants = [Tenant(f"tenant {number}") for number in range(1, 9)]
    simulator = setup.simulator()
    for number, tenant in enumerate(tenants, 1):
        closed_loop(simulator, tenant, 8 * number, questions(LONG, Random(tenant.name)))
    simulator.run(setup.seconds)
    curves = curves_of(simulator, tenants, BOUND)
    shares = [curves.served[tenant.name][-1] for tenant in tenants]
    return Outcome(
        {
            "jain": jain(shares),
            "smallest_tokens": min(shares),
            "largest_tokens": max(shares),
            "tokens_per_s": answer_tokens(simulator),
            "preemptions": simulator.scheduler.statistics().preemptions,
        },
        curves,
    )


# -- locality --------------------------------------------------------------------------------------------------------


def prefixes(setup: Setup) -> Outcome:
    """Eight tenants with a long system prompt each. The baseline is first come, first served."""
    baseline_rate, baseline_hits = _with_system_prompts(replace(setup, policy="first-come"))
    rate, hits = _with_system_prompts(setup)
    return Outcome(
        {
            "baseline_tokens_per_s": baseline_rate,
            "tokens_per_s": rate,
            "baseline_hit_rate": baseline_hits,
            "hit_rate": hits,
            "throughput_ratio": ratio(rate, baseline_rate),
            "hit_rate_loss": baseline_hits - hits,
        }
    )


def _with_system_prompts(setup: Setup) -> tuple[float, float]:
    """Answer tokens a second, and the share of the prompts' tokens that were found in the cache."""
    simulator = setup.simulator()
    for number in range(8):
        rng = Random(f"system {number}")
        system = [rng.randrange(1000, VOCABULARY) for _ in range(SYSTEM_TOKENS)]
        closed_loop(simulator, Tenant(f"tenant {number}"), 8, questions((20, LONG[1]), rng, system))
    simulator.run(setup.seconds)
    begun = [request for request in simulator.requests if request.first is not None]
    hits = sum(each.cached_tokens for each in begun) / sum(len(each.prompt.tokens) for each in begun)
    return answer_tokens(simulator), hits


# -- turns beside turns ----------------------------------------------------------------------------------------------


def conversations(setup: Setup) -> Outcome:
    """The workload `multiturn`, compared with the order of llama-server on the same machine."""
    users = turns.scripts(turns.Shape(), seed=0)
    peer, mine = turns.measures(turns.play_whole(users)), turns.measures(turns.play(setup.simulator(), users))
    chunk = CPU.seconds([(0, CHUNK_CONTEXT, MIN_CHUNK)])
    return Outcome(
        {f"peer_{name}": value for name, value in peer.items()}
        | mine
        | {
            "throughput_ratio": ratio(mine["tokens_per_s"], peer["tokens_per_s"]),
            "ttft_p50_ratio": ratio(mine["ttft_p50_s"], peer["ttft_p50_s"]),
            "itl_p99_chunks": ratio(mine["itl_p99_s"], chunk),
            "itl_max_chunks": ratio(mine["itl_max_s"], chunk),
        }
    )


_STRANGER: Final = (Limit("ttft_p50_ratio", at_most=2.2), Limit("ttft_p95_over_step_s", at_most=0.0))
_KEEPS: Final = Limit("throughput_ratio", at_least=0.85)

SCENARIOS: Final[Mapping[str, Scenario]] = {
    "flood": Scenario(
        "A keeps 64 requests in flight, B asks a short question every second", flood, (*_STRANGER, _KEEPS)
    ),
    "list": Scenario(
        "A sends one request with 1,024 prompts, B asks every second", prompts_of_one_request, (*_STRANGER, _KEEPS)
    ),
    "interactive": Scenario(
        "as flood, with A in the class batch and B in the class interactive",
        interactive,
        (Limit("ttft_p95_over_chunk_s", at_most=0.0), _KEEPS),
    ),
    "lines": Scenario(
        "as flood, beside a batch whose lines take the room that A and B leave",
        lines_of_a_batch,
        (
            Limit("ttft_p95_over_step_s", at_most=0.0),
            Limit("lines_only_ttft_p95_over_step_s", at_most=0.0),
            _KEEPS,
            Limit("lines_share", at_least=0.5 * GUARANTEED, at_most=1.5 * GUARANTEED),
        ),
    ),
    "weights": Scenario(
        "two tenants flood, with weights 3 and 1",
        weights,
        (Limit("tokens_ratio", at_least=2.85, at_most=3.15), Limit("gap_ratio", at_most=1.0)),
    ),
    "equal": Scenario("eight tenants flood with 8 to 64 requests each", equal, (Limit("jain", at_least=0.98),)),
    "turns": Scenario(
        "eight conversations of four turns; the peer computes all waiting prompts whole, as llama-server does",
        conversations,
        (
            Limit("throughput_ratio", at_least=0.96),
            Limit("ttft_p50_ratio", at_most=0.7),
            Limit("itl_p99_chunks", at_most=1.3),
            Limit("itl_max_chunks", at_most=2.0),
        ),
    ),
    "prefixes": Scenario(
        "eight tenants with a system prompt of 700 tokens each",
        prefixes,
        (Limit("throughput_ratio", at_least=0.95), Limit("hit_rate_loss", at_most=0.02)),
    ),
}

DRAWN: Final = ("weights", "equal")
"""The scenarios with curves."""
