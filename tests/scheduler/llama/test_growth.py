"""KV memory that follows the load, on real models: after a move, the logits are those of a fresh computation."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler import elastic
from scheduler.config import EngineConfig
from scheduler.llama.context import Context
from scheduler.llama.device import open_device
from scheduler.llama.load import Parts, load
from scheduler.llama.model import Model
from scheduler.llama.runner import LlamaRunner
from scheduler.messages import SamplingParams, Submit
from scheduler.pacing import Pacer
from scheduler.scheduler import Scheduler
from scheduler.shapes import Shape
from tests.closeness import Reference
from tests.tiny_models import KINDS, write_tiny_model

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
MAX_SEQS = 4


class Moving:
    """A scheduler on a real model. The test steps it, and moves its memory."""

    def __init__(self, path: str, layout: str) -> None:
        config = EngineConfig(path, max_seqs=MAX_SEQS, ctx_len=256, threads=1, gpu_layers=0, kv_layout=layout)
        self.model = Model(path, 0)
        self.device = open_device(config, self.model)
        self.runner = LlamaRunner(
            self.device.context, self.model.eog_tokens, max_seqs=MAX_SEQS, vocab_size=self.model.vocab_size
        )
        pacer = Pacer(0.004, self.device.sizes.max_mixed_tokens)
        self.scheduler = Scheduler(self.device.cache, pacer, max_seqs=MAX_SEQS, token_budget=256, ctx_len=256)
        self.tokens: dict[int, list[int]] = {}
        self.prompts: dict[int, int] = {}
        self.rows: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
        self.computed = 0

    def submit(self, request: int, prompt: list[int], count: int) -> None:
        self.tokens[request], self.prompts[request] = list(prompt), len(prompt)
        assert self.scheduler.submit(Submit(request, prompt, count, GREEDY)) is None

    def step(self) -> None:
        plan = self.scheduler.plan()
        self.computed += plan.num_prefill
        result = self.runner.run(plan)
        sampling = [chunk.sequence.request_id for chunk in plan.chunks if chunk.samples]
        for request, row in zip(sampling, self.runner.logits(len(sampling)) if sampling else [], strict=True):
            self.rows[request].append(row.copy())
        for output in self.scheduler.commit(plan, result):
            self.tokens[output.request_id] += output.tokens

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def move(self, shape: Shape) -> None:
        context, memory, layout = self.device.opener.open_now(shape)
        self.scheduler.residents.move(memory, layout)
        self.runner.use(context).close()
        self.scheduler.cache.check_integrity()

    def check(self, reference: Reference) -> None:
        for request, tokens in self.tokens.items():
            first = self.prompts[request] - 1
            scale = reference.scale(tokens[:-1], first, wrong=first - 2)
            scale.assert_same(np.array(self.rows[request]), reference.logits(tokens[:-1], first))


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Returns a function that writes a tiny model of a kind, once."""
    folder = tmp_path_factory.mktemp("models")

    def path(kind: str) -> str:
        file = folder / f"{kind}.gguf"
        if not file.exists():
            write_tiny_model(file, kind)
        return str(file)

    assert set(KINDS) >= {"dense", "sliding_window", "recurrent", "hybrid"}
    return path


def refer(path: str) -> Reference:
    context = Context(
        Model(path, 0), EngineConfig(path), kv_tokens=512, num_ids=2, num_outputs=256, batch_tokens=256, threads=1
    )
    return Reference(context)


def text(seed: int, length: int, vocab_size: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(5, vocab_size, length)]


