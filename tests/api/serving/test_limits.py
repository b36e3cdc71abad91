"""Limits of tenants and of the server: each request counts from its arrival until its end, exactly once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from api.errors import ApiError
from api.serving.limits import Limiter
from api.serving.observer import RequestRecord
from api.serving.tickets import OpenTickets, Ticket
from api.tenants.tenant import Limits, Tenant

ADA, BOB = Tenant("ada"), Tenant("bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limiter_of(clock: Clock, total: Limits = Limits(), default: Limits = Limits(), **options: int) -> Limiter:  # noqa: B008
    return Limiter(total=total, default=default, clock=clock, **options)


def refusal(limiter: Limiter, tenant: Tenant = ADA, num: int = 1) -> ApiError:
    with pytest.raises(ApiError) as refused:
        limiter.enter(tenant, num)
    return refused.value


# Every order of events


class Requests(RuleBasedStateMachine):
    """Random requests of two tenants, whose sequences begin, advance and end in any order, often more than once."""

    waiting_limit, concurrent_limit, total_limit = 4, 6, 9

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limiter = limiter_of(
            self.clock,
            Limits(concurrent=self.total_limit),
            Limits(waiting=self.waiting_limit, concurrent=self.concurrent_limit),
        )
        self.tickets: list[tuple[str, Ticket, set[int], set[int]]] = []
        """With the sequences that wait, and those that have not ended."""

    def counts(self, name: str = "") -> tuple[int, int]:
        mine = [each for each in self.tickets if name in ("", each[0])]
        return sum(len(each[2]) for each in mine), sum(len(each[3]) for each in mine)

    @rule(tenant=st.sampled_from([ADA, BOB]), num=st.integers(1, 7))
    def enter(self, tenant: Tenant, num: int) -> None:
        waiting, concurrent = self.counts(tenant.name)
        fits = (
            waiting + num <= self.waiting_limit
            and concurrent + num <= self.concurrent_limit
            and self.counts()[1] + num <= self.total_limit
        )
        if not fits:
            assert refusal(self.limiter, tenant, num).status == (400 if num > self.waiting_limit else 429)
            return
        ticket = self.limiter.enter(tenant, num)
        self.tickets.append((tenant.name, ticket, set(range(num)), set(range(num))))

    @rule(which=st.integers(0, 20), index=st.integers(0, 6), tokens=st.integers(0, 3))
    def advance(self, which: int, index: int, tokens: int) -> None:
        if self.tickets:
            _, ticket, waiting, _ = self.tickets[which % len(self.tickets)]
            ticket.advanced(index, tokens)
            waiting.discard(index)

    @rule(which=st.integers(0, 20), index=st.integers(0, 6))
    def end(self, which: int, index: int) -> None:
        if self.tickets:
            _, ticket, waiting, still_open = self.tickets[which % len(self.tickets)]
            ticket.ended(index)
            waiting.discard(index)
            still_open.discard(index)

    @rule(which=st.integers(0, 20))
    def close(self, which: int) -> None:
        """It is kept in the list, so that late events follow."""
        if self.tickets:
            _, ticket, waiting, still_open = self.tickets[which % len(self.tickets)]
            ticket.close()
            waiting.clear()
            still_open.clear()

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def what_remains_is_what_nobody_has(self) -> None:
        in_all = self.total_limit - self.counts()[1]
        for tenant in (ADA, BOB):
            own = self.concurrent_limit - self.counts(tenant.name)[1]
            remaining = self.limiter.headers(tenant)["x-ratelimit-remaining-requests"]
            assert remaining == str(min(own, in_all))

    def teardown(self) -> None:
        for _, ticket, _, _ in self.tickets:
            ticket.close()
        for tenant in (ADA, BOB):
            assert self.limiter.headers(tenant)["x-ratelimit-remaining-requests"] == str(self.concurrent_limit)
            self.limiter.enter(tenant, self.waiting_limit).close()


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=40)


@given(st.lists(st.tuples(st.sampled_from(["reserve", "advance", "wait"]), st.integers(1, 40)), max_size=30))
def test_tokens_are_charged_once(events: list[tuple[str, int]]) -> None:
    """Prompts are refused without room, and answers are charged in any case."""
    clock = Clock()
    limiter = limiter_of(clock, default=Limits(tokens_per_minute=60))
    level = 60.0
    for kind, num in events:
        if kind == "wait":
            clock.now += num
            level = min(60.0, level + num)
            continue
        if level < 1:
            assert refusal(limiter).kind == "tokens"
            continue
        ticket = limiter.enter(ADA)
        if kind == "advance":
            ticket.advanced(0, num)
            level -= num
        elif level < num:
            with pytest.raises(ApiError) as refused:
                ticket.reserve(num)
            assert (refused.value.status, refused.value.kind) == (429, "tokens")
        else:
            ticket.reserve(num)
            level -= num
        assert limiter.headers(ADA)["x-ratelimit-remaining-tokens"] == str(max(int(level), 0))


# Single limits


def test_requests_of_a_minute_are_refilled_steadily() -> None:
    clock = Clock()
    limiter = limiter_of(clock, default=Limits(requests_per_minute=2))
    assert limiter.headers(ADA) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "0s",
    }
    for _ in range(2):
        limiter.enter(ADA, 5).close()
    assert limiter.headers(ADA)["x-ratelimit-reset-requests"] == "1m0s"
    error = refusal(limiter)
    assert (error.status, error.code, error.kind, error.retry_after) == (429, "rate_limit_exceeded", "requests", 30)
    assert error.message == (
        "Rate limit reached for you on requests per min (RPM): Limit 2, Used 2, Requested 1. Please try again in 30s."
    )
    limiter.enter(BOB).close()
    clock.now += 29
    assert refusal(limiter).retry_after == 1
    clock.now += 1
    limiter.enter(ADA).close()


def test_the_limits_of_all_tenants_together() -> None:
    limiter = limiter_of(Clock(), Limits(concurrent=3, requests_per_minute=4))
    tickets = [limiter.enter(tenant) for tenant in (ADA, BOB, ADA)]
    error = refusal(limiter, BOB)
    assert "for this server on concurrent sequences: Limit 3, Used 3, Requested 1." in error.message
    for ticket in tickets:
        ticket.close()
    limiter.enter(ADA, 3).close()
    assert "for this server on requests per min (RPM)" in refusal(limiter, BOB).message


def test_a_tenant_with_limits_of_its_own() -> None:
    limiter = limiter_of(Clock(), default=Limits(concurrent=1, requests_per_minute=1))
    own = Tenant("own", limits=Limits(concurrent=2, requests_per_minute=0))
    limiter.enter(own)
    limiter.enter(own)
    assert limiter.headers(own)["x-ratelimit-limit-requests"] == "2", "0 is no limit, whatever the default is"
    assert refusal(limiter, own).status == 429
    edited = Tenant("own", limits=Limits(concurrent=3, requests_per_minute=0))
    limiter.enter(edited)
    assert refusal(limiter, edited).status == 429


def test_a_request_that_never_fits_is_invalid() -> None:
    limiter = limiter_of(Clock(), Limits(concurrent=4), Limits(waiting=2, concurrent=3, tokens_per_minute=10))
    for tenant, num, limit in ((ADA, 3, 2), (Tenant("c", limits=Limits(waiting=0, concurrent=0)), 5, 4)):
        error = refusal(limiter, tenant, num)
        assert (error.status, error.param, error.code) == (400, "n", "invalid_value")
        assert f"at most {limit} " in error.message
    with pytest.raises(ApiError) as refused:
        limiter.enter(ADA).reserve(11)
    assert (refused.value.status, "at most 10 tokens per minute" in refused.value.message) == (400, True)


def test_a_request_that_its_tokens_refuse_counts_for_nothing() -> None:
    limiter = limiter_of(Clock(), default=Limits(concurrent=2, requests_per_minute=3, tokens_per_minute=10))
    limiter.enter(ADA).reserve(8)
    before = limiter.headers(ADA)
    with pytest.raises(ApiError):
        limiter.enter(ADA).reserve(3)
    assert limiter.headers(ADA) == before
    limiter.enter(ADA).reserve(2)


def test_the_time_to_wait_comes_from_the_measured_ends() -> None:
    clock = Clock()
    limiter = limiter_of(clock, default=Limits(concurrent=3))
    ticket = limiter.enter(ADA, 3)
    for index in range(2):
        clock.now += 4
        ticket.ended(index)
    limiter.enter(ADA, 2)
    assert refusal(limiter, num=1).retry_after == 4
    assert refusal(limiter, num=3).retry_after == 12
    clock.now += 1000
    assert refusal(limiter).retry_after == 60


def test_the_tightest_limit_is_shown() -> None:
    limiter = limiter_of(Clock(), Limits(requests_per_minute=100), Limits(requests_per_minute=2))
    assert limiter.headers(ADA)["x-ratelimit-limit-requests"] == "2"
    both = Tenant("own", limits=Limits(requests_per_minute=500, waiting=3))
    assert limiter.headers(both)["x-ratelimit-limit-requests"] == "100"
    waiting = limiter_of(Clock(), default=Limits(waiting=7))
    assert waiting.headers(ADA)["x-ratelimit-limit-requests"] == "7"
    assert limiter_of(Clock()).headers(ADA) == {}


# Memory


def test_idle_tenants_are_forgotten() -> None:
    clock = Clock()
    limiter = limiter_of(clock, default=Limits(requests_per_minute=60))
    for number in range(1000):
        clock.now += 0.5
        limiter.enter(Tenant(f"user:{number}")).close()
    assert limiter.num_allowances < 10, "a bucket is full again after a second"


def test_there_are_at_most_so_many_tenants_without_requests() -> None:
    limiter = limiter_of(Clock(), default=Limits(requests_per_minute=1), max_allowances=50)
    for number in range(20):
        limiter.enter(Tenant(f"open:{number}"))
    for number in range(500):
        limiter.enter(Tenant(f"user:{number}")).close()
    assert limiter.num_allowances == 50
    assert all(refusal(limiter, Tenant(f"open:{number}")).status == 429 for number in range(20))


def test_a_ticket_is_closed_with_its_request() -> None:
    limiter = limiter_of(Clock(), default=Limits(concurrent=1))
    tickets, record = OpenTickets(), RequestRecord()
    tickets.began(record)
    tickets.add(record, limiter.enter(ADA))
    assert refusal(limiter).status == 429
    tickets.ended(record)
    tickets.ended(RequestRecord())
    limiter.enter(ADA)


def test_a_ticket_without_accounts_counts_nothing() -> None:
    ticket = Ticket()
    ticket.reserve(10**9)
    ticket.advanced(0, 5)
    ticket.ended(0)
    ticket.close()
