"""The bare loop on a tiny model: it computes the same token ids, and none twice."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from api.text.template import ChatTemplate
from bench.bare import DRAFTS, BareLoop, Schedule
from bench.records import BenchError
from bench.talks import Conversation, Request, common_prefix, conversations
from bench.workloads import Settings, resolve, sessions

if TYPE_CHECKING:
    from api.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def loop(tiny_model_path: str) -> BareLoop:
    return BareLoop(Path(tiny_model_path), kv_tokens=512, threads=1)


Talks = Callable[[Settings], tuple[list[Conversation], int]]


@pytest.fixture(scope="module")
def talks_of(tokenizer: "Tokenizer") -> Talks:
    """The conversations of a workload, and its users."""
    template = ChatTemplate(tokenizer.chat_template, tokenizer)

    def talks(settings: Settings) -> tuple[list[Conversation], int]:
        scripts, users = sessions(resolve(settings), Random(0))
        return conversations(scripts, template, tokenizer, Random(0)), users

    return talks


def test_the_length_of_a_common_prefix() -> None:
    assert common_prefix((1, 2, 3), (1, 2, 4)) == 2
    assert common_prefix((), (1,)) == 0
    assert common_prefix((1, 2), (1, 2)) == 2


def test_shared_prefixes_are_found_beforehand(talks_of: Talks) -> None:
    talks, users = talks_of(Settings(workload="burst", users=3, prompt_tokens=80))
    assert (len(talks), users) == (3, 3)
    assert talks[0].source is None
    assert [talk.source for talk in talks[1:]] == [0, 0]
    assert all(50 < talk.shared < len(talk.requests[0].prompt) for talk in talks[1:])


def test_a_turn_continues_from_the_answer_before(talks_of: Talks) -> None:
    talks, _ = talks_of(Settings(workload="agents", users=2, turns=3, output_tokens=5, prompt_tokens=60))
    for talk in talks:
        for one, following in pairwise(talk.requests):
            assert following.prompt[: len(one.prompt) + 5] == one.prompt + one.answer


@pytest.mark.parametrize("prompts_first", [False, True])
def test_conversations_are_played_to_their_end(talks_of: Talks, loop: BareLoop, prompts_first: bool) -> None:
    talks, users = talks_of(Settings(workload="agents", users=3, turns=2, output_tokens=3, prompt_tokens=60))
    records = loop.play(talks, users, Schedule(64, prompts_first=prompts_first))
    assert len(records) == 6
    assert {len(record.chunks) for record in records} == {3}
    assert all(record.start <= record.chunks[0] < record.chunks[-1] == record.end for record in records)
    computed = [(record.prompt_tokens or 0) - (record.cached_tokens or 0) for record in records]
    assert sum(tokens > 50 for tokens in computed) == 1  # the tools' description, once
    assert all(tokens >= 1 for tokens in computed)


def test_the_oldest_idle_sequences_are_removed_first(talks_of: Talks, loop: BareLoop) -> None:
    talks, _ = talks_of(Settings(workload="uniform", users=2, output_tokens=2, prompt_tokens=200))
    loop.fill(loop.kv_tokens)
    records = loop.play([*talks, *talks], 1, Schedule())  # two fit
    assert len(records) == 4
    assert all(later.start >= earlier.end for earlier, later in pairwise(records))


def test_lanes_share_a_prefix_within_a_run_only(talks_of: Talks, tiny_model_path: str) -> None:
    talks, users = talks_of(Settings(workload="uniform", users=2, output_tokens=2))
    lanes = BareLoop(Path(tiny_model_path), lanes=2, lane_tokens=256, threads=1)
    for _ in range(2):
        records = lanes.play(talks, users, Schedule(64, prompts_first=True))
        assert sorted(record.cached_tokens or 0 for record in records) == [0, 24]


def test_a_conversation_longer_than_the_memory_is_refused(loop: BareLoop) -> None:
    long = Conversation((Request(tuple(range(loop.kv_tokens)), (1,)),))
    with pytest.raises(BenchError, match="holds"):
        loop.play([long], 1, Schedule())


@pytest.mark.parametrize("by_turns", [False, True])
def test_a_shared_prefix_uses_memory_once(talks_of: Talks, loop: BareLoop, by_turns: bool) -> None:
    loop.empty()
    talks, _ = talks_of(Settings(workload="burst", users=6, output_tokens=3, prompt_tokens=250))
    assert sum(talk.length for talk in talks) > 2 * loop.kv_tokens
    for _ in range(2):
        records = loop.play(talks, 6, Schedule(64, by_turns=by_turns))
        assert sorted((record.cached_tokens or 0) > 200 for record in records) == [False] + [True] * 5
        assert max(record.start for record in records) < min(record.end for record in records)


@pytest.fixture(scope="module")
def drafting(tiny_model_path: str) -> BareLoop:
    return BareLoop(Path(tiny_model_path), lanes=4, lane_tokens=512, threads=1, verified_rows=16)


def test_drafts_make_fewer_and_larger_steps_of_the_same_tokens(talks_of: Talks, drafting: BareLoop) -> None:
    talks, users = talks_of(Settings(workload="edit", users=2, turns=1, prompt_tokens=180, output_tokens=20))
    records = drafting.play(talks, users, Schedule(prompts_first=True, drafts=5))
    assert [record.completion_tokens for record in records] == [20, 20]
    assert {len(record.chunks) for record in records} == {1 + 4}, "19 tokens after the first, 6 in each step"
    records = drafting.play(talks, users, Schedule(prompts_first=True, drafts=63))
    assert {len(record.chunks) for record in records} == {1 + 3}, "a step has at most 16 rows"


def test_numbers_of_drafts_are_rated_up_to_the_rows_of_a_step(talks_of: Talks, drafting: BareLoop) -> None:
    talks, _ = talks_of(Settings(workload="edit", users=2, turns=1, prompt_tokens=180, output_tokens=8))
    drafting.empty()
    rates = drafting.drafting_rates(talks)
    assert list(rates) == [drafts for drafts in DRAFTS if 2 * (drafts + 1) <= 16]
    assert all(rate > 0 for rate in rates.values())
    assert len(drafting.play(talks, 2, Schedule(prompts_first=True))) == 2, "nothing is left in memory"


def test_questions_that_are_asked_again_are_marked(talks_of: Talks, drafting: BareLoop) -> None:
    talks, users = talks_of(Settings(workload="regenerate", users=2, output_tokens=3))
    records = drafting.play(talks, users, Schedule(prompts_first=True, drafts=1))
    assert sorted(record.role for record in records) == ["", "", "first", "first"]
    cached = [record.cached_tokens for record in records if not record.role]
    assert all(tokens is not None and tokens > 40 for tokens in cached), "the prompt is still in memory"
