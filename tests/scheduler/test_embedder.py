"""Which texts a batch holds: each once, those of a request in order, nobody for ever behind others."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.embedder import MAX_FAILED_BATCHES, SMALLEST_BATCH, Embedder
from scheduler.errors import ModelError
from scheduler.messages import Embed, Embedded
from scheduler.texts import Batch, Limits
from tests.scheduler.fakes import FakeReader, expected_embedding, unwire

MAX_TEXT, BATCH, MAX_TEXTS = 100, 32, 6
POOLINGS = ("mean", "cls", "last")


class Texts:
    """An embedder on a fake reader, with batches computed by hand."""

    def __init__(
        self, *, cuts: bool = True, pooling: str = "mean", max_texts: int = MAX_TEXTS, batch_tokens: int = BATCH
    ) -> None:
        limits = Limits(MAX_TEXT, batch_tokens, max_texts, cuts)
        self.reader = FakeReader(pooling, max_tokens=MAX_TEXT + batch_tokens)
        self.embedder = Embedder(lambda: self.reader, limits, pooling, 0.001)
        self.pooling = pooling
        self.embedder.submit(Embed(0, [[0]]))
        self.embedder.step(math.inf)  # which opens the reader
        self.reader.batches.clear()
        self.reader.read_tokens.clear()
        self.asked: dict[int, list[list[int]]] = {}
        self.told: dict[int, list[str]] = {}
        self.errors: dict[int, str] = {}
        self._next_token = 1

    def submit(self, *lengths: int) -> int:
        """A request whose tokens are like no other's."""
        number = len(self.asked) + 1
        texts = []
        for length in lengths:
            texts.append(list(range(self._next_token, self._next_token + length)))
            self._next_token += length
        assert self.embedder.submit(Embed(number, texts)) is None
        self.asked[number], self.told[number] = texts, []
        return number

    def step(self, seconds: float = math.inf) -> Batch:
        self._take(self.embedder.step(seconds))
        self.embedder.check_integrity()
        return self.reader.batches[-1]

    def step_with(self, budget: int) -> Batch:
        embedder = self.embedder
        batch = embedder.plan(budget)
        self._take(embedder.commit(batch, self.reader.read(batch)))
        embedder.check_integrity()
        return batch

    def _take(self, embedded: Sequence[Embedded]) -> None:
        assert len({each.request_id for each in embedded}) == len(embedded), "one for each request"
        for each in embedded:
            assert each.request_id not in self.errors, "nothing follows an error"
            self.told[each.request_id] += each.embeddings
            if each.error is not None:
                self.errors[each.request_id] = each.error

    def run(self) -> None:
        for _ in range(2000):
            if not self.embedder.has_work:
                return
            self.step()
        raise AssertionError("still not done: some text waits for ever")

    def assert_answered(self, number: int) -> None:
        """With the embeddings of its texts, in their order."""
        assert len(self.told[number]) == len(self.asked[number])
        for told, text in zip(self.told[number], self.asked[number], strict=True):
            np.testing.assert_allclose(unwire(told), expected_embedding(text, self.pooling), atol=1e-5)


def lengths(batch: Batch) -> list[tuple[int, int, int]]:
    """Request, start and tokens of each piece."""
    return [(piece.text.request_id, piece.start, piece.num_tokens) for piece in batch.pieces]


REQUESTS = st.lists(st.integers(1, MAX_TEXT), min_size=1, max_size=8)
EVENTS = st.lists(
    st.one_of(
        REQUESTS.map(lambda texts: ("submit", texts)),
        st.tuples(st.just("step"), st.integers(1, BATCH)),
        st.tuples(st.just("cancel"), st.integers(1, 6)),
    ),
    max_size=30,
)


@given(events=EVENTS, pooling=st.sampled_from(POOLINGS), cuts=st.booleans(), max_texts=st.integers(1, MAX_TEXTS))
def test_every_text_is_computed_once_in_order_and_nothing_is_lost(
    events: list[tuple[str, object]], pooling: str, cuts: bool, max_texts: int
) -> None:
    texts = Texts(cuts=cuts, pooling=pooling, max_texts=max_texts)
    cancelled = set()
    for what, value in events:
        if what == "submit":
            assert isinstance(value, list)
            texts.submit(*value)
        elif what == "cancel":
            assert isinstance(value, int)
            if value in texts.asked and len(texts.told[value]) < len(texts.asked[value]):
                cancelled.add(value)
            texts.embedder.cancel(value)
            texts.embedder.check_integrity()
        elif texts.embedder.has_work:
            assert isinstance(value, int)
            batch = texts.step_with(value)
            assert batch.pieces, "each batch gets on"
            assert len(batch.pieces) <= max_texts
            assert batch.num_tokens <= value or (not cuts and len(batch.pieces) == 1)
    texts.run()
    for number, asked in texts.asked.items():
        if number in cancelled:
            assert len(texts.told[number]) < len(asked)
        else:
            texts.assert_answered(number)
    read = texts.reader.read_tokens
    assert len(read) == len(set(read)), "a token is computed once"
    assert set(read) >= {token for n in texts.asked if n not in cancelled for text in texts.asked[n] for token in text}
    assert texts.reader.memory == {}, "what has ended leaves nothing behind"
    assert texts.embedder.statistics().cancelled == len(cancelled)
    assert texts.embedder.statistics().requests == 0


@given(st.lists(REQUESTS, min_size=1, max_size=6), st.sets(st.integers(0, 40), max_size=20), st.sampled_from(POOLINGS))
def test_batches_that_fail_are_computed_again(requests: list[list[int]], failures: set[int], pooling: str) -> None:
    texts = Texts(pooling=pooling)
    texts.reader.fails = lambda number: number in failures
    numbers = [texts.submit(*each) for each in requests]
    texts.run()
    for number in numbers:
        if number not in texts.errors:
            texts.assert_answered(number)
        else:
            assert texts.errors[number] == "the model failed"
    if not any({at, at + 1, at + 2} <= failures for at in failures):
        assert texts.errors == {}
    assert texts.reader.memory == {}


