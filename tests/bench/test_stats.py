"""The arithmetic of the figures, on hand-made records."""

import pytest

from bench.stats import Measures, across, interference_measures, longest_gap, percentiles, stream_rate, summarize
from tests.bench.fakes import record


def test_a_summary_of_two_requests() -> None:
    summary = summarize(
        [
            record(1.0, 1.5, 2.5, start=0.0, end=3.0, prompt=100, tokens=6, cached=25),
            record(4.0, 4.25, start=2.0, end=5.0, prompt=60, tokens=4, cached=15),
        ]
    )
    assert (summary.requests, summary.errors, summary.aborted, summary.estimated) == (2, 0, 0, 0)
    assert summary.wall_s == 5.0  # from the first start to the last end
    assert summary.completion_tokens == 10  # not the five chunks
    assert summary.tokens_per_s == 2.0
    assert summary.requests_per_s == 0.4
    assert summary.prompt_tokens == 160
    assert summary.cached_share == 0.25
    assert (summary.ttft_p50_s, summary.ttft_p90_s, summary.ttft_p99_s) == pytest.approx((1.5, 1.9, 1.99))
    # The gaps 0.5, 1.0 and 0.25 of both streams, in one pool.
    assert (summary.itl_p50_s, summary.itl_p90_s, summary.itl_max_s) == pytest.approx((0.5, 0.9, 1.0))
    assert (summary.e2e_p50_s, summary.e2e_p99_s) == pytest.approx((3.0, 3.0))


def test_failed_requests_count_as_errors_only() -> None:
    summary = summarize(
        [
            record(1.0, 2.0, start=0.0, end=2.0, prompt=10, tokens=2),
            record(9.0, 9.1, start=0.0, end=10.0, prompt=10, tokens=50, error="HTTP 500: no"),
        ]
    )
    assert (summary.requests, summary.errors) == (2, 1)
    assert summary.completion_tokens == 2
    assert summary.wall_s == 10.0  # includes the failed request
    assert summary.tokens_per_s == 0.2
    assert summary.requests_per_s == 0.1
    assert summary.ttft_p99_s == 1.0
    assert summary.itl_max_s == 1.0


def test_an_aborted_stream_has_tokens_and_gaps_but_no_end() -> None:
    summary = summarize(
        [
            record(1.0, 4.0, start=0.0, end=8.0, prompt=None, tokens=2, aborted=True, from_usage=False),
            record(2.0, start=0.0, end=2.0, tokens=1),
        ]
    )
    assert (summary.aborted, summary.estimated, summary.errors) == (1, 1, 0)
    assert summary.completion_tokens == 3
    assert summary.itl_max_s == 3.0
    assert summary.e2e_p99_s == 2.0
    assert summary.requests_per_s == 0.125


def test_a_figure_without_values_is_none() -> None:
    summary = summarize([record(start=1.0, end=2.0, error="ConnectError")])
    assert summary.ttft_p50_s is None
    assert summary.itl_max_s is None
    assert summary.cached_share is None
    assert summary.tokens_per_s == 0.0
    assert summarize([record(1.0, tokens=1)]).cached_share is None
    assert summarize([]).tokens_per_s is None
    assert percentiles([]) == (None, None, None)


def test_the_longest_gap_overlaps_the_window() -> None:
    # Window 10..20. A gap of 6 ends before it, one of 5 begins after it, one of 4 reaches into it.
    stream = record(1.0, 7.0, 8.0, 12.0, 15.0, 17.0, 19.0, 20.5, 25.5)
    assert longest_gap([stream], 10.0, 20.0) == 4.0
    assert longest_gap([record(9.0, 9.5), stream], 10.0, 20.0) == 4.0
    assert longest_gap([record(9.0, 21.0), stream], 10.0, 20.0) == 12.0  # silent throughout
    assert longest_gap([record(1.0, 2.0)], 10.0, 20.0) is None


def test_a_stream_that_was_cut_off_pauses_until_its_end() -> None:
    assert longest_gap([record(9.0, 11.0, end=18.0, aborted=True)], 10.0, 20.0) == 7.0
    assert longest_gap([record(9.0, 11.0, end=19.0, error="timeout")], 10.0, 20.0) == 8.0
    assert longest_gap([record(9.0, 11.0, end=18.0)], 10.0, 20.0) == 2.0


def test_interference_against_the_idle_server() -> None:
    streams = [
        record(9.0, 9.5, 12.5, 14.0, 16.0, end=16.5, aborted=True),
        record(9.0, 9.5, 10.0, end=10.1),  # ended inside the window
    ]
    long = record(15.0, 16.0, start=10.0, role="long")
    idle = record(4.0, 4.5, start=0.0, role="idle")
    assert interference_measures(streams, long, idle) == {
        "gap_s": 3.0,
        "long_ttft_s": 5.0,
        "idle_ttft_s": 4.0,
        "gap_ratio": 0.75,
        "ttft_ratio": 1.25,
        "streams_ended_early": 1.0,
    }


def test_a_long_prompt_that_was_refused_gives_no_gap() -> None:
    measures = interference_measures(
        [record(1.0, 9.0, end=9.0, aborted=True)], record(start=2.0, error="too long"), record(1.0)
    )
    assert measures["gap_s"] is None
    assert measures["long_ttft_s"] is None
    assert measures["ttft_ratio"] is None
    assert measures["idle_ttft_s"] == 1.0


def test_figures_across_repetitions_skip_missing_values() -> None:
    rows: list[Measures] = [{"a": 3.0, "b": None}, {"a": None, "b": None}, {"a": 5.0, "b": None}]
    assert across(rows, min) == {"a": 3.0, "b": None}
    assert across(rows, max) == {"a": 5.0, "b": None}


def test_the_rate_of_a_stream_counts_tokens_and_not_chunks() -> None:
    one = record(1.0, 2.0, 3.0, tokens=21)  # 20 tokens in 2 s
    other = record(5.0, 6.0, tokens=11)  # 10 tokens in 1 s
    assert stream_rate([one, other]) == pytest.approx(10.0)
    assert summarize([one, other]).stream_tokens_per_s == pytest.approx(10.0)
    assert summarize([one, record(1.0, error="no")]).stream_tokens_per_s == pytest.approx(10.0)


def test_answers_in_one_chunk_have_no_rate() -> None:
    assert stream_rate([record(1.0, tokens=5), record(tokens=0)]) is None
