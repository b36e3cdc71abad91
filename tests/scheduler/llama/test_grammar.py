"""Grammars on the real vocabulary."""

from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from llguidance import LLTokenizer

from scheduler.grammar import Compiled, Grammar, GrammarCompiler, GrammarError
from scheduler.llama.model import Model
from scheduler.messages import Submit

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


def compiled(compiler: GrammarCompiler, answer: list[int]) -> Grammar | GrammarError:
    results: SimpleQueue[Compiled] = SimpleQueue()
    compiler.compile(Submit(1, [1], 50, grammar=SOURCE, answer=answer), results.put)
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