def test_who_asks_for_one_text_does_not_wait_behind_thousands() -> None:
    texts = Texts()
    many = texts.submit(*[8] * 2048)
    texts.step()
    one = texts.submit(8)
    batch = texts.step()
    assert [number for number, _, _ in lengths(batch)] == [many, one, many, many]
    texts.assert_answered(one)


def test_a_long_text_gets_half_of_each_batch_and_what_the_others_leave() -> None:
    texts = Texts()
    long, others = texts.submit(90), texts.submit(*[8] * 5)
    assert lengths(texts.step()) == [(others, 0, 8), (others, 0, 8), (long, 0, 16)]
    assert lengths(texts.step()) == [(others, 0, 8), (others, 0, 8), (long, 16, 16)]
    assert lengths(texts.step()) == [(others, 0, 8), (long, 32, 24)]
    assert lengths(texts.step()) == [(long, 56, 32)]
    assert lengths(texts.step()) == [(long, 88, 2)]
    texts.assert_answered(long)
    texts.assert_answered(others)


def test_texts_of_up_to_half_a_batch_are_never_cut() -> None:
    texts = Texts()
    texts.submit(*[16, 10, 16, 7] * 5)
    while texts.embedder.has_work:
        assert all(piece.start == 0 and piece.is_last for piece in texts.step().pieces)


def test_of_long_texts_one_is_computed_after_the_other() -> None:
    texts = Texts()
    first, second = texts.submit(50), texts.submit(50)
    batches = []
    while texts.embedder.has_work:
        batches.append(lengths(texts.step()))
    assert batches == [[(first, 0, 32)], [(first, 32, 18), (second, 0, 14)], [(second, 14, 32)], [(second, 46, 4)]]


def test_a_text_that_cannot_be_cut_comes_alone_if_it_does_not_fit() -> None:
    texts = Texts(cuts=False)
    short, long = texts.submit(8, 8), texts.submit(90)
    assert lengths(texts.step()) == [(short, 0, 8), (short, 0, 8)]
    assert lengths(texts.step()) == [(long, 0, 90)]


def test_a_text_that_does_not_fit_is_not_overtaken_for_ever() -> None:
    texts = Texts(cuts=False)
    texts.submit(*[30] * 100)
    large = texts.submit(31)
    texts.step()
    assert lengths(texts.step()) == [(large, 0, 31)]


def test_a_batch_takes_about_as_long_as_it_may() -> None:
    texts = Texts(batch_tokens=512, max_texts=64)
    texts.submit(*[10] * 1000)
    assert texts.step(0.1).num_tokens == 100
    assert texts.step(0.0).num_tokens <= SMALLEST_BATCH
    texts.reader.seconds_per_token = 0.002
    for _ in range(20):
        texts.step(0.2)
    assert 80 <= texts.step(0.2).num_tokens <= 100
    assert texts.step(math.inf).num_tokens == 510


def test_cancelling_a_text_that_is_half_computed_frees_what_it_holds() -> None:
    texts = Texts()
    number = texts.submit(90, 5)
    texts.step()
    assert len(texts.reader.memory) == 1
    texts.embedder.cancel(number)
    texts.embedder.cancel(number)
    assert texts.reader.memory == {}
    assert not texts.embedder.has_work
    other = texts.submit(90)
    texts.run()
    texts.assert_answered(other)


@pytest.mark.parametrize("texts", [[], [[]], [[1], []], [[1] * (MAX_TEXT + 1)]])
def test_what_can_never_be_computed_is_refused(texts: list[list[int]]) -> None:
    embedder = Texts().embedder
    refusal = embedder.submit(Embed(7, texts))
    assert refusal == Embedded(7, error=f"texts must have 1 to {MAX_TEXT} tokens each")
    assert not embedder.has_work


def test_a_batch_that_keeps_failing_ends_its_requests_only() -> None:
    texts = Texts()
    texts.reader.fails = lambda number: number < MAX_FAILED_BATCHES
    failing = texts.submit(*[32] * 2)
    for _ in range(MAX_FAILED_BATCHES):
        texts.step()
    assert texts.errors == {failing: "the model failed"}
    other = texts.submit(40, 3)
    texts.run()
    texts.assert_answered(other)
    statistics = texts.embedder.statistics()
    assert (statistics.failed, statistics.failed_batches, statistics.texts) == (1, 3, 3)


def test_a_model_without_memory_for_it_says_so_and_may_have_it_later() -> None:
    readers: list[Callable[[], FakeReader]] = []
    embedder = Embedder(lambda: readers.pop()(), Limits(MAX_TEXT, BATCH, MAX_TEXTS, cuts=True), "mean", 0.001)

    def refuse() -> FakeReader:
        raise ModelError("no memory")

    readers += [lambda: FakeReader("mean"), refuse]
    embedder.submit(Embed(1, [[1, 2]]))
    assert embedder.step(math.inf) == [Embedded(1, error="no memory")]
    embedder.submit(Embed(2, [[1, 2]]))
    [embedded] = embedder.step(math.inf)
    np.testing.assert_allclose(unwire(embedded.embeddings[0]), expected_embedding([1, 2], "mean"), atol=1e-6)


def test_a_vector_of_zeros_stays_one() -> None:
    texts = Texts()
    texts.reader.scale = 0.0
    number = texts.submit(3)
    texts.step()
    assert unwire(texts.told[number][0]).tolist() == [0.0] * 3
