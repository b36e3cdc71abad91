"""Simulated nodes behind a router: the policies, and what they make of the workloads."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from bench.cluster.accounting import Run
from bench.cluster.routers import choices
from bench.cluster.simulated import numbers_of_nodes, predicted, simulated
from bench.simulation.fleet import Fleet, closed_loop, open_loop
from bench.simulation.rendering import following, opening
from bench.simulation.routing import ROUTERS, KVEvents, PrefixAware, RoundRobin, Thresholds
from bench.talks import common_prefix
from bench.workloads import Session, Settings, Turn, multiturn, resolve, sessions, shared

ROUND_ROBIN, CACHE_AWARE, KV_AWARE = choices("smg:round_robin,smg:cache_aware,vllm-router:kv_aware")
SHARED = resolve(Settings(workload="shared", users=8, requests=24, output_tokens=8))
MULTITURN = resolve(Settings(workload="multiturn", users=8, output_tokens=8))


@dataclass
class Known:
    """A node with given numbers."""

    in_flight: int = 0
    unread_tokens: int = 0
    cached: int = 0

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        return min(self.cached, len(prompt))


# -- policies ----------------------------------------------------------------------------------------------------------


def test_round_robin_takes_turns() -> None:
    router = RoundRobin()
    assert [router.choose([1], [Known()] * 3) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_prefix_stays_on_its_node_until_the_node_is_much_busier() -> None:
    router = PrefixAware(Thresholds(absolute=2, relative=1.2))
    prompt = [*range(80)]
    nodes = [Known(3), Known(0), Known(1)]
    assert router.choose(prompt, nodes) == 1  # nobody has it: the least busy node
    assert router.choose([*prompt, 7], [Known(0), Known(3), Known(0)]) == 1  # 2 above the mean of 1 is not too many
    assert router.choose(prompt, [Known(1), Known(5), Known(0)]) == 2  # 3 above the mean of 2
    assert router.choose(prompt, [Known(0), Known(2), Known(1)]) == 2  # both have it: the less busy one
    assert router.choose([*prompt[:16], *range(200, 264)], [Known(0), Known(1), Known(1)]) == 0  # 20% in common


def test_events_choose_the_node_with_the_least_to_compute() -> None:
    router = KVEvents()
    prompt = [*range(100)]
    assert router.choose(prompt, [Known(), Known(cached=64)]) == 1
    assert router.choose(prompt, [Known(), Known(cached=64, unread_tokens=200)]) == 0
    assert router.choose(prompt, [Known(in_flight=2), Known(in_flight=1)]) == 1
    assert router.choose(prompt, [Known(), Known(cached=31, in_flight=1)]) == 0  # no whole page
    assert router.choose([*range(96)], [Known(cached=64), Known(cached=96)]) == 0  # the last page does not count
    home = Known(cached=64, in_flight=7)  # 36 tokens beside 7 requests, elsewhere 100
    assert router.choose(prompt, [home, Known(in_flight=1)]) == 1
    assert router.choose(prompt, [home, Known(in_flight=2)]) == 0


def test_an_unequal_pair_of_nodes_gets_unequal_conversations_from_events() -> None:
    """A response that begins early hides the prompts that its node has still to compute."""
    pair = Fleet(2, KVEvents(), Random(0))
    slow, fast = pair.nodes
    slow.api_seconds, fast.api_seconds = 0.04, 0.01
    once = resolve(Settings(workload="multiturn", users=16, turns=1, output_tokens=8))
    closed_loop(pair, multiturn(once, Random(0)), 16)
    pair.run()
    assert len(fast.simulator.requests) > len(slow.simulator.requests)


@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=60), min_size=1, max_size=30),
    loads=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    thresholds=st.builds(Thresholds, st.floats(0, 1), st.floats(0, 10), st.floats(1, 3)),
    name=st.sampled_from(sorted(ROUTERS)),
)
def test_every_policy_chooses_a_node(
    prompts: list[list[int]], loads: list[int], thresholds: Thresholds, name: str
) -> None:
    router = ROUTERS[name](thresholds)
    nodes = [Known(load) for load in loads]
    for prompt in prompts:
        chosen = router.choose(prompt, nodes)
        assert 0 <= chosen < len(nodes)
        if name == "cache_aware":
            mean = sum(loads) / len(loads)
            allowed = max(mean + thresholds.absolute, mean * thresholds.relative)
            assert nodes[chosen].in_flight <= max(allowed, min(loads))


# -- the texts ---------------------------------------------------------------------------------------------------------


def test_prompts_have_as_many_tokens_as_those_of_the_model(model_path: str) -> None:
    tokenizer = Tokenizer(model_path)
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    rng = Random(0)
    one, other = (list(session.turns[0].messages) for session in shared(SHARED, rng, 2))
    assert len(opening(one)) == len(template.render_tokens(one))
    real = common_prefix(template.render_tokens(one), template.render_tokens(other))
    assert common_prefix(opening(one), opening(other)) == real
    bare = [{"role": "user", "content": "blue red"}]
    assert len(opening(bare)) == len(template.render_tokens(bare))
    first, second, *_ = multiturn(MULTITURN, rng)[0].turns
    history = [*first.messages, {"role": "assistant", "content": "blue red"}, *second.messages]
    assert len(opening(first.messages)) + 2 + len(following(second.messages)) == len(template.render_tokens(history))


# -- nodes in virtual time ---------------------------------------------------------------------------------------------


def fleet(num_nodes: int, seed: int = 0) -> Fleet:
    return Fleet(num_nodes, RoundRobin(), Random(seed))


def test_each_event_happens_after_those_before_it() -> None:
    one = fleet(2)
    closed_loop(one, sessions(MULTITURN, Random(1))[0], MULTITURN.users)
    one.run()
    for request in one.requests:
        assert request.ended is not None
        assert request.submitted < request.times[0] <= request.ended
    assert one.now >= max(request.ended or 0.0 for request in one.requests)
    assert all(node.in_flight == node.unread_tokens == 0 for node in one.nodes)


def test_a_turn_follows_the_answer_before_it() -> None:
    one = fleet(2)
    (session, *_) = multiturn(MULTITURN, Random(1))
    closed_loop(one, [session], 1)
    one.run()
    requests = sorted(one.requests, key=lambda request: request.submitted)
    assert len(requests) == 4
    for before, after in pairwise(requests):
        assert before.ended is not None
        assert after.submitted > before.ended
        assert after.prompt.tokens[: len(before.prompt.tokens) + 8] == [*before.prompt.tokens, *before.answer]


def test_an_open_loop_sends_when_requests_are_due() -> None:
    one = fleet(3)
    turn = Turn(({"role": "user", "content": "blue"},), 2)
    open_loop(one, [Session((turn,), at) for at in (0.5, 0.5, 2.0)])
    one.run()
    assert sorted(request.submitted for request in one.requests) == [0.5, 0.5, 2.0]


@settings(max_examples=10)
@given(
    num_nodes=st.integers(1, 5),
    users=st.integers(1, 6),
    choice=st.sampled_from([ROUND_ROBIN, CACHE_AWARE, KV_AWARE]),
    workload=st.sampled_from(["shared", "multiturn"]),
    seed=st.integers(0, 99).map(str),
)
def test_every_run_accounts_for_all_requests(
    num_nodes: int, users: int, choice: object, workload: str, seed: str
) -> None:
    load = resolve(Settings(workload=workload, users=users, requests=0, output_tokens=3))  # type: ignore[arg-type]
    runs = [simulated(load, choice, num_nodes, Thresholds(), seed) for _ in range(2)]  # type: ignore[arg-type]
    assert runs[0] == runs[1]
    (total,) = {run.total for run in runs}
    assert total.requests == load.requests
    assert 0 < total.computed_tokens <= total.prompt_tokens
    assert len(runs[0].nodes) == num_nodes


def by_policy(load: Settings, num_nodes: int) -> list[Run]:
    return [simulated(load, each, num_nodes, Thresholds(), "1") for each in (ROUND_ROBIN, CACHE_AWARE, KV_AWARE)]


def test_a_shared_prompt_costs_a_copy_for_each_node() -> None:
    alone = simulated(SHARED, None, 1, Thresholds(), "1").total.computed_tokens
    for run in by_policy(SHARED, 2):
        assert alone + 700 < run.total.computed_tokens < alone + 730, run.policy
        assert run.busiest_share is not None
        assert run.busiest_share <= 0.6


def test_conversations_stay_on_their_nodes_unless_by_round_robin() -> None:
    alone = simulated(MULTITURN, None, 1, Thresholds(), "1").total.computed_tokens
    turns, prefixes, events = (run.total.computed_tokens for run in by_policy(MULTITURN, 4))
    assert turns > 1.5 * alone
    assert prefixes == pytest.approx(alone, rel=0.05)
    assert events == pytest.approx(alone, rel=0.05)


def test_several_shared_prompts_have_their_requests_mixed() -> None:
    one, four = (simulated(SHARED, CACHE_AWARE, 1, Thresholds(), "1", number) for number in (1, 4))
    assert one.total.requests == four.total.requests == 24
    assert four.total.computed_tokens > one.total.computed_tokens + 3 * 700


def test_a_prediction_needs_a_model_of_the_policy() -> None:
    run = simulated(SHARED, ROUND_ROBIN, 2, Thresholds(), "1")
    assert predicted(run, SHARED, ROUND_ROBIN, Thresholds(), "1").deviation == 0
    (unknown,) = choices("smg:power_of_two")
    assert predicted(run, SHARED, unknown, Thresholds(), "1") is run


def test_numbers_of_nodes_double_up_to_the_last() -> None:
    assert numbers_of_nodes(1) == [1]
    assert numbers_of_nodes(8) == [1, 2, 4, 8]
    assert numbers_of_nodes(6) == [1, 2, 4, 6]
    assert numbers_of_nodes(32) == [1, 2, 4, 8, 16, 32]
