"""Virtual clients of the real scheduler, in virtual time. A minute of load takes about a second."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from api.protocols.batches.room import num_beside
from bench.simulation.machine import MAX_SEQS, VirtualRunner
from scheduler.messages import DEFAULT_PRIORITY, SamplingParams, Submit
from scheduler.plan import Plan, Result
from scheduler.scheduler import Scheduler

LATENCY = 0.005
"""Seconds from the end of a client's request to the arrival of its next one."""

_GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    weight: float = 1.0
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a client asks."""

    tokens: list[int]
    max_tokens: int
    """Tokens of the answer. It always has this length."""


@dataclass(slots=True)
class Request:
    """A request and what happened to it. Times are virtual seconds; None means not yet."""

    number: int
    tenant: str
    prompt: Prompt
    submitted: float
    ended: float | None = None
    cached_tokens: int = 0
    answer: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each token of the answer arrived."""
    on_end: Callable[[], object] = lambda: None

    @property
    def num_tokens(self) -> int:
        return len(self.answer)

    @property
    def first(self) -> float | None:
        """When the first token arrived."""
        return self.times[0] if self.times else None

    @property
    def ttft(self) -> float | None:
        return None if self.first is None else self.first - self.submitted


@dataclass(slots=True)
class Step:
    """When a step ended, how long it took, and the computed tokens of each tenant in it."""

    end: float
    seconds: float
    prefill: dict[str, int] = field(default_factory=dict)
    decode: dict[str, int] = field(default_factory=dict)


class Simulator:
    """Runs a scheduler step by step. Events happen between the steps, like the messages of an engine."""

    def __init__(self, scheduler: Scheduler, runner: VirtualRunner) -> None:
        self.scheduler = scheduler
        self.requests: list[Request] = []
        """All requests, in order of submission. The index is the request id."""
        self.num_active = 0
        """Requests that have not ended."""
        self.steps: list[Step] = []
        self._runner = runner
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        self._running: tuple[Plan, list[str], Result] | None = None
        """The step that has begun."""

    @property
    def now(self) -> float:
        """The present time; after `begin`, the end of the step."""
        return self._runner.now

    def idle_until(self, seconds: float) -> None:
        """Passes the time until then without a step."""
        self._runner.now = max(self._runner.now, seconds)

    def at(self, seconds: float, event: Callable[[], object]) -> None:
        """Calls `event` at this time, or when the step that runs then has ended."""
        heapq.heappush(self._events, (seconds, next(self._order), event))

    def submit(
        self, tenant: Tenant, prompt: Prompt, due: float, on_end: Callable[[], object] = lambda: None
    ) -> Request:
        """Submits a request, and returns it. `due` is when the client sent it: its waiting time begins there."""
        request = Request(len(self.requests), tenant.name, prompt, due, on_end=on_end)
        self.requests.append(request)
        self.num_active += 1
        refusal = self.scheduler.submit(
            Submit(
                request.number,
                prompt.tokens,
                prompt.max_tokens,
                _GREEDY,
                tenant=tenant.name,
                weight=tenant.weight,
                priority=tenant.priority,
            )
        )
        assert refusal is None, "the prompts of scenarios fit the context"
        return request

    def run(self, until: float) -> None:
        """Run until this time. A step that has begun before ends."""
        while self.now < until:
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if self.scheduler.has_work:
                self._step()
            elif self._events:
                self._runner.now = self._events[0][0]
            else:
                return

    def drain(self, max_steps: int) -> None:
        """Run until all events have happened and all requests have ended. Fails after `max_steps` steps."""
        last = len(self.steps) + max_steps
        while self._events or self.scheduler.has_work:
            self.run(self.now + 1.0)
            assert len(self.steps) <= last, "some request never ends"

    def _step(self) -> None:
        self.begin()
        self.finish()

    def begin(self) -> None:
        """Begins a step. Requests may be submitted again when it has been finished."""
        plan = self.scheduler.plan()
        assert plan.chunks, "each step computes something"
        tenants = [self.requests[chunk.sequence.request_id].tenant for chunk in plan.chunks]
        self._running = plan, tenants, self._runner.run(plan)

    def finish(self) -> None:
        """Finishes the step that `begin` began."""
        assert self._running is not None, "finish follows begin"
        plan, tenants, result = self._running
        self._running = None
        self.steps.append(_step(plan, tenants, self.now, result.seconds))
        for output in self.scheduler.commit(plan, result):
            request = self.requests[output.request_id]
            if request.first is None:
                request.cached_tokens = output.cached_tokens
            request.answer += output.tokens
            request.times += [self.now] * len(output.tokens)
            if output.finish_reason is not None:
                assert output.finish_reason == "length", output.error
                request.ended = self.now
                self.num_active -= 1
                request.on_end()


def _step(plan: Plan, tenants: list[str], end: float, seconds: float) -> Step:
    step = Step(end, seconds)
    for index, (chunk, tenant) in enumerate(zip(plan.chunks, tenants, strict=True)):
        counts = step.decode if index < plan.num_answers else step.prefill
        counts[tenant] = counts.get(tenant, 0) + chunk.num_tokens
    return step


# -- clients -----------------------------------------------------------------------------------------------------------


def closed_loop(
    simulator: Simulator, tenant: Tenant, in_flight: int, prompts: Iterator[Prompt], begin: float = 0.0
) -> None:
    """Keeps `in_flight` requests in flight: each that ends is followed by another one."""

    def send(due: float) -> None:
        simulator.at(due, lambda: simulator.submit(tenant, next(prompts), due, lambda: send(simulator.now + LATENCY)))

    for _ in range(in_flight):
        send(begin)


def open_loop(simulator: Simulator, tenant: Tenant, times: Iterable[float], prompts: Iterator[Prompt]) -> None:
    """Sends one request at each of these times, even if earlier ones still run."""
    for due in times:
        simulator.at(due, partial(_send, simulator, tenant, prompts, due))


def batch(simulator: Simulator, tenant: Tenant, prompts: list[Prompt], due: float = 0.0) -> None:
    """Sends one request with a list of prompts: each becomes a sequence at once."""
    for prompt in prompts:
        simulator.at(due, partial(simulator.submit, tenant, prompt, due))


def lines(simulator: Simulator, tenant: Tenant, prompts: Iterator[Prompt]) -> None:
    """Runs the lines of a batch in the room that other requests leave, as the API does."""
    num_running = 0

    def fill() -> None:
        nonlocal num_running
        while num_running < num_beside(simulator.num_active - num_running, MAX_SEQS):
            num_running += 1
            simulator.submit(tenant, next(prompts), simulator.now, ended)

    def ended() -> None:
        nonlocal num_running
        num_running -= 1
        simulator.at(simulator.now + LATENCY, fill)

    simulator.at(0.0, fill)


def _send(simulator: Simulator, tenant: Tenant, prompts: Iterator[Prompt], due: float) -> None:
    simulator.submit(tenant, next(prompts), due)
