"""Runs plans with llama.cpp: fills the batch, decodes it, and samples the next tokens."""

import time

import numpy as np
from numpy.typing import NDArray

from scheduler.failures import RequestError, attempt
from scheduler.grammar import Masks
from scheduler.llama.context import Context
from scheduler.llama.threads import ThreadController
from scheduler.logprobs import log_probabilities
from scheduler.messages import TokenLogprob
from scheduler.plan import MAX_DRAFTED, Chunk, Plan, Result, by_id
from scheduler.sampling import sample_best
from scheduler.sequence import Sequence
from scheduler.thoughts import with_forced
from scheduler.verification import first_tokens, log_probabilities_of, sample_chunks

WARM_UP_TOKENS = 64
WARM_UP_CHUNKS = 2


class LlamaRunner:
    """Runs plans on one context. Implements scheduler.plan.Runner."""

    def __init__(
        self,
        context: Context,
        eog_tokens: frozenset[int],
        *,
        max_seqs: int,
        vocab_size: int,
        backend_top_k: int = 0,
        threads: ThreadController | None = None,
    ) -> None:
        """`threads` is None if the number of threads does not change."""
        self._context = context
        self._threads = threads
        self._masks = Masks(max_seqs + MAX_DRAFTED, vocab_size)
        self._eog_tokens = np.array(sorted(eog_tokens), dtype=np.intp)
        self._backend_top_k = backend_top_k
        self._attached: set[int] = set()
        """Sequence ids whose best tokens the backend finds; see `Context.attach_top_k`."""

    def use(self, context: Context) -> Context:
        """Compute in this context from now on. Returns the present one."""
        before, self._context = self._context, context
        self._attached.clear()
        if self._threads is not None:
            context.use_threads(self._threads.num_threads)
        return before

    def warm_up(self) -> tuple[float, float]:
        """Returns the seconds per token of a long chunk, and those of a single token, at an empty context.

        Takes the fastest of WARM_UP_CHUNKS of each: the first one may still load weights.
        """
        chunk = min(self._warm_up(WARM_UP_TOKENS) for _ in range(WARM_UP_CHUNKS))
        return chunk / WARM_UP_TOKENS, min(self._warm_up(1) for _ in range(WARM_UP_CHUNKS))

    def _warm_up(self, num_tokens: int) -> float:
        """Compute a chunk of this length, and forget it. Returns the seconds."""
        context, started = self._context, time.perf_counter()
        context.tokens[:num_tokens] = 0
        context.positions[:num_tokens] = np.arange(num_tokens)
        context.ids[:num_tokens] = 0
        context.outputs[:num_tokens] = 0
        context.outputs[num_tokens - 1] = 1
        context.decode(num_tokens)
        context.logits(1).argmax()  # waits for the GPU
        context.remove(0, 0, -1)
        return time.perf_counter() - started

    def run(self, plan: Plan) -> Result:
        """See `Runner.run`. Raises StepError if llama.cpp fails."""
        result = self._run(plan)
        if self._threads is not None and self._threads.observe(plan.num_tokens, result.seconds):
            self._context.use_threads(self._threads.num_threads)
        return result

    def _run(self, plan: Plan) -> Result:
        started = time.perf_counter()
        self._fill(plan)
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        with_outputs = [chunk.sequence for chunk in plan.chunks if chunk.num_outputs]
        if self._backend_top_k:
            self._attach(with_outputs)
        drafts = [chunk.drafts for chunk in sampling] if plan.num_drafted else ()
        filling = self._masks.start([chunk.sequence.grammar for chunk in sampling], drafts)
        try:
            self._context.decode(plan.num_tokens)
        finally:  # even if the step failed, no thread may use the grammars afterwards
            masks = self._masks.finish(filling)
        failures: dict[int, RequestError] = {}
        if self._attached.issuperset(sequence.sequence_id for sequence in with_outputs):  # no logits were copied
            thoughts = [chunk.sequence.thoughts for chunk in sampling]
            tokens = first_tokens(sampling, with_forced(thoughts, self._sample_best(plan)), failures)
            return Result(tokens, time.perf_counter() - started, failures=failures)
        logits = self.logits(plan.num_outputs)
        prompt_logprobs: list[list[TokenLogprob]] = []
        if any(chunk.scores for chunk in plan.chunks):  # otherwise every row is a sampling row
            ends = np.cumsum([chunk.num_outputs for chunk in plan.chunks], dtype=np.intp)
            prompt_logprobs = _score_prompts(plan, logits, ends, failures)
            logits = logits[ends[[chunk.samples for chunk in plan.chunks]] - 1]
        tokens = sample_chunks(sampling, logits, self._eog_tokens, masks, failures) if sampling else []
        logprobs = log_probabilities_of(sampling, logits, tokens, failures)
        return Result(tokens, time.perf_counter() - started, logprobs, prompt_logprobs, failures)

    def _attach(self, sequences: list[Sequence]) -> None:
        """Attach a top-k sampler to the sequences that need no other logits. Detach it from the others.

        A sampler stays attached between steps, because each change makes llama.cpp build its graph again.
        """
        for sequence in sequences:
            wanted = not sequence.needs_whole_rows and sequence.sampler.best_suffice(self._backend_top_k)
            if wanted == (sequence.sequence_id in self._attached):
                continue
            top_k = self._backend_top_k + len(self._eog_tokens) if wanted else 0
            self._attached.discard(sequence.sequence_id)
            if self._context.attach_top_k(sequence.sequence_id, top_k) and wanted:
                self._attached.add(sequence.sequence_id)

    def _sample_best(self, plan: Plan) -> list[int | RequestError]:
        tokens, end = [], 0
        for chunk in plan.chunks:
            end += chunk.num_tokens
            if chunk.samples:
                tokens.append(attempt(self._sample_best_of, end - 1, chunk.sequence))
        return tokens

    def _sample_best_of(self, index: int, sequence: Sequence) -> int:
        return sample_best(*self._context.best(index), sequence.sampler, self._eog_tokens)

    def logits(self, num_rows: int) -> NDArray[np.float32]:
        return self._context.logits(num_rows)

    def _fill(self, plan: Plan) -> None:
        """Fill the batch chunk by chunk. If all answers have one token, writes them with one assignment per array.

        Fillers are written among the answers, in the order of their lanes.
        """
        context, chunks, end = self._context, plan.chunks, 0
        if plan.num_answers == plan.num_decode > 0 and not plan.num_drafted:
            end = plan.num_answers + plan.num_fillers
            singles, chunks = chunks[:end], chunks[end:]
            if plan.num_fillers:
                singles.sort(key=by_id)
            context.tokens[:end] = [
                chunk.sequence.last_token if chunk.samples else chunk.sequence.token(chunk.start) for chunk in singles
            ]
            context.positions[:end] = [chunk.start for chunk in singles]
            context.ids[:end] = [chunk.sequence.sequence_id for chunk in singles]
            context.outputs[:end] = [chunk.samples for chunk in singles] if plan.num_fillers else 1
        for chunk in chunks:
            start, stop = end, end + chunk.num_tokens
            end = stop + len(chunk.drafts)
            tokens = chunk.sequence.tokens(chunk.start, chunk.start + chunk.num_tokens)
            context.tokens[start:stop] = np.frombuffer(tokens, dtype="<i4")
            context.tokens[stop:end] = chunk.drafts
            context.positions[start:end] = np.arange(chunk.start, chunk.start + end - start)
            context.ids[start:end] = chunk.sequence.sequence_id
            context.outputs[start:stop] = chunk.scores
            context.outputs[stop - 1 : end] = chunk.num_outputs > 0


