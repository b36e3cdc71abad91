"""How workloads are played, in virtual time, against a chat of given durations."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from bench import load, workloads
from bench.load import closed_loop, once, open_loop, repeat
from bench.records import BenchError
from bench.workloads import Session, Settings, Turn, Workload, resolve
from tests.bench.fakes import FakeChat


def single(at: float = 0.0) -> Session:
    return Session((Turn(({"role": "user", "content": "hello"},), 2),), at)


async def test_a_closed_loop_keeps_exactly_its_users_busy(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=1.0, gap=0.5)  # 2 s for each
    records = await closed_loop([single() for _ in range(10)], 3, chat)
    assert len(records) == 10
    assert chat.peak == 3
    assert [start - chat.starts[0] for start in chat.starts] == [0.0] * 3 + [2.0] * 3 + [4.0] * 3 + [6.0]


async def test_an_open_loop_starts_sessions_when_they_are_due(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=100.0)
    records, late = await open_loop([single(at) for at in (0.0, 0.5, 0.5, 3.0)], chat)
    assert len(records) == 4
    assert chat.peak == 4
    assert [start - chat.starts[0] for start in chat.starts] == pytest.approx([0.0, 0.5, 0.5, 3.0])
    assert late == pytest.approx(0.0)


async def test_a_conversation_holds_the_servers_answers(autojump_clock: MockClock) -> None:
    chat = FakeChat()
    settings = resolve(Settings(workload="multiturn", users=1, turns=3))
    repetition = await load.multiturn(settings, Random(0), chat)
    assert len(repetition.records) == 3
    first, second, third = (ask.messages for ask in chat.asks)
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert second[len(first)] == {"role": "assistant", "content": "answer 0"}
    assert [message["role"] for message in third] == ["system", *["user", "assistant"] * 2, "user"]


async def test_a_conversation_ends_with_its_first_error(autojump_clock: MockClock) -> None:
    chat = FakeChat(fails=lambda ask: len(ask.messages) > 2)
    settings = resolve(Settings(workload="multiturn", users=2, turns=4))
    records = (await load.multiturn(settings, Random(0), chat)).records
    assert [record.error for record in records] == [None, None, "refused", "refused"]


async def test_a_burst_is_one_request_alone_and_then_all_at_once(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=3.0, gap=0.5)
    settings = resolve(Settings(workload="burst", output_tokens=4))
    repetition = await load.burst(settings, Random(0), chat)
    assert chat.starts[0] == 0.0
    assert chat.starts[1:] == [6.0] * 16  # 5 s alone, then a pause of 1 s
    assert chat.peak == 16
    assert repetition.measures == {"alone_wall_s": 5.0, "wall_ratio": 1.0}
    assert (len(repetition.records), [record.role for record in repetition.aside]) == (16, ["alone"])
    texts = [ask.messages[0]["content"] for ask in chat.asks]
    assert len(set(texts)) == 2  # the 16 share theirs, and the request alone did not cache it
    assert texts[0] != texts[1]


async def test_a_burst_that_partly_failed_has_no_ratio(autojump_clock: MockClock) -> None:
    settings = resolve(Settings(workload="burst"))
    chat = FakeChat()
    chat.fails = lambda ask: ask is chat.asks[-1]
    assert (await load.burst(settings, Random(0), chat)).measures["wall_ratio"] is None


async def test_structured_plays_free_streams_and_then_constrained_ones(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=1.0, gap=0.5)
    settings = resolve(Settings(workload="structured", output_tokens=4))
    repetition = await load.structured(settings, Random(0), chat)
    assert chat.starts == [0.0] * 16 + [4.0] * 16
    assert chat.peak == 16
    assert [record.role for record in repetition.aside] == ["free"] * 16
    assert repetition.measures["throughput_ratio"] == pytest.approx(1.0)
    schemas = [str(ask.fields["response_format"]) for ask in chat.asks if ask.fields]
    assert len(schemas) == len(set(schemas)) == 16
    assert not any(ask.fields for ask in chat.asks[:16])


async def test_interference_plays_a_long_prompt_alone_and_then_beside_streams(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=1.0, gap=0.25)
    settings = resolve(Settings(workload="interference", output_tokens=2))
    repetition = await load.interference(settings, Random(0), chat)
    roles = [ask.role for ask in chat.asks]
    assert roles == ["idle", *["stream"] * 6, "long"]
    # The prompt alone: 0 to 1.5. Pause: to 2.5. The fourth chunk of the streams: 4.25.
    assert chat.starts == pytest.approx([0.0, *[2.5] * 6, 4.25])
    *streams, long = repetition.records
    assert long.role == "long"
    assert all(stream.aborted for stream in streams)
    assert {stream.end for stream in streams} == {long.end}  # closed when the long request ends
    assert repetition.measures["gap_s"] == pytest.approx(0.25)
    assert repetition.measures["ttft_ratio"] == pytest.approx(1.0)
    assert repetition.measures["streams_ended_early"] == 0.0
    idle_text, long_text = chat.asks[0].messages[0]["content"], chat.asks[-1].messages[0]["content"]
    assert len(idle_text.split()) == len(long_text.split()) == 2500
    assert idle_text.split()[:8] != long_text.split()[:8]


async def test_interference_does_not_wait_for_streams_that_never_flow(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "STREAM_TOKENS", 1)
    chat = FakeChat()
    with trio.fail_after(60):
        repetition = await load.interference(resolve(Settings(workload="interference")), Random(0), chat)
    assert repetition.measures["streams_ended_early"] == 6.0
    assert repetition.measures["gap_s"] is None


@pytest.mark.parametrize(
    "workload",
    [
        "single",
        "uniform",
        "shared",
        "burst",
        "interference",
        "multiturn",
        "structured",
        "fairness",
        "weights",
        "tenants",
    ],
)
async def test_no_two_repetitions_or_runs_send_the_same_texts(
    autojump_clock: MockClock, workload: workloads.Workload
) -> None:
    given = Settings(workload=workload)
    if workload == "fairness":
        given = replace(given, users=2, requests=3)
    elif workload in ("weights", "tenants"):
        given = replace(given, users=2, seconds=3.0)

    async def texts(*, times: int, seed: int = 0, salt: int = 0) -> set[str]:
        chat = FakeChat()
        repetitions = await repeat(resolve(given), chat, times=times, seed=seed, salt=salt, time_limit=60)
        assert len(repetitions) == times
        return {ask.messages[0]["content"] for ask in chat.asks}

    once = await texts(times=1)
    assert await texts(times=1) == once
    assert once < await texts(times=2)
    assert not once & await texts(times=1, salt=1)
    assert not once & await texts(times=1, seed=1)


async def test_a_trace_that_is_longer_than_the_time_limit_is_refused(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,9,9\n2023-11-16 18:30:00,9,9\n")

    async def play(speed: float) -> None:
        settings = resolve(Settings(workload="trace", trace=path, speed=speed))
        (repetition,) = await repeat(settings, FakeChat(), times=1, seed=0, salt=0, time_limit=600)
        assert len(repetition.records) == 2
        assert repetition.measures["late_max_s"] == pytest.approx(0.0)

    with pytest.raises(BenchError, match="takes 900 s"):
        await play(2.0)
    await play(10.0)


async def test_questions_that_are_asked_again_are_measured_the_second_time(autojump_clock: MockClock) -> None:
    chat = FakeChat(first=1.0, gap=0.5)
    settings = resolve(Settings(workload="regenerate", users=3, output_tokens=5))
    repetition = await load.regenerate(settings, Random(0), chat)
    assert [ask.messages for ask in chat.asks[:3]] == [ask.messages for ask in chat.asks[3:]]
    assert len({ask.messages[0]["content"] for ask in chat.asks}) == 3
    assert (len(repetition.records), {record.role for record in repetition.aside}) == (3, {"first"})
    assert repetition.measures["stream_ratio"] == pytest.approx(1.0)
    assert repetition.measures["same_answer_share"] == 0.0, "the fake's answers are numbered"


@pytest.mark.parametrize("workload", ["edit", "rag"])
async def test_answers_that_repeat_a_text_are_completions(autojump_clock: MockClock, workload: Workload) -> None:
    chat = FakeChat()
    settings = resolve(Settings(workload=workload, users=2, turns=2, output_tokens=3))
    repetition = await once(settings, Random(0), chat)
    assert [(len(ask.prompts), ask.messages) for ask in chat.asks] == [(1, ())] * 4
    assert len({ask.prompts for ask in chat.asks}) == 4
    assert repetition.measures["repeated_share"] is None, "the fake's answers have two words"
