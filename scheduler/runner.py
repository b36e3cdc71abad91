"""Runs plans on llama.cpp: fills the batch, decodes, and chooses the next tokens."""

import time

import numpy as np
from numpy.typing import NDArray

from scheduler.llama import Context
from scheduler.plan import Plan, Result
from scheduler.sampling import sample

WARM_UP_TOKENS = 64
WARM_UP_CHUNKS = 3


class LlamaRunner:
    """One context and the sampling behind it."""

    def __init__(self, context: Context, eog_tokens: frozenset[int]) -> None:
        self._context = context
        self._eog_tokens = np.array(sorted(eog_tokens), dtype=np.intp)

    def warm_up(self) -> float:
        """Seconds that a prompt token costs at an empty context; the first of some chunks only touches the weights."""
        context, times = self._context, []
        for _ in range(WARM_UP_CHUNKS):
            started = time.perf_counter()
            context.tokens[:WARM_UP_TOKENS] = 0
            context.positions[:WARM_UP_TOKENS] = np.arange(WARM_UP_TOKENS)
            context.ids[:WARM_UP_TOKENS] = 0
            context.outputs[:WARM_UP_TOKENS] = 0
            context.outputs[WARM_UP_TOKENS - 1] = 1
            context.decode(WARM_UP_TOKENS)
            context.logits(1).argmax()  # waits for the GPU
            context.remove(0, 0, -1)
            times.append(time.perf_counter() - started)
        return min(times) / WARM_UP_TOKENS

    def run(self, plan: Plan) -> Result:
        """Raises StepError."""
        started = time.perf_counter()
        self._fill(plan)
        self._context.decode(plan.num_tokens)
        states = [chunk.sequence.sampler for chunk in plan.chunks if chunk.samples]
        tokens = sample(self.logits(len(states)), states, self._eog_tokens) if states else []
        return Result(tokens, time.perf_counter() - started)

    def logits(self, num_rows: int) -> NDArray[np.float32]:
        return self._context.logits(num_rows)

    def _fill(self, plan: Plan) -> None:
        """Decodes are written with one assignment per array, prompts with one per chunk."""
        context, num_decode = self._context, plan.num_decode
        decodes, prefills = plan.chunks[:num_decode], plan.chunks[num_decode:]
        if decodes:
            context.tokens[:num_decode] = [chunk.sequence.last_token for chunk in decodes]
            context.positions[:num_decode] = [chunk.start for chunk in decodes]
            context.ids[:num_decode] = [chunk.sequence.sequence_id for chunk in decodes]
            context.outputs[:num_decode] = 1
        end = num_decode
        for chunk in prefills:
            start, end = end, end + chunk.num_tokens
            tokens = chunk.sequence.tokens(chunk.start, chunk.start + chunk.num_tokens)
            context.tokens[start:end] = np.frombuffer(tokens, dtype="<i4")
            context.positions[start:end] = np.arange(chunk.start, chunk.start + chunk.num_tokens)
            context.ids[start:end] = chunk.sequence.sequence_id
            context.outputs[start:end] = 0
            context.outputs[end - 1] = chunk.samples
