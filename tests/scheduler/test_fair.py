"""Fair shares: who goes first, who gives way, and what tenants are charged. Answers never depend on the policy."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.accounts import MAX_ACCOUNTS
from scheduler.fair import MAX_LEFT_OUT, MAX_WAIT, NUM_HEADS, QUANTUM, TURN, FairShares
from scheduler.pacing import MIN_CHUNK
from scheduler.plan import Plan
from scheduler.sequence import Sequence
from tests.scheduler.fakes import FixedCosts, System, expected, prompt
from tests.scheduler.traffic import TRAFFIC, Request, Traffic, check_answers, serve, system_for

INTERACTIVE, DEFAULT, BATCH = 0, 1, 2
BUDGET = 256


def fair(clock: Callable[[], float]) -> FairShares:
    return FairShares(BUDGET, FixedCosts(), clock)


def system(**options: object) -> System:
    given: dict[str, object] = {"policy": fair, "token_budget": BUDGET, "max_seqs": 4, "lanes": True} | options
    return System(**given)  # type: ignore[arg-type]


def flood(running: System, tenant: str, count: int, *, first: int = 0, length: int = 40, **fields: object) -> None:
    """Submit requests of one tenant without common prefixes."""
    for number in range(first, first + count):
        running.submit(number, prompt(1000 * number, length), 20, tenant=tenant, **fields)  # type: ignore[arg-type]


def running_of(plan: Plan) -> Counter[str]:
    return Counter(chunk.sequence.tenant for chunk in plan.chunks)


def admitted_first(running: System, requests: set[int], max_steps: int = 400) -> list[int]:
    """Returns the requests in the order of their first tokens."""
    order: list[int] = []
    for _ in range(max_steps):
        running.step()
        order += [each for each in requests if running.tokens[each] and each not in order]
        if len(order) == len(requests):
            return order
    raise AssertionError("some request never begins")


def service_of(running: System) -> dict[str, float]:
    return {each["tenant"]: each["service"] for each in running.scheduler.statistics().tenants}


def test_a_stranger_takes_the_place_of_a_tenant_that_runs_everything() -> None:
    busy = system()
    flood(busy, "a", 12)
    for _ in range(6):
        busy.step()
    flood(busy, "b", 1, first=50)
    chunks = busy.chunks(busy.step())
    assert list(chunks) == [50], "its prompt is computed at once and alone"
    assert busy.scheduler.statistics().preemptions == 1
    busy.run()
    for number in [*range(12), 50]:
        assert busy.tokens[number] == expected(prompt(1000 * number, 40), 20), "the preempted answer goes on"


def test_a_tenant_keeps_its_share() -> None:
    busy = system()
    flood(busy, "a", 2)
    flood(busy, "b", 8, first=50)
    for _ in range(4):
        busy.step()
    flood(busy, "b", 8, first=80)
    busy.step()
    assert busy.scheduler.statistics().preemptions == 0, "half of the places are a's"


def test_a_long_prompt_is_not_displaced_before_it_is_computed() -> None:
    busy = system(max_seqs=2, ctx_len=8000)
    flood(busy, "a", 6, length=200)
    for _ in range(10):
        busy.step()
    busy.submit(50, prompt(900_000, 5000), 20, tenant="b")
    steps = 0
    while not busy.tokens[50]:
        busy.step()
        steps += 1
    assert busy.scheduler.statistics().preemptions == 1
    assert steps <= 2 * 5000 / MIN_CHUNK + 20


def test_a_long_answer_gives_way_in_the_end() -> None:
    busy = system(max_seqs=1, ctx_len=8000)
    busy.submit(1, prompt(0, 1500), 6000, tenant="a")
    busy.step()
    busy.submit(2, prompt(5000, 1500), 20, tenant="b")
    while not busy.tokens[2]:
        busy.step()
    assert len(busy.tokens[1]) <= TURN + 1500 + 3
    assert busy.scheduler.statistics().preemptions == 1


def test_refunds_have_the_weight_of_the_charge() -> None:
    busy = system(max_seqs=1)
    busy.submit(1, prompt(0, 1500), 20, tenant="a", weight=1.0)
    busy.step()
    busy.submit(2, prompt(5000, 10), 20, tenant="a", weight=0.01)
    busy.scheduler.cancel(1)
    assert service_of(busy)["a"] == pytest.approx(BUDGET)


def test_places_follow_weights() -> None:
    busy = system(max_seqs=8)
    flood(busy, "a", 40, weight=3.0)
    for _ in range(8):
        busy.step()
    flood(busy, "b", 40, first=50, weight=1.0)
    seen = Counter[str]()
    for _ in range(60):
        seen += running_of(busy.step())
    assert 2.5 <= seen["a"] / seen["b"] <= 3.5


def test_service_follows_weights_while_both_wait() -> None:
    busy = system(max_seqs=8)
    for number in range(200):
        busy.submit(number, prompt(1000 * number, 40), 20, tenant="ab"[number % 2], weight=(3.0, 1.0)[number % 2])
    for _ in range(200):
        busy.step()
        services = service_of(busy)
        assert abs(services["a"] - services["b"]) <= QUANTUM + 8 * 60


def test_an_idle_tenant_saves_up_no_service() -> None:
    busy = system()
    flood(busy, "b", 1, first=90)
    busy.run()
    flood(busy, "a", 40)
    for _ in range(100):
        busy.step()
    flood(busy, "b", 20, first=60)
    services = service_of(busy)
    assert services["b"] >= services["a"]


def test_the_longest_prefix_of_a_tenant_with_credit_goes_first() -> None:
    alone = system(max_seqs=1)
    alone.submit(0, prompt(0, 120), 1, tenant="a")
    alone.run()
    alone.submit(1, prompt(9000, 60), 4, tenant="a")
    alone.step()
    alone.submit(2, prompt(5000, 60), 1, tenant="a")
    alone.submit(3, prompt(0, 100) + prompt(7000, 10), 1, tenant="b")
    alone.submit(4, prompt(0, 60) + prompt(8000, 10), 1, tenant="a")
    assert admitted_first(alone, {2, 3, 4}) == [3, 4, 2]


def test_a_sequence_that_waited_long_goes_before_longer_prefixes() -> None:
    busy = system(max_seqs=1, seconds=lambda _: MAX_WAIT / 40)
    busy.submit(0, prompt(0, 120), 1, tenant="a")
    busy.run()
    busy.submit(1, prompt(9000, 60), 1, tenant="a")
    busy.submit(2, prompt(5000, 60), 1, tenant="a")
    for number in range(3, 150):
        busy.submit(number, prompt(0, 100) + prompt(1000 * number, 10), 1, tenant="a")
    order = admitted_first(busy, set(range(1, 150)))
    assert order.index(2) < 60, "it overtakes the others after MAX_WAIT"
    assert order.index(2) > 20, "until then, the others go first"


def test_a_prompt_of_a_flood_waits_for_a_strangers_but_not_for_ever() -> None:
    busy = system(max_seqs=8, lanes=False, num_pages=400, num_ids=32, ctx_len=2000)
    flood(busy, "a", 6, length=900)
    busy.step()
    flood(busy, "b", 2, first=50, length=900)
    tenants = [set(running_of(busy.step())) for _ in range(8)]
    assert tenants[0] == {"b"}
    assert any("a" in each for each in tenants[: MAX_LEFT_OUT + 1])


def test_steps_stay_short_beside_a_tenant_that_runs_most() -> None:
    busy = system(max_seqs=8)
    flood(busy, "a", 30, length=200)
    assert busy.step().num_prefill > MIN_CHUNK, "nobody else is present"
    flood(busy, "b", 1, first=50)
    while busy.finish_reason(50) is None if busy.outputs[50] else True:
        busy.step()
    assert max(busy.step().num_prefill for _ in range(30)) <= MIN_CHUNK * 3 // 2


def test_a_fast_machine_computes_long_chunks_beside_others() -> None:
    def fast(clock: Callable[[], float]) -> FairShares:
        return FairShares(BUDGET, FixedCosts(seconds_per_token=0.0001), clock)

    busy = system(max_seqs=8, policy=fast, lanes=False, num_pages=256)
    flood(busy, "b", 1, first=50)
    flood(busy, "a", 30, length=200)
    assert max(busy.step().num_prefill for _ in range(5)) > MIN_CHUNK * 3 // 2


@pytest.mark.parametrize(("others", "gives_way"), [(BATCH, True), (DEFAULT, False)])
def test_a_lower_class_gives_way_at_once(others: int, gives_way: bool) -> None:
    busy = system()
    flood(busy, "a", 4, priority=others)
    flood(busy, "a", 4, first=20, priority=others)
    for _ in range(6):
        busy.step()
    flood(busy, "a", 4, first=50, priority=DEFAULT)
    busy.step()
    assert (busy.scheduler.statistics().preemptions == 4) == gives_way


def test_a_lower_class_keeps_its_guaranteed_part() -> None:
    busy = system()
    flood(busy, "a", 200, priority=INTERACTIVE)
    flood(busy, "b", 50, first=300, priority=BATCH)
    tokens = Counter[str]()
    for _ in range(600):
        for chunk in busy.step().chunks:
            tokens[chunk.sequence.tenant] += chunk.num_tokens
    assert 0.05 <= tokens["b"] / tokens["a"] <= 0.2


def test_a_class_that_is_due_does_not_make_a_higher_one_wait() -> None:
    busy = system(max_seqs=8)
    flood(busy, "a", 300, priority=DEFAULT)
    flood(busy, "c", 50, first=400, priority=BATCH)
    for _ in range(200):
        busy.step()
    for number in range(15):
        flood(busy, "b", 1, first=600 + number, priority=INTERACTIVE)
        busy.step()
        assert busy.tokens[600 + number], "it takes the place of the class default"
        while not busy.finish_reason(600 + number):
            busy.step()
        for _ in range(7):
            busy.step()


@pytest.mark.parametrize(("num_lines", "max_seqs", "length"), [(100, 8, 40), (1, 16, 90), (100, 16, 90)])
@pytest.mark.parametrize("priority", [INTERACTIVE, DEFAULT])
def test_a_stranger_beside_a_flood_does_not_wait_for_a_lower_class(
    num_lines: int, max_seqs: int, length: int, priority: int
) -> None:
    busy = system(max_seqs=max_seqs)
    flood(busy, "a", 900, length=length)
    lines: list[int] = []

    def step() -> Plan:
        """A line that ends is followed by another one."""
        running = [each for each in lines if not (busy.outputs[each] and busy.finish_reason(each))]
        for _ in range(num_lines - len(running)):
            number = 2000 + len(lines)
            busy.submit(number, prompt(1000 * number, 90), 4, tenant="c", priority=BATCH)
            lines.append(number)
        return busy.step()

    for _ in range(40):
        step()
    for number in range(1000, 1015):
        flood(busy, "b", 1, first=number, priority=priority)
        steps = 0
        while not busy.tokens[number]:
            plan = step()
            assert all(each.num_tokens == 1 for each in plan.chunks if each.sequence.tenant == "c"), "no prompt of c"
            steps += 1
        assert steps <= 2
        while not busy.finish_reason(number):
            step()
        for _ in range(number % 8):
            step()
    assert sum(len(busy.tokens[each]) == 4 for each in lines) >= 5, "the lower class makes progress"


def test_a_lower_class_keeps_its_guaranteed_part_beside_a_strangers_long_prompt() -> None:
    busy = system(max_seqs=8)
    flood(busy, "c", 50, first=2000, length=300, priority=BATCH)
    flood(busy, "a", 300)
    for _ in range(100):
        busy.step()
    busy.submit(1000, prompt(1_000_000, 1900), 20, tenant="b")
    tokens = Counter[str]()
    while not busy.tokens[1000]:
        for chunk in busy.step().chunks:
            tokens[chunk.sequence.tenant] += chunk.num_tokens
    assert 0.05 <= tokens["c"] / (tokens["a"] + tokens["b"]) <= 0.2


@pytest.mark.parametrize("max_seqs", [8, 16])
def test_only_prompts_of_strangers_are_computed_before_the_answers_turn(max_seqs: int) -> None:
    busy = system(max_seqs=max_seqs)
    flood(busy, "a", 300, length=90)
    flood(busy, "c", 50, first=400, length=90, priority=BATCH)
    for _ in range(40):
        busy.step()
    was_of_prompts, num_urgent, asked = False, 0, 1000
    for count in range(600):
        is_idle = asked == 1000 or (busy.tokens[asked] and busy.finish_reason(asked))
        if was_of_prompts and is_idle and count % 3 == 0:
            asked += 1
            flood(busy, "b", 1, first=asked)
        plan = busy.step()
        if was_of_prompts and not plan.num_decode:
            assert set(running_of(plan)) == {"b"}
            num_urgent += 1
        was_of_prompts = not plan.num_decode
    assert num_urgent > 5


def test_the_prompts_of_a_flood_are_not_computed_before_the_turn_of_its_own_answers() -> None:
    busy = system(max_seqs=8)
    flood(busy, "c", 50, first=400, priority=BATCH)
    busy.step()
    flood(busy, "a", 300, length=90)
    was_of_prompts, has_answers = True, False
    for _ in range(400):
        plan = busy.step()
        assert plan.num_decode or not (was_of_prompts and has_answers)
        was_of_prompts = not plan.num_decode
        has_answers = any(each.is_answering and each.tenant == "a" for each in busy.scheduler.residents.running)


def test_a_tenant_of_a_small_weight_gets_its_turn() -> None:
    busy = system(lanes=False, max_seqs=8, max_answers=2, num_pages=200)
    for number in range(8):
        tenant, weight = ("b", 1.0) if number == 7 else ("a", 20.0)
        busy.submit(number, prompt(1000 * number, 10), 400, tenant=tenant, weight=weight)
    for _ in range(200):
        busy.step()
    assert len(busy.tokens[7]) >= 4, "one turn in about 45 steps"


def test_a_step_looks_at_few_prefixes_beside_many_tenants() -> None:
    policy = FairShares(BUDGET, FixedCosts(), lambda: 0.0)
    busy = system(max_seqs=2, policy=policy)
    for number in range(300):
        flood(busy, f"tenant {number}", 1, first=number)
    looked: list[Sequence] = []

    def num_cached(sequence: Sequence) -> int:
        looked.append(sequence)
        return 0

    next(iter(policy.candidates(num_cached)))
    assert 0 < len(looked) <= NUM_HEADS**2


def test_a_full_step_asks_for_candidates_only_if_one_may_take_a_place() -> None:
    policy = FairShares(BUDGET, FixedCosts(), lambda: 0.0)
    busy = system(max_seqs=2, policy=policy)
    flood(busy, "a", 3)
    busy.step()
    assert not policy.contends(), "only one tenant has sequences"
    flood(busy, "b", 3, first=50)
    assert policy.contends()
    busy.step()
    assert not policy.contends(), "each has its share"


def test_many_prompts_of_one_request_leave_places_to_others() -> None:
    busy = system(max_seqs=8)
    flood(busy, "a", 500)
    for _ in range(10):
        busy.step()
    for number in range(20):
        flood(busy, "b", 1, first=600 + number)
        steps = 0
        while not busy.tokens[600 + number]:
            busy.step()
            steps += 1
        assert steps <= 2
        while not busy.finish_reason(600 + number):
            busy.step()


def test_a_charge_is_what_was_computed() -> None:
    one = system()
    one.submit(1, prompt(0, 100), 11, tenant="a")
    for _ in range(5):
        one.step()
    assert service_of(one)["a"] == pytest.approx(100 + 4)
    one.submit(2, prompt(0, 100), 11, tenant="b")
    one.step()
    assert service_of(one)["b"] == pytest.approx(service_of(one)["a"], abs=4), "lifted, and a hit is nearly free"


def test_a_cancelled_prompt_is_charged_only_for_what_was_computed() -> None:
    busy = system()
    busy.submit(1, prompt(0, 10), 500, tenant="a")
    busy.submit(2, prompt(5000, 1500), 5, tenant="a")
    busy.step()
    computed = sum(chunk.num_tokens for plan in busy.runner.plans for chunk in plan.chunks)
    busy.scheduler.cancel(2)
    assert service_of(busy)["a"] == pytest.approx(computed)


def test_embeddings_are_charged() -> None:
    busy = system()
    flood(busy, "a", 1)
    busy.step()
    before = service_of(busy)["a"]
    busy.scheduler.charge("a", 2.0, DEFAULT, 100)
    assert service_of(busy)["a"] == before + 50


def test_accounts_of_tenants_that_left_are_forgotten() -> None:
    busy = system(seconds=lambda _: 0.001)
    for number in range(3 * MAX_ACCOUNTS):
        busy.submit(number, [1, 2, 3], 1, tenant=f"user {number}")
        busy.scheduler.cancel(number)
    policy = busy.scheduler._policy
    assert isinstance(policy, FairShares)
    assert len(list(policy._classes)) <= MAX_ACCOUNTS


def test_the_queue_is_reported_in_turns() -> None:
    busy = system(max_seqs=1)
    flood(busy, "a", 4)
    busy.step()
    flood(busy, "b", 2, first=50)
    assert busy.scheduler.queue() == [1, 50, 2, 51, 3]


def test_sequences_of_different_salts_share_nothing() -> None:
    salted = system(max_seqs=4)
    salted.submit(1, prompt(0, 100), 5, cache_salt="one")
    salted.submit(2, prompt(0, 100), 5, cache_salt="other")
    salted.run()
    salted.submit(3, prompt(0, 100), 5)
    salted.submit(4, prompt(0, 100), 5, cache_salt="one")
    salted.run()
    cached = {number: sum(output.cached_tokens for output in salted.outputs[number]) for number in (1, 2, 3, 4)}
    assert cached == {1: 0, 2: 0, 3: 0, 4: 99}
    computed = Counter[int]()
    for plan in salted.runner.plans:
        for chunk in plan.chunks:
            computed[chunk.sequence.request_id] += chunk.num_tokens
    assert computed[1] == computed[2] == computed[3], "a miss costs the same whether others have the prefix or not"


OWNERS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 2)), min_size=9, max_size=9
)


@settings(max_examples=100, deadline=None)
@given(TRAFFIC, OWNERS)
def test_fair_shares_do_not_change_any_answer(traffic: Traffic, owners: list[tuple[str, float, int]]) -> None:
    busy = system_for(traffic, partial(FairShares, traffic.budget, FixedCosts(1.5)))  # the clock comes last

    def submit(running: System, number: int, request: Request) -> None:
        tenant, weight, priority = owners[number]
        running.submit(number, request.prompt, request.max_tokens, tenant=tenant, weight=weight, priority=priority)

    cancelled = serve(busy, traffic, submit)
    check_answers(busy, traffic, cancelled)
    policy = busy.scheduler._policy
    assert isinstance(policy, FairShares)
    assert not policy._accounts
    assert not policy._prepaid
    assert not policy._entry
    assert all(account.is_idle for account in policy._classes)
    assert all(account.service >= 0 for account in policy._classes)


def test_a_long_prompt_of_a_flood_does_not_keep_out_the_others_of_its_tenant() -> None:
    """Behind a reverse proxy without keys, a whole team may be one tenant."""
    busy = system(max_seqs=8, ctx_len=20_000)
    flood(busy, "a", 7)
    flood(busy, "b", 1, first=50)
    for _ in range(20):
        busy.step()
    busy.submit(90, prompt(900_000, 15_000), 5, tenant="a")
    while busy.scheduler.statistics().waiting:
        busy.step()
    flood(busy, "a", 4, first=60)
    for _ in range(30):
        busy.step()
    assert all(busy.tokens[number] for number in range(60, 64))
    assert not busy.tokens[90], "the long prompt is still being computed"


def test_a_flood_leaves_places_free_while_its_prompts_wait_for_their_steps() -> None:
    busy = system(max_seqs=16)
    busy.submit(300, prompt(300_000, 40), 500, tenant="b")
    flood(busy, "a", 200, length=100)
    for _ in range(60):
        busy.step()
    assert busy.scheduler.statistics().running < 16
    flood(busy, "b", 1, first=301)
    busy.step()
    assert busy.scheduler.statistics().preemptions == 0
