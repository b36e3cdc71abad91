"""A runner may return several tokens for a chunk. The answers are the same as with one token at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.failures import GrammarError
from scheduler.messages import Output, TokenLogprob
from tests.scheduler.fakes import EOG, FakeGrammar, System, expected, logprob_of, next_token, prompt
from tests.scheduler.traffic import TRAFFIC, Request, Traffic, serve, system_for


class Breaking(FakeGrammar):
    """Never complete. Rejects the first token after FakeGrammar's last one."""

    def advance(self, token: int, *, forces: bool = True) -> list[int]:
        if super().is_complete:
            raise GrammarError("a dead end")
        return super().advance(token, forces=forces)

    @property
    def is_complete(self) -> bool:
        return False


@dataclass(frozen=True)
class Extra:
    """Further options of a request."""

    ignore_eos: bool
    logprobs: int | None
    score_prompt: bool
    forced: list[list[int]] | None
    """The tokens that the grammar forces after each sampled token."""
    breaks: bool


EXTRA = st.builds(
    Extra,
    st.booleans(),
    st.none() | st.integers(0, 2),
    st.booleans(),
    st.none() | st.lists(st.lists(st.integers(1, 99), max_size=4), min_size=1, max_size=12),
    st.booleans(),
)


def next_token_or_end(tokens: list[int]) -> int:
    token = next_token(tokens)
    return EOG if token % 23 == 0 else token


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    logprobs: list[TokenLogprob]
    prompt_logprobs: list[TokenLogprob]
    end: tuple[str | None, str | None]
    """Finish reason and error."""

    @classmethod
    def of(cls, outputs: Iterable[Output]) -> "Answer":
        whole = Output(0)
        for output in outputs:
            whole.merge(output)
        return cls(whole.tokens, whole.logprobs, whole.prompt_logprobs, (whole.finish_reason, whole.error))


def answers(system: System, traffic: Traffic, extras: list[Extra]) -> tuple[list[Answer], frozenset[int]]:
    def submit(system: System, number: int, request: Request) -> None:
        extra = extras[number % len(extras)]
        kind = Breaking if extra.breaks else FakeGrammar
        system.submit(
            number,
            request.prompt,
            request.max_tokens,
            ignore_eos=extra.ignore_eos,
            logprobs=extra.logprobs,
            score_prompt=extra.score_prompt,
            grammar=kind(*extra.forced) if extra.forced is not None and extra.logprobs is None else None,
        )

    system.runner.sample = next_token_or_end
    cancelled = serve(system, traffic, submit)
    return [Answer.of(system.outputs[number]) for number in range(len(traffic.requests))], cancelled


@settings(max_examples=100, deadline=None)
@given(TRAFFIC, st.lists(EXTRA, min_size=1, max_size=9), st.integers(0, 1 << 30), st.none() | st.integers(3, 8))
def test_answers_do_not_depend_on_the_number_of_tokens_per_step(
    traffic: Traffic, extras: list[Extra], seed: int, max_answers: int | None
) -> None:
    """The traffic has ends, limits, grammars, log probabilities, cancels, preemptions and failed steps."""
    one_by_one, cancelled = answers(system_for(traffic), traffic, extras)
    system = system_for(traffic, max_answers=max_answers)
    random = Random(seed)
    system.runner.num_tokens = lambda _: random.randint(1, 4)
    several, cancelled_too = answers(system, traffic, extras)
    for number, (one, other) in enumerate(zip(one_by_one, several, strict=True)):
        if number in cancelled | cancelled_too:  # perhaps cancelled at different tokens
            length = min(len(one.tokens), len(other.tokens))
            assert one.tokens[:length] == other.tokens[:length]
        else:
            assert one == other
        if other.logprobs:
            assert other.logprobs == [logprob_of(token) for token in other.tokens]


@pytest.fixture
def system() -> System:
    """A system that samples three tokens at a time."""
    system = System(token_budget=80)
    system.runner.num_tokens = lambda _: 3
    return system


