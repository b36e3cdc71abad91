"""A request that fails, in whatever way, ends alone. All others get the tokens of a run without faults."""

from dataclasses import dataclass
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.tree import PAGE_TOKENS
from scheduler.failures import GrammarError, InvalidLogitsError, RequestError
from scheduler.grammar import Grammar
from scheduler.plan import Chunk, NoRoomError, Plan, StepError
from scheduler.suspects import MAX_FAILURES_ALONE
from tests.scheduler.fakes import FakeGrammar, System, expected, prompt
from tests.scheduler.traffic import TRAFFIC, Request, Traffic, serve, system_for

FAILS_STEPS = ("step", "runner")
FAILS_ALONE = ("nan", "sampler", "mask", "grammar")


@dataclass(frozen=True)
class Fault:
    kind: str
    after: int
    """Number of tokens that the request gets before."""

    def is_due(self, chunk: Chunk) -> bool:
        return chunk.sequence.sampler.index >= self.after


class RaisingGrammar(FakeGrammar):
    """Accepts a number of tokens. Then it raises an exception that no grammar should raise."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(*[[]] * 1000)
        self._left = fault.after

    def advance(self, token: int, *, forces: bool = True) -> list[int]:
        self._left -= 1
        if self._left < 0:
            raise IndexError("a bug in a grammar")
        return super().advance(token, forces=forces)


def poison(system: System, faults: dict[int, Fault]) -> None:
    """Make the runner fail because of these requests."""

    def step_error(plan: Plan) -> BaseException | None:
        for chunk in plan.chunks:
            fault = faults.get(chunk.sequence.request_id)
            if fault is not None and fault.kind in FAILS_STEPS and fault.is_due(chunk):
                return StepError("poison") if fault.kind == "step" else ZeroDivisionError("poison")
        return None

    def chunk_error(chunk: Chunk) -> RequestError | None:
        fault = faults.get(chunk.sequence.request_id)
        if fault is None or not fault.is_due(chunk) or not (chunk.samples or chunk.scores):
            return None
        errors = {"nan": InvalidLogitsError, "sampler": RequestError, "mask": GrammarError}
        return errors[fault.kind]("poison") if fault.kind in errors else None

    system.runner.step_error, system.runner.chunk_error = step_error, chunk_error


def grammar_for(fault: Fault | None) -> Grammar | None:
    return RaisingGrammar(fault) if fault is not None and fault.kind == "grammar" else None


FAULTS = st.dictionaries(
    st.integers(0, 8),
    st.builds(Fault, st.sampled_from((*FAILS_STEPS, *FAILS_ALONE)), st.integers(0, 40)),
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(TRAFFIC, FAULTS, st.sets(st.integers(0, 8), max_size=3))
def test_never_more_than_the_guilty_fail(traffic: Traffic, faults: dict[int, Fault], suspects: set[int]) -> None:
    """The traffic has shared prefixes, scarce memory, cancels, preemptions, and steps that fail by chance."""
    system = system_for(traffic)
    poison(system, faults)

    def submit(system: System, number: int, request: Request) -> None:
        grammar = grammar_for(faults.get(number))
        system.submit(
            number, request.prompt, request.max_tokens, grammar=grammar, suspect=number in suspects, ignore_eos=True
        )

    cancelled = serve(system, traffic, submit)
    guilty = {number for number, fault in faults.items() if fault.after < lengths_of(traffic).get(number, 0)}
    for number, request in enumerate(traffic.requests):
        full = expected(request.prompt, request.max_tokens)
        ends = [output for output in system.outputs[number] if output.finish_reason is not None]
        if number in guilty - cancelled:
            assert system.tokens[number] == full[: faults[number].after]
            [end] = ends
            assert end.error is not None
            assert end.error.endswith(("poison", "a bug in a grammar", "injected failure"))
            assert end.finish_reason == ("refused" if faults[number].kind == "mask" else "error")
        elif number in cancelled:
            assert system.tokens[number] == full[: len(system.tokens[number])]
        else:
            assert system.tokens[number] == full
            assert [end.finish_reason for end in ends] == ["length"]
    makes_fail = [number for number in guilty if faults[number].kind in FAILS_STEPS]
    by_chance = sum(what == "fail" for _, what, _ in traffic.events)
    most = len(makes_fail) * (ceil(log2(traffic.max_seqs)) + MAX_FAILURES_ALONE) + by_chance
    assert system.scheduler.statistics().failed_steps <= most
    assert not system.scheduler._suspects, "everything is forgotten"


def lengths_of(traffic: Traffic) -> dict[int, int]:
    return {number: request.max_tokens for number, request in enumerate(traffic.requests)}


@pytest.mark.parametrize("kind", [*FAILS_STEPS, *FAILS_ALONE])
@pytest.mark.parametrize("lanes", [False, True], ids=["pool", "lanes"])
def test_ten_requests_beside_a_poisoned_one_complete(kind: str, lanes: bool) -> None:
    system = System(lanes=lanes)
    faults = {4: Fault(kind, after=3)}
    poison(system, faults)
    for number in range(11):
        system.submit(number, prompt(1000 * number, 20), max_tokens=12, grammar=grammar_for(faults.get(number)))
    system.run()
    for number in set(range(11)) - {4}:
        assert system.tokens[number] == expected(prompt(1000 * number, 20), 12)
        assert system.finish_reason(number) == "length"
    assert system.tokens[4] == expected(prompt(4000, 20), 3)
    assert system.outputs[4][-1].error is not None
    assert system.scheduler.statistics().failed == 1


def test_if_every_step_fails_each_request_gets_its_error() -> None:
    system = System()
    system.runner.step_error = lambda _: StepError("the device is lost")
    for number in range(10):
        system.submit(number, prompt(1000 * number, 20))
    system.run(max_steps=3 * 10)
    for number in range(10):
        assert system.outputs[number][-1].error == "the model failed on this request: the device is lost"
    system.runner.step_error = lambda _: None
    system.submit(99, prompt(0, 20))
    system.run()
    assert system.tokens[99] == expected(prompt(0, 20), 4)


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("error", [NoRoomError, StepError])
def test_steps_that_are_too_large_cost_nobody_a_token(limit: int, error: type[StepError]) -> None:
    system = System()
    system.runner.step_error = lambda plan: error("too large") if len(plan.chunks) > limit else None
    for number in range(8):
        system.submit(number, prompt(1000 * number, 20), max_tokens=6)
    system.run()
    for number in range(8):
        assert system.tokens[number] == expected(prompt(1000 * number, 20), 6)


def test_a_request_without_room_even_alone_fails() -> None:
    system = System()
    system.runner.step_error = lambda plan: NoRoomError("no room") if 1 in system.chunks(plan) else None
    for number in range(3):
        system.submit(number, prompt(1000 * number, 20), max_tokens=6)
    system.run()
    assert system.outputs[1][-1].error == "the model failed on this request: no room"
    for number in (0, 2):
        assert system.tokens[number] == expected(prompt(1000 * number, 20), 6)


@pytest.mark.parametrize("lanes", [False, True], ids=["pool", "lanes"])
@pytest.mark.parametrize("after", [0, 3])
def test_kv_that_may_be_wrong_is_not_shared(lanes: bool, after: int) -> None:
    """A step computed NaN, perhaps from wrong KV. The same prompt later computes everything again."""
    system = System(lanes=lanes)
    is_broken = True
    system.runner.chunk_error = lambda chunk: (
        InvalidLogitsError("NaN") if is_broken and chunk.sequence.sampler.index == after else None
    )
    length = 3 * PAGE_TOKENS + 5
    system.submit(1, prompt(0, length))
    system.run()
    assert system.finish_reason(1) == "error"
    assert system.cache.num_free == system.cache.num_pages
    assert system.memory.num_used == 0
    is_broken = False
    system.submit(2, prompt(0, length))
    system.run()
    assert system.outputs[2][0].cached_tokens == 0
    assert system.tokens[2] == expected(prompt(0, length), 4)


def test_suspects_of_a_crash_are_alone_in_their_steps() -> None:
    system = System(token_budget=64, num_pages=128)
    for number in range(4):
        system.submit(number, prompt(1000 * number, 100), max_tokens=20, suspect=number < 2)
    seen: list[set[int]] = []
    while not (system.tokens[0] and system.tokens[1]):
        seen.append(set(system.chunks(system.step())))
    assert seen == [{0}, {2, 3}, {0}, {0, 2, 3}, {1}, {0, 2}, {1}], "one after the other, in turn with others"
    assert set(system.chunks(system.step())) == {0, 1, 2, 3}
    system.run()
    for number in range(4):
        assert system.tokens[number] == expected(prompt(1000 * number, 100), 20)


def test_a_resumed_suspect_computes_its_answer_and_gets_one_more_token_alone() -> None:
    system = System(token_budget=64)
    answer = expected(prompt(0, 40), 60)
    system.submit(1, prompt(0, 40), max_tokens=60, answer=answer[:50], suspect=True)
    system.submit(2, prompt(5000, 10), max_tokens=60)
    while not system.tokens[1]:
        assert len(system.step().chunks) == 1
    system.run()
    assert system.tokens[1] == answer[50:]
