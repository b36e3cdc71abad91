"""The scheduler follows its policy, and every policy is safe."""

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.tree import PAGE_TOKENS
from scheduler.plan import Chunk, NoRoomError, Plan
from scheduler.queue import FirstComeFirstServed
from scheduler.sequence import Sequence, Status
from tests.scheduler.fakes import System, expected, prompt
from tests.scheduler.traffic import TRAFFIC, Traffic, check_answers, serve, system_for


class Queue:
    """The base of the policies here. Checks each event."""

    def __init__(self) -> None:
        self.queued: list[Sequence] = []
        self.running: list[Sequence] = []
        self.events: list[tuple[str, int]] = []

    def submitted(self, sequence: Sequence) -> None:
        self._note("submitted", sequence)
        self.queued.append(sequence)

    def admitted(self, sequence: Sequence) -> None:
        self._note("admitted", sequence)
        assert sequence.status is Status.RUNNING
        self.queued.remove(sequence)
        self.running.append(sequence)

    def preempted(self, sequence: Sequence) -> None:
        self._note("preempted", sequence)
        assert sequence.num_computed == 0
        self.running.remove(sequence)
        self.queued.append(sequence)

    def computed(self, plan: Plan) -> None:
        assert {chunk.sequence for chunk in plan.chunks} <= set(self.running)

    def ended(self, sequence: Sequence) -> None:
        self._note("ended", sequence)
        (self.running if sequence.status is Status.RUNNING else self.queued).remove(sequence)

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        return tuple(self.queued)

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        return [(sequence, budget) for sequence in prompts]

    def charge(self, tenant: str, weight: float, priority: int, num_tokens: int) -> None: ...

    def contends(self) -> bool:
        return False

    def gives_way(self, sequence: Sequence, running: list[Sequence]) -> Sequence | None:
        return None

    def is_urgent(self, prompts: list[Sequence]) -> bool:
        return False

    def turns(self, answers: list[Chunk]) -> list[Chunk]:
        return answers

    def victim(self, running: list[Sequence]) -> Sequence:
        return running[-1]

    def waiting(self) -> list[Sequence]:
        return list(self.queued)

    def statistics(self) -> list[dict[str, Any]]:
        return []

    def admissions(self) -> list[int]:
        return [request_id for event, request_id in self.events if event == "admitted"]

    def _note(self, event: str, sequence: Sequence) -> None:
        self.events.append((event, sequence.request_id))


class LastComeFirstServed(Queue):
    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        return sorted(self.queued, key=lambda sequence: -sequence.arrival)

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        return [(sequence, budget) for sequence in reversed(prompts)]

    def victim(self, running: list[Sequence]) -> Sequence:
        return running[0]


class LongestPrefixFirst(Queue):
    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        left = list(self.queued)
        while left:
            best = max(left, key=num_cached)
            left.remove(best)
            yield best


class LeastServedFirst(Queue):
    """Two users have the even and the odd requests. The user with fewer computed tokens comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.served = Counter[int]()

    def computed(self, plan: Plan) -> None:
        super().computed(plan)
        for chunk in plan.chunks:
            self.served[chunk.sequence.request_id % 2] += chunk.num_tokens

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        return sorted(self.queued, key=self._rank)

    def victim(self, running: list[Sequence]) -> Sequence:
        return max(running, key=self._rank)

    def _rank(self, sequence: Sequence) -> tuple[int, int]:
        return self.served[sequence.request_id % 2], sequence.arrival


class AnyOrder(Queue):
    """Makes every decision at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(seed)

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        return self._random.sample(self.queued, len(self.queued))

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        order = self._random.sample(prompts, len(prompts))
        return [(sequence, self._random.randint(1, max(1, budget))) for sequence in order]

    def contends(self) -> bool:
        return self._random.random() < 0.5

    def gives_way(self, sequence: Sequence, running: list[Sequence]) -> Sequence | None:
        return self._random.choice(running) if running and self._random.random() < 0.1 else None

    def is_urgent(self, prompts: list[Sequence]) -> bool:
        return self._random.random() < 0.5

    def turns(self, answers: list[Chunk]) -> list[Chunk]:
        return self._random.sample(answers, len(answers))

    def victim(self, running: list[Sequence]) -> Sequence:
        return self._random.choice(running)


def submit_all(system: System, count: int, length: int = 20, max_tokens: int = 3) -> None:
    for request in range(count):
        system.submit(request, prompt(1000 * request, length), max_tokens)


def test_admission_follows_the_policy() -> None:
    policy = LastComeFirstServed()
    system = System(max_seqs=2, policy=policy)
    submit_all(system, 6)
    system.run()
    assert policy.admissions() == [5, 4, 3, 2, 1, 0]
    for request in range(6):
        assert system.tokens[request] == expected(prompt(1000 * request, 20), 3)


def test_a_candidate_that_does_not_fit_is_not_overtaken() -> None:
    policy = LastComeFirstServed()
    system = System(num_pages=8, policy=policy)
    system.submit(1, prompt(0, 10))
    system.submit(2, prompt(1000, 7 * PAGE_TOKENS))
    system.submit(3, prompt(2000, 2 * PAGE_TOKENS))
    system.step()
    assert policy.admissions() == [3]
    system.run()
    assert policy.admissions() == [3, 2, 1]


