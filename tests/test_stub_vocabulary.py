"""The vocabulary for tests of chat templates."""

import pytest

from tests.stub_vocabulary import StubTokenizer

SOURCE = "<|im_start|>{{ messages }}<|im_end|>[[call]]"
TEXT = "<|im_start|>it is  5 o'clock\n<|im_end|>é"


@pytest.mark.parametrize("controls", [(), ("<|im_start|>", "[[call]]")])
def test_tokens_add_up_to_the_text(controls: tuple[str, ...]) -> None:
    tokenizer = StubTokenizer(SOURCE, controls)
    for parse_special in (True, False):
        assert tokenizer.text(tokenizer.encode(TEXT, parse_special=parse_special)) == TEXT
    for size in (0, 1, 3):
        assert tokenizer.text(tokenizer.cut(TEXT, size)) == TEXT


def test_control_tokens_print_as_nothing() -> None:
    tokenizer = StubTokenizer(SOURCE, ["[[call]]"], ["<tool>"])
    control, defined = tokenizer.special_ids["[[call]]"], tokenizer.special_ids["<tool>"]
    assert (tokenizer.piece(control), tokenizer.spelled(control)) == (b"", b"[[call]]")
    assert tokenizer.piece(defined) == b"<tool>"
    assert "[[call]]" in tokenizer.control_texts
    assert "<|im_end|>" in tokenizer.control_texts
    assert tokenizer.encode("a[[call]]<tool>", parse_special=True)[1:] == [control, defined]


def test_text_of_clients_never_becomes_a_control_token() -> None:
    tokenizer = StubTokenizer(SOURCE, ["[[call]]"])
    tokens = tokenizer.encode("a[[call]]", parse_special=False)
    assert tokenizer.special_ids["[[call]]"] not in tokens


def test_an_output_is_cut_into_tokens_of_a_size() -> None:
    plain, controlled = StubTokenizer(SOURCE), StubTokenizer(SOURCE, ["[[call]]"])
    for tokenizer in (plain, controlled):
        assert [tokenizer.spelled(token) for token in tokenizer.cut("abcde", 3)] == [b"abc", b"de"]
        assert len(tokenizer.cut("abcde", 0)) == 1
        assert tokenizer.cut("", 1) == []
    assert StubTokenizer(SOURCE, user_defined=["<tool>"]).cut("a<tool>", 0)[1:] == [0]
    pieces = [controlled.spelled(token) for token in controlled.cut("abcd[[call]]efg", 3)]
    assert pieces == [b"abc", b"d", b"[[call]]", b"efg"]
