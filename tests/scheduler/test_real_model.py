"""Shared KV is right: on the real model, logits after any kind of hit are those of a fresh computation."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from api.tokenizer import Tokenizer
from kvcache.cache import KVCache
from kvcache.disk import DiskTier
from kvcache.lanes import LaneCache
from kvcache.pool import PoolCache
from kvcache.tiers import HostTier
from kvcache.tree import PAGE_TOKENS
from kvcache.whole import WholeTier
from scheduler.config import EngineConfig
from scheduler.llama import Context, Model
from scheduler.memory import LaneMemory, PoolMemory
from scheduler.messages import SamplingParams, Submit
from scheduler.pacing import Pacer
from scheduler.plan import Plan, Result
from scheduler.runner import LlamaRunner
from scheduler.scheduler import Scheduler
from scheduler.state import StateError

MAX_DIFFERENCE = 1.0
"""Of a logit. Batch shapes alone, nothing shared, move the largest of 49k by 0.5 in most rows, and by 1.7 in the worst
row of an answer; one wrong token of a hundred moves it by 2 to 4 in most rows."""
MAX_DIFFERENCE_ANYWHERE = 2.0
CLEAR_LEAD = 2.0
"""By which the best token leads where it must be the same."""
LANE_TOKENS = 512
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def config(model_path: str) -> EngineConfig:
    return EngineConfig(model_path, threads=2)


@pytest.fixture(scope="module")
def model(config: EngineConfig) -> Iterator[Model]:
    model = Model(config.model_path, 0)
    yield model
    model.close()


class RecordingRunner(LlamaRunner):
    """Keeps the logits that every token was chosen from."""

    def __init__(self, context: Context, model: Model) -> None:
        super().__init__(context, model.eog_tokens, max_seqs=16, vocab_size=model.vocab_size)
        self.recorded: dict[int, list[NDArray[np.float32]]] = defaultdict(list)

    def run(self, plan: Plan) -> Result:
        result = super().run(plan)
        sampling = [chunk.sequence.request_id for chunk in plan.chunks if chunk.samples]
        for request, row in zip(sampling, self.logits(len(sampling)) if sampling else [], strict=True):
            self.recorded[request].append(row.copy())
        return result


@dataclass
class Served:
    """A scheduler on the real model, stepped by hand."""

    scheduler: Scheduler
    runner: RecordingRunner
    tokens: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)

    def submit(self, request: int, prompt: list[int], max_tokens: int) -> None:
        self.tokens[request] = list(prompt)
        assert self.scheduler.submit(Submit(request, prompt, max_tokens, GREEDY)) is None

    def step(self) -> None:
        plan = self.scheduler.plan()
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
    tier: HostTier | WholeTier | None = None,
    max_cached: int | None = None,
    lanes: int = 0,
) -> Iterator[Served]:
    """With so many `lanes`, each of them holds LANE_TOKENS."""
    context = Context(
        model,
        config,
        kv_tokens=lanes * LANE_TOKENS or kv_tokens,
        num_ids=lanes or 32,
        num_outputs=96,
        batch_tokens=256,
        threads=2,
        unified=not lanes,
    )
    memory = LaneMemory(context) if lanes else PoolMemory(context)
    if tier is not None:
        memory.learn()
    cache: KVCache
    if lanes:
        cache = LaneCache(memory, LANE_TOKENS // PAGE_TOKENS, lanes, tier=tier)
    else:
        cache = PoolCache(memory, kv_tokens // PAGE_TOKENS, memory.num_ids, tier=tier, max_cached=max_cached)
    runner = RecordingRunner(context, model)
    pacer = Pacer(0.004, 0 if lanes else None)
    scheduler = Scheduler(
        cache, pacer, max_seqs=lanes or 16, token_budget=budget, ctx_len=LANE_TOKENS if lanes else 1024
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
def reference(model: Model, config: EngineConfig) -> Iterator["Reference"]:
    context = Context(model, config, kv_tokens=1024, num_ids=256, num_outputs=256, batch_tokens=512, threads=2)
    yield Reference(context)
    context.close()


class Reference:
    """Logits of tokens computed afresh, alone."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def logits(self, tokens: list[int], first: int) -> NDArray[np.float32]:
        """Rows for the positions from `first` on."""
        context, length = self._context, len(tokens)
        context.remove(0, 0, -1)
        context.tokens[:length] = tokens
        context.positions[:length] = np.arange(length)
        context.ids[:length] = 0
        context.outputs[:first] = 0
        context.outputs[first:length] = 1
        context.decode(length)
        return context.logits(length - first).copy()