def test_prefill_follows_the_policy() -> None:
    system = System(token_budget=200, policy=LastComeFirstServed(), num_pages=64)
    submit_all(system, 3, length=120)
    assert [chunk.num_tokens for chunk in system.chunks(system.step()).values()] == [80, 120]
    assert set(system.tokens) - {request for request, tokens in system.tokens.items() if not tokens} == {2}


def test_a_share_limits_the_chunk_and_leaves_the_rest_to_the_next() -> None:
    class Thirds(Queue):
        def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
            return [(sequence, budget // 3) for sequence in prompts]

    system = System(token_budget=210, policy=Thirds(), num_pages=64)
    for request, length in enumerate((100, 10, 100)):
        system.submit(request, prompt(1000 * request, length))
    chunks = system.chunks(system.step())
    assert {request: chunk.num_tokens for request, chunk in chunks.items()} == {0: 70, 1: 10, 2: 70}


def test_no_chunk_is_started_that_would_be_small() -> None:
    """A small chunk is slow. But beside a prompt that goes on, the next one gets its share."""
    system = System(token_budget=200, num_pages=64)
    for request, length in enumerate((160, 90, 30)):
        system.submit(request, prompt(1000 * request, length))
    plans = [system.chunks(system.step()) for _ in range(2)]
    sizes = [{request: chunk.num_tokens for request, chunk in plan.items()} for plan in plans]
    assert sizes == [{0: 160, 2: 30}, {0: 1, 1: 90, 2: 1}]


def test_preemption_follows_the_policy() -> None:
    policy = LastComeFirstServed()
    system = System(num_pages=8, policy=policy)
    submit_all(system, 4, length=30, max_tokens=60)
    system.run()
    preempted = [request_id for event, request_id in policy.events if event == "preempted"]
    assert preempted[0] == 0
    assert 3 not in preempted
    for request in range(4):
        assert system.tokens[request] == expected(prompt(1000 * request, 30), 60)


def test_a_step_without_room_preempts_the_policys_victim_until_another_sequence_ends() -> None:
    policy = LastComeFirstServed()
    system = System(policy=policy)
    submit_all(system, 4)
    system.runner.step_error = lambda plan: NoRoomError("no room") if len(plan.chunks) > 2 else None
    for victim in (0, 1):
        system.step()
        assert policy.events[-1] == ("preempted", victim)
    system.run()
    assert system.scheduler.statistics().failed_steps == 2
    for request in range(4):
        assert system.tokens[request] == expected(prompt(1000 * request, 20), 3)


def test_a_policy_may_rank_by_prefix_hits() -> None:
    policy = LongestPrefixFirst()
    system = System(max_seqs=1, policy=policy)
    system.submit(0, prompt(0, 100), max_tokens=1)
    system.run()  # leaves its tokens in memory
    lengths = {1: 40, 2: 0, 3: 80, 4: 60}
    for request, length in lengths.items():
        system.submit(request, prompt(0, length) + prompt(1000 * request, 20), max_tokens=1)
    system.run()
    assert policy.admissions() == [0, 3, 4, 1, 2]


def test_a_policy_may_count_computed_tokens() -> None:
    policy = LeastServedFirst()
    system = System(max_seqs=1, policy=policy)
    for number in range(6):  # one user sends six requests before the other sends three
        system.submit(2 * number, prompt(1000 * number, 20), max_tokens=3)
    for number in range(3):
        system.submit(2 * number + 1, prompt(50_000 + 1000 * number, 20), max_tokens=3)
    system.run()
    assert policy.admissions() == [0, 1, 2, 3, 4, 5, 6, 8, 10]
    assert policy.served == {0: 6 * 22, 1: 3 * 22}


def test_first_come_first_served_forgets_ended_sequences() -> None:
    policy = FirstComeFirstServed(64)
    system = System(max_seqs=2, policy=policy)
    submit_all(system, 5)
    system.step()
    for request in (1, 4):
        system.scheduler.cancel(request)
    assert [sequence.request_id for sequence in policy.candidates(lambda _: 0)] == [2, 3]
    system.run()
    assert list(policy.candidates(lambda _: 0)) == []


@settings(max_examples=60, deadline=None)
@given(TRAFFIC, st.integers(0, 1 << 30))
def test_a_random_policy_does_not_change_any_answer(traffic: Traffic, seed: int) -> None:
    """A policy decides only when a request is served."""
    policy = AnyOrder(seed)
    system = system_for(traffic, policy)
    cancelled = serve(system, traffic)
    check_answers(system, traffic, cancelled)
    assert policy.queued == policy.running == []
    events = Counter(policy.events)
    for request in range(len(traffic.requests)):
        assert events["submitted", request] == events["ended", request] == 1
        never_ran = request in cancelled and not system.tokens[request]
        waits = events["submitted", request] + events["preempted", request]
        assert events["admitted", request] == waits or request in cancelled
        assert events["admitted", request] or never_ran
