"""Latencies of the last minute, in virtual time."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from api.serving.live.latency import MAX_STARTS, MAX_TENANTS, WINDOW, Latencies, _estimated, _exact
from api.serving.observer import GAP_BOUNDS, RequestRecord
from scheduler.messages import Output

MODEL = "a-model"


async def request(latencies: Latencies, ttft: float, gaps: list[float], *, tenant: str = "ann") -> RequestRecord:
    """Runs a request to its end, as fast as its times say."""
    record = await begun(latencies, ttft, gaps, tenant=tenant)
    latencies.ended(record)
    return record


async def begun(latencies: Latencies, ttft: float, gaps: list[float], *, tenant: str = "ann") -> RequestRecord:
    record = RequestRecord(model=MODEL, tenant=tenant, arrival=trio.current_time())
    latencies.began(record)
    for gap in [ttft, *gaps]:
        await trio.sleep(gap)
        record.received(0, Output(1, [7]), 1, trio.current_time())
    return record


async def test_there_is_nothing_without_requests(autojump_clock: MockClock) -> None:
    latencies = Latencies(by_tenant=True)
    latencies.refresh()
    found = latencies.of(MODEL, None)
    assert (found.ttft, found.itl, latencies.version) == (None, None, 0)


async def test_percentiles_of_requests_that_have_ended(autojump_clock: MockClock) -> None:
    latencies = Latencies(by_tenant=True)
    for number in range(1, 101):
        await request(latencies, 0.001 * number, [0.2, 0.2])
    found = latencies.of(MODEL, None)
    assert found.ttft == pytest.approx((0.051, 0.096, 0.1))
    assert found.itl is not None
    assert all(0.15 <= each <= 0.3 for each in found.itl)
    assert latencies.of("another", None).ttft is None


async def test_open_requests_count_when_they_are_looked_at_and_each_gap_counts_once(autojump_clock: MockClock) -> None:
    latencies = Latencies(by_tenant=True)
    record = await begun(latencies, 0.5, [0.02] * 10)
    assert latencies.of(MODEL, None).ttft is None
    latencies.refresh()
    version = latencies.version
    latencies.refresh()
    assert latencies.version == version, "nothing new"
    assert latencies.of(MODEL, None).ttft == pytest.approx((0.5, 0.5, 0.5))
    await trio.sleep(9.0)
    record.received(0, Output(1, [7]), 1, trio.current_time())
    latencies.ended(record)
    slots = [slot.counts[MODEL, None] for slot in latencies._slots]
    assert sum(sum(each.gaps) for each in slots) == 11
    assert sum(len(each.starts) for each in slots) == 1


async def test_what_is_older_than_a_minute_does_not_count(autojump_clock: MockClock) -> None:
    latencies = Latencies(by_tenant=True)
    await request(latencies, 0.5, [0.02])
    long = await begun(latencies, 0.5, [])
    await trio.sleep(WINDOW - 1)
    latencies.refresh()
    assert latencies.of(MODEL, None).itl is not None
    await trio.sleep(8)
    latencies.refresh()
    assert latencies.of(MODEL, None).itl is None
    await trio.sleep(2 * WINDOW)
    long.received(0, Output(1, [7]), 1, trio.current_time())
    latencies.ended(long)
    assert latencies.of(MODEL, None).itl is None, "nobody has looked at it for more than a minute"


async def test_a_tenant_has_latencies_of_its_own(autojump_clock: MockClock) -> None:
    latencies = Latencies(by_tenant=True)
    await request(latencies, 1.0, [], tenant="ann")
    await request(latencies, 2.0, [], tenant="bob")
    assert latencies.of(MODEL, "ann").ttft == (1.0, 1.0, 1.0)
    assert latencies.of(MODEL, "bob").ttft == (2.0, 2.0, 2.0)
    assert latencies.of(MODEL, None).ttft == (2.0, 2.0, 2.0)


async def test_memory_is_bounded(autojump_clock: MockClock) -> None:
    keyless, keyed = Latencies(by_tenant=False), Latencies(by_tenant=True)
    for number in range(MAX_TENANTS + 200):
        for latencies in (keyless, keyed):
            record = RequestRecord(model=MODEL, tenant=f"user:{number}")
            latencies.began(record)
            record.received(0, Output(1, [7]), 1, trio.current_time())
            latencies.ended(record)
    assert [len(slot.counts) for slot in keyless._slots] == [1]
    assert [len(slot.counts) for slot in keyed._slots] == [MAX_TENANTS]
    assert len(keyed._slots[0].counts[MODEL, None].starts) == MAX_STARTS
    assert not keyed._open
    assert not keyed._seen


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_percentiles_lie_among_the_values(values: list[float]) -> None:
    p50, p95, p99 = _exact(sorted(values))
    assert min(values) - 1e-3 <= p50 <= p95 <= p99 <= max(values) + 1e-3


@given(st.lists(st.integers(0, 1000), min_size=len(GAP_BOUNDS) + 1, max_size=len(GAP_BOUNDS) + 1).filter(any))
def test_estimates_lie_in_their_buckets(counts: list[int]) -> None:
    p50, p95, p99 = _estimated(counts)
    first, last = next(i for i, n in enumerate(counts) if n), max(i for i, n in enumerate(counts) if n)
    bounds = (0.0, *GAP_BOUNDS, GAP_BOUNDS[-1])
    assert bounds[first] <= p50 <= p95 <= p99 <= bounds[last + 1]
