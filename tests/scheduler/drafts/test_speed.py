"""What drafts gain and cost, in the time of steps of a small model on two cores."""

from random import Random

import pytest

from scheduler.drafts.amount import Amounts, step_passes
from scheduler.drafts.drafting import Drafting
from scheduler.drafts.passes import PassSeconds
from scheduler.drafts.prediction import PredictionDrafter
from scheduler.drafts.suffix import SuffixDrafter
from scheduler.pacing import Pacer
from scheduler.plan import Plan
from tests.scheduler.drafts.test_amount import pass_seconds
from tests.scheduler.fakes import System

SECONDS_PER_TOKEN = 1 / 250
HEAD = 6
"""Tokens at the beginning of a prompt that name the request."""


def step_seconds(plan: Plan) -> float:
    return SECONDS_PER_TOKEN * plan.num_prefill or sum(map(pass_seconds, step_passes(plan, in_lanes=True)))


def novel(random: Random, length: int) -> list[int]:
    """Tokens of which few are frequent, as in a text."""
    return [int(min(random.paretovariate(0.6), 5000)) + 10 for _ in range(length)]


def edited(random: Random, text: list[int]) -> list[int]:
    """The text with a small change every 200 tokens."""
    answer: list[int] = []
    while len(answer) < len(text):
        answer += text[len(answer) : len(answer) + 200]
        answer[-3:] = novel(random, 3)
    return answer[: len(text)]


def seconds_of(asks: list[tuple[list[int], list[int]]], *, drafts: bool, num_slow: int = 0) -> float:
    """Returns how long the answers take. `asks`: prompts and answers.

    Each of the first `num_slow` steps of answers takes three times as long, as on a machine that is busy at the start.
    The result does not count that.
    """
    drafting = None
    if drafts:
        amounts = Amounts(PassSeconds(SECONDS_PER_TOKEN, pass_seconds(1)), Pacer(SECONDS_PER_TOKEN), in_lanes=True)
        drafting = Drafting([PredictionDrafter(), SuffixDrafter()], amounts)
    steps: list[float] = []

    def measured_seconds(plan: Plan) -> float:
        seconds = step_seconds(plan)
        if plan.num_prefill:
            return seconds
        steps.append(seconds)
        return seconds * (3 if len(steps) <= num_slow else 1)

    system = System(lanes=True, max_seqs=8, ctx_len=1024, seconds=measured_seconds, drafting=drafting)
    scripts = {tuple(prompt[:HEAD]): (len(prompt), answer) for prompt, answer in asks}

    def sample(tokens: list[int]) -> int:
        num_prompt, answer = scripts[tuple(tokens[:HEAD])]
        return answer[len(tokens) - num_prompt]

    system.runner.sample = sample
    for number, (prompt, answer) in enumerate(asks):
        system.submit(number, prompt, len(answer))
    while system.scheduler.has_work:
        system.step()
    assert [system.tokens[number] for number in range(len(asks))] == [answer for _, answer in asks]
    return sum(steps)


@pytest.mark.parametrize("users", [1, 8])
def test_novel_texts_are_not_slower(users: int) -> None:
    random = Random(users)
    asks = [([number] * HEAD + novel(random, 100), novel(random, 200)) for number in range(users)]
    assert seconds_of(asks, drafts=True) <= seconds_of(asks, drafts=False) / 0.98


def patchwork(random: Random, text: list[int]) -> list[int]:
    """Short parts of the text with new tokens between, of which drafts gain nothing."""
    answer: list[int] = []
    while len(answer) < 64:
        place = random.randrange(len(text) - 20)
        answer += text[place : place + 10] + novel(random, 4)
    return answer[:64]


@pytest.mark.parametrize("num_slow", [0, 3])
def test_slow_first_steps_make_no_draft_look_cheap(num_slow: int) -> None:
    plain = drafted = 0.0
    for seed in range(3):
        random = Random(seed)
        text = novel(random, 400)
        asks = [([seed + 1] * HEAD + text, patchwork(random, text))]
        plain += seconds_of(asks, drafts=False)
        drafted += seconds_of(asks, drafts=True, num_slow=num_slow)
    assert drafted <= plain / 0.95


def test_an_edited_text_is_much_faster() -> None:
    random = Random(1)
    text = novel(random, 480)
    asks = [([1] * HEAD + text, edited(random, text))]
    assert seconds_of(asks, drafts=True) < seconds_of(asks, drafts=False) / 1.5


def test_the_same_answers_again_are_much_faster() -> None:
    random = Random(2)
    question, answer = novel(random, 100), novel(random, 300)
    asks = [([number] * HEAD + question, answer) for number in range(2)]
    both, one = seconds_of(asks, drafts=True), seconds_of(asks[:1], drafts=True)
    assert both < 2 * one


def test_users_who_edit_do_not_slow_others_down() -> None:
    random = Random(3)
    asks = []
    for number in range(8):
        text = novel(random, 250)
        asks.append(([number] * HEAD + text, edited(random, text) if number % 2 else novel(random, 250)))
    assert seconds_of(asks, drafts=True) < seconds_of(asks, drafts=False) / 0.98
