"""The scheduler: plans steps, commits their results, and ends sequences. Residents gives them memory.

One rule covers everything. A sequence has known tokens and computed tokens. Each step computes known tokens of the
running sequences within a token budget, decodes first (scheduler.planner). Chunked prefill, prefix hits, preempted and
resumed sequences need no rule of their own.

The rule is vLLM v1's. Paged memory: Kwon et al., 2023. Chunked prefill: Agrawal et al., Sarathi, 2023.
"""

import logging
import time
from collections.abc import Callable
from operator import attrgetter

from kvcache.cache import KVCache
from kvcache.tree import PAGE_TOKENS
from scheduler.drafts.drafting import Drafting
from scheduler.failures import InvalidLogitsError, RequestError, failure_of
from scheduler.grammar import Grammar
from scheduler.messages import Output, Submit
from scheduler.pacing import Pacer
from scheduler.plan import NoRoomError, Plan, Result, StepError
from scheduler.planner import Planner
from scheduler.queue import FirstComeFirstServed, Policy
from scheduler.residents import Residents
from scheduler.sequence import FINISH_REASONS, Sequence, Status
from scheduler.shapes import Demand, room_for
from scheduler.statistics import SchedulerStatistics
from scheduler.suspects import Suspects

_log = logging.getLogger("cortex.engine")

_by_arrival = attrgetter("arrival")


