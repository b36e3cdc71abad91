"""Shared KV on the real model: after any kind of hit, the logits equal those of a fresh computation."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from api.text.tokenizer import Tokenizer
from kvcache.cache import KVCache
from kvcache.disk import DiskTier
from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tier import NO_TIER, Tier
from kvcache.tree import PAGE_TOKENS
from kvcache.whole import WholeTier
from scheduler.config import EngineConfig
from scheduler.llama.context import Context
from scheduler.llama.kv_memory import LaneMemory, PoolMemory
from scheduler.llama.model import Model
from scheduler.llama.runner import LlamaRunner
from scheduler.llama.state import StateFormat
from scheduler.llama.trial import TrialError
from scheduler.messages import SamplingParams, Submit
from scheduler.pacing import Pacer
from scheduler.plan import Plan, Result
from scheduler.scheduler import Scheduler
from tests.closeness import Reference

LANE_TOKENS = 512
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def config(exact_model_path: str) -> EngineConfig:
    return EngineConfig(exact_model_path)


@pytest.fixture(scope="module")
def model(config: EngineConfig) -> Iterator[Model]:
    model = Model(config.model_path, 0)
    yield model
    model.close()


class RecordingRunner(LlamaRunner):
    """Records the logits from which each token was sampled."""

    def __init__(self, context: Context, model: Model) -> None:
        super().__init__(context, model.eog_tokens, max_seqs=16, vocab_size=model.vocab_size)
        self.recorded: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
        self.never = sorted(model.eog_tokens)
        """Tokens that no answer here contains."""
        self.appended: list[int] = []
        """Tokens to return after each sampled token, like a runner that samples several tokens."""

    def run(self, plan: Plan) -> Result:
        result = super().run(plan)
        sampling = [chunk.sequence.request_id for chunk in plan.chunks if chunk.samples]
        for request, row in zip(sampling, self.logits(len(sampling)) if sampling else [], strict=True):
            self.recorded[request].append(row.copy())
        result.tokens = [[*tokens, *self.appended] for tokens in result.tokens]
        return result


@dataclass
class Served:
    """A scheduler on the real model, stepped by the test."""

    scheduler: Scheduler
    runner: RecordingRunner
    tokens: dict[int, list[int]] = field(default_factory=dict)
    num_fillers: int = 0
    cached: dict[int, int] = field(default_factory=dict)

    def submit(self, request: int, prompt: list[int], max_tokens: int) -> None:
        self.tokens[request] = list(prompt)
        assert self.scheduler.submit(Submit(request, prompt, max_tokens, GREEDY)) is None

    def step(self) -> None:
        plan = self.scheduler.plan()
        self.num_fillers += plan.num_fillers
        for output in self.scheduler.commit(plan, self.runner.run(plan)):
            self.cached.setdefault(output.request_id, output.cached_tokens)
            self.tokens[output.request_id] += output.tokens

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()
        self.scheduler.cache.check_integrity()
        assert self.scheduler.cache.num_held == 0


def serve(
    model: Model,
    config: EngineConfig,
    *,
    kv_tokens: int = 2048,
    budget: int = 256,
    tier: Tier = NO_TIER,
    max_cached: int | None = None,
    lanes: int = 0,
) -> Iterator[Served]:
    """With `lanes`, the layout is lanes of LANE_TOKENS tokens each. Otherwise it is a pool."""
    context = Context(
        model,
        config,
        kv_tokens=lanes * LANE_TOKENS or kv_tokens,
        num_ids=lanes or 32,
        num_outputs=96,
        batch_tokens=256,
        threads=1,
        unified=not lanes,
    )
    memory = LaneMemory(context) if lanes else PoolMemory(context)
    if tier is not NO_TIER:
        memory.learn()
    layout: Layout
    if lanes:
        layout = LaneLayout(LANE_TOKENS // PAGE_TOKENS, lanes, keeps_evicted=tier is not NO_TIER)
    else:
        layout = PoolLayout(kv_tokens // PAGE_TOKENS, memory.num_ids, max_cached=max_cached)
    cache = KVCache(memory, layout, tier)
    runner = RecordingRunner(context, model)
    pacer = Pacer(0.004, 0 if lanes else None)
    scheduler = Scheduler(
        cache,
        pacer,
        max_seqs=lanes or 16,
        token_budget=budget,
        ctx_len=LANE_TOKENS if lanes else 1024,
        in_lanes=bool(lanes),
    )
    yield Served(scheduler, runner)
    context.close()


LAYOUTS = pytest.mark.parametrize("lanes", [0, 8], ids=["pool", "lanes"])


@pytest.fixture
def lanes() -> int:
    return 0


@pytest.fixture
def served(model: Model, config: EngineConfig, lanes: int) -> Iterator[Served]:
    yield from serve(model, config, lanes=lanes)


@pytest.fixture
def served_small(model: Model, config: EngineConfig) -> Iterator[Served]:
    yield from serve(model, config, kv_tokens=512)


@pytest.fixture
def reference(model: Model, config: EngineConfig) -> Iterator[Reference]:
    yield from refer(model, config)


def refer(model: Model, config: EngineConfig) -> Iterator[Reference]:
    context = Context(model, config, kv_tokens=1024, num_ids=2, num_outputs=512, batch_tokens=512, threads=1)
    yield Reference(context)
    context.close()


def check(served: Served, reference: Reference, *requests: int) -> None:
    """Check that every token was sampled from the logits of a fresh computation.

    The tolerance is measured on the longest request: its control has a wrong token within the hit.
    """
    longest = max(requests, key=lambda request: len(served.tokens[request]))
    tokens, num_rows = served.tokens[longest][:-1], len(served.runner.recorded[longest])
    first = len(tokens) - num_rows
    scale = reference.scale(tokens, first, wrong=(served.cached[longest] or first) // 2)
    for request in requests:
        recorded = np.array(served.runner.recorded[request])
        tokens = served.tokens[request]
        scale.assert_same(recorded, reference.logits(tokens[:-1], len(tokens) - 1 - len(recorded)))
        recorded[:, served.runner.never] = -np.inf
        assert recorded.argmax(axis=1).tolist() == tokens[-len(recorded) :], "greedy"


SENTENCES = """
The lighthouse keeper wrote in his log every evening. On Monday the wind came from the north and two ships passed.
He had repaired the lamp in the morning, because a gull had broken one of the panes. The oil would last nine more days.
On Tuesday it rained without a pause, and nobody came. He read an old book about the stars and cooked a soup of beans.
A boy from the village rowed over with bread, letters and a newspaper that was already a week old. They talked about
the harvest and about the school that would be built near the harbour. Quarterly revenue grew by eleven percent while
the costs of materials fell. The board decided to pay a dividend to all shareholders in the spring of the next year.
Water boils at a lower temperature on a mountain, because the air is thinner there. The recipe asks for three eggs, a
cup of flour and a pinch of salt. Trains between the two cities run every hour until midnight. Our neighbour has planted
roses along the fence, and her dog sleeps under them when the sun is high.
""".replace("\n", " ").split(".")


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> Callable[[int, int], list[int]]:
    """Returns natural text, whose logits change much if wrong KV is shared. Each seed has its own first token."""

    def make(seed: int, length: int) -> list[int]:
        order = np.random.default_rng(seed).permutation(len(SENTENCES))
        text = ".".join(SENTENCES[index] for index in order) * (1 + length // 200)
        return [1000 + seed, *tokenizer.encode(text, parse_special=False)][:length]

    return make


Prompt = Callable[[int, int], list[int]]


@LAYOUTS
def test_after_a_hit_on_an_idle_sequence(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.submit(1, prompt(1, 100), 8)
    served.run()
    served.submit(2, prompt(1, 75) + prompt(2, 20), 8)  # ends inside the third page
    served.submit(3, served.tokens[1] + prompt(3, 20), 8)  # continues where the first ended
    served.run()
    assert (served.cached[2], served.cached[3]) == (75, 107)
    check(served, reference, 1, 2, 3)


@LAYOUTS
def test_after_a_hit_on_a_running_sequence(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.submit(1, prompt(1, 50), 30)
    for _ in range(6):
        served.step()
    served.submit(2, prompt(1, 24) + prompt(2, 20), 10)  # a hit shorter than a page
    served.submit(3, served.tokens[1] + prompt(3, 9), 10)  # its whole answer so far
    served.run()
    assert (served.cached[2], served.cached[3]) == (24, len(served.tokens[3]) - 9 - 10)
    check(served, reference, 1, 2, 3)


@LAYOUTS
def test_after_a_hit_on_a_sequence_that_is_still_prefilling(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt, lanes: int
) -> None:
    for served in serve(model, config, budget=64, lanes=lanes):
        shared = prompt(1, 150)
        for request in range(4):
            served.submit(request, shared + prompt(10 + request, 12), 8)
        served.run()
        assert [served.cached[request] for request in range(4)] == [0, 150, 150, 150]
        check(served, reference, *range(4))


@LAYOUTS
def test_after_decodes_of_several_tokens(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.runner.appended = [500, 600]
    served.submit(1, prompt(1, 40), 12)
    served.submit(2, prompt(2, 60), 12)
    served.step()
    served.submit(3, prompt(3, 50), 12)
    served.run()
    for request in (1, 2, 3):
        tokens, recorded = served.tokens[request], np.array(served.runner.recorded[request])
        first = len(tokens) - 12
        assert tokens[first + 1 :: 3] == [500] * 4
        assert tokens[first + 2 :: 3] == [600] * 4
        scale = reference.scale(tokens[:-1], first - 1, wrong=first - 2)
        scale.assert_same(recorded, reference.logits(tokens[:-1], first - 1)[::3])
        recorded[:, served.runner.never] = -np.inf
        assert recorded.argmax(axis=1).tolist() == tokens[first::3], "greedy"
    assert served.scheduler.statistics().decode_tokens == 3 * 9


def test_after_preemption(served_small: Served, reference: Reference, prompt: Prompt) -> None:
    served = served_small
    for request in range(6):
        served.submit(request, prompt(request, 40), 90)
    served.run()
    assert served.scheduler.statistics().preemptions > 0
    assert [len(served.tokens[request]) for request in range(6)] == [130] * 6
    check(served, reference, *range(6))


def test_after_equal_pages_were_merged(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.submit(1, prompt(1, 40), 70)
    served.submit(2, prompt(1, 40), 70)  # the same greedy answer, computed twice and then merged
    served.run()
    assert served.scheduler.cache.statistics().merged_pages > 0
    check(served, reference, 1, 2)


GIB = 1 << 30


@pytest.fixture
def served_with_host(model: Model, config: EngineConfig) -> Iterator[Served]:
    """A system that keeps no idle pages on the device."""
    yield from serve(model, config, tier=PageTier(GIB), max_cached=0)


def test_after_pages_were_loaded_from_host_memory(
    served_with_host: Served, reference: Reference, prompt: Prompt
) -> None:
    served = served_with_host
    served.submit(1, prompt(1, 100), 8)
    served.run()
    assert served.scheduler.cache.num_cached == 0
    served.submit(2, prompt(1, 75) + prompt(2, 20), 8)  # ends inside the third page
    served.submit(3, served.tokens[1] + prompt(3, 20), 8)  # continues where the first ended
    served.run()
    assert (served.cached[2], served.cached[3]) == (75, 107)
    assert served.scheduler.cache.statistics().loaded_tokens == 75 + 107 - 2 * PAGE_TOKENS  # two were on the device
    check(served, reference, 1, 2, 3)


# Faults are detected


def test_a_wrong_token_in_a_hit_is_detected(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.submit(1, prompt(1, 100), 4)
    served.run()
    served.submit(2, served.tokens[1] + prompt(2, 20), 8)
    served.run()
    check(served, reference, 2)
    served.tokens[2][served.cached[2] - 1] ^= 1
    with pytest.raises(AssertionError, match="are not all within"):
        check(served, reference, 2)


def swap_two_pages(tier: PageTier) -> None:
    """Swap the first pages of two conversations.

    A swap within one conversation would not change attention, because each cell keeps the position in its KV.
    """
    firsts = [entry.blob for entry in tier._entries.values() if not entry.parent]
    one, other = (blob for blob in firsts if blob.nbytes == max(each.nbytes for each in firsts))
    one[:], other[:] = other.copy(), one.copy()


def shift_positions(
    self: StateFormat, pages: Any, start: int, stop: int, *rest: Any, join: Any = StateFormat.join
) -> Any:
    return join(self, pages, start + 1, stop + 1, *rest)


@pytest.mark.parametrize("fault", ["none", "swapped", "shifted"])
def test_a_fault_in_a_tier_is_detected(
    model: Model,
    config: EngineConfig,
    reference: Reference,
    prompt: Prompt,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    tier = PageTier(GIB)
    for served in serve(model, config, tier=tier, max_cached=0):
        for request in (1, 2):
            served.submit(request, prompt(request, 40), 1)
        served.run()
        if fault == "swapped":
            swap_two_pages(tier)
        elif fault == "shifted":
            monkeypatch.setattr(StateFormat, "join", shift_positions)
        served.submit(3, prompt(1, 40) + prompt(3, 8), 8)
        served.run()
        assert served.cached[3] == 40
        with pytest.raises(AssertionError, match="are not all within") if fault != "none" else nullcontext():
            check(served, reference, 3)


# Loading from tiers


def test_preempted_sequences_are_loaded_from_host_memory(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt
) -> None:
    for served in serve(model, config, kv_tokens=512, tier=PageTier(GIB)):
        for request in range(4):
            served.submit(request, prompt(20 + request, 60), 120)
        served.run()
        statistics = served.scheduler.statistics()
        assert statistics.preemptions > 0
        assert served.scheduler.cache.statistics().loaded_tokens > 0
        assert statistics.prefill_tokens < 4 * 60 + statistics.preemptions * PAGE_TOKENS
        check(served, reference, *range(4))


def test_sequences_that_move_between_lanes(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt
) -> None:
    """Evicted pages are loaded from host memory after resident ones or into an empty lane."""
    for served in serve(model, config, tier=PageTier(GIB), lanes=3):
        for request in range(5):
            served.submit(request, prompt(30 + request // 2, 60 + 20 * request), 12)
        served.run()
        for request in range(5):
            served.submit(10 + request, served.tokens[request] + prompt(50 + request, 15), 12)
        served.run()
        assert served.scheduler.cache.statistics().loaded_tokens > 0
        for request in range(5):
            assert served.cached[10 + request] >= len(served.tokens[request]) - 1
        check(served, reference, *range(5), *range(10, 15))


def test_answers_on_both_sides_of_a_prompt(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt
) -> None:
    """Steps of answers compute single tokens of a prompt whose lane lies between theirs."""
    for served in serve(model, config, budget=40, lanes=3):
        for request, max_tokens in enumerate((40, 2, 40)):
            served.submit(request, prompt(30 + request, 20 + 10 * request), max_tokens)
        while len(served.tokens[1]) < 32:
            served.step()
        served.submit(3, prompt(33, 150), 12)
        served.run()
        assert served.num_fillers > 1
        check(served, reference, *range(4))


@LAYOUTS
def test_after_a_restart(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt, tmp_path: Path, lanes: int
) -> None:
    for served in serve(model, config, tier=PageTier(GIB, DiskTier(tmp_path, "version", GIB)), lanes=lanes):
        served.submit(1, prompt(1, 200), 8)
        served.run()
        served.scheduler.cache.close(10)
    for served in serve(model, config, tier=PageTier(GIB, DiskTier(tmp_path, "version", GIB)), lanes=lanes):
        served.submit(2, prompt(1, 200) + prompt(2, 20), 8)
        served.run()
        assert served.cached[2] == 200
        check(served, reference, 2)
        served.scheduler.cache.close(10)


def test_pages_do_not_depend_on_the_positions_of_the_cells(model: Model, config: EngineConfig, prompt: Prompt) -> None:
    context = Context(model, config, kv_tokens=1024, num_ids=8, num_outputs=8, batch_tokens=256, threads=1)
    memory = PoolMemory(context)
    memory.learn()
    Reference(context).logits(prompt(1, 100), 99)
    saved = memory.save(0, 0, 100)
    for sequence_id in (1, 2):  # then free pages of both, so that the free cells are scattered
        assert memory.load(sequence_id, 0, 96, saved[:3])
    for first in range(0, 96, 32):
        memory.remove(1 if first == 32 else 2, first, first + 32)
    memory.remove(1, 64, -1)
    assert memory.load(3, 0, 100, saved)
    assert all((one == other).all() for one, other in zip(memory.save(3, 0, 100), saved, strict=True))
    assert not memory.load(4, 0, 64, [saved[0], saved[1][:-1]])
    assert not memory.load(4, 0, 64, saved[:1])
    context.close()


WITHOUT_FLASH = EngineConfig("", flash_attn="off")
"""V is then transposed, so a page is not a slice of rows."""


@pytest.fixture
def reference_without_flash(model: Model) -> Iterator[Reference]:
    yield from refer(model, WITHOUT_FLASH)


@LAYOUTS
def test_a_state_that_cannot_be_cut_is_loaded_whole(
    model: Model, reference_without_flash: Reference, prompt: Prompt, tmp_path: Path, lanes: int
) -> None:
    first, follow_up = prompt(1, 200), prompt(1, 200) + prompt(2, 20)
    for served in serve(model, WITHOUT_FLASH, tier=WholeTier(GIB, DiskTier(tmp_path, "version", GIB)), lanes=lanes):
        served.submit(1, first, 1)
        served.run()
        served.scheduler.cache.close(10)
    for served in serve(model, WITHOUT_FLASH, tier=WholeTier(GIB, DiskTier(tmp_path, "version", GIB)), lanes=lanes):
        served.submit(2, follow_up, 8)
        served.run()
        assert served.cached[2] == 200
        check(served, reference_without_flash, 2)
        served.scheduler.cache.close(10)


def test_whole_sequences_are_loaded_into_a_full_pool(
    model: Model, reference_without_flash: Reference, prompt: Prompt
) -> None:
    for served in serve(model, WITHOUT_FLASH, kv_tokens=512, tier=WholeTier(GIB)):
        served.submit(1, prompt(1, 200), 1)
        served.run()
        for other in (3, 4):
            served.submit(other, prompt(other, 400), 1)
            served.run()
        served.submit(2, prompt(1, 200) + prompt(2, 20), 8)
        served.run()
        assert served.cached[2] == 200
        assert served.scheduler.cache.statistics().loaded_tokens == 200
        check(served, reference_without_flash, 2)
        served.scheduler.cache.check_integrity()


def test_a_state_that_cannot_be_cut_is_detected(model: Model) -> None:
    for num_ids in (1, 8):
        context = Context(
            model, WITHOUT_FLASH, kv_tokens=512, num_ids=num_ids, num_outputs=8, batch_tokens=256, threads=1
        )
        memory = PoolMemory(context)
        if num_ids == 1:
            with pytest.raises(TrialError, match="needs 2 sequence ids"):
                memory.learn()
        else:
            memory.learn()
            assert not memory.moves_pages
            assert memory.num_ids == 8, "no id is reserved for moving pages"
        context.close()
