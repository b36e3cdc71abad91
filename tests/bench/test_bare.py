"""The bare loop on the real small model: it computes the same token ids, and none twice."""

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from api.text.template import ChatTemplate
from bench.bare import BareLoop, Conversation, Request, Schedule, common_prefix, conversations
from bench.records import BenchError
from bench.workloads import Settings, resolve, sessions

if TYPE_CHECKING:
    from api.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def template(tokenizer: "Tokenizer") -> ChatTemplate:
    return ChatTemplate(tokenizer.chat_template, tokenizer)


@pytest.fixture(scope="module")
def loop(model_path: str) -> BareLoop:
    return BareLoop(Path(model_path), kv_tokens=512, threads=1)


def talks_of(template: ChatTemplate, settings: Settings) -> tuple[list[Conversation], int]:
    scripts, users = sessions(resolve(settings), Random(0))
    return conversations(scripts, template, Random(0)), users


def test_the_length_of_a_common_prefix() -> None:
    assert common_prefix((1, 2, 3), (1, 2, 4)) == 2
    assert common_prefix((), (1,)) == 0
    assert common_prefix((1, 2), (1, 2)) == 2


def test_shared_prefixes_are_found_beforehand(template: ChatTemplate) -> None:
    talks, users = talks_of(template, Settings(workload="burst", users=3, prompt_tokens=80))
    assert (len(talks), users) == (3, 3)
    assert talks[0].source is None
    assert [talk.source for talk in talks[1:]] == [0, 0]
    assert all(50 < talk.shared < len(talk.requests[0].prompt) for talk in talks[1:])


def test_a_turn_continues_from_the_answer_before(template: ChatTemplate) -> None:
    talks, _ = talks_of(template, Settings(workload="agents", users=2, turns=3, output_tokens=5, prompt_tokens=60))
    for talk in talks:
        for one, following in pairwise(talk.requests):
            assert following.prompt[: len(one.prompt) + 5] == one.prompt + one.answer


@pytest.mark.parametrize("prompts_first", [False, True])
def test_conversations_are_played_to_their_end(template: ChatTemplate, loop: BareLoop, prompts_first: bool) -> None:
    talks, users = talks_of(template, Settings(workload="agents", users=3, turns=2, output_tokens=3, prompt_tokens=60))
    records = loop.play(talks, users, Schedule(64, prompts_first=prompts_first))
    assert len(records) == 6
    assert {len(record.chunks) for record in records} == {3}
    assert all(record.start <= record.chunks[0] < record.chunks[-1] == record.end for record in records)
    computed = [(record.prompt_tokens or 0) - (record.cached_tokens or 0) for record in records]
    assert sum(tokens > 50 for tokens in computed) == 1  # the tools' description, once
    assert all(tokens >= 1 for tokens in computed)


def test_the_oldest_idle_sequences_are_removed_first(template: ChatTemplate, loop: BareLoop) -> None:
    talks, _ = talks_of(template, Settings(workload="uniform", users=2, output_tokens=2, prompt_tokens=200))
    loop.fill(loop.kv_tokens)
    records = loop.play([*talks, *talks], 1, Schedule())  # two fit
    assert len(records) == 4
    assert all(later.start >= earlier.end for earlier, later in pairwise(records))


def test_lanes_share_a_prefix_within_a_run_only(template: ChatTemplate, model_path: str) -> None:
    talks, users = talks_of(template, Settings(workload="uniform", users=2, output_tokens=2))
    lanes = BareLoop(Path(model_path), lanes=2, lane_tokens=256, threads=1)
    for _ in range(2):
        records = lanes.play(talks, users, Schedule(64, prompts_first=True))
        assert sorted(record.cached_tokens or 0 for record in records) == [0, 24]


def test_a_conversation_longer_than_the_memory_is_refused(loop: BareLoop) -> None:
    long = Conversation((Request(tuple(range(loop.kv_tokens)), (1,)),))
    with pytest.raises(BenchError, match="holds"):
        loop.play([long], 1, Schedule())


@pytest.mark.parametrize("by_turns", [False, True])
def test_a_shared_prefix_uses_memory_once(template: ChatTemplate, loop: BareLoop, by_turns: bool) -> None:
    loop.empty()
    talks, _ = talks_of(template, Settings(workload="burst", users=6, output_tokens=3, prompt_tokens=250))
    assert sum(talk.length for talk in talks) > 2 * loop.kv_tokens
    for _ in range(2):
        records = loop.play(talks, 6, Schedule(64, by_turns=by_turns))
        assert sorted((record.cached_tokens or 0) > 200 for record in records) == [False] + [True] * 5
        assert max(record.start for record in records) < min(record.end for record in records)
