"""KV memory follows the load: in virtual time, with memories whose answers depend on every cell."""

import logging
from collections.abc import Iterable
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS
from scheduler.elastic import IDLE_SECONDS, MAX_PAUSE, POLL_SECONDS, Elastic, Place
from scheduler.engine import Engine
from scheduler.errors import ModelError
from scheduler.grammar import Compiled, GrammarCompiler
from scheduler.messages import Inspect, Message, Report, Stop, Submit
from scheduler.plan import Plan, StepError, attempt_step
from scheduler.shapes import Demand, LaneShapes, PoolShapes, Shape, Shapes
from tests.kvcache.fakes import FakeLanes, FakeMemory
from tests.scheduler.fakes import GREEDY, System, expected, prompt
from tests.scheduler.test_engine import FakeWire, no_tokenizer

LANE, MAX_LANE, MAX_SEQS = 64, 512, 8
OPENING = 0.1
"""Seconds that an opening takes."""


class FakePlace:
    def __init__(self, system: "Growing", shape: Shape) -> None:
        self.shape = shape
        self._system = system
        self.layout: Layout
        if system.lanes:
            lane_pages = shape.tokens // shape.ids // PAGE_TOKENS
            self.memory: FakeMemory = FakeLanes(lane_pages)
            self.layout = LaneLayout(lane_pages, shape.ids, keeps_evicted=system.keeps_evicted)
        else:
            self.memory = FakeMemory(shape.tokens // PAGE_TOKENS)
            self.layout = PoolLayout(shape.tokens // PAGE_TOKENS, shape.ids)

    def enter(self) -> None:
        self._system.memory = self._system.runner.memory = self.memory
        self._system.open_places -= 1

    def close(self) -> None:
        self._system.open_places -= 1


class FakeOpener:
    """Needs OPENING seconds. Fails with the next of `errors`, if any."""

    def __init__(self, system: "Growing", bytes_per_token: int) -> None:
        self.opened: list[Shape] = []
        self.errors: list[BaseException] = []
        self._system = system
        self._bytes_per_token = bytes_per_token
        self._pending: list[tuple[float, Future[Place], Shape]] = []

    def num_bytes(self, shape: Shape) -> int:
        return shape.tokens * self._bytes_per_token

    def open(self, shape: Shape) -> Future[Place]:
        assert not self._pending, "one opening at a time"
        assert self.num_bytes(shape) <= self._system.available
        self.opened.append(shape)
        future: Future[Place] = Future()
        self._pending.append((self._system.clock() + OPENING, future, shape))
        self._system.open_places += 1
        return future

    def tick(self) -> None:
        for when, future, shape in list(self._pending):
            if self._system.clock() >= when:
                self._pending.remove((when, future, shape))
                if self.errors:
                    self._system.open_places -= 1
                    future.set_exception(self.errors.pop(0))
                else:
                    future.set_result(FakePlace(self._system, shape))


class Growing(System):
    """A scheduler whose memory starts with two lanes, or a pool for two short sequences."""

    def __init__(
        self,
        *,
        lanes: bool = True,
        max_tokens: int = MAX_SEQS * MAX_LANE,
        bytes_per_token: int = 1,
        keeps_evicted: bool = True,
    ) -> None:
        super().__init__(lanes=lanes, max_seqs=MAX_SEQS, ctx_len=MAX_LANE, seconds=lambda _: 0.01)
        self.lanes, self.keeps_evicted = lanes, keeps_evicted
        self.available = 1 << 40
        self.open_places = 0
        """Opened memories that were neither entered nor closed."""
        self.opener = FakeOpener(self, bytes_per_token)
        start = Shape(2 if lanes else 64, 2 * LANE)
        shapes: Shapes = (
            LaneShapes(start, MAX_SEQS, MAX_LANE, max_tokens) if lanes else PoolShapes(start, MAX_SEQS, max_tokens)
        )
        place = FakePlace(self, start)
        self.cache._tier = PageTier(1 << 30) if keeps_evicted else self.cache._tier
        self.cache.move(place.memory, place.layout)
        self.memory = self.runner.memory = place.memory
        self.elastic = Elastic(
            self.scheduler,
            shapes,
            self.opener,
            start,
            max_tokens=max_tokens,
            available=lambda: self.available,
            total_bytes=10_000,
            keeps_evicted=keeps_evicted,
            clock=self.clock,
        )

    def step(self) -> Plan:
        self.opener.tick()
        self.elastic.step()
        plan = self.scheduler.plan()
        if not plan.chunks:
            self.runner.now += 0.02
            return plan
        result = attempt_step(self.runner.run, plan)
        outputs = (
            self.scheduler.rollback(plan, result)
            if isinstance(result, StepError)
            else self.scheduler.commit(plan, result)
        )
        self.cache.check_integrity()
        for output in outputs:
            self.tokens[output.request_id] += output.tokens
            self.outputs[output.request_id].append(output)
        return plan

    def idle(self, seconds: float) -> None:
        """Nothing happens for this long."""
        end = self.clock() + seconds
        while self.clock() < end:
            self.runner.now += 0.02 if self.elastic.patience is None else self.elastic.patience
            self.opener.tick()
            self.elastic.step()

    @property
    def preemptions(self) -> int:
        return self.scheduler.statistics().preemptions

    @property
    def num_waiting(self) -> int:
        return self.scheduler.statistics().waiting


def check(system: Growing, lengths: dict[int, tuple[int, int]]) -> None:
    """Checks the answers of requests, by their lengths of prompt and answer."""
    for request, (num_prompt, count) in lengths.items():
        assert system.tokens[request] == expected(prompt(1000 * request, num_prompt), count)


def submit(system: Growing, requests: dict[int, tuple[int, int]]) -> None:
    for request, (num_prompt, count) in requests.items():
        system.submit(request, prompt(1000 * request, num_prompt), count)


def test_growth_begins_when_the_last_lane_is_taken_and_before_anybody_waits() -> None:
    system = Growing()
    submit(system, one := {1: (10, 40)})
    system.step()
    assert system.opener.opened == []
    submit(system, two := {2: (10, 40)})
    system.idle(0.05)
    system.step()
    assert system.opener.opened == [Shape(4, 4 * LANE)]
    assert system.num_waiting == 0
    system.run()
    check(system, one | two)
    statistics = system.elastic.statistics()
    assert (statistics.kv_tokens, statistics.kv_ids, statistics.grows) == (4 * LANE, 4, 1)


def test_memory_grows_at_once_to_what_all_need() -> None:
    system = Growing()
    submit(system, requests := dict.fromkeys(range(1, 21), (10, 40)))
    system.run()
    assert system.opener.opened == [Shape(8, 8 * LANE)]
    check(system, requests)


def test_lanes_become_longer_when_three_quarters_of_the_longest_are_used() -> None:
    system = Growing()
    submit(system, request := {1: (10, 300)})
    lengths: list[int] = []
    while system.scheduler.has_work:
        known = 10 + len(system.tokens[1])
        system.step()
        if len(system.opener.opened) > len(lengths):
            lengths.append(known)
    assert [shape.tokens // shape.ids for shape in system.opener.opened] == [128, 256, 512]
    for length, lane in zip(lengths, [64, 128, 256], strict=True):
        assert 0.75 * lane <= length <= 0.85 * lane
    check(system, request)


def test_a_sequence_that_will_end_inside_its_lane_needs_no_longer_one() -> None:
    system = Growing()
    submit(system, request := {1: (50, 14)})
    system.run()
    assert system.opener.opened == []
    check(system, request)


def test_a_sequence_whose_lane_is_full_waits_and_disturbs_nobody() -> None:
    system = Growing()
    system.available = 2 * LANE  # not enough
    submit(system, requests := {1: (50, 60), 2: (10, 30)})
    for _ in range(60):
        system.step()
    assert len(system.tokens[1]) == LANE - 50 + 1, "the last token is known, but has no cell"
    assert system.finish_reason(2) == "length"
    assert (system.preemptions, system.opener.opened) == (0, [])
    assert not system.step().chunks
    system.available = 1 << 30
    system.run()
    check(system, requests)


def test_a_prompt_that_is_too_long_for_the_lanes_preempts_nobody_and_is_served_after_the_growth() -> None:
    system = Growing()
    submit(system, running := {1: (10, 200), 2: (10, 200)})
    system.step()
    submit(system, waiting := {3: (200, 20), 4: (10, 20)})
    system.run()
    check(system, running | waiting)
    assert system.preemptions == 0


def test_shorter_requests_are_served_while_a_long_one_waits_for_memory() -> None:
    system = Growing()
    system.available = LANE
    submit(system, long := {1: (200, 20)})
    submit(system, others := dict.fromkeys(range(2, 8), (10, 20)))
    for _ in range(400):
        system.step()
    check(system, others)
    assert system.outputs[1] == []
    system.available = 1 << 30
    system.run()
    check(system, long)


def test_one_long_request_among_short_ones_makes_fewer_lanes_if_memory_does_not_allow_both() -> None:
    system = Growing(max_tokens=MAX_SEQS * 128)
    submit(system, short := dict.fromkeys(range(1, 9), (10, 60)))
    while len(system.opener.opened) < 1 or system.elastic.shape.ids < MAX_SEQS:
        system.step()
    submit(system, long := {20: (300, 50)})
    system.run()
    assert Shape(2, 2 * MAX_LANE) in system.opener.opened
    assert system.preemptions >= 6
    check(system, short | long)


def test_only_as_much_is_taken_as_the_machine_can_give() -> None:
    system = Growing()
    system.available = int(5.7 * LANE)
    submit(system, requests := dict.fromkeys(range(1, 9), (10, 30)))
    system.run()
    assert system.opener.opened[0] == Shape(5, 5 * LANE)
    check(system, requests)


def test_attempts_without_memory_become_rarer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    system = Growing()
    system.available = 0
    system.submit(1, prompt(1, 200), 20)
    while system.clock() < 6 * MAX_PAUSE:
        system.step()
    assert {record.message for record in caplog.records} == {
        "the KV memory stays at 128 tokens: there is no memory for 512 tokens"
    }
    assert 7 + 3 <= len(caplog.records) <= 7 + 6
    system.available = 1 << 30
    system.run()
    assert system.clock() <= 7 * MAX_PAUSE + 10
    assert system.tokens[1] == expected(prompt(1, 200), 20)


def test_a_failed_opening_hurts_nobody_and_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    system = Growing()
    system.opener.errors = [ModelError("llama.cpp cannot set up 256 tokens"), MemoryError()]
    submit(system, requests := dict.fromkeys(range(1, 25), (10, 50)))
    system.run()
    check(system, requests)
    assert [record.message for record in caplog.records] == [
        "the KV memory stays at 128 tokens: llama.cpp cannot set up 256 tokens",
        "the KV memory stays at 128 tokens: MemoryError",
    ]
    statistics = system.elastic.statistics()
    assert (statistics.failed_openings, statistics.grows) == (2, 1)
    assert system.preemptions == system.open_places == 0


def test_memory_shrinks_after_minutes_in_which_it_was_not_needed() -> None:
    system = Growing()
    submit(system, dict.fromkeys(range(1, 9), (10, 20)))
    system.run()
    system.idle(IDLE_SECONDS - 20)
    assert system.elastic.shape == Shape(8, 8 * LANE)
    submit(system, one := {11: (10, 30)})
    system.run()
    system.idle(60)
    assert system.elastic.shape == Shape(2, 2 * LANE), "one user needs no more"
    assert system.elastic.patience is None, "the smallest size wakes nobody"
    assert system.elastic.statistics().shrinks == 1
    check(system, one)
    loaded = system.cache.statistics().loaded_tokens
    system.submit(30, prompt(1000, 10) + expected(prompt(1000, 10), 20), 4)
    system.run()
    assert system.cache.statistics().loaded_tokens > loaded, "the tier has what had no room"


def test_the_state_says_whether_the_memory_grows_or_shrinks() -> None:
    system = Growing()
    submit(system, dict.fromkeys(range(1, 9), (10, 20)))
    states = [system.elastic.state]
    while system.elastic.shape.ids > 2 or system.scheduler.has_work:
        system.step()
        states += [system.elastic.state] if system.elastic.state != states[-1] else []
    assert states == ["steady", "growing", "steady", "shrinking", "steady"]


def test_a_size_that_was_needed_lately_is_opened_again() -> None:
    """A long conversation and a burst of short ones take turns: the memory does not change with each."""
    system = Growing()
    number = 0
    for _ in range(5):
        submit(system, {(number := number + 1): (100, 20)})
        system.run()
        submit(system, {(number := number + 1): (10, 20) for _ in range(6)})
        system.run()
    assert len(system.opener.opened) <= 3


def test_many_short_sequences_and_a_long_one_before_them_do_not_add_up() -> None:
    system = Growing()
    submit(system, dict.fromkeys(range(2, 10), (10, 40)))
    system.run()
    assert system.elastic.shape == Shape(8, 8 * LANE)
    submit(system, {1: (300, 40)})
    system.run()
    assert system.elastic.shape == Shape(2, 2 * MAX_LANE), "eight long lanes would be four times as much"


def test_lanes_are_short_if_there_are_many() -> None:
    shapes = LaneShapes(Shape(2, 4096), 32, 8192, 32 * 8192, min_lane=512)
    assert shapes.wanted(Demand(32, 200, 6400)) == Shape(32, 32 * 512)
    assert shapes.enlarged(shapes.wanted(Demand(1, 200, 200))) == Shape(2, 4096)
    assert shapes.enlarged(shapes.wanted(Demand(3, 200, 600))) == Shape(4, 4096)
    assert shapes.enlarged(Shape(3, 1536)) == Shape(3, 3 * 1536)


def test_memory_is_given_back_at_once_if_the_machine_needs_it() -> None:
    system = Growing(max_tokens=MAX_SEQS * LANE)
    submit(system, dict.fromkeys(range(1, 9), (10, 20)))
    system.run()
    system.available = 40
    system.idle(10)
    assert system.elastic.shape == Shape(8, 8 * LANE), "no memory for both while the sequences move"
    system.available = 400  # of 10,000
    system.idle(MAX_PAUSE)
    assert system.elastic.shape == Shape(2, 2 * LANE)


def test_a_smaller_memory_is_not_entered_if_the_larger_one_is_needed_again() -> None:
    system = Growing()
    submit(system, dict.fromkeys(range(1, 9), (10, 20)))
    system.run()
    while len(system.opener.opened) < 2:
        system.idle(0.1)
    submit(system, requests := dict.fromkeys(range(11, 19), (10, 50)))
    system.run()
    check(system, requests)
    assert system.elastic.shape == Shape(8, 8 * LANE)
    assert system.open_places == 0
    assert system.elastic.statistics().shrinks == 0


def test_a_move_that_would_take_too_long_is_made_lighter_first() -> None:
    """At 8 MiB a token only 128 tokens move at once: idle sequences leave, then running ones."""
    system = Growing(bytes_per_token=8 << 20)
    submit(system, {1: (60, 2), 2: (60, 2)})
    system.run()
    submit(system, requests := dict.fromkeys(range(3, 11), (40, 24)))
    moved = []
    move = system.cache.move

    def watch(memory: FakeMemory, layout: Layout) -> object:
        moved.append(sum(system.cache.count_tokens()))
        return move(memory, layout)

    system.cache.move = watch  # type: ignore[method-assign, assignment]
    system.run()
    check(system, requests)
    assert moved
    assert max(moved) <= 128


def test_a_pool_grows_too_and_preempts_nobody_meanwhile() -> None:
    system = Growing(lanes=False)
    submit(system, requests := dict.fromkeys(range(1, 5), (30, 200)))
    system.run()
    check(system, requests)
    assert system.preemptions == 0
    assert system.elastic.shape.tokens >= 1024


def test_a_pool_that_cannot_grow_preempts_as_ever() -> None:
    system = Growing(lanes=False)
    system.available = 0
    submit(system, requests := dict.fromkeys(range(1, 5), (30, 60)))
    system.run()
    check(system, requests)
    assert system.preemptions > 0


def test_suspects_are_tried_alone_during_a_growth() -> None:
    system = Growing()
    system.submit(1, prompt(1000, 50), 100, suspect=True)
    submit(system, others := {2: (10, 60), 3: (10, 60)})
    alone = [len(plan.chunks) == 1 for plan in (system.step() for _ in range(3))]
    assert any(alone)
    system.run()
    check(system, others | {1: (50, 100)})


def test_a_cancelled_request_leaves_nothing_behind_during_a_growth() -> None:
    system = Growing()
    submit(system, {1: (60, 100), 2: (10, 60), 3: (200, 50)})
    while not system.opener.opened:
        system.step()
    system.scheduler.cancel(1)
    system.scheduler.cancel(3)
    system.run()
    check(system, {2: (10, 60)})
    assert system.cache.num_held == 0


def test_a_request_that_can_never_fit_is_refused() -> None:
    system = Growing()
    assert system.scheduler.submit(Submit(1, prompt(0, MAX_LANE), 1, GREEDY)) is not None


def test_a_failed_step_during_a_growth_is_repeated() -> None:
    system = Growing()
    submit(system, requests := {1: (60, 100), 2: (10, 60), 3: (30, 60)})
    while not system.opener.opened:
        system.step()
    system.runner.failures = 2
    system.run()
    check(system, requests)


requests_of = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 250), st.integers(1, 250), st.booleans()), min_size=1, max_size=14
)


