"""Several nodes behind a router, in virtual time: each has the real scheduler, planner and KV cache."""

import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final

from bench.simulation.machine import CPU, Machine, VirtualRunner, scheduler_for, step_seconds
from bench.simulation.rendering import following, opening
from bench.simulation.routing import Router, uncached
from bench.simulation.simulator import LATENCY, Prompt, Request, Simulator, Tenant
from bench.simulation.turns import SPREAD
from bench.workloads import Session

VARIATION: Final = 0.1
"""A step, or a request in the API process, takes up to this share more or less than its cost."""
API_SECONDS: Final = (0.01, 0.04)
"""How long a node's API process works on a request, one after another. Nodes differ: on two cores, two nodes with
8 streams each took 9 to 29 ms to render a prompt, and responses to 6 requests at once began 25 to 38 ms apart."""
_EVERYBODY: Final = Tenant("everybody")


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request on its way to a node's engine, which reads its messages between two steps."""

    prompt: Prompt
    due: float
    unread: int
    on_end: Callable[[Request], object]


class FleetNode:
    """A node in virtual time."""

    def __init__(self, machine: Machine, rng: Random) -> None:
        runner = VirtualRunner(lambda plan: step_seconds(plan, machine) * rng.uniform(1 - VARIATION, 1 + VARIATION))
        self.simulator = Simulator(scheduler_for("fair", runner.clock, machine), runner)
        self.in_flight = 0
        self.unread_tokens = 0
        self.is_busy = False
        self._inbox: list[_Sent] = []
        self._rng = rng
        self.api_seconds = rng.uniform(*API_SECONDS)
        """How long its API process works on a request."""
        self._api_until = 0.0
        """When the API process has handled the requests that it has."""

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        hit = self.simulator.scheduler.cache.lookup(array("i", prompt).tobytes())
        return hit.num_tokens

    def handled(self, now: float) -> float:
        """Gives the API process one more request. Returns when it has handled it."""
        seconds = self.api_seconds * self._rng.uniform(1 - VARIATION, 1 + VARIATION)
        self._api_until = max(now, self._api_until) + seconds
        return self._api_until

    def expect(self, sent: _Sent) -> None:
        """A request is on its way to the API process."""
        self.in_flight += 1
        self.unread_tokens += sent.unread

    def respond(self, sent: _Sent) -> None:
        """The API process begins its response to the request, and sends it to the engine."""
        self.unread_tokens -= sent.unread
        self._inbox.append(sent)

    def begin(self, now: float) -> bool:
        """Reads the messages and begins a step. Returns False if there is nothing to do."""
        self.simulator.idle_until(now)
        for sent in self._inbox:
            self._submit(sent)
        self._inbox.clear()
        self.is_busy = self.simulator.scheduler.has_work
        if self.is_busy:
            self.simulator.begin()
        return self.is_busy

    def finish(self) -> None:
        """Ends the step. Calls `on_end` of requests that have ended."""
        self.simulator.finish()

    def _submit(self, sent: _Sent) -> None:
        def ended() -> None:
            self.in_flight -= 1
            sent.on_end(request)

        request = self.simulator.submit(_EVERYBODY, sent.prompt, sent.due, ended)


class Fleet:
    """Nodes, their router and their clients. All events happen in the order of their times."""

    def __init__(self, num_nodes: int, router: Router, rng: Random, machine: Machine = CPU) -> None:
        """`rng` varies the durations of steps and the delays of clients: real nodes do not stay in step."""
        self.nodes = [FleetNode(machine, rng) for _ in range(num_nodes)]
        self.now = 0.0
        self._router = router
        self._rng = rng
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    @property
    def requests(self) -> list[Request]:
        return [request for node in self.nodes for request in node.simulator.requests]

    def at(self, seconds: float, event: Callable[[], object]) -> None:
        """Calls `event` at this time."""
        heapq.heappush(self._events, (seconds, next(self._order), event))

    def send(self, prompt: Prompt, on_end: Callable[[Request], object]) -> None:
        """Sends a request to the router."""
        due = self.now
        if self._router.renders:
            rendered = max(node.handled(self.now) for node in self.nodes)
            self.at(rendered, lambda: self._route(prompt, due, on_end))
        else:
            self._route(prompt, due, on_end)

    def _route(self, prompt: Prompt, due: float, on_end: Callable[[Request], object]) -> None:
        """Sends a request to the node that the router chooses now."""
        node = self.nodes[self._router.choose(prompt.tokens, self.nodes)]
        sent = _Sent(prompt, due, uncached(prompt.tokens, node), on_end)
        node.expect(sent)

        def respond() -> None:
            node.respond(sent)
            if not node.is_busy:
                self._begin(node)

        self.at(node.handled(self.now), respond)

    def next_due(self) -> float:
        """When a request arrives that a client sends as soon as it can."""
        return self.now + LATENCY + self._rng.uniform(0, SPREAD)

    def run(self) -> None:
        """Runs until nothing is left to do."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _begin(self, node: FleetNode) -> None:
        if node.begin(self.now):
            self.at(node.simulator.now, lambda: self._finish(node))

    def _finish(self, node: FleetNode) -> None:
        node.finish()
        self._begin(node)


# -- clients -----------------------------------------------------------------------------------------------------------


def closed_loop(fleet: Fleet, sessions: Sequence[Session], users: int) -> None:
    """`users` users at a time. Each begins the next session when its last one has ended, as in `bench.load`."""
    waiting = iter(sessions)
    for _ in range(min(users, len(sessions))):
        _next_session(fleet, waiting, fleet.next_due())


def open_loop(fleet: Fleet, sessions: Sequence[Session]) -> None:
    """Each session begins when it is due."""
    for session in sessions:
        _next_session(fleet, iter([session]), session.at)


def _next_session(fleet: Fleet, waiting: Iterator[Session], due: float) -> None:
    if (session := next(waiting, None)) is None:
        return
    first, *others = session.turns
    turns = iter(others)

    def say(tokens: list[int], max_tokens: int, due: float) -> None:
        fleet.at(due, lambda: fleet.send(Prompt(tokens, max_tokens), answered))

    def answered(request: Request) -> None:
        due = fleet.next_due()
        if (turn := next(turns, None)) is None:
            _next_session(fleet, waiting, due)
        else:
            history = [*request.prompt.tokens, *request.answer]
            say([*history, *following(turn.messages)], turn.max_tokens, due)

    say(opening(first.messages), first.max_tokens, due)