def _score_prompts(
    plan: Plan, logits: NDArray[np.float32], ends: NDArray[np.intp], failures: dict[int, RequestError]
) -> list[list[TokenLogprob]]:
    """Returns, for each chunk that scores, the log probabilities of the prompt tokens after its tokens.

    Prompt tokens whose log probabilities were returned before are left out. A chunk that fails gets an empty list.
    """
    scored = []
    for chunk, end in zip(plan.chunks, ends.tolist(), strict=True):
        if not chunk.scores:
            continue
        each = attempt(_score, chunk, logits[end - chunk.num_tokens : end])
        if isinstance(each, RequestError):
            failures[chunk.sequence.request_id] = each
            each = []
        scored.append(each)
    return scored


def _score(chunk: Chunk, logits: NDArray[np.float32]) -> list[TokenLogprob]:
    sequence = chunk.sequence
    first = max(chunk.start, sequence.num_prompt - 1 - sequence.num_unscored)
    stop = min(chunk.start + chunk.num_tokens, sequence.num_prompt - 1)
    rows = logits[first - chunk.start : max(first, stop) - chunk.start]
    following = np.frombuffer(sequence.tokens(first + 1, stop + 1), dtype="<i4").tolist() if first < stop else []
    top = sequence.logprobs or 0
    return [log_probabilities(row, token, top) for row, token in zip(rows, following, strict=True)]
