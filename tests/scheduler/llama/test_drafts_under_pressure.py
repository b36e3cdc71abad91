"""With little memory, preemptions, cancels and resumed requests, drafts change no answer of a real model."""

from pathlib import Path
from random import Random

import pytest

from scheduler.config import EngineConfig
from scheduler.drafts.drafting import Drafting
from scheduler.llama.load import load
from scheduler.messages import SamplingParams, Submit
from scheduler.scheduler import Scheduler
from tests.scheduler.drafts.guesses import Guesses
from tests.tiny_models import TOKENS, write_tiny_model

NUM_REQUESTS, NUM_TOKENS = 6, 60
CONFIG = {"ctx_len": 256, "max_seqs": 4, "threads": 1, "host_cache": 1 << 24}
EXACT = {"kv_type": "f32", "flash_attn": "off"}
"""Otherwise the size of a step changes the rounding of logits."""

Answers = dict[int, list[int]]


def submit(scheduler: Scheduler, number: int, answer: list[int]) -> None:
    """Odd requests are greedy. All share a prefix, and continue after `answer`."""
    params = SamplingParams(
        temperature=float(number % 2),
        seed=number,
        ignore_eos=True,
        logit_bias=[(len(TOKENS) - 1, -100.0)],  # a wrong draft is the next token
        frequency_penalty=0.3 * (number % 3),
        repeat_penalty=1 + 0.2 * (number % 2),
    )
    prompt = [1, *range(10, 40), *range(40 + 7 * number, 60 + 7 * number)]
    assert scheduler.submit(Submit(number, prompt, NUM_TOKENS, params, answer=answer)) is None


def served(
    path: Path,
    layout: str,
    guesses: Guesses | None = None,
    resumed: Answers | None = None,
    cancelled: dict[int, int] | None = None,
) -> tuple[Answers, Scheduler]:
    """`resumed`: tokens that an earlier engine gave. `cancelled`: the requests to cancel, by step."""
    kv_tokens = 256 if layout == "pool" else None
    parts = load(EngineConfig(str(path), kv_layout=layout, kv_tokens=kv_tokens, **CONFIG, **EXACT))  # type: ignore[arg-type]
    scheduler = parts.scheduler
    scheduler._drafting = Drafting([] if guesses is None else [guesses])
    answers: Answers = {}
    for number in range(NUM_REQUESTS):
        answers[number] = list((resumed or {}).get(number, []))
        submit(scheduler, number, answers[number].copy())
    step = 0
    while scheduler.has_work:
        plan = scheduler.plan()
        for output in scheduler.commit(plan, parts.runner.run(plan)):
            answers[output.request_id] += output.tokens
        step += 1
        if (number := (cancelled or {}).get(step, -1)) >= 0:
            scheduler.cancel(number)
        scheduler.cache.check_integrity()
    assert scheduler.cache.num_held == 0
    return answers, scheduler


@pytest.mark.parametrize(
    ("kind", "layout"), [("dense", "pool"), ("sliding_window", "pool"), ("sliding_window", "lanes"), ("latent", "pool")]
)
def test_answers_are_the_same_with_right_and_wrong_drafts(kind: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_model(path, kind)
    plain, before = served(path, layout)
    assert before.statistics().preemptions > 0 or layout == "lanes"
    random = Random(1)
    resumed = {number: tokens[: random.randrange(NUM_TOKENS)] for number, tokens in plain.items()}
    drafted, after = served(path, layout, Guesses(plain, random, wrong=0.3))
    assert drafted == plain
    assert after.statistics().accepted_draft_tokens > 100
    assert served(path, layout, Guesses(plain, random), resumed)[0] == plain
    cut, _ = served(path, layout, Guesses(plain, random), cancelled={5: 0, 9: 3, 12: 5})
    assert cut == {number: plain[number][: len(tokens)] for number, tokens in cut.items()}