def check(served: Served, reference: Reference, request: int) -> None:
    """Every answer token of the request was chosen from the logits that a fresh computation gives."""
    recorded = np.array(served.runner.recorded[request])
    tokens = served.tokens[request]
    fresh = reference.logits(tokens[:-1], len(tokens) - 1 - len(recorded))
    differences = np.abs(fresh - recorded).max(axis=1)
    assert differences[0] < MAX_DIFFERENCE  # right behind the hit
    assert np.median(differences) < MAX_DIFFERENCE
    assert differences.max() < MAX_DIFFERENCE_ANYWHERE
    best = np.partition(fresh, -2, axis=1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > CLEAR_LEAD
    assert (fresh.argmax(axis=1) == recorded.argmax(axis=1))[clear].all()


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
    """Natural text, in which a wrong share moves the logits far; each seed begins with a token of its own."""

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
    served.submit(3, served.tokens[1] + prompt(3, 20), 8)  # goes on where the first ended
    served.run()
    assert (served.cached[2], served.cached[3]) == (75, 107)
    for request in (1, 2, 3):
        check(served, reference, request)


@LAYOUTS
def test_after_a_hit_on_a_running_sequence(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.submit(1, prompt(1, 50), 30)
    for _ in range(6):
        served.step()
    served.submit(2, prompt(1, 24) + prompt(2, 20), 10)  # a hit shorter than a page
    served.submit(3, served.tokens[1] + prompt(3, 9), 10)  # all of its answer so far; the last token is awaited
    served.run()
    assert (served.cached[2], served.cached[3]) == (24, len(served.tokens[3]) - 9 - 10)
    for request in (1, 2, 3):
        check(served, reference, request)


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
        for request in range(4):
            check(served, reference, request)


def test_after_preemption(served_small: Served, reference: Reference, prompt: Prompt) -> None:
    served = served_small
    for request in range(6):
        served.submit(request, prompt(request, 40), 90)
    served.run()
    assert served.scheduler.statistics().preemptions > 0
    for request in range(6):
        assert len(served.tokens[request]) == 130
        check(served, reference, request)


def test_after_equal_pages_were_merged(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.submit(1, prompt(1, 40), 70)
    served.submit(2, prompt(1, 40), 70)  # the same greedy answer, computed twice until its pages meet
    served.run()
    assert served.scheduler.cache.statistics().merged_pages > 0
    for request in (1, 2):
        check(served, reference, request)


def test_a_wrong_share_would_be_seen(served: Served, reference: Reference, prompt: Prompt) -> None:
    served.submit(1, prompt(1, 100), 4)
    served.run()
    served.tokens[1][50] = 2000
    with pytest.raises(AssertionError):
        check(served, reference, 1)


GIB = 1 << 30


@pytest.fixture
def served_with_host(model: Model, config: EngineConfig) -> Iterator[Served]:
    """Nothing stays on the device for longer than it is computed with."""
    yield from serve(model, config, tier=HostTier(GIB), max_cached=0)


def test_after_pages_came_back_from_host_memory(served_with_host: Served, reference: Reference, prompt: Prompt) -> None:
    served = served_with_host
    served.submit(1, prompt(1, 100), 8)
    served.run()
    assert served.scheduler.cache.num_cached == 0
    served.submit(2, prompt(1, 75) + prompt(2, 20), 8)  # ends inside the third page
    served.submit(3, served.tokens[1] + prompt(3, 20), 8)  # goes on where the first ended
    served.run()
    assert (served.cached[2], served.cached[3]) == (75, 107)
    assert served.scheduler.cache.statistics().loaded_tokens == 75 + 107 - 2 * PAGE_TOKENS  # two were on the device
    for request in (1, 2, 3):
        check(served, reference, request)


def test_preempted_sequences_come_back_from_host_memory(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt
) -> None:
    for served in serve(model, config, kv_tokens=512, tier=HostTier(GIB)):
        for request in range(4):
            served.submit(request, prompt(20 + request, 60), 120)
        served.run()
        statistics = served.scheduler.statistics()
        assert statistics.preemptions > 0
        assert served.scheduler.cache.statistics().loaded_tokens > 0
        assert statistics.prefill_tokens < 4 * 60 + statistics.preemptions * PAGE_TOKENS
        for request in range(4):
            check(served, reference, request)


def test_sequences_that_move_between_lanes(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt
) -> None:
    """Who gives way comes back from host memory, behind what is there already or into an empty lane."""
    for served in serve(model, config, tier=HostTier(GIB), lanes=3):
        for request in range(5):
            served.submit(request, prompt(30 + request // 2, 60 + 20 * request), 12)
        served.run()
        for request in range(5):
            served.submit(10 + request, served.tokens[request] + prompt(50 + request, 15), 12)
        served.run()
        assert served.scheduler.cache.statistics().loaded_tokens > 0
        for request in range(5):
            assert served.cached[10 + request] >= len(served.tokens[request]) - 1
            check(served, reference, request)
            check(served, reference, 10 + request)


@LAYOUTS
def test_after_a_restart(
    model: Model, config: EngineConfig, reference: Reference, prompt: Prompt, tmp_path: Path, lanes: int
) -> None:
    for served in serve(model, config, tier=HostTier(GIB, DiskTier(tmp_path, "version", GIB)), lanes=lanes):
        served.submit(1, prompt(1, 200), 8)
        served.run()
        served.scheduler.cache.close(10)
    for served in serve(model, config, tier=HostTier(GIB, DiskTier(tmp_path, "version", GIB)), lanes=lanes):
        served.submit(2, prompt(1, 200) + prompt(2, 20), 8)
        served.run()
        assert served.cached[2] == 200
        check(served, reference, 2)
        served.scheduler.cache.close(10)


def test_pages_are_the_same_wherever_the_cells_lie(model: Model, config: EngineConfig, prompt: Prompt) -> None:
    context = Context(model, config, kv_tokens=1024, num_ids=8, num_outputs=8, batch_tokens=256, threads=2)
    memory = PoolMemory(context)
    memory.learn()
    reference = Reference(context)
    reference.logits(prompt(1, 100), 99)
    saved = memory.save(0, 0, 100)
    for sequence_id in (1, 2):  # cells in turn, so that those of one lie in many pieces
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
"""V is transposed then, so that no page is a slice of rows."""


@LAYOUTS
def test_a_state_that_cannot_be_cut_comes_back_whole(
    model: Model, reference: Reference, prompt: Prompt, tmp_path: Path, lanes: int
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
        check(served, reference, 2)
        served.scheduler.cache.close(10)


def test_whole_sequences_come_back_into_a_pool_that_was_full(
    model: Model, reference: Reference, prompt: Prompt
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
        check(served, reference, 2)
        served.scheduler.cache.check_integrity()


def test_a_state_that_cannot_be_cut_is_known_as_such(model: Model) -> None:
    for num_ids in (1, 8):
        context = Context(
            model, WITHOUT_FLASH, kv_tokens=512, num_ids=num_ids, num_outputs=8, batch_tokens=256, threads=2
        )
        memory = PoolMemory(context)
        if num_ids == 1:
            with pytest.raises(StateError, match="takes 2 sequences"):
                memory.learn()
        else:
            memory.learn()
            assert not memory.moves_pages
            assert memory.num_ids == 8, "none is kept for what is being moved"
        context.close()