@pytest.mark.parametrize("lanes", [True, False])
@given(
    arrivals=requests_of,
    memory=st.lists(st.sampled_from([0, 3 * LANE, 10 * LANE, 1 << 30]), max_size=6),
    failing=st.integers(0, 3),
    small=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_no_answer_is_lost_or_wrong(
    lanes: bool, arrivals: Iterable[tuple[int, int, int, bool]], memory: list[int], failing: int, small: bool
) -> None:
    system = Growing(lanes=lanes, max_tokens=2 * MAX_LANE if small else MAX_SEQS * MAX_LANE)
    system.opener.errors = [ModelError("no")] * failing
    arriving = sorted(arrivals)
    lengths: dict[int, tuple[int, int]] = {}
    cancelled: set[int] = set()
    for number, (wait, num_prompt, count, cancels) in enumerate(arriving, 1):
        for _ in range(wait):
            system.step()
        if memory:
            system.available = memory[number % len(memory)]
        submit(system, {number: (num_prompt, count)})
        lengths[number] = (num_prompt, count)
        if cancels and number > 2:
            system.scheduler.cancel(number - 2)
            cancelled.add(number - 2)
    system.available = 1 << 30
    system.run(20_000)
    check(system, {number: each for number, each in lengths.items() if number not in cancelled})
    assert system.cache.num_held == 0
    system.idle(2 * IDLE_SECONDS)
    assert system.elastic.shape.tokens == 2 * LANE
    system.cache.check_integrity()


class Wire(FakeWire):
    """Sends the requests at once, lets time pass while the engine waits, and then asks for a report and stops it."""

    def __init__(self, system: Growing, submits: list[Submit], seconds: float) -> None:
        super().__init__([])
        self._system = system
        self._submits: list[Message | Compiled] = list(submits)
        self._end = seconds
        self.patience: list[float | None] = []

    def receive(self, *, wait: bool, seconds: float | None = None) -> list[Message | Compiled]:
        self._system.opener.tick()
        messages, self._submits = self._submits, []
        if messages or not wait:
            return messages
        if self._system.clock() >= self._end or seconds is None:
            return [Inspect(), Stop()]
        self.patience.append(seconds)
        self._system.runner.now += seconds
        return []


def test_an_engine_waits_for_memory_without_spinning_and_wakes_up_to_give_it_back() -> None:
    system = Growing()
    system.available = 0
    wire = Wire(system, [Submit(1, prompt(1000, 100), 20, GREEDY)], seconds=2.0)
    engine = Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, elastic=system.elastic)
    engine.run()
    assert set(wire.patience) == {POLL_SECONDS}
    assert wire.tokens == {}

    system = Growing()
    submits = [Submit(number, prompt(1000 * number, 10), 30, GREEDY) for number in range(1, 9)]
    wire = Wire(system, submits, seconds=3 * IDLE_SECONDS)
    Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, elastic=system.elastic).run()
    assert wire.tokens == {number: expected(prompt(1000 * number, 10), 30) for number in range(1, 9)}
    assert system.elastic.shape == Shape(2, 2 * LANE)
    assert len(wire.patience) < 200
    [report] = [message for message in wire.sent if isinstance(message, Report)]
    assert (report.memory["kv_tokens"], report.memory["kv_max"]) == (2 * LANE, MAX_SEQS * MAX_LANE)
    assert (report.memory["grows"], report.memory["shrinks"]) == (1, 1)
