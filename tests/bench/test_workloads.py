"""The messages of the workloads, and when they are due."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from trio.testing import MockClock

from bench import workloads
from bench.load import once
from bench.records import BenchError
from bench.words import WORDS, words
from bench.workloads import Session, Settings, longest, read_trace, resolve
from tests.bench.fakes import FakeChat

if TYPE_CHECKING:
    from api.text.tokenizer import Tokenizer

ROWS = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.9805900,5000,109\r
2023-11-16 18:15:48.6805900,10,0\r
2023-11-16 18:16:46.6805900,100,10\r
"""


def first_words(session: Session) -> str:
    return session.turns[0].messages[0]["content"]


def test_a_word_is_a_token(tokenizer: "Tokenizer") -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert len(tokenizer.encode(" ".join(WORDS), parse_special=False)) == len(WORDS)
    assert all(len(tokenizer.encode(word, parse_special=False)) == 1 for word in WORDS)
    assert len(words(100, Random(1)).split()) == 100


def test_texts_follow_from_the_seed() -> None:
    settings = resolve(Settings(workload="multiturn"))
    assert workloads.multiturn(settings, Random("a")) == workloads.multiturn(settings, Random("a"))
    assert workloads.multiturn(settings, Random("a")) != workloads.multiturn(settings, Random("b"))


def test_uniform_prompts_differ_from_their_first_word() -> None:
    settings = resolve(Settings(workload="uniform", requests=50))
    sessions = workloads.uniform(settings, Random(0))
    assert len(sessions) == 50
    assert len({first_words(session).split()[0] for session in sessions}) == 50
    assert {len(first_words(session).split()) for session in sessions} == {100}  # 130 with the template
    assert {turn.max_tokens for session in sessions for turn in session.turns} == {48}


def test_shared_requests_share_the_system_prompt_only() -> None:
    sessions = workloads.shared(resolve(Settings(workload="burst")), Random(0), 16)
    assert len({session.turns[0].messages[0]["content"] for session in sessions}) == 1
    assert len({session.turns[0].messages[1]["content"] for session in sessions}) == 16
    assert len(first_words(sessions[0]).split()) == 704
    assert [message["role"] for message in sessions[0].turns[0].messages] == ["system", "user"]


def test_conversations_have_the_set_number_of_turns() -> None:
    settings = resolve(Settings(workload="multiturn", users=3, turns=4, requests=10))
    sessions = workloads.multiturn(settings, Random(0))
    assert [len(session.turns) for session in sessions] == [4, 4, 2]
    assert [message["role"] for message in sessions[0].turns[0].messages] == ["system", "user"]
    assert [message["role"] for message in sessions[0].turns[1].messages] == ["user"]
    assert len(first_words(sessions[0]).split()) == 100
    assert len({first_words(session) for session in sessions}) == 3


def test_agents_share_the_system_prompt() -> None:
    agents = workloads.agents(resolve(Settings(workload="agents")), Random(0))
    assert [len(session.turns) for session in agents] == [6] * 8
    assert len({first_words(session) for session in agents}) == 1
    assert len(first_words(agents[0]).split()) == 1000
    questions = [turn.messages[-1]["content"] for session in agents for turn in session.turns]
    assert len(set(questions)) == 48
    assert {len(question.split()) for question in questions} == {20}


@pytest.mark.parametrize("workload", ["single", "uniform", "shared", "burst", "multiturn", "agents", "edit", "rag"])
async def test_sessions_match_the_played_workload(autojump_clock: MockClock, workload: workloads.Workload) -> None:
    settings = resolve(Settings(workload=workload))
    chat = FakeChat()
    repetition = await once(settings, Random(0), chat)
    scripts, users = workloads.sessions(settings, Random(0))
    assert sum(len(session.turns) for session in scripts) == len(repetition.records)
    assert chat.peak == users
    firsts = {"".join(ask.prompts) or ask.messages[-1]["content"] for ask in chat.asks}
    turns = [session.turns[0] for session in scripts]
    assert {turn.prompt or turn.messages[-1]["content"] for turn in turns} <= firsts


