"""The scheduler: admits sequences to memory, commits the results of steps, preempts and ends sequences.

One rule covers everything. A sequence has known tokens and computed tokens. Each step computes known tokens of the
running sequences within a token budget, decodes first (scheduler.planner). Chunked prefill, prefix hits, preempted and
resumed sequences need no rule of their own.

The rule is vLLM v1's. Paged memory: Kwon et al., 2023. Chunked prefill: Agrawal et al., Sarathi, 2023.
"""

import bisect
import logging
import time
from collections.abc import Callable
from operator import attrgetter

from kvcache.cache import KVCache
from kvcache.layout import Layout
from kvcache.memory import Memory
from kvcache.tree import PAGE_TOKENS, TOKEN_BYTES, Hit
from scheduler.drafts.drafting import Drafting
from scheduler.failures import InvalidLogitsError, RequestError, failure_of
from scheduler.grammar import Grammar
from scheduler.messages import Output, Submit
from scheduler.pacing import Pacer
from scheduler.plan import NoRoomError, Plan, Result, StepError
from scheduler.planner import Planner
from scheduler.queue import FirstComeFirstServed, Policy
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
        self._suspects = Suspects()
        self._max_seqs = max_seqs
        self._max_running = max_seqs
        """Lower than `max_seqs` after a step found no room in the KV memory."""
        self._ctx_len = ctx_len
        self._eog_tokens = eog_tokens
        self._piece = piece
        self._max_top_k = max_top_k
        self._sequences: dict[int, Sequence] = {}
        """All sequences that have not ended, by request id."""
        self._running: list[Sequence] = []
        """In order of arrival. The policy has the waiting sequences."""
        self.awaits_memory = False
        """Whether larger KV memory is being opened. Then a sequence without room waits, and preempts no other one."""
        self.holds = False
        """Whether no sequence may be admitted, because the KV memory is about to be moved."""
        self._arrivals = 0
        self._steps = 0
        self._step_seconds = 0.0
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._ended = dict.fromkeys((Status.STOPPED, Status.LENGTH, Status.CANCELLED, Status.FAILED), 0)
        self._preemptions = 0
        self._failed_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def spare_seconds(self) -> float | None:
        """How long other work may take before the next step; see Planner.spare_seconds."""
        return self._planner.spare_seconds(self._running)

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
        if not self.holds:
            self._admit()
        stuck = {sequence.request_id for sequence in tuple(self._running) if not self._reserve(sequence)}
        ready = self._running  # after all preemptions
        if stuck:
            ready = [sequence for sequence in ready if sequence.request_id not in stuck]
        if not ready:
            return Plan()
        plan = self._planner.plan(self._unsuspected(ready))
        if self._drafting.is_on and not self._suspects:
            self._drafting.extend(plan, self.cache, len(self._running))
        return plan

    def _unsuspected(self, ready: list[Sequence]) -> list[Sequence]:
        """Returns the sequences of `ready` that may be in the next step: all, unless there are suspects."""
        if not self._suspects:
            return ready
        chosen = self._suspects.choose([sequence.request_id for sequence in ready])
        return [sequence for sequence in ready if sequence.request_id in chosen]

    def _admit(self) -> None:
        """Admit waiting sequences. Waits for the disk only if nothing runs."""
        while self._admit_ready() and not self._running:
            self.cache.wait()

    def _admit_ready(self) -> bool:
        """Admit in the policy's order while there are pages and ids. Returns whether a sequence waits for the disk."""
        is_arriving = False
        if not self._num_waiting or (self._is_full and not self._policy.contends()):
            return False
        for sequence in self._policy.candidates(self._num_cached):
            if sequence.num_known > self.cache.max_tokens:  # it waits until the memory has grown
                continue
            hit = self._lookup(sequence)
            if hit.stored.arriving:
                is_arriving = True
                continue
            if sequence.max_hit is None and self._is_being_computed(sequence, hit):
                continue
            if not self._acquire(sequence, hit):
                break
            sequence.status = Status.RUNNING
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.num_computed
                sequence.queue_seconds = self._clock() - sequence.submitted_at
            bisect.insort(self._running, sequence, key=_by_arrival)
            self._policy.admitted(sequence)
        return is_arriving

    @property
    def _num_waiting(self) -> int:
        return len(self._sequences) - len(self._running)

    @property
    def _is_full(self) -> bool:
        return len(self._running) >= min(self._max_running, self.cache.num_ids)

    def _acquire(self, sequence: Sequence, hit: Hit) -> bool:
        """Give the sequence memory, and preempt others as far as the policy wants. Returns whether there is enough."""
        while True:
            if not self._is_full:
                sequence.handle = self.cache.acquire(bytes(sequence.known), hit, len(self._running))
            if sequence.handle is not None:
                return True
            if self.awaits_memory:
                return False
            victim = self._policy.gives_way(sequence, self._running)
            if victim is None:
                return False
            self._preempt(victim)
            hit = self._lookup(sequence)

    def _lookup(self, sequence: Sequence) -> Hit:
        return self.cache.lookup(bytes(sequence.known), sequence.max_hit, sequence.cache_salt)

    def _num_cached(self, sequence: Sequence) -> int:
        return self._lookup(sequence).num_known

    def _is_being_computed(self, sequence: Sequence, hit: Hit) -> bool:
        """Whether a running sequence will compute the first token after the hit. It is better to wait and share it.

        This is checked again in every plan. So if the running sequence is cancelled or preempted, the waiting ones can
        be admitted at once.
        """
        if not self.cache.sharing:
            return False
        if hit.num_known + 1 >= sequence.num_known:  # each sequence computes its last token itself
            return False
        prefix = bytes(sequence.known[: (hit.num_known + 1) * TOKEN_BYTES])
        return any(
            other.num_computed <= hit.num_known
            and other.known.startswith(prefix)
            and other.cache_salt == sequence.cache_salt
            for other in self._running
        )

    def _reserve(self, sequence: Sequence) -> bool:
        """Reserve pages for the sequence's known tokens. Preempts other sequences, or itself, if necessary.

        Returns False if the sequence must wait until the memory has grown. Others then go on.
        """
        while sequence.handle is not None and not self.cache.reserve(sequence.handle, sequence.num_known):
            if self.awaits_memory or sequence.num_known > self.cache.max_tokens:
                return False
            self._preempt(self._policy.victim(self._running))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Release the sequence's memory and let it wait again. Pages that are evicted meanwhile are computed again."""
        assert sequence.handle is not None, "only running sequences are preempted"
        self.cache.release(sequence.handle)
        sequence.handle = None
        sequence.status = Status.PREEMPTED
        self._running.remove(sequence)
        self._preemptions += 1
        self._policy.preempted(sequence)
        self._drafting.ended(sequence)

    # -- KV memory that follows the load -------------------------------------------------------------------------------

    def demand(self) -> Demand:
        """Returns how much KV memory the sequences need now."""
        sequences = self._sequences.values()
        waiting = sum(sequence.num_known for sequence in sequences if sequence.handle is None)
        longest = max((room_for(sequence.num_known, sequence.max_known) for sequence in sequences), default=0)
        return Demand(len(sequences), longest, self.cache.num_held * PAGE_TOKENS + waiting)

    def preempt_one(self) -> bool:
        """Preempt the policy's victim, so that less has to be moved. Returns False if only one sequence runs."""
        if len(self._running) < 2:
            return False
        self._preempt(self._policy.victim(self._running))
        return True

    def move(self, memory: Memory, layout: Layout) -> None:
        """Go on in another memory. Preempts the sequences that do not fit, and those whose KV it refuses."""
        self.cache.trim()
        for sequence in tuple(self._running):
            assert sequence.handle is not None, "running sequences have memory"
            if sequence.handle.num_pages > layout.max_pages:
                self._preempt(sequence)
        while self._running and (len(self._running) > layout.num_ids or self.cache.num_held > layout.num_pages):
            self._preempt(self._policy.victim(self._running))
        lost = self.cache.move(memory, layout)
        for sequence in [sequence for sequence in self._running if sequence.handle in lost]:
            self._preempt(sequence)
        self._max_running = self._max_seqs

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
                        self._preempt(sequence)  # the memory could not remove cells
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
        if sequence.handle is not None:
            if keeps_kv:
                self.cache.release(sequence.handle)
            else:
                self.cache.discard(sequence.handle)
            sequence.handle = None
            self._running.remove(sequence)
            self._max_running = min(self._max_running + 1, self._max_seqs)
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
                self._preempt(chunk.sequence)
        if isinstance(error, NoRoomError) and len(self._running) > 1:
            self._preempt(self._policy.victim(self._running))
            self._max_running = len(self._running)
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
            running=len(self._running),
            waiting=self._num_waiting,
            steps=self._steps,
            step_seconds=self._step_seconds,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            finished=self._ended[Status.STOPPED] + self._ended[Status.LENGTH],
            cancelled=self._ended[Status.CANCELLED],
            failed=self._ended[Status.FAILED],
            preemptions=self._preemptions,
            failed_steps=self._failed_steps,
            tenants=self._policy.statistics(),
            **self._drafting.statistics(),
        )