def move_in_mid_answer(moving: Moving, reference: Reference, count: int = 30) -> None:
    """Two sequences share a prefix. They move while they answer, twice. A third one continues the first after it."""
    size = moving.model.vocab_size
    first = text(1, 60, size)
    moving.submit(1, first + text(2, 10, size), count)
    moving.submit(2, first + text(3, 20, size), count)
    small = moving.device.sizes.shapes.start
    is_pool = moving.device.sizes.layout == "pool"
    large = Shape(small.ids, 2 * small.tokens) if is_pool else Shape(max(small.ids, 4), max(small.ids, 4) * 512)
    for _ in range(6):
        moving.step()
    before = moving.computed
    moving.move(large)
    for _ in range(6):
        moving.step()
    moving.move(small)
    moving.run()
    assert moving.computed == before, "nothing was computed again"
    moving.move(large)
    moving.submit(3, moving.tokens[1] + text(4, 10, size), 8)
    moving.run()
    moving.check(reference)
    assert moving.scheduler.cache.num_held == 0
    if moving.device.tiers.kind != "none":
        assert moving.scheduler.cache.statistics().hit_tokens >= 69 + count, "the third one continued the first one"


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("dense", "lanes"),
        ("dense", "pool"),
        ("sliding_window", "lanes"),
        ("sliding_window", "pool"),
        ("latent", "lanes"),
        ("recurrent", "pool"),
        ("hybrid", "pool"),
    ],
)
def test_sequences_go_on_after_a_move(path_of: Callable[[str], str], kind: str, layout: str) -> None:
    path = path_of(kind)
    moving = Moving(path, layout)
    assert moving.device.sizes.layout == layout
    move_in_mid_answer(moving, refer(path))


def test_the_embedded_model_goes_on_after_a_move(exact_model_path: str) -> None:
    move_in_mid_answer(Moving(exact_model_path, "lanes"), refer(exact_model_path), count=16)


@pytest.mark.parametrize("layout", ["lanes", "pool"])
def test_memory_follows_the_load(path_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """Requests that are answered before, during and after growing and shrinking are right, and none is lost."""
    monkeypatch.setattr(elastic, "LOOK_SECONDS", 0.0)
    path = path_of("dense")
    parts = load(
        EngineConfig(
            path,
            max_seqs=8,
            ctx_len=256,
            kv_start=256,
            threads=1,
            kv_layout=layout,
            host_cache=1 << 24,
            draft="off",
        )
    )
    assert parts.elastic is not None
    answers: dict[int, Reply] = {}

    def submit(request: int, length: int, count: int) -> None:
        answers[request] = Reply(text(request, length, 250), [], [])
        parts.scheduler.submit(Submit(request, answers[request].prompt, count, GREEDY))

    def run() -> None:
        while parts.scheduler.has_work:
            step(parts, answers)

    submit(1, 20, 8)
    run()
    assert parts.elastic.statistics().grows == 0
    for request in range(2, 14):
        submit(request, 20 + 10 * request, 20)
    run()
    grown = parts.elastic.statistics()
    assert grown.grows > 0
    assert grown.kv_tokens > parts.info.kv_tokens
    submit(20, 100, 100)
    run()
    monkeypatch.setattr(elastic, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(elastic, "BUCKET_SECONDS", 0.001)
    while parts.elastic.shape.tokens != parts.info.kv_tokens:
        parts.elastic.step()
        time.sleep(0.001)
    submit(21, 50, 20)
    run()
    reference = refer(path)
    for reply in answers.values():
        tokens, first = [*reply.prompt, *reply.tokens][:-1], len(reply.prompt) - 1
        scale = reference.scale(tokens, first, wrong=first - 2)
        scale.assert_same(np.array(reply.rows), reference.logits(tokens, first))
    assert [len(reply.tokens) for reply in answers.values()] == [8, *[20] * 12, 100, 20]


@dataclass
class Reply:
    prompt: list[int]
    tokens: list[int]
    rows: list[NDArray[np.float32]]


def step(parts: Parts, answers: dict[int, Reply]) -> None:
    assert parts.elastic is not None
    parts.elastic.step()
    plan = parts.scheduler.plan()
    if not plan.chunks:
        return
    result = parts.runner.run(plan)
    sampling = [chunk.sequence.request_id for chunk in plan.chunks if chunk.samples]
    for request, row in zip(sampling, parts.runner.logits(len(sampling)) if sampling else [], strict=True):
        answers[request].rows.append(row.copy())
    for output in parts.scheduler.commit(plan, result):
        answers[output.request_id].tokens += output.tokens
    parts.scheduler.cache.check_integrity()
