"""Workloads of several tenants, in virtual time, against a chat of given durations."""

from collections.abc import Callable
from random import Random

import pytest
import trio
from trio.testing import MockClock

from bench.fairness import IDLE_QUESTIONS, PATIENCE_SECONDS, WARM_UP_SECONDS, Phase, fairness, tenants, weights
from bench.records import Ask, Record
from bench.workloads import LIST_PROMPTS, Settings, Variant, resolve
from tests.bench.fakes import FakeChat, record

IDLE_SECONDS = IDLE_QUESTIONS * (1.0 + 8 * 0.5 + 1.0)
"""Each question has its first token after a second and 8 tokens, and is followed by a pause."""


def settings(*, users: int = 0, requests: int, output_tokens: int = 0, variant: Variant = "flood") -> Settings:
    return resolve(
        Settings(workload="fairness", users=users, requests=requests, output_tokens=output_tokens, variant=variant)
    )


async def test_a_stranger_asks_alone_and_beside_a_flood(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=1.0, gap=0.5)
    records, aside, measures = await fairness(settings(users=3, requests=20), Random(0), chat)
    assert [ask.tenant for ask in chat.asks[:IDLE_QUESTIONS]] == ["B"] * IDLE_QUESTIONS
    begin = chat.starts[0] + IDLE_SECONDS
    alone = [start - begin for start, ask in zip(chat.starts, chat.asks, strict=True) if ask.tenant == "A"]
    assert alone[:6] == pytest.approx([0.0, 0.0, 0.0, 17.0, 17.0, 17.0])
    together = begin + WARM_UP_SECONDS + 20 + 1
    asked = [start - together for start, ask in zip(chat.starts, chat.asks, strict=True) if ask.tenant == "B"]
    assert asked[IDLE_QUESTIONS:] == pytest.approx([WARM_UP_SECONDS + number for number in range(20)])
    assert len(records) == 20
    assert {each.role for each in aside} == {"idle", "alone", "A"}
    assert chat.running == 0  # everything was closed
    assert measures["idle_ttft_p50_s"] == pytest.approx(1.0)
    assert measures["ttft_p50_ratio"] == pytest.approx(1.0)
    assert measures["ttft_p95_s"] == pytest.approx(1.0)
    assert measures["longest_gap_s"] == pytest.approx(0.5)
    assert measures["ttft_p95_over_gap_s"] == pytest.approx(-0.5)
    assert measures["unanswered"] == 0.0
    assert measures["load_throughput_ratio"] == pytest.approx(1.0)
    rate = measures["load_tokens_per_s"]
    assert rate is not None
    assert 3 * 1.7 < rate < 3 * 2.0  # two tokens a second of each user, with pauses of a second


async def test_the_texts_are_as_long_as_the_settings_say(autojump_clock: MockClock) -> None:
    chat = FakeChat()
    await fairness(settings(users=2, requests=5), Random(0), chat)
    words = {(ask.tenant, len(ask.messages[-1]["content"].split()), ask.max_tokens) for ask in chat.asks}
    assert words == {("A", 60, 32), ("B", 12, 8)}
    texts = [ask.messages[-1]["content"] for ask in chat.asks]
    assert len(set(texts)) == len(texts)


async def test_one_request_with_many_prompts_is_closed_at_the_end(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=5.0, gap=1.0)
    _, aside, _ = await fairness(settings(requests=5, variant="list", output_tokens=200), Random(0), chat)
    lists = [ask for ask in chat.asks if ask.prompts]
    assert [len(ask.prompts) for ask in lists] == [LIST_PROMPTS] * 2
    assert all(each.aborted for each in aside if each.role in ("alone", "A"))


async def test_the_classes_are_fields_of_the_requests(autojump_clock: MockClock) -> None:
    chat = FakeChat()
    await fairness(settings(users=2, requests=5, variant="priority"), Random(0), chat)
    assert {(ask.tenant, ask.fields["priority"]) for ask in chat.asks} == {("A", "batch"), ("B", "interactive")}


async def test_users_stop_after_an_error(autojump_clock: MockClock) -> None:
    chat = FakeChat(fails=lambda ask: ask.tenant == "A")
    _, aside, _ = await fairness(settings(users=4, requests=20), Random(0), chat)
    assert [each.role for each in aside if each.error] == ["alone"] * 4 + ["A"] * 4


async def test_questions_without_an_answer_count_with_their_wait(autojump_clock: MockClock) -> None:
    idle, busy = FakeChat(first=1.0), FakeChat(first=1000.0)

    async def chat(
        ask: Ask, *, abort: trio.CancelScope | None = None, watch: Callable[[int], None] | None = None
    ) -> Record:
        return await (busy if len(idle.asks) >= IDLE_QUESTIONS else idle)(ask, abort=abort, watch=watch)

    _, _, measures = await fairness(settings(users=2, requests=5), Random(0), chat)
    assert measures["unanswered"] == 5.0
    assert measures["ttft_p50_ratio"] == pytest.approx(PATIENCE_SECONDS + 3.0)


async def test_the_shares_of_two_flooding_tenants(autojump_clock: MockClock) -> None:
    fast, slow = FakeChat(first=0.0, gap=0.5), FakeChat(first=0.0, gap=1.5)

    async def chat(
        ask: Ask, *, abort: trio.CancelScope | None = None, watch: Callable[[int], None] | None = None
    ) -> Record:
        return await (fast if ask.tenant == "heavy" else slow)(ask, abort=abort, watch=watch)

    given = resolve(Settings(workload="weights", users=2, seconds=30, output_tokens=1000))
    records, aside, measures = await weights(given, Random(0), chat)
    assert (len(records), aside) == (4, [])
    assert measures == pytest.approx({"heavy_tokens_per_s": 4.0, "light_tokens_per_s": 4 / 3, "tokens_ratio": 3.0})


async def test_tenants_have_their_own_system_prompts(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=1.0, gap=0.5)
    given = resolve(Settings(workload="tenants", users=2, seconds=30))
    records, first, measures = await tenants(given, Random(0), chat)
    assert [ask.tenant for ask in chat.asks[:8]] == [f"tenant{number}" for number in range(1, 9)]
    assert [each.role for each in first] == ["first"] * 8
    systems = {(ask.tenant, ask.messages[0]["content"]) for ask in chat.asks}
    assert len(systems) == len({tenant for tenant, _ in systems}) == 8
    assert {len(system.split()) for _, system in systems} == {708}
    assert measures["jain_index"] == pytest.approx(1.0)
    assert len(records) + len(first) == len(chat.asks)


async def test_only_tokens_after_the_warm_up_count() -> None:
    phase = Phase(FakeChat(), 10.0)
    late = (WARM_UP_SECONDS - 1, WARM_UP_SECONDS, WARM_UP_SECONDS + 9, WARM_UP_SECONDS + 10)
    phase.records = [record(0.5, 1.0, role="A", tokens=2), record(*late, role="A", tokens=8), record(5.0, role="B")]
    assert phase.tokens_per_s("A") == pytest.approx(8 * 2 / 4 / 10)
    assert phase.tokens_per_s("B") == 0.0
