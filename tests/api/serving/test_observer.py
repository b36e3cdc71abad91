"""The record of a request's stations, and its observers."""

import pytest

from api.serving.observer import GAP_BOUNDS, Finish, Observers, RequestRecord, finish_of
from scheduler.messages import Output


def test_tokens_that_arrive_together_share_the_gap_before_them() -> None:
    record = RequestRecord(arrival=10.0)
    record.prepared(prompt_tokens=7, num_sequences=1)
    record.received(0, Output(1, [5], cached_tokens=4, queue_seconds=0.25), 1, 11.0)
    record.received(0, Output(1, []), 0, 11.5)
    record.received(0, Output(1, [6]), 1, 12.0)
    record.received(0, Output(1, [7, 8, 9, 10]), 3, 12.2)
    assert (record.first_output, record.last_output, record.queue_seconds) == (11.0, 12.2, 0.25)
    assert record.time_to_first_token == 1.0
    assert (record.prompt_tokens, record.cached_tokens, record.answer_tokens) == (7, 4, 5)
    counts = {bound: count for bound, count in zip(GAP_BOUNDS, record.gaps, strict=False) if count}
    assert counts == {1.0: 1, 0.05: 4}
    assert record.gap_seconds == pytest.approx(1.2)


def test_a_gap_above_all_bounds_is_counted() -> None:
    record = RequestRecord()
    record.received(0, Output(1, [5]), 1, 0.0)
    record.received(0, Output(1, [5]), 1, GAP_BOUNDS[-1] + 1)
    assert record.gaps[-1] == 1


def test_a_prompt_with_several_answers_counts_once() -> None:
    """Two prompts with two answers each: the second answer of a prompt finds the first one's prompt in the cache."""
    record = RequestRecord()
    record.prepared(prompt_tokens=30, num_sequences=4, num_prompts=2)
    for index in range(4):
        record.received(index, Output(index, [1], cached_tokens=10 if index % 2 else index + 1), 1, float(index))
    assert record.cached_tokens == 1 + 3
    assert record.first_output == 0.0
    assert sum(record.gaps) == 0, "there are no gaps between tokens of different answers"


@pytest.mark.parametrize(
    ("status", "finish"), [(400, "refused"), (429, "refused"), (503, "refused"), (500, "error"), (408, "timeout")]
)
def test_an_error_says_how_the_request_ended(status: int, finish: Finish) -> None:
    assert finish_of(status) == finish
    record = RequestRecord(status=status)
    record.close(1.0)
    assert (record.finish, record.status) == (finish, status)


def test_an_answer_that_is_not_complete_was_left_by_its_client() -> None:
    for given, finish in ((RequestRecord(), "cancelled"), (RequestRecord(status=200), "stop")):
        given.close(1.0)
        assert given.finish == finish
    record = RequestRecord(status=200)
    record.prepared(prompt_tokens=1, num_sequences=1)
    record.close(1.0)
    assert (record.finish, record.status) == ("cancelled", 200)


class Faulty:
    def began(self, record: RequestRecord) -> None:
        raise ValueError("at the beginning")

    def ended(self, record: RequestRecord) -> None:
        raise ValueError("at the end")


class Listening:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def began(self, record: RequestRecord) -> None:
        self.heard.append(("began", record.request_id))

    def ended(self, record: RequestRecord) -> None:
        self.heard.append((record.finish, record.request_id))


def test_an_observer_that_fails_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    listening = Listening()
    observers = Observers(Faulty())
    observers.add(listening)
    record = RequestRecord("a", status=200)
    observers.began(record)
    observers.ended(record, 2.0)
    assert listening.heard == [("began", "a"), ("stop", "a")]
    assert [line.message for line in caplog.records] == [
        "Faulty failed at the beginning of a request",
        "Faulty failed at the end of a request",
    ]


def test_the_end_is_reported_once_and_only_after_a_beginning() -> None:
    listening = Listening()
    observers = Observers(listening)
    observers.ended(RequestRecord("never"), 1.0)
    record = RequestRecord("a")
    observers.began(record)
    for _ in range(2):
        observers.ended(record, 2.0)
    assert listening.heard == [("began", "a"), ("cancelled", "a")]
    assert record.ended == 2.0
