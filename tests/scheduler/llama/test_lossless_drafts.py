"""Drafts change no answer: right, wrong and partly right ones, whatever the request asks for."""

from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from scheduler.drafts.drafting import Drafting
from scheduler.grammar import Grammar
from scheduler.messages import Output, SamplingParams, ThoughtLimit
from tests.scheduler.drafts.guesses import Guesses
from tests.scheduler.llama.fake_engine import BACKEND_TOP_K, EOG, Engine
from tests.scheduler.rows import Row

TOKENIZER = LLTokenizer("byte")
LARK = [
    'start: /[a-f]{5,40}/ ("x" | "yes" | "yellow")',
    'start: (/[a-z]/ "forced text" /[0-9]/)+',
    'start: "a" | "abcdefgh" /[k-q]+/',
]


@dataclass(frozen=True)
class Ask:
    """The options of a request."""

    params: SamplingParams
    logprobs: int | None
    budget: int | None
    """The limit on its reasoning."""
    grammar: str | None
    max_tokens: int

    def submit(self, engine: Engine, number: int) -> None:
        thoughts = None
        if self.budget is not None:
            thoughts = ThoughtLimit(self.budget, [31, 32], ["<7>"], ["<31><32>"], is_open=True, anywhere=True)
        grammar = None
        if self.grammar is not None:
            grammar = Grammar(LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(self.grammar), log_level=0))
        engine.submit(
            number,
            self.params,
            logprobs=self.logprobs,
            thoughts=thoughts,
            grammar=grammar,
            max_tokens=self.max_tokens,
        )


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    top_k=st.sampled_from([0, 5]),
    typical_p=st.sampled_from([1.0, 0.9]),
    frequency_penalty=st.sampled_from([0.0, 1.5]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    dry_multiplier=st.sampled_from([0.0, 2.0]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    mirostat=st.sampled_from([0, 0, 0, 2]),
    logit_bias=st.sampled_from([[], [(EOG, 3.0)], [(9, 4.0)]]),
    seed=st.integers(0, 99),
    ignore_eos=st.booleans(),
    min_tokens=st.sampled_from([0, 3, 9]),
)
ASK = st.builds(
    Ask,
    PARAMS | st.just(SamplingParams(temperature=0.0)),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(0, 6),
    st.none() | st.sampled_from(LARK),
    st.integers(1, 25),
)


def served(
    asks: list[Ask], drafting: Drafting | None = None, backend_top_k: int = 0
) -> tuple[dict[int, Output], Engine]:
    engine = Engine(backend_top_k, drafting)
    for number, ask in enumerate(asks):
        ask.submit(engine, number)
    return engine.run(), engine


def without_counts(outputs: dict[int, Output]) -> dict[int, Output]:
    return {number: replace(output, accepted_drafts=0, rejected_drafts=0) for number, output in outputs.items()}


@settings(max_examples=60)
@given(st.lists(ASK, min_size=1, max_size=5), st.integers(0, 1 << 30), st.sampled_from([0, 0, BACKEND_TOP_K]))
def test_answers_are_the_same_with_and_without_drafts(asks: list[Ask], seed: int, backend_top_k: int) -> None:
    plain, before = served(asks, backend_top_k=backend_top_k)
    guesses = Guesses({number: output.tokens for number, output in plain.items()}, Random(seed))
    drafted, after = served(asks, Drafting([guesses], max_top_k=backend_top_k), backend_top_k)
    assert without_counts(drafted) == plain, (asks, seed, backend_top_k)
    one, other = before.scheduler.statistics(), after.scheduler.statistics()
    assert other.accepted_draft_tokens == sum(output.accepted_drafts for output in drafted.values())
    assert other.draft_tokens - other.accepted_draft_tokens == sum(each.rejected_drafts for each in drafted.values())
    assert other.accepted_draft_tokens == sum(other.accepted_per_position)
    if not any(ask.grammar for ask in asks):  # tokens that are forced at the end of an answer may have been drafted
        assert other.decode_tokens + other.prefill_tokens == one.decode_tokens + one.prefill_tokens
    assert sorted(guesses.ended_requests) == sorted(plain)


@pytest.mark.parametrize(
    "ask", [Ask(SamplingParams(temperature=0.0), None, None, None, 12), Ask(SamplingParams(), 2, None, None, 12)]
)
def test_invalid_logits_after_a_wrong_draft_are_no_failure(ask: Ask) -> None:
    """After a right draft, the request fails with the same tokens as without drafts."""
    plain, _ = served([ask])
    tokens = plain[0].tokens
    for bad, wrong in ((tokens[6], 0.0), (tokens[6] + 1, 1.0)):

        def spoil(token: int, row: Row, bad: int = bad) -> None:
            if token == bad:
                row[:] = np.nan

        outputs = []
        for drafters in ([], [Guesses({0: tokens}, Random(3), wrong=wrong, length=lambda: 7)]):
            engine = Engine(0, Drafting(drafters))
            engine.context.spoil = spoil
            ask.submit(engine, 0)
            outputs.append(without_counts(engine.run()))
        assert outputs[0] == outputs[1]
        assert outputs[0][0].finish_reason == ("length" if wrong else "error")