def test_tokens_of_one_step_are_computed_by_one_decode(system: System) -> None:
    system.submit(1, prompt(0, 20), max_tokens=20)
    system.step()
    assert system.tokens[1] == expected(prompt(0, 20), 3)
    plan = system.step()
    chunk = system.chunks(plan)[1]
    assert (chunk.start, chunk.num_tokens, chunk.samples, chunk.num_outputs) == (20, 3, True, 1)
    assert (plan.num_answers, plan.num_decode, plan.num_prefill) == (1, 3, 0)
    system.run()
    assert system.tokens[1] == expected(prompt(0, 20), 20)
    statistics = system.scheduler.statistics()
    assert (statistics.steps, statistics.prefill_tokens, statistics.decode_tokens) == (7, 20, 18)


def test_tokens_after_the_end_are_dropped(system: System) -> None:
    system.runner.sample = lambda tokens: EOG if len(tokens) == 21 else 7
    system.submit(1, prompt(0, 20), logprobs=0)
    system.step()
    assert system.tokens[1] == [7, EOG]
    assert system.outputs[1][-1].logprobs == [logprob_of(7), logprob_of(EOG)]
    assert system.finish_reason(1) == "stop"


def test_tokens_after_the_limit_are_dropped(system: System) -> None:
    system.submit(1, prompt(0, 20), max_tokens=2)
    system.step()
    assert system.tokens[1] == expected(prompt(0, 20), 2)
    assert system.finish_reason(1) == "length"


def test_tokens_after_forced_ones_are_dropped(system: System) -> None:
    """Such tokens were sampled without the forced ones. The forced tokens are then computed as a prefill."""
    system.submit(1, prompt(0, 20), max_tokens=20, grammar=FakeGrammar([], [8, 9], [], []))
    system.step()
    assert system.tokens[1] == [*expected(prompt(0, 20), 2), 8, 9]
    plan = system.step()
    assert (plan.num_answers, plan.num_prefill) == (0, 4)
    assert system.tokens[1] == [*expected(prompt(0, 20), 2), 8, 9, *expected(prompt(0, 20) + system.tokens[1][:4], 2)]
    assert system.finish_reason(1) == "stop"


def test_tokens_before_one_that_the_grammar_rejects_are_returned(system: System) -> None:
    system.submit(1, prompt(0, 20), grammar=Breaking([], []))
    system.submit(2, prompt(500, 20))
    system.step()
    assert system.tokens[1] == expected(prompt(0, 20), 2)
    assert (system.finish_reason(1), system.outputs[1][-1].error) == ("refused", "a dead end")
    system.run()
    assert system.tokens[2] == expected(prompt(500, 20), 4)


def test_answers_never_take_the_whole_budget_from_prompts() -> None:
    """Twenty answers of three tokens each take turns, so that a prompt advances in every step."""
    system = System(token_budget=80, max_seqs=30, num_pages=128)
    for request in range(20):
        system.submit(request, prompt(1000 * request, 4), max_tokens=60)
    system.step()
    assert all(system.tokens.values())
    system.runner.num_tokens = lambda _: 3
    system.step()
    system.submit(99, prompt(50_000, 300))
    before = {request: len(tokens) for request, tokens in system.tokens.items()}
    plans = [system.step() for _ in range(4)]
    assert [(plan.num_answers, plan.num_decode, plan.num_prefill) for plan in plans] == [(10, 30, 50)] * 4
    assert all(len(system.tokens[request]) == before[request] + 6 for request in range(20))


def test_answers_of_several_tokens_and_prompts_take_turns_if_they_must_not_mix() -> None:
    system = System(max_mixed_tokens=30, token_budget=80)
    system.runner.num_tokens = lambda _: 3
    system.submit(1, prompt(0, 20), max_tokens=60)
    system.step()
    system.submit(2, prompt(1000, 300))
    steps = [system.step() for _ in range(4)]
    assert [(plan.num_answers, plan.num_prefill > 0) for plan in steps] == [(1, False), (0, True)] * 2


def test_however_many_prompts_wait_a_step_takes_no_longer() -> None:
    system = System(num_pages=128)
    system.runner.num_tokens = lambda _: 3
    for request in range(2):
        system.submit(request, prompt(1000 * request, 20), max_tokens=60)
    system.step()
    for request in range(2, 6):
        system.submit(request, prompt(1000 * request, 200))
    plan = system.step()
    assert (plan.num_answers, plan.num_decode, plan.num_prefill) == (2, 6, 128 - 6)
