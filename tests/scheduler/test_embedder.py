"""The embedder: batches, the order of texts, failures and cancels."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.embedder import SMALLEST_BATCH, Embedder
from scheduler.errors import ModelError
from scheduler.messages import Embed, Embedded
from scheduler.plan import StepError
from scheduler.texts import Batch, Limits
from tests.scheduler.fakes import FakeReader, expected_embedding, unwire

MAX_TEXT, BATCH, MAX_TEXTS = 100, 32, 6
POOLINGS = ("mean", "cls", "last")


class Texts:
    """An embedder on a fake reader, stepped by the test."""

    def __init__(
        self, *, cuts: bool = True, pooling: str = "mean", max_texts: int = MAX_TEXTS, batch_tokens: int = BATCH
    ) -> None:
        limits = Limits(MAX_TEXT, batch_tokens, max_texts, cuts)
        self.reader = FakeReader(pooling, max_tokens=MAX_TEXT + batch_tokens)
        self.charges = Counter[str]()
        self.embedder = Embedder(lambda: self.reader, limits, pooling, 0.001, self._charge)
        self.pooling = pooling
        self.embedder.submit(Embed(0, [[0]]))
        self.embedder.step(math.inf)  # opens the reader
        self.reader.batches.clear()
        self.reader.read_tokens.clear()
        self.submitted: dict[int, list[list[int]]] = {}
        self.received: dict[int, list[str]] = {}
        self.errors: dict[int, str] = {}
        self._next_token = 1

    def _charge(self, tenant: str, weight: float, priority: int, num_tokens: int) -> None:
        self.charges[tenant] += num_tokens

    def submit(self, *lengths: int, tenant: str = "", weight: float = 1.0, priority: int = 1) -> int:
        """Submit a request with unique tokens. Returns its id."""
        number = len(self.submitted) + 1
        texts = []
        for length in lengths:
            texts.append(list(range(self._next_token, self._next_token + length)))
            self._next_token += length
        assert self.embedder.submit(Embed(number, texts, tenant, weight, priority)) is None
        self.submitted[number], self.received[number] = texts, []
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
        assert len({each.request_id for each in embedded}) == len(embedded), "one message per request"
        for each in embedded:
            assert each.request_id not in self.errors, "nothing follows an error"
            self.received[each.request_id] += each.embeddings
            if each.error is not None:
                self.errors[each.request_id] = each.error

    def run(self) -> None:
        for _ in range(2000):
            if not self.embedder.has_work:
                return
            self.step()
        raise AssertionError("some text is never computed")

    def assert_answered(self, number: int) -> None:
        """Check that the request got the embeddings of its texts, in order."""
        assert len(self.received[number]) == len(self.submitted[number])
        for embedding, text in zip(self.received[number], self.submitted[number], strict=True):
            np.testing.assert_allclose(unwire(embedding), expected_embedding(text, self.pooling), atol=1e-5)


def lengths(batch: Batch) -> list[tuple[int, int, int]]:
    """Returns request id, start and number of tokens of each piece."""
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
def test_every_text_is_computed_once_and_answered_in_order(
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
            if value in texts.submitted and len(texts.received[value]) < len(texts.submitted[value]):
                cancelled.add(value)
            texts.embedder.cancel(value)
            texts.embedder.check_integrity()
        elif texts.embedder.has_work:
            assert isinstance(value, int)
            batch = texts.step_with(value)
            assert batch.pieces, "each batch computes something"
            assert len(batch.pieces) <= max_texts
            assert batch.num_tokens <= value or (not cuts and len(batch.pieces) == 1)
    texts.run()
    for number, submitted in texts.submitted.items():
        if number in cancelled:
            assert len(texts.received[number]) < len(submitted)
        else:
            texts.assert_answered(number)
    read = texts.reader.read_tokens
    assert len(read) == len(set(read)), "a token is computed once"
    assert set(read) >= {
        token for n in texts.submitted if n not in cancelled for text in texts.submitted[n] for token in text
    }
    assert texts.reader.memory == {}, "ended requests free their memory"
    assert texts.embedder.statistics().cancelled == len(cancelled)
    assert texts.embedder.statistics().requests == 0


@given(
    st.lists(REQUESTS, min_size=1, max_size=6),
    st.sets(st.integers(0, 20), max_size=10),
    st.sets(st.integers(1, 6), max_size=3),
    st.sets(st.integers(1, 6), max_size=3),
    st.sampled_from(POOLINGS),
    st.booleans(),
)
def test_only_the_requests_that_make_batches_fail_get_errors(
    requests: list[list[int]], chance: set[int], poisoned: set[int], nan: set[int], pooling: str, cuts: bool
) -> None:
    """Besides, every second batch may fail by chance."""
    texts = Texts(pooling=pooling, cuts=cuts)
    texts.reader.fails = lambda number: number % 2 == 0 and number // 2 in chance
    texts.reader.batch_error = lambda batch: (
        ZeroDivisionError() if poisoned & {piece.text.request_id for piece in batch.pieces} else None
    )
    texts.reader.is_nan = lambda request: request in nan
    numbers = [texts.submit(*each) for each in requests]
    texts.run()
    for number in numbers:
        if number not in poisoned | nan:
            texts.assert_answered(number)
    assert texts.errors.keys() == (poisoned | nan) & set(numbers)
    assert texts.embedder.statistics().failed == len(texts.errors)
    assert texts.reader.memory == {}


def test_a_request_with_one_text_does_not_wait_for_a_request_with_thousands() -> None:
    texts = Texts()
    many = texts.submit(*[8] * 2048)
    texts.step()
    one = texts.submit(8)
    batch = texts.step()
    assert [number for number, _, _ in lengths(batch)] == [many, one, many, many]
    texts.assert_answered(one)


def test_a_long_text_gets_half_of_each_batch_and_the_room_others_leave() -> None:
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


def test_long_texts_are_computed_one_after_the_other() -> None:
    texts = Texts()
    first, second = texts.submit(50), texts.submit(50)
    batches = []
    while texts.embedder.has_work:
        batches.append(lengths(texts.step()))
    assert batches == [[(first, 0, 32)], [(first, 32, 18), (second, 0, 14)], [(second, 14, 32)], [(second, 46, 4)]]


def test_a_text_that_cannot_be_cut_gets_its_own_batch_if_it_does_not_fit() -> None:
    texts = Texts(cuts=False)
    short, long = texts.submit(8, 8), texts.submit(90)
    assert lengths(texts.step()) == [(short, 0, 8), (short, 0, 8)]
    assert lengths(texts.step()) == [(long, 0, 90)]


def test_a_text_that_does_not_fit_comes_first_in_the_next_batch() -> None:
    texts = Texts(cuts=False)
    texts.submit(*[30] * 100)
    large = texts.submit(31)
    texts.step()
    assert lengths(texts.step()) == [(large, 0, 31)]


def test_a_batch_uses_its_time_limit() -> None:
    texts = Texts(batch_tokens=512, max_texts=64)
    texts.submit(*[10] * 1000)
    assert texts.step(0.1).num_tokens == 100
    assert texts.step(0.0).num_tokens <= SMALLEST_BATCH
    texts.reader.seconds_per_token = 0.002
    for _ in range(20):
        texts.step(0.2)
    assert 80 <= texts.step(0.2).num_tokens <= 100
    assert texts.step(math.inf).num_tokens == 510


def test_cancelling_a_partly_computed_text_frees_its_memory() -> None:
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
def test_empty_and_too_long_texts_are_rejected(texts: list[list[int]]) -> None:
    embedder = Texts().embedder
    refusal = embedder.submit(Embed(7, texts))
    assert refusal == Embedded(7, error=f"texts must have 1 to {MAX_TEXT} tokens each")
    assert not embedder.has_work


def test_a_request_whose_batches_fail_even_alone_ends_with_the_reason() -> None:
    texts = Texts()
    first, guilty, last = texts.submit(5, 3), texts.submit(2, 2), texts.submit(40, 3)
    texts.reader.batch_error = lambda batch: (
        StepError("too bad") if guilty in [number for number, _, _ in lengths(batch)] else None
    )
    texts.run()
    assert texts.errors == {guilty: "the model failed on this request: too bad"}
    texts.assert_answered(first)
    texts.assert_answered(last)
    statistics = texts.embedder.statistics()
    assert (statistics.failed, statistics.failed_batches, statistics.texts) == (1, 4, 5)


def test_an_embedding_that_is_not_a_number_fails_alone() -> None:
    texts = Texts()
    texts.reader.is_nan = lambda request: request == 2
    numbers = [texts.submit(5, 50), texts.submit(6, 60), texts.submit(7, 70)]
    texts.run()
    reason = "the model computed an embedding that is not valid (NaN or infinity) for this request"
    assert texts.errors == {2: reason}
    texts.assert_answered(numbers[0])
    texts.assert_answered(numbers[2])
    assert texts.reader.memory == {}


def test_a_reader_that_cannot_open_fails_the_request_and_is_tried_again() -> None:
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


def test_an_embedding_of_zeros_stays_zero() -> None:
    texts = Texts()
    texts.reader.scale = 0.0
    number = texts.submit(3)
    texts.step()
    assert unwire(texts.received[number][0]).tolist() == [0.0] * 3


def test_requests_are_recorded_before_the_context_is_opened() -> None:
    recorded: list[list[int]] = []

    def open_reader() -> FakeReader:
        assert recorded == [[1, 2]], "so that a crash while it is opened has suspects"
        return FakeReader("mean", max_tokens=MAX_TEXT + BATCH)

    embedder = Embedder(open_reader, Limits(MAX_TEXT, BATCH, MAX_TEXTS, cuts=True), "mean", 0.001)
    embedder.submit(Embed(1, [[5]]))
    embedder.submit(Embed(2, [[6]]))
    embedder.step(math.inf, lambda ids: recorded.append(list(ids)))


def test_tenants_take_turns_however_many_requests_they_have() -> None:
    texts = Texts(max_texts=2, batch_tokens=20)
    crowd = [texts.submit(10, 10, tenant="a") for _ in range(20)]
    texts.step()
    stranger = texts.submit(10, tenant="b")
    texts.step()
    assert len(texts.received[stranger]) == 1
    assert sum(len(texts.received[number]) for number in crowd) == 3
    texts.run()
    assert texts.charges["b"] == 10
    assert texts.charges["a"] == 400


def test_tenants_get_tokens_by_weight_and_higher_classes_first() -> None:
    texts = Texts(max_texts=4, batch_tokens=40)
    numbers = {
        name: texts.submit(*[10] * 60, tenant=name, weight=weight, priority=priority)
        for name, weight, priority in (("low", 1.0, 2), ("light", 1.0, 1), ("heavy", 3.0, 1))
    }
    for _ in range(10):
        texts.step()
    got = {name: len(texts.received[number]) for name, number in numbers.items()}
    assert got == {"low": 0, "light": 10, "heavy": 30}
