import codecs
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.text.detokenizer import Detokenizer


def feed(pieces: Sequence[bytes], stops: Sequence[str]) -> tuple[Detokenizer, list[str]]:
    """Push the pieces one by one, finish, and return all outputs."""
    detokenizer = Detokenizer(pieces.__getitem__, stops)
    outputs = [detokenizer.push([token]) for token in range(len(pieces))]
    return detokenizer, [*outputs, detokenizer.finish()]


def cut(text: str, stops: Sequence[str]) -> tuple[str, str] | None:
    """The text before the stop string that is completed first, and this string, by brute force; None without one."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return None


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


texts = st.one_of(st.text("ab", max_size=40), st.text("ab\n", max_size=30), st.text("a é😀\ufffd", max_size=20))
raw = st.one_of(texts.map(str.encode), st.binary(max_size=20))
some_stops = st.lists(
    st.one_of(st.text("ab", min_size=1, max_size=9), st.text("ab\n", max_size=4), st.text("a é😀\ufffd", max_size=4)),
    max_size=4,
)
some_cuts = st.lists(st.integers(0, 60), max_size=40)


@given(raw, some_stops, some_cuts)
@example(b"aab", ["aab", "ab"], [1, 2])
@example(b"abab\n", ["abab\n", "ba"], [2])
@example(b"\xf0\x9f", ["\ufffd"], [])
@example(b"aabaaabaaac", ["aabaaac"], [])
def test_any_split_gives_the_text_before_the_first_stop(data: bytes, stops: list[str], cuts: list[int]) -> None:
    pieces = split(data, cuts)
    text = data.decode(errors="replace")
    expected, stop = cut(text, stops) or (text, None)

    detokenizer, outputs = feed(pieces, stops)

    sent = ""
    for output in outputs:
        sent += output
        assert expected.startswith(sent)
    assert sent == expected
    assert (detokenizer.stop, detokenizer.stopped) == (stop, stop is not None)

    at_once = Detokenizer(pieces.__getitem__, stops)
    assert at_once.push(range(len(pieces))) + at_once.finish() == expected
    assert at_once.num_tokens == detokenizer.num_tokens


@given(raw, some_stops, some_cuts)
def test_no_more_is_held_back_than_could_become_a_stop(data: bytes, stops: list[str], cuts: list[int]) -> None:
    pieces = split(data, cuts)
    detokenizer = Detokenizer(pieces.__getitem__, stops)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sent = seen = ""
    for token, piece in enumerate(pieces):
        sent += detokenizer.push([token])
        seen += decoder.decode(piece)
        if detokenizer.stopped:
            return
        held = seen.removeprefix(sent)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_split_character_is_held_back_until_it_is_complete() -> None:
    _, outputs = feed([b"a\xf0", b"\x9f", b"\x98", b"\x80b"], [])
    assert outputs == ["a", "", "", "😀b", ""]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    _, outputs = feed([b"a\xf0\x9f"], ["x"])
    assert outputs == ["a", "\ufffd"]


def test_a_false_start_of_a_stop_is_sent_at_once() -> None:
    _, outputs = feed([b"Hi\n", b"Us", b"e it", b" now\nUs"], ["\nUser:"])
    assert outputs == ["Hi", "", "\nUse it", " now", "\nUs"]


def test_tokens_count_up_to_the_one_that_completes_the_stop() -> None:
    pieces = [b"one", b" EN", b"D and", b" more", b"!"]
    detokenizer = Detokenizer(pieces.__getitem__, ["END"])
    assert detokenizer.push([0, 1]) == "one "
    assert (detokenizer.stopped, detokenizer.num_tokens) == (False, 2)
    assert detokenizer.push([2, 3]) == ""
    assert (detokenizer.stopped, detokenizer.num_tokens) == (True, 3)
    assert detokenizer.push([4]) == ""
    assert detokenizer.finish() == ""
    assert detokenizer.num_tokens == 3


def test_without_a_stop_every_token_counts() -> None:
    detokenizer, outputs = feed([b"a", b"", b"b"], ["", "c"])
    assert outputs == ["a", "", "b", ""]
    assert (detokenizer.stopped, detokenizer.num_tokens) == (False, 3)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("say STOP or END", ["END", "STOP"], "say "),
        ("abcd", ["abcd", "ab"], ""),
        ("xab!", ["ab", "xab"], ""),
        ("xaby", ["xabz", "ab"], "x"),
    ],
)
def test_the_stop_that_is_completed_first_ends_the_text(text: str, stops: list[str], expected: str) -> None:
    for pieces in ([text.encode()], [bytes([byte]) for byte in text.encode()]):
        detokenizer, outputs = feed(pieces, stops)
        assert "".join(outputs) == expected
        assert detokenizer.stopped


def test_a_long_stop_string_costs_no_more_per_token() -> None:
    def cost(stop: str) -> float:
        detokenizer = Detokenizer(lambda _: b"aa", [stop])
        start = time.process_time()
        for token in range(5_000):
            detokenizer.push([token])
        return time.process_time() - start

    assert cost("a" * 20_000 + "b") < 50 * cost("ab")  # 500 times if each token searches the whole stop string
