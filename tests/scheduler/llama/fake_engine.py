"""A runner and a scheduler on a fake context, whose rows of logits do not depend on the step."""

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kvcache.cache import KVCache
from kvcache.pool import PoolLayout
from scheduler.drafts.drafting import Drafting
from scheduler.grammar import Grammar
from scheduler.llama.context import Context
from scheduler.llama.runner import LlamaRunner
from scheduler.messages import Output, SamplingParams, Submit, ThoughtLimit
from scheduler.pacing import Pacer
from scheduler.plan import StepError, attempt_step
from scheduler.scheduler import Scheduler
from tests.kvcache.fakes import FakeMemory

VOCABULARY, MAX_TOKENS, BACKEND_TOP_K = 262, 6, 8
EOG = 261
"""VOCABULARY and EOG are those of llguidance's tokenizer of bytes."""


class FakeContext:
    """Each row of logits depends on its token and position only, so not on the step."""

    def __init__(self, memory: FakeMemory) -> None:
        self.tokens, self.positions, self.ids = (np.zeros(512, np.int32) for _ in range(3))
        self.outputs = np.zeros(512, np.int8)
        self.attached: set[int] = set()
        self.spoil: Callable[[int, NDArray[np.float32]], None] = lambda token, row: None
        """Changes the row of a token."""
        self._memory = memory
        self._num_tokens = 0

    def decode(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        for token, position, number in zip(self.tokens, self.positions, self.ids[:num_tokens], strict=False):
            self._memory.compute(int(number), int(position), [int(token)])

    def _row(self, index: int) -> NDArray[np.float32]:
        token = int(self.tokens[index])
        row = np.random.default_rng([token, int(self.positions[index])]).normal(size=VOCABULARY).astype(np.float32)
        self.spoil(token, row)
        return row

    def logits(self, num_rows: int) -> NDArray[np.float32]:
        rows = [self._row(int(index)) for index in np.flatnonzero(self.outputs[: self._num_tokens])]
        assert len(rows) == num_rows
        return np.array(rows, np.float32).reshape(num_rows, VOCABULARY)

    def attach_top_k(self, sequence_id: int, top_k: int) -> bool:
        (self.attached.add if top_k else self.attached.discard)(sequence_id)
        return True

    def best(self, index: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        row = self._row(index)
        tokens = np.argsort(-row)[: BACKEND_TOP_K + 1]
        return tokens, row[tokens]


class Engine:
    """A scheduler and a runner on the fake context."""

    def __init__(self, backend_top_k: int = 0, drafting: Drafting | None = None) -> None:
        memory = FakeMemory(64)
        self.context = FakeContext(memory)
        self.cache = KVCache(memory, PoolLayout(64, 32))
        self.runner = LlamaRunner(
            cast(Context, self.context),
            frozenset({EOG}),
            max_seqs=16,
            vocab_size=VOCABULARY,
            backend_top_k=backend_top_k,
        )
        self.scheduler = Scheduler(
            self.cache,
            Pacer(0.001),
            max_seqs=16,
            token_budget=256,
            ctx_len=512,
            piece=lambda token: f"<{token}>".encode(),
            max_top_k=backend_top_k,
            eog_tokens=frozenset({EOG}),
            drafting=drafting,
        )
        self.outputs: dict[int, Output] = {}

    def submit(
        self,
        number: int,
        params: SamplingParams,
        *,
        logprobs: int | None = None,
        scores: bool = False,
        thoughts: ThoughtLimit | None = None,
        grammar: Grammar | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        prompt = [200 + number, *range(10 * number, 10 * number + 8)]
        submit = Submit(number, prompt, max_tokens, params, logprobs=logprobs, score_prompt=scores, thoughts=thoughts)
        assert self.scheduler.submit(submit, grammar) is None
        self.outputs[number] = Output(number)

    def run(self) -> dict[int, Output]:
        while self.scheduler.has_work:
            plan = self.scheduler.plan()
            result = attempt_step(self.runner.run, plan)
            assert not isinstance(result, StepError)
            for output in self.scheduler.commit(plan, result):
                self.outputs[output.request_id].merge(output)
            self.cache.check_integrity()
        assert self.cache.num_held == 0
        return self.outputs
