import ctypes
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.text import tokenizer as module
from api.text.literals import literals
from api.text.tokenizer import ModelError, Tokenizer, _flags, llama_build
from tests.models import BERT_TOKENS, write_bert

IM_START, IM_END = 1, 2
UNK, CLS, SEP = 1, 2, 3

WriteVocab = Callable[[Sequence[tuple[str, int]]], str]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
LETTERS = [(letter, NORMAL) for letter in "▁abst<>/|r"]


def text_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return b"".join(map(tokenizer.piece, tokens)).decode()


def test_properties_of_the_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_id, tokenizer.bos_token, tokenizer.eos_token) == (1, "<|im_start|>", "<|im_end|>")
    assert tokenizer.add_bos is False
    assert tokenizer.trained_context == 8192
    assert tokenizer.metadata["general.architecture"] == "llama"
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.startswith("{% for message in messages %}")
    assert len(tokenizer.control_texts) == 17
    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"} <= set(tokenizer.control_texts)


@pytest.mark.parametrize("text", ["", "Hello, world!", "  spaces \n\n", "a\0b", "日本語 😀", "x" * 100_000])
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, parse_special=True)
    assert text_of(tokenizer, tokens) == text
    assert tokens == tokenizer.encode(text, parse_special=False)
    assert bool(tokens) == bool(text)


def test_lone_surrogates_become_question_marks(tokenizer: Tokenizer) -> None:
    assert text_of(tokenizer, tokenizer.encode("a\ud83d b", parse_special=True)) == "a? b"