class Scheduler:
    """Continuous batching over one KV cache."""

    def __init__(
        self,
        cache: KVCache,
        pacer: Pacer,
        *,
        max_seqs: int,
        token_budget: int,
        ctx_len: int,
        eog_tokens: frozenset[int] = frozenset(),
        piece: Callable[[int], bytes] = lambda _: b"",
        max_top_k: int = 0,
        max_answers: int | None = None,
        in_lanes: bool = False,
        policy: Policy | None = None,
        drafting: Drafting | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`token_budget`: maximum tokens of a step. It must leave room for a chunk beside `max_seqs` decodes.

        `eog_tokens` end a generation. `piece` returns the text of a token, also of a control token. `max_top_k` limits
        top_k of requests that do not need all logits; 0 for no limit.
        `max_answers`: maximum tokens of answers in a step; if there are more, the answers take turns. `in_lanes`: see
        Planner. The default
        `policy` is FirstComeFirstServed. `drafting` adds drafted tokens to the plans; None for no drafts.
        """
        self.cache = cache
        self._clock = clock
        self._policy = policy or FirstComeFirstServed(token_budget)
        max_decode = max_answers or max(max_seqs, token_budget // 2)
        self._planner = Planner(
            pacer, self._policy, token_budget=token_budget, max_decode=max_decode, in_lanes=in_lanes
        )
        self._drafting = drafting or Drafting([])
        self.residents = Residents(cache, self._policy, max_seqs, preempted=self._drafting.ended, clock=clock)
        """The running sequences. The policy has the waiting ones."""
        self._suspects = Suspects()
        self._ctx_len = ctx_len
        self._eog_tokens = eog_tokens
        self._piece = piece
        self._max_top_k = max_top_k
        self._sequences: dict[int, Sequence] = {}
        """All sequences that have not ended, by request id."""
        self._arrivals = 0
        self._steps = 0
        self._step_seconds = 0.0
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._ended = dict.fromkeys((Status.STOPPED, Status.LENGTH, Status.CANCELLED, Status.FAILED), 0)
        self._failed_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def _num_waiting(self) -> int:
        return len(self._sequences) - len(self.residents.running)

    @property
    def spare_seconds(self) -> float | None:
        """How long other work may take before the next step; see Planner.spare_seconds."""
        return self._planner.spare_seconds(self.residents.running)

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, submit: Submit, grammar: Grammar | None = None) -> Output | None:
        """Queue a request with its compiled grammar. Returns an error, and queues nothing, if it can never fit."""
        num_tokens = len(submit.tokens) + submit.max_tokens
        if not submit.tokens or submit.max_tokens <= len(submit.answer) or num_tokens > self._ctx_len:
            reason = f"a prompt of {len(submit.tokens)} tokens and {submit.max_tokens} more do not fit the context"
            return Output(submit.request_id, [], FINISH_REASONS[Status.FAILED], error=reason)
        sequence = Sequence(submit, self._arrivals, grammar, self._piece, self._clock())
        if self._max_top_k and not sequence.needs_whole_rows:
            sequence.sampler.limit(self._max_top_k)
        self._arrivals += 1
        self._sequences[submit.request_id] = sequence
        self._policy.submitted(sequence)
        if submit.suspect:
            self._suspects.add(submit.request_id, submit.num_alone)
        return None

    def cancel(self, request_id: int) -> None:
        """End a request at once. Ignores a request that is unknown or has ended."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence, Status.CANCELLED)

    def charge(self, tenant: str, weight: float, priority: int, num_tokens: int) -> None:
        """Charge a tenant for tokens that were computed outside of the scheduler's steps."""
        self._policy.charge(tenant, weight, priority, num_tokens)

    def queue(self) -> list[int]:
        """Returns the ids of the waiting requests, in about the order in which they will be admitted."""
        return [sequence.request_id for sequence in self._policy.waiting()] if self._num_waiting else []

    # -- plan --------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Plan the next step. Reserves pages for all known tokens of the sequences in it.

        The plan is empty if no sequence can go on before the KV memory has grown.
        """
        self.residents.admit(self._num_waiting)
        ready = self.residents.reserve()
        if not ready:
            return Plan()
        plan = self._planner.plan(self._unsuspected(ready))
        if self._drafting.is_on and not self._suspects:
            self._drafting.extend(plan, self.cache, len(self.residents.running))
        return plan

    def _unsuspected(self, ready: list[Sequence]) -> list[Sequence]:
        """Returns the sequences of `ready` that may be in the next step: all, unless there are suspects."""
        if not self._suspects:
            return ready
        chosen = self._suspects.choose([sequence.request_id for sequence in ready])
        return [sequence for sequence in ready if sequence.request_id in chosen]

    def demand(self) -> Demand:
        """Returns how much KV memory the sequences need now."""
        sequences = self._sequences.values()
        waiting = sum(sequence.num_known for sequence in sequences if sequence.handle is None)
        longest = max((room_for(sequence.num_known, sequence.max_known) for sequence in sequences), default=0)
        return Demand(len(sequences), longest, self.cache.num_held * PAGE_TOKENS + waiting)

    # -- commit ------------------------------------------------------------------------------------------------------

    def commit(self, plan: Plan, result: Result) -> list[Output]:
        """Record the result of a step. Returns the outputs of its requests."""
        self._steps += 1
        self._step_seconds += result.seconds
        self._prefill_tokens += plan.num_prefill
        self._decode_tokens += plan.num_decode
        self._planner.observe(plan, result.seconds)
        if self._drafting.is_on:
            self._drafting.observe(plan, result)
        self._policy.computed(plan)
        if self._suspects:
            for chunk in plan.chunks:
                self._suspects.passed(chunk.sequence.request_id, sampled=chunk.samples)
        outputs, failures = [], result.failures
        tokens, logprobs, prompt_logprobs = iter(result.tokens), iter(result.logprobs), iter(result.prompt_logprobs)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.handle is not None, "a planned sequence runs until the step is committed"
            failure = failures.get(sequence.request_id) if failures else None
            if failure is None or not isinstance(failure, InvalidLogitsError):
                self.cache.commit(sequence.handle, sequence.tokens(chunk.start, chunk.start + chunk.num_tokens))
            if not (chunk.samples or chunk.scores):
                continue
            output = Output(sequence.request_id)
            outputs.append(output)
            if chunk.scores:
                output.prompt_logprobs = next(prompt_logprobs)
                sequence.num_unscored -= len(output.prompt_logprobs)
            end: Status | RequestError | None = failure
            if chunk.samples:
                sampled = next(tokens)
                sampled_logprobs = next(logprobs, None)
                if failure is None:
                    sequence.last_step = self._steps
                    if sequence.num_known == sequence.num_prompt:
                        output.cached_tokens = sequence.cached_tokens or 0
                        output.queue_seconds = sequence.queue_seconds
                        self.cache.prompt_done(sequence.handle)
                    end = self._advance(sequence, sampled, output)
                    if sampled_logprobs:
                        output.logprobs = sampled_logprobs[: len(output.tokens)]
                if chunk.drafts:
                    keeps = not isinstance(end, InvalidLogitsError)
                    self._decode_tokens += self._drafting.settle(chunk, output, self.cache, keeps=keeps)
                    if keeps and end is None and not sequence.num_computed:
                        self.residents.preempt(sequence)  # the memory could not remove cells
            if isinstance(end, RequestError):
                self._fail(sequence, end, output)
            elif end is not None:
                output.finish_reason = self._end(sequence, end)
        return outputs

    def _advance(self, sequence: Sequence, sampled: list[int], output: Output) -> Status | RequestError | None:
        """Append the tokens that the step sampled, up to the end of the answer. Returns how the sequence ends there."""
        for count, token in enumerate(sampled, 1):
            try:
                tokens, status = sequence.advance(token, self._eog_tokens)
            except BaseException as error:  # `attempt` would cost more than everything else here
                return failure_of(error)
            output.tokens += tokens
            sequence.num_sampled = count
            if status is not None:
                return status
            if len(tokens) > 1 or (sequence.thoughts is not None and sequence.thoughts.forced is not None):
                return None  # other tokens are forced here, so the rest of `sampled` does not fit
        return None

    def _fail(self, sequence: Sequence, failure: RequestError, output: Output) -> None:
        """End a sequence with an error."""
        if failure.finish_reason == FINISH_REASONS[Status.FAILED]:
            _log.error("request %d failed: %s", sequence.request_id, failure)
        self._end(sequence, Status.FAILED, keeps_kv=not isinstance(failure, InvalidLogitsError))
        output.finish_reason, output.error = failure.finish_reason, str(failure)

    def _end(self, sequence: Sequence, status: Status, *, keeps_kv: bool = True) -> str | None:
        """End a sequence and free its memory. Returns its finish reason, None if it was cancelled."""
        self.residents.remove(sequence, keeps_kv=keeps_kv)
        self._policy.ended(sequence)
        self._drafting.ended(sequence)
        self._suspects.discard(sequence.request_id)
        sequence.status = status
        del self._sequences[sequence.request_id]
        self._ended[status] += 1
        return FINISH_REASONS.get(status)

    def rollback(self, plan: Plan, error: StepError) -> list[Output]:
        """Record a failed step. Every sequence returns to its state before the step. Returns an error output, if any.

        If the memory had no room, one sequence less runs until another one ends. After any other error the sequences of
        the step are suspects, which are tried in smaller groups. A sequence whose steps fail even alone is ended.
        """
        self._failed_steps += 1
        for chunk in plan.chunks:
            if chunk.sequence.handle is not None and not self.cache.rollback(chunk.sequence.handle):
                self.residents.preempt(chunk.sequence)
        if isinstance(error, NoRoomError) and self.residents.limit():
            return []
        guilty = self._suspects.failed([chunk.sequence.request_id for chunk in plan.chunks])
        if guilty is None:
            return []
        output = Output(guilty)
        self._fail(self._sequences[guilty], RequestError(f"the model failed on this request: {error}"), output)
        return [output]

    # -- statistics --------------------------------------------------------------------------------------------------

    def statistics(self) -> SchedulerStatistics:
        return SchedulerStatistics(
            running=len(self.residents.running),
            waiting=self._num_waiting,
            steps=self._steps,
            step_seconds=self._step_seconds,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            finished=self._ended[Status.STOPPED] + self._ended[Status.LENGTH],
            cancelled=self._ended[Status.CANCELLED],
            failed=self._ended[Status.FAILED],
            preemptions=self.residents.num_preemptions,
            failed_steps=self._failed_steps,
            tenants=self._policy.statistics(),
            **self._drafting.statistics(),
        )
