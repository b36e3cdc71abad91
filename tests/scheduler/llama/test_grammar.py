"""Grammars on the real vocabulary."""

import json
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import cast

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from scheduler.failures import GrammarError, RequestError, attempt
from scheduler.grammar import Compiled, Grammar, GrammarCompiler, Mask, Masks
from scheduler.llama.model import Model
from scheduler.messages import SamplingParams, Submit
from scheduler.sampling import sample
from scheduler.sequence import Sequence as AnswerSequence
from scheduler.sequence import Status

SECONDS = 120.0
"""Timeout, long enough for a busy machine."""
SOURCE = 'start: "The answer is " /[0-9]{2}/ "."'


@pytest.fixture(scope="module")
def vocabulary(model_path: str) -> Iterator[LLTokenizer]:
    model = Model(model_path, 0)
    yield model.grammar_tokenizer()
    model.close()


@pytest.fixture(scope="module")
def compiler(vocabulary: LLTokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: vocabulary)


def compiled(compiler: GrammarCompiler, answer: list[int], source: str = SOURCE) -> Grammar | RequestError:
    results: SimpleQueue[Compiled] = SimpleQueue()
    compiler.compile(Submit(1, [1], 50, grammar=source, answer=answer), results.put)
    return results.get(timeout=SECONDS).grammar


def test_a_grammar_continues_after_the_given_answer(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    answer = vocabulary.tokenize_str("The answer is 4")
    grammar = compiled(compiler, answer)
    assert isinstance(grammar, Grammar)
    [digit] = vocabulary.tokenize_str("2")
    grammar.advance(digit)
    assert grammar.is_complete, "the full stop is forced"


def test_answers_with_the_same_grammar_are_independent(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    compiled(compiler, vocabulary.tokenize_str("The answer is 4"))
    grammar = compiled(compiler, [])
    assert isinstance(grammar, Grammar)
    [digit] = vocabulary.tokenize_str("2")
    with pytest.raises(GrammarError):
        grammar.advance(digit)


def test_an_answer_that_violates_the_grammar_is_an_error(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    error = compiled(compiler, vocabulary.tokenize_str("The answer may be 4"))
    assert isinstance(error, GrammarError)
    assert "cannot follow its grammar" in str(error)


CONTRADICTORY = LLMatcher.grammar_from_json_schema(
    {
        "type": "object",
        "properties": {"score": {"type": "integer"}, "ok": {"type": "boolean"}},
        "additionalProperties": False,
        "patternProperties": {"^score$": {"type": "integer"}},
    },
    overrides={"whitespace_flexible": False},
)
"""After a comma behind `ok`, no token can follow. llguidance notices this only when it computes the next mask."""
STATE = "the answer cannot follow its grammar any further: "


def grammar_after(
    text: str, compiler: GrammarCompiler, vocabulary: LLTokenizer, source: str = CONTRADICTORY
) -> Grammar:
    grammar = compiled(compiler, [], source)
    assert isinstance(grammar, Grammar)
    for token in vocabulary.tokenize_str(text):
        grammar.advance(token, forces=False)
    return grammar


def masks_of(*grammars: Grammar | None, vocab_size: int) -> Sequence[Mask | RequestError | None]:
    masks = Masks(len(grammars), vocab_size)
    return masks.finish(masks.start(grammars))


def test_a_token_that_does_not_fit_is_an_error(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    with pytest.raises(GrammarError) as caught:
        grammar_after('{"ok": true', compiler, vocabulary)
    assert str(caught.value) == (
        STATE + """Parser Error: token " true" doesn't satisfy the grammar; byte ' ' fails parse"""
    )


def test_the_error_state_is_read_with_the_mask(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    """The mask of a matcher with an error allows only the end, and the matcher reports that the answer is complete."""
    sound, other = (grammar_after("The answer is 4", compiler, vocabulary, SOURCE) for _ in range(2))
    broken = grammar_after('{"ok":true,', compiler, vocabulary)
    first, error, last, none = masks_of(sound, broken, other, None, vocab_size=vocabulary.vocab_size)
    assert broken.is_complete, "so nobody may take it for a regular end"
    assert isinstance(error, GrammarError)
    assert str(error) == STATE + "no token can follow"
    assert none is None
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert (first == last).all()


@pytest.mark.parametrize("seed", range(12))
def test_an_answer_that_stops_is_complete(
    seed: int, compiler: GrammarCompiler, vocabulary: LLTokenizer, model_path: str
) -> None:
    """Answers of random tokens within a grammar that sometimes breaks: they stop complete, or fail."""
    grammar = grammar_after('{"' if seed % 2 else "", compiler, vocabulary)
    sequence = AnswerSequence(Submit(1, [1], 100, SamplingParams(seed=seed)), 0, grammar)
    ends = frozenset(vocabulary_ends(model_path))
    masks, random = Masks(1, vocabulary.vocab_size), np.random.default_rng(seed)
    tokens, error = list[int](), None
    while error is None:
        [mask] = masks.finish(masks.start([grammar]))
        rows = random.normal(size=(1, vocabulary.vocab_size)).astype(np.float32)
        [token] = sample(rows, [sequence.sampler], np.array(sorted(ends)), [mask])
        advanced = token if isinstance(token, RequestError) else attempt(sequence.advance, token, ends)
        if isinstance(advanced, RequestError):
            error = advanced
        else:
            new, status = advanced
            tokens += new
            if status is not None:
                break
    text = '{"' * (seed % 2) + vocabulary.decode_str([token for token in tokens if token not in ends])
    if error is None:
        assert status is Status.STOPPED
        assert isinstance(json.loads(text), dict)
    else:
        assert isinstance(error, GrammarError)
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(text)


def test_masks_of_others_are_computed_if_one_raises(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    sound, other = (grammar_after("The answer is 4", compiler, vocabulary, SOURCE) for _ in range(2))
    first, error, last = masks_of(sound, Grammar(cast(LLMatcher, None)), other, vocab_size=vocabulary.vocab_size)
    assert isinstance(error, RequestError)
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert (first == masks_of(sound, vocab_size=vocabulary.vocab_size)[0]).all()
    assert (first == last).all()


def test_an_end_is_accepted_only_after_a_complete_answer(
    compiler: GrammarCompiler, vocabulary: LLTokenizer, model_path: str
) -> None:
    digits = "start: /[0-9]+/"
    for end in vocabulary_ends(model_path):
        grammar_after("12", compiler, vocabulary, digits).end(end)
        with pytest.raises(GrammarError, match="ended before it was complete"):
            grammar_after("", compiler, vocabulary, digits).end(end)
        with pytest.raises(GrammarError, match="ended before it was complete"):
            grammar_after('{"ok"', compiler, vocabulary).end(end)


def test_an_end_token_that_is_part_of_the_grammar_completes_it(
    compiler: GrammarCompiler, vocabulary: LLTokenizer, model_path: str
) -> None:
    _, end, *_ = vocabulary_ends(model_path)
    grammar_after("1", compiler, vocabulary, "start: /[0-9]/ <|im_end|>").end(end)


def vocabulary_ends(model_path: str) -> list[int]:
    model = Model(model_path, 0)
    ends = sorted(model.eog_tokens)
    model.close()
    return ends


def test_a_panic_while_compiling_is_an_error_of_the_request() -> None:
    class Panic(BaseException):
        pass

    def panic() -> LLTokenizer:
        raise Panic("at lib.rs")

    error = compiled(GrammarCompiler(panic), [])
    assert isinstance(error, RequestError)
    assert not isinstance(error, GrammarError), "the client is not to blame"
    assert str(error) == "the model failed on this request: Panic: at lib.rs"
