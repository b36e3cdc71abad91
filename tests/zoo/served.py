"""An engine that the caller steps, and the answers it gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from scheduler.config import EngineConfig, EngineInfo
from scheduler.llama.load import load
from scheduler.messages import SamplingParams, Submit, TokenLogprob
from scheduler.plan import Plan, Result, StepError
from scheduler.verification import first_rows

CONTEXT = 256
MAX_SEQS = 4
MAX_STEPS = 500
ANSWER_TOKENS = 6
CLOSE_SECONDS = 10.0
Phase = Literal["prompt", "answer"]
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    """The rows from which the tokens were sampled."""
    num_cached: int = 0
    """Prompt tokens that were found in the cache."""
    error: str | None = None


class Served:
    """An engine in this process, without the API. Leaving its block closes it."""

    def __init__(self, path: str, layout: str, **options: Any) -> None:
        """`options` are of EngineConfig. Raises ModelError if the model is refused."""
        options = {"ctx_len": CONTEXT, "max_seqs": MAX_SEQS, "gpu_layers": 0, "threads": 1, **options}
        self._parts = load(EngineConfig(path, kv_layout=layout, **options))
        self._num_requests = 0
        self.num_failed = 0
        """Number of steps that failed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what the disk tier can keep, and frees the KV memory."""
        self._parts.scheduler.cache.close(CLOSE_SECONDS)
        self._parts.runner._context.close()

    @property
    def info(self) -> EngineInfo:
        return self._parts.info

    def ask(
        self,
        *prompts: Sequence[int],
        count: int = ANSWER_TOKENS,
        cancel: int | None = None,
        fail: Phase | None = None,
    ) -> list[Answer]:
        """Serve all prompts together, with greedy sampling. Checks the cache after every step.

        The prompt of index `cancel` is cancelled after the first step. With `fail`, the second step with prompts or
        with answers fails after llama.cpp has computed it.
        """
        scheduler, first = self._parts.scheduler, self._num_requests
        answers = {first + index: Answer() for index in range(len(prompts))}
        self._num_requests += len(prompts)
        num_failing = 0
        for number, prompt in zip(answers, prompts, strict=True):
            refusal = scheduler.submit(Submit(number, list(prompt), count, GREEDY, logprobs=2))
            answers[number].error = refusal.error if refusal is not None else None
        for step in range(MAX_STEPS):
            if not scheduler.has_work:
                return list(answers.values())
            plan = scheduler.plan()
            result = self._parts.runner.run(plan)
            may_fail = fail in _phases(plan)
            num_failing += may_fail
            if may_fail and num_failing == 2:
                outputs = scheduler.rollback(plan, StepError("injected"))
                self.num_failed += 1
            else:
                self._keep_logits(plan, result, answers)
                outputs = scheduler.commit(plan, result)
            for output in outputs:
                answer = answers[output.request_id]
                answer.tokens += output.tokens
                answer.logprobs += output.logprobs
                answer.num_cached = answer.num_cached or output.cached_tokens
                answer.error = output.error
            if step == 0 and cancel is not None:
                scheduler.cancel(first + cancel)
            scheduler.cache.check_integrity()
        raise AssertionError("the answers do not end")

    def _keep_logits(self, plan: Plan, result: Result, answers: dict[int, Answer]) -> None:
        """Keep the row of each sampled token, those after accepted drafts too."""
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        if not sampling:
            return
        rows = self._parts.runner.logits(plan.num_outputs)
        for chunk, first, tokens in zip(sampling, first_rows(sampling), result.tokens, strict=True):
            answers[chunk.sequence.request_id].logits += [row.copy() for row in rows[first : first + len(tokens)]]


def _phases(plan: Plan) -> list[Phase]:
    phases: list[tuple[Phase, int]] = [("prompt", plan.num_prefill), ("answer", plan.num_decode)]
    return [phase for phase, num_tokens in phases if num_tokens]
