"""Random traffic: requests with shared prefixes, cancels and failed steps. Checks the rules that must always hold."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from kvcache.tree import num_pages_for
from scheduler.drafts.drafting import Drafting
from scheduler.queue import Policy
from tests.scheduler.fakes import MakePolicy, System, expected, prompt

MAX_PAGES = 7
"""Maximum pages of a request. Each system here has at least as many."""


@dataclass(frozen=True)
class Request:
    prefix: int
    """Index of the shared prefix."""
    cut: int
    """Number of tokens of the prefix that are used."""
    own: int
    """Number of tokens after the prefix."""
    max_tokens: int

    @property
    def prompt(self) -> list[int]:
        return prompt(5000 * self.prefix, self.cut) + prompt(900, self.own)


@dataclass(frozen=True)
class Traffic:
    requests: list[Request]
    events: list[tuple[int, str, int]]
    """Half of the step's number, "cancel" or "fail", and the request to cancel."""
    num_pages: int
    max_seqs: int
    budget: int
    lanes: bool


TRAFFIC = st.builds(
    Traffic,
    requests=st.lists(
        st.builds(Request, st.integers(0, 2), st.integers(1, 90), st.integers(0, 40), st.integers(1, 60)),
        min_size=1,
        max_size=9,
    ),
    events=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["cancel", "fail"]), st.integers(0, 8)), max_size=6),
    num_pages=st.integers(MAX_PAGES, 24),
    max_seqs=st.integers(1, 9),
    budget=st.integers(80, 200),
    lanes=st.booleans(),
)


def system_for(
    traffic: Traffic,
    policy: Policy | MakePolicy | None = None,
    max_answers: int | None = None,
    drafting: Drafting | None = None,
) -> System:
    return System(
        num_pages=traffic.num_pages,
        num_ids=traffic.max_seqs + 2,
        max_seqs=traffic.max_seqs,
        token_budget=traffic.budget,
        ctx_len=MAX_PAGES * 32,
        lanes=traffic.lanes,
        policy=policy,
        max_answers=max_answers,
        drafting=drafting,
    )


def serve(
    system: System, traffic: Traffic, submit: Callable[[System, int, Request], None] | None = None
) -> frozenset[int]:
    """Step until all requests have ended. Returns the cancelled requests."""
    cancelled = set()
    for number, request in enumerate(traffic.requests):
        if submit is None:
            system.submit(number, request.prompt, request.max_tokens)
        else:
            submit(system, number, request)
    for step in range(3000):
        for at, what, number in traffic.events:
            if at * 2 == step and what == "fail":  # never three steps in a row
                system.runner.failures = 1
            elif at * 2 == step and what == "cancel":
                system.scheduler.cancel(number)
                cancelled.add(number)
        if not system.scheduler.has_work:
            break
        system.step()
        assert traffic.lanes or system.memory.num_used <= traffic.num_pages * 32
    assert not system.scheduler.has_work
    assert system.cache.num_held == 0
    assert system.cache.num_free + system.cache.num_cached == system.cache.num_pages
    return frozenset(cancelled)


def check_answers(system: System, traffic: Traffic, cancelled: frozenset[int]) -> None:
    """Check that each answer has exactly its own tokens. A cancelled one may be shorter."""
    for number, request in enumerate(traffic.requests):
        full = expected(request.prompt, request.max_tokens)
        if number in cancelled:
            assert system.tokens[number] == full[: len(system.tokens[number])]
        else:
            assert system.tokens[number] == full
            assert num_pages_for(len(request.prompt) + request.max_tokens) <= MAX_PAGES