def test_control_tokens_are_parsed_only_with_parse_special(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>hi<|im_end|>"
    parsed = tokenizer.encode(text, parse_special=True)
    assert (parsed[0], parsed[-1]) == (IM_START, IM_END)
    assert text_of(tokenizer, parsed) == "hi"
    assert text_of(tokenizer, tokenizer.encode(text, parse_special=False)) == text


def test_encode_whole_adds_the_vocabularys_tokens_around_a_text(
    tokenizer: Tokenizer, write_vocab: WriteVocab, tmp_path: Path
) -> None:
    assert tokenizer.encode_whole("Hello") == tokenizer.encode("Hello", parse_special=False)
    with_bos = Tokenizer(write_vocab(LETTERS))
    assert with_bos.encode_whole("as") == [0, *with_bos.encode("as", parse_special=False)]
    write_bert(tmp_path / "bert.gguf", None)
    bert = Tokenizer(tmp_path / "bert.gguf")
    words = [f"\u2581{word}" for word in ("the", "cat", "sat")]
    assert bert.encode_whole("The cat sat") == [CLS, *map(BERT_TOKENS.index, words), SEP]
    assert bert.encode_whole("the zoo cat") == [CLS, BERT_TOKENS.index(words[0]), UNK, BERT_TOKENS.index(words[1]), SEP]
    assert bert.encode_whole(" ") == [CLS, SEP]


@pytest.mark.parametrize("text", ["<|im_start|>hi<|im_end|>", "<|endoftext|>", "a <file_sep>"])
def test_encode_whole_keeps_control_texts_as_text(tokenizer: Tokenizer, text: str) -> None:
    assert text_of(tokenizer, tokenizer.encode_whole(text)) == text


def test_a_wordpiece_vocabulary_without_special_tokens_adds_nothing(tmp_path: Path) -> None:
    """llama.cpp would abort the process."""
    path = tmp_path / "bert.gguf"
    write_bert(path, None, special=False)
    assert Tokenizer(path).encode_whole("the cat") == [BERT_TOKENS.index("\u2581the"), BERT_TOKENS.index("\u2581cat")]


def test_splitting_a_long_text_does_not_change_its_tokens(tokenizer: Tokenizer) -> None:
    unit = "<|im_start|>user\nHello there<|im_end|>\n"
    assert tokenizer.encode("begin " + unit * 600, parse_special=True) == (
        tokenizer.encode("begin ", parse_special=True) + tokenizer.encode(unit, parse_special=True) * 600
    )


def test_a_buffer_that_is_too_small_grows(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "one two three four five six seven"
    expected = tokenizer.encode(text, parse_special=True)
    array_type = module._array_type
    asked: list[int] = []

    def small_at_first(bits: int) -> type[ctypes.Array[ctypes.c_int32]]:
        asked.append(bits)
        return array_type(bits if len(asked) > 1 else 1)

    monkeypatch.setattr(module, "_array_type", small_at_first)
    assert tokenizer.encode(text, parse_special=True) == expected
    assert len(asked) == 2


def test_threads_may_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    texts = [f"{i} " + "some words <|im_end|> and more " * i for i in range(60)]
    expected = [tokenizer.encode(text, parse_special=True) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: tokenizer.encode(text, parse_special=True), texts)) == expected


def test_a_piece_is_the_bytes_of_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.piece(IM_END) == b""
    assert tokenizer.piece(tokenizer.encode(" world", parse_special=False)[0]) == b" world"
    for token in (-1, 49152):
        with pytest.raises(ValueError, match=f"token {token} is not in a vocabulary of 49152"):
            tokenizer.piece(token)


def test_every_piece_is_readable(tokenizer: Tokenizer) -> None:
    lengths = [len(tokenizer.piece(token)) for token in range(tokenizer.vocab_size)]
    assert max(lengths) > 64  # more than one try with the buffer
    assert lengths.count(0) == 17


def test_a_closed_tokenizer_raises(model_path: str) -> None:
    tokenizer = Tokenizer(model_path)
    tokenizer.close()
    tokenizer.close()
    with pytest.raises(ValueError, match="closed"):
        tokenizer.encode("a", parse_special=True)
    with pytest.raises(ValueError, match="closed"):
        tokenizer.piece(1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "failed to read magic"),
        (b"not a model at all", "invalid magic characters"),
    ],
)
def test_files_that_are_not_models_are_refused(
    tmp_path: Path, content: bytes | None, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        Tokenizer(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_truncated_model_is_refused(tmp_path: Path, model_path: str) -> None:
    path = tmp_path / "model.gguf"
    with Path(model_path).open("rb") as file:
        path.write_bytes(file.read(3_000_000))
    with pytest.raises(ModelError, match="corrupted or incomplete"):
        Tokenizer(path)


def test_a_model_without_a_vocabulary_is_refused(write_vocab: WriteVocab) -> None:
    with pytest.raises(ModelError, match="has no vocabulary"):
        Tokenizer(write_vocab([]))


def test_sentencepiece_puts_a_space_only_before_the_first_word(write_vocab: WriteVocab) -> None:
    tokenizer = Tokenizer(write_vocab([("<unk>", UNKNOWN), *LETTERS]))
    assert text_of(tokenizer, tokenizer.encode("ab", parse_special=False)) == " ab"
    for text in ("ab", " ab", "\nab", "<s>ab"):
        tokens = tokenizer.encode(text, parse_special=False, continues=True)
        assert text_of(tokenizer, tokens) == text
    assert tokenizer.encode("<s>", parse_special=True, continues=True) == [0]
    assert tokenizer.add_bos is True
    assert tokenizer.trained_context == 512
    assert tokenizer.chat_template is None
    assert set(tokenizer.control_texts) == {"<s>", "</s>", "<unk>"}


def test_characters_that_merge_into_a_control_token_are_spelled(write_vocab: WriteVocab) -> None:
    tokenizer = Tokenizer(write_vocab([("<s", NORMAL), *LETTERS]))
    assert 0 in tokenizer._tokenize("a<s>b", parse_special=False)  # llama.cpp itself returns it
    tokens = tokenizer.encode("a<s>b", parse_special=False)
    assert 0 not in tokens
    assert text_of(tokenizer, tokens) == " a<s>b"


def test_control_tokens_that_llama_cpp_declares_user_defined(write_vocab: WriteVocab) -> None:
    tokenizer = Tokenizer(write_vocab([("<|start|>", CONTROL), ("<tool>", USER_DEFINED), *LETTERS]))
    assert "<|start|>" in tokenizer.control_texts
    assert "<tool>" not in tokenizer.control_texts
    assert tokenizer.encode("<|start|>", parse_special=True) == [2]
    tokens = tokenizer.encode("a<|start|>b", parse_special=False)
    assert 2 not in tokens
    assert text_of(tokenizer, tokens) == " a<|start|>b"


def test_literals_match_the_longest_at_each_place() -> None:
    assert literals([]) == "(?!)"
    pattern = re.compile(literals(["<a", "<a>", "<ab", ".*", "<a>>"]))
    assert pattern.findall("<a>><ab<a> x.*<a") == ["<a>>", "<ab", "<a>", ".*", "<a"]


def test_the_build_of_llama_cpp_is_reported() -> None:
    build = llama_build()
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", build.commit)
    assert "CPU" in build.flags
    assert _flags("CPU : AVX = 1 | OPENMP = 1 | CUDA : ARCHS = 750,800 | ") == {
        "CPU": {"AVX": "1", "OPENMP": "1"},
        "CUDA": {"ARCHS": "750,800"},
    }
