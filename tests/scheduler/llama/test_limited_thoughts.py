"""A limit on reasoning and a grammar agree, on the real vocabulary: the forced mark is one that the grammar accepts."""

from collections.abc import Iterator

import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from scheduler.llama.model import Model
from scheduler.messages import ThoughtLimit
from scheduler.thoughts import ThoughtCounter, with_forced

THOUGHT = "One, <b>two</b> café 日本 </thi nking </think"
CONTROL = "<file_sep>"
"""A control token of this vocabulary, in the place of a family's mark."""
GRAMMARS = {
    "</think>": 'start: thought "Rome"\nthought[lazy]: /(.|\\n)*/ "</think>"',
    CONTROL: f'start: TEXT {CONTROL} "Rome"\nTEXT: /(.|\\n)*/',
}


@pytest.fixture(scope="module")
def model(model_path: str) -> Iterator[Model]:
    model = Model(model_path, 0)
    yield model
    model.close()


@pytest.fixture(scope="module")
def vocabulary(model: Model) -> LLTokenizer:
    return model.grammar_tokenizer()


def test_each_token_has_its_text(model: Model, vocabulary: LLTokenizer) -> None:
    tokens = vocabulary.tokenize_str(THOUGHT)
    assert b"".join(map(model.piece, tokens)) == THOUGHT.encode()
    assert CONTROL.encode() in map(model.piece, range(20))


@pytest.mark.parametrize("mark", GRAMMARS)
def test_the_forced_mark_fits_the_grammar_after_any_number_of_tokens(
    model: Model, vocabulary: LLTokenizer, mark: str
) -> None:
    tokens = vocabulary.tokenize_str(THOUGHT)
    end = vocabulary.tokenize_str(mark)
    if mark == CONTROL:
        end = [next(token for token in range(20) if model.piece(token) == mark.encode())]
    grammar = LLMatcher(vocabulary, GRAMMARS[mark], log_level=0)
    mask = allocate_token_bitmask(1, vocabulary.vocab_size)
    for budget in range(len(tokens)):
        matcher = grammar.deep_copy()
        counter = ThoughtCounter(ThoughtLimit(budget, end, [], [mark], is_open=True), model.piece)
        answer, num_free = b"", 0
        while counter.forced is not None or mark.encode() not in answer:
            fill_next_token_bitmask(matcher, mask, 0)
            wanted = -1 if counter.forced is not None else tokens[num_free]
            num_free += wanted >= 0
            [token] = with_forced([counter], [wanted], [mask[0]])
            assert isinstance(token, int)
            assert token >= 0, "the grammar allows the forced token"
            assert matcher.consume_token(token)
            counter.accept(token)
            answer += model.piece(token)
        assert answer.decode().endswith(mark), "no character is cut"
        assert budget <= num_free <= budget + 3, "and only then to complete a character"
        rome = vocabulary.tokenize_str("Rome")
        assert matcher.validate_tokens(rome) == len(rome)
