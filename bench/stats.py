"""Figures from records: pure arithmetic. Times are seconds; None means that there is no value."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.records import Record

Measures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Summary:
    """Times and rates cover requests without an error. Tokens and gaps of aborted requests count."""

    requests: int
    errors: int
    aborted: int
    estimated: int  # answers without usage: each chunk counts as a token
    wall_s: float
    prompt_tokens: int
    completion_tokens: int
    cached_share: float | None
    accepted_drafts: int  # drafted tokens that are part of an answer, if the server reports them
    accepted_share: float | None  # of all drafted tokens
    tokens_per_s: float | None
    stream_tokens_per_s: float | None  # of one stream, after its first chunk
    requests_per_s: float | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    ttft_p99_s: float | None
    itl_p50_s: float | None
    itl_p90_s: float | None
    itl_p99_s: float | None
    itl_max_s: float | None
    e2e_p50_s: float | None
    e2e_p90_s: float | None
    e2e_p99_s: float | None


def ttft(record: Record) -> float | None:
    return record.chunks[0] - record.start if record.chunks else None


def gaps(record: Record) -> list[float]:
    return [later - earlier for earlier, later in pairwise(record.chunks)]


def stream_rate(records: Iterable[Record]) -> float | None:
    """Tokens after the first, per second from the first chunk to the last, of all streams together.

    A chunk may have several tokens, so tokens are those of the usage. The first chunk counts as one token.
    """
    flowing = [record for record in records if record.chunks and record.chunks[-1] > record.chunks[0]]
    tokens = sum(record.completion_tokens - 1 for record in flowing)
    return ratio(tokens, sum(record.chunks[-1] - record.chunks[0] for record in flowing))


def percentiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """p50, p90, p99, interpolated."""
    if not values:
        return None, None, None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return float(p50), float(p90), float(p99)


def ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def wall_seconds(records: Sequence[Record]) -> float:
    if not records:
        return 0.0
    return max(record.end for record in records) - min(record.start for record in records)


def summarize(records: Sequence[Record]) -> Summary:
    good = [record for record in records if record.error is None]
    ended = [record for record in good if not record.aborted]
    wall = wall_seconds(records)
    completion_tokens = sum(record.completion_tokens for record in good)
    accepted = sum(record.accepted_drafts for record in good)
    itl = [gap for record in good for gap in gaps(record)]
    counted = [
        (record.cached_tokens, record.prompt_tokens)
        for record in good
        if record.cached_tokens is not None and record.prompt_tokens is not None
    ]
    ttft_p50, ttft_p90, ttft_p99 = percentiles([t for record in good if (t := ttft(record)) is not None])
    itl_p50, itl_p90, itl_p99 = percentiles(itl)
    e2e_p50, e2e_p90, e2e_p99 = percentiles([record.end - record.start for record in ended])
    return Summary(
        requests=len(records),
        errors=len(records) - len(good),
        aborted=len(good) - len(ended),
        estimated=sum(not record.tokens_from_usage for record in good),
        wall_s=wall,
        prompt_tokens=sum(record.prompt_tokens or 0 for record in good),
        completion_tokens=completion_tokens,
        cached_share=ratio(sum(cached for cached, _ in counted), sum(prompt for _, prompt in counted)),
        accepted_drafts=accepted,
        accepted_share=ratio(accepted, accepted + sum(record.rejected_drafts for record in good)),
        tokens_per_s=ratio(completion_tokens, wall),
        stream_tokens_per_s=stream_rate(good),
        requests_per_s=ratio(len(ended), wall),
        ttft_p50_s=ttft_p50,
        ttft_p90_s=ttft_p90,
        ttft_p99_s=ttft_p99,
        itl_p50_s=itl_p50,
        itl_p90_s=itl_p90,
        itl_p99_s=itl_p99,
        itl_max_s=max(itl, default=None),
        e2e_p50_s=e2e_p50,
        e2e_p90_s=e2e_p90,
        e2e_p99_s=e2e_p99,
    )


def longest_gap(streams: Iterable[Record], since: float, until: float) -> float | None:
    """The full length of the longest pause of any stream, among the pauses that overlap the window.

    A stream that was cut off pauses from its last chunk to its end. A stream that finished does not.
    """
    pauses = [
        later - earlier
        for record in streams
        for earlier, later in pairwise(
            (*record.chunks, record.end) if record.aborted or record.error else record.chunks
        )
        if earlier < until and later > since
    ]
    return max(pauses, default=None)


def interference_measures(streams: Sequence[Record], long: Record, idle: Record) -> Measures:
    """The longest gap of streams beside a long prompt and its TTFT; ratios are to the TTFT of the prompt alone."""
    idle_ttft = None if idle.error else ttft(idle)
    long_ttft = None if long.error else ttft(long)
    gap = None if long_ttft is None else longest_gap(streams, long.start, long.chunks[0])
    ended_early = sum(not record.aborted and record.end < (long.chunks or (long.end,))[0] for record in streams)
    return {
        "gap_s": gap,
        "long_ttft_s": long_ttft,
        "idle_ttft_s": idle_ttft,
        "gap_ratio": ratio(gap, idle_ttft),
        "ttft_ratio": ratio(long_ttft, idle_ttft),
        # Streams that had ended could not stall: raise STREAM_TOKENS if this is not 0.
        "streams_ended_early": float(ended_early),
    }


def across(rows: Sequence[Mapping[str, float | None]], pick: Callable[[list[float]], float]) -> Measures:
    """One figure per name over repetitions. `pick` is e.g. `statistics.median`, `min` or `max`."""
    result: Measures = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        result[name] = pick(values) if values else None
    return result