def test_interference_has_no_bare_loop() -> None:
    with pytest.raises(BenchError, match="no bare loop"):
        workloads.sessions(resolve(Settings(workload="interference")), Random(0))


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        (Settings(workload="uniform"), 178),
        (Settings(workload="interference"), 2546),
        (Settings(workload="interference", prompt_tokens=50), 442),
        (Settings(workload="multiturn", turns=2), 174 + 48 + 60 + 12 + 48),
        (Settings(workload="agents", turns=3), 1034 + 24 + 2 * (20 + 12 + 24)),
        (Settings(workload="edit"), 1930 + 544),
        (Settings(workload="trace", trace=Path("x"), max_context=900), 900),
    ],
)
def test_the_length_of_the_longest_request(settings: Settings, tokens: int) -> None:
    assert longest(resolve(settings)) == tokens


def test_rows_of_a_trace_are_sorted_by_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(ROWS)
    rows = [(0.0, 374, 44), (2.0, 10, 0), (4.3, 5000, 109), (60.0, 100, 10)]
    assert read_trace(path, 10) == rows
    assert read_trace(path, 3) == rows[:3]


def test_a_trace_is_scaled_in_time_and_capped_in_length(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(ROWS)
    settings = resolve(Settings(workload="trace", trace=path, speed=10, max_context=500, max_output=100, limit=4))
    sessions = workloads.trace(settings, Random(0))
    assert [session.at for session in sessions] == pytest.approx([0.0, 0.2, 0.43, 6.0])
    assert [session.turns[0].max_tokens for session in sessions] == [44, 1, 100, 10]
    # The template has 30 of the tokens, and a prompt has at least one word.
    assert [len(first_words(session).split()) for session in sessions] == [344, 1, 370, 70]


@pytest.mark.parametrize(
    "text", ["", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "TIMESTAMP,ContextTokens\nnow,1\n", "a,b\n1,2\n"]
)
def test_a_trace_that_cannot_be_read_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    with pytest.raises(BenchError, match=r"trace\.csv"):
        read_trace(path, 10)
    path.write_text(text)
    with pytest.raises(BenchError, match=r"trace\.csv"):
        read_trace(path, 10)


@pytest.mark.parametrize(
    ("given", "users", "requests"),
    [
        (Settings(workload="single"), 1, 4),
        (Settings(workload="agents"), 8, 48),
        (Settings(workload="uniform"), 8, 8),
        (Settings(workload="uniform", users=32), 32, 32),
        (Settings(workload="uniform", users=4, requests=10), 4, 10),
        (Settings(workload="shared"), 16, 48),
        (Settings(workload="multiturn", users=2, turns=3), 2, 6),
        (Settings(workload="burst", users=5), 5, 16),
        (Settings(workload="fairness"), 64, 30),
        (Settings(workload="tenants", users=2), 2, 0),
    ],
)
def test_default_users_and_requests(given: Settings, users: int, requests: int) -> None:
    settings = resolve(given)
    assert (settings.users, settings.requests) == (users, requests)
    assert resolve(replace(given, prompt_tokens=50, output_tokens=5)).output_tokens == 5


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (Settings(workload="single", users=3), "--users does not apply"),
        (Settings(workload="burst", requests=3), "--requests does not apply"),
        (Settings(workload="interference", requests=3), "--requests does not apply"),
        (Settings(workload="trace", trace=Path("x"), prompt_tokens=3), "--prompt-tokens does not apply"),
        (Settings(workload="trace"), "needs --trace"),
        (Settings(workload="weights", requests=3), "--requests does not apply"),
        (Settings(workload="fairness", seconds=3), "--seconds does not apply"),
        (Settings(workload="tenants", variant="list"), "--variant does not apply"),
        (Settings(workload="trace", trace=Path("x"), max_context=100, max_output=90), "no room"),
    ],
)
def test_settings_that_do_not_fit_the_workload_are_refused(given: Settings, error: str) -> None:
    with pytest.raises(BenchError, match=error):
        resolve(given)
