"""Tokens that come fast are sent together; none waits much longer than the interval, and none is lost."""

import math
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from scheduler.messages import Output, Submit
from scheduler.outbox import Outbox
from scheduler.plan import Chunk, Plan
from scheduler.sequence import Sequence

INTERVAL = 0.03


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def answers(*request_ids: int, num_prefill: int = 0) -> Plan:
    """A plan that continues these answers."""
    sequences = [Sequence(Submit(request_id, [1], 10), request_id) for request_id in request_ids]
    chunks = [Chunk(sequence, 0, 1, samples=True) for sequence in sequences]
    return Plan(chunks, num_answers=len(chunks), num_decode=len(chunks), num_prefill=num_prefill)


def run(outbox: Outbox, clock: Clock, seconds: float, *outputs: Output) -> list[Output]:
    """A step of this duration with these outputs."""
    clock.now += seconds
    return outbox.add(list(outputs), seconds)


def test_fast_tokens_are_sent_together_as_long_as_the_next_step_ends_within_the_interval() -> None:
    clock = Clock()
    outbox = Outbox(INTERVAL, clock)
    sent = [[output.tokens for output in run(outbox, clock, 0.009, Output(1, [token]))] for token in range(7)]
    assert sent == [[[0]], [], [], [[1, 2, 3]], [], [], [[4, 5, 6]]]


def test_slow_tokens_are_sent_at_once() -> None:
    clock = Clock()
    outbox = Outbox(INTERVAL, clock)
    for token in range(5):
        assert run(outbox, clock, 0.016, Output(1, [token])) == [Output(1, [token])]


def test_an_interval_of_0_holds_nothing() -> None:
    clock = Clock()
    outbox = Outbox(0.0, clock)
    for token in range(5):
        assert run(outbox, clock, 0.0, Output(1, [token])) == [Output(1, [token])]
    assert outbox.flush() == []


def test_the_end_of_an_answer_takes_its_held_tokens_along() -> None:
    clock = Clock()
    outbox = Outbox(INTERVAL, clock)
    run(outbox, clock, 0.001, Output(1, [1]))
    assert run(outbox, clock, 0.001, Output(1, [2])) == []
    assert run(outbox, clock, 0.001, Output(1, [3], "stop")) == [Output(1, [2, 3], "stop")]
    assert run(outbox, clock, 0.001, Output(1, [1])) == [Output(1, [1])], "a new request of the same id"


def test_a_step_with_prompts_or_without_the_answer_is_not_waited_for() -> None:
    clock = Clock()
    for plan in (answers(1, num_prefill=64), answers(2), Plan()):
        outbox = Outbox(INTERVAL, clock)
        run(outbox, clock, 0.001, Output(1, [1]))
        run(outbox, clock, 0.001, Output(1, [2]))
        assert outbox.before(answers(1)) == []
        assert outbox.before(answers(2, 1)) == []
        assert outbox.before(plan) == [Output(1, [2])]
        assert outbox.before(plan) == []


def test_nothing_is_sent_for_a_request_that_was_cancelled() -> None:
    clock = Clock()
    outbox = Outbox(INTERVAL, clock)
    run(outbox, clock, 0.001, Output(1, [1]))
    run(outbox, clock, 0.001, Output(1, [2]))
    outbox.forget(1)
    outbox.forget(2)
    assert outbox.flush() == []


steps = st.tuples(
    st.sampled_from([0.0, 0.002, 0.009, 0.02, 0.05, 0.4]),
    st.lists(st.integers(0, 4), max_size=4, unique=True),
    st.sampled_from(["answers", "prompts", "failed"]),
)


@given(st.lists(steps, max_size=60), st.sampled_from([0.0, 0.01, INTERVAL]))
def test_every_token_is_sent_once_in_order_and_soon(
    history: list[tuple[float, list[int], str]], interval: float
) -> None:
    """No token waits longer than the interval and a step that was longer than expected."""
    clock = Clock()
    outbox = Outbox(interval, clock)
    made: dict[int, list[int]] = defaultdict(list)
    sent: dict[int, list[int]] = defaultdict(list)
    times: dict[tuple[int, int], float] = {}

    def receive(outputs: list[Output], longest: float) -> None:
        for output in outputs:
            for token in output.tokens:
                assert clock.now - times[output.request_id, token] <= longest + 1e-9
            sent[output.request_id] += output.tokens

    for number, (seconds, request_ids, kind) in enumerate(history):
        receive(outbox.before(answers(*request_ids, num_prefill=64 * (kind == "prompts"))), interval)
        clock.now += seconds
        if kind == "failed":
            receive(outbox.add([], math.inf) + outbox.flush(), interval + seconds)
            continue
        for request_id in request_ids:
            made[request_id].append(number)
            times[request_id, number] = clock.now
        receive(outbox.add([Output(each, [number]) for each in request_ids], seconds), interval + seconds)
    receive(outbox.flush(), math.inf)
    assert sent == made
