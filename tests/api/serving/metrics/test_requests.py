"""What is counted of requests, while they run and when they have ended."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.serving.metrics.histogram import Histogram
from api.serving.metrics.requests import MAX_TENANTS, RequestMetrics, RequestTotals, TenantLabels
from api.serving.observer import GAP_BOUNDS, Finish, RequestRecord
from api.tenants.tenant import KEYLESS, OTHERS
from scheduler.messages import Output

MODEL = "a-model"


@pytest.fixture
def metrics() -> RequestMetrics:
    return RequestMetrics(TenantLabels())


@contextmanager
def request(metrics: RequestMetrics, tenant: str = "ann", finish: Finish = "stop") -> Iterator[RequestRecord]:
    """A request that is submitted at 1.0 and ends at 9.0."""
    record = RequestRecord("id", "chat_completions", tenant, MODEL, status=200)
    metrics.began(record)
    record.prepared(prompt_tokens=10, num_sequences=1)
    record.submitted = 1.0
    yield record
    record.finish = finish
    record.close(9.0)
    metrics.ended(record)


def test_open_requests_count_what_they_have_done_so_far(metrics: RequestMetrics) -> None:
    seen: list[tuple[float, ...]] = []

    def look() -> None:
        model = metrics.totals().models[MODEL]
        buckets = model.first_token.buckets[-1][1], model.gaps.buckets[-1][1]
        seen.append((model.prompt_tokens, model.answer_tokens, *buckets))

    with request(metrics) as record:
        look()
        assert metrics.tokens_before_answers() == {MODEL: 10}
        record.received(0, Output(1, [1], cached_tokens=6, queue_seconds=0.5), 1, 2.0)
        look()
        record.received(0, Output(1, [1, 2]), 2, 3.0)
        look()
        assert metrics.tokens_before_answers() == {}
        assert not metrics.totals().models[MODEL].finished
    look()
    assert seen == [(0, 0, 0, 0), (10, 1, 1, 0), (10, 3, 1, 2), (10, 3, 1, 2)]
    totals = metrics.totals()
    assert totals.models[MODEL].finished == {"stop": 1}
    assert (totals.models[MODEL].whole.sum, totals.models[MODEL].queue.sum) == (9.0, 0.5)
    tenant = totals.tenants["ann"]
    assert (tenant.prompt_tokens, tenant.cached_tokens, tenant.answer_tokens, tenant.finished) == (
        10,
        6,
        3,
        {"stop": 1},
    )
    assert totals.responses == {("chat_completions", 200): 1}


@pytest.mark.parametrize(
    ("finish", "reason"), [("cancelled", "abort"), ("timeout", "abort"), ("error", "error"), ("length", "length")]
)
def test_ends_have_the_words_of_vllm(metrics: RequestMetrics, finish: Finish, reason: str) -> None:
    with request(metrics, finish=finish):
        pass
    assert metrics.totals().models[MODEL].finished == {reason: 1}
    assert metrics.totals().tenants["ann"].finished == {finish: 1}


def test_refused_requests_count_for_their_tenant_only(metrics: RequestMetrics) -> None:
    record = RequestRecord("id", "completions", "ann", MODEL, status=429)
    metrics.began(record)
    record.close(1.0)
    metrics.ended(record)
    totals = metrics.totals()
    assert not totals.models[MODEL].finished
    assert totals.tenants["ann"].finished == {"refused": 1}
    assert totals.responses == {("completions", 429): 1}


def test_requests_without_a_tenant_or_model_count_by_operation(metrics: RequestMetrics) -> None:
    record = RequestRecord(operation="embeddings", status=401)
    metrics.began(record)
    record.close(1.0)
    metrics.ended(record)
    assert metrics.totals() == RequestTotals(responses=metrics.totals().responses)
    assert metrics.totals().responses == {("embeddings", 401): 1}


def test_the_labels_of_tenants_are_bounded() -> None:
    labels = TenantLabels()
    for number in range(2 * MAX_TENANTS):
        for name in (f"user:{number}", f"address:{number}"):
            assert labels.of(name) == KEYLESS
    found = {labels.of(f"name-{number}") for number in range(2 * MAX_TENANTS)}
    assert len(found) == MAX_TENANTS + 1
    assert OTHERS in found
    assert labels.of("name-0") == "name-0", "a name that has a label keeps it"


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100)))
def test_observations_can_be_counted_elsewhere(here: list[float], elsewhere: list[float]) -> None:
    one, other = Histogram(GAP_BOUNDS), Histogram(GAP_BOUNDS)
    for value in here:
        one.observe(value)
        other.observe(value)
    counts = [0] * (len(GAP_BOUNDS) + 1)
    for value in elsewhere:
        counts[next((i for i, bound in enumerate(GAP_BOUNDS) if value <= bound), len(GAP_BOUNDS))] += 1
        other.observe(value)
    one.add(counts, sum(elsewhere))
    assert one.buckets == other.buckets
    assert one.sum == pytest.approx(other.sum)
    assert one.buckets[-1] == ("+Inf", len(here) + len(elsewhere))
