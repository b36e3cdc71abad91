"""Grammars as the engine follows them, on the real vocabulary."""

from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from llguidance import LLTokenizer

from scheduler.grammar import Compiled, Grammar, GrammarCompiler, GrammarError
from scheduler.llama.context import Model
from scheduler.messages import Submit

SECONDS = 120.0
"""Nothing here takes so long, even on a machine that is busy."""
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
    told: SimpleQueue[Compiled] = SimpleQueue()
    compiler.compile(Submit(1, [1], 50, grammar=SOURCE, answer=answer), told.put)
    return told.get(timeout=SECONDS).grammar


def test_a_grammar_goes_on_from_what_was_said(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    said = vocabulary.tokenize_str("The answer is 4")
    grammar = compiled(compiler, said)
    assert isinstance(grammar, Grammar)
    [digit] = vocabulary.tokenize_str("2")
    grammar.advance(digit)
    assert grammar.is_complete, "the full stop is all that may follow"


def test_what_was_said_of_one_answer_is_nothing_to_another(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    compiled(compiler, vocabulary.tokenize_str("The answer is 4"))
    grammar = compiled(compiler, [])
    assert isinstance(grammar, Grammar)
    [digit] = vocabulary.tokenize_str("2")
    with pytest.raises(GrammarError):
        grammar.advance(digit)


def test_what_does_not_follow_the_grammar_is_refused(compiler: GrammarCompiler, vocabulary: LLTokenizer) -> None:
    refused = compiled(compiler, vocabulary.tokenize_str("The answer may be 4"))
    assert isinstance(refused, GrammarError)
    assert "cannot follow its grammar" in str(refused)
