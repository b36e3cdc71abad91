"""Divides the token budget of a step among the running sequences: answers first, then prompts."""

import math
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import Final

from scheduler.pacing import MIN_CHUNK, Pacer
from scheduler.plan import Chunk, Plan, by_id
from scheduler.queue import Policy
from scheduler.sequence import Sequence

MAX_SCORED_TOKENS: Final = 64
"""Prompt tokens per step that give log probabilities. Each costs a row of logits and a softmax."""

MAX_REST: Final = 4
"""A prompt is computed to its end if no more tokens than these would be left. Alone, they would take longer: a pass
takes about as long as two tokens."""
MAX_FILLERS: Final = 4
"""Prompt tokens that a step of answers may have between two lanes of answers: more would take longer than the pass over
the weights that they save."""
MAX_UNANSWERED: Final = 2
"""Steps in a row that may compute urgent prompts while answers wait."""


class Planner:
    """Plans steps. Remembers when answers were continued last, so that answers and prompts can take turns."""

    def __init__(
        self, pacer: Pacer, policy: Policy, *, token_budget: int, max_decode: int, in_lanes: bool = False
    ) -> None:
        """`max_decode`: maximum tokens of answers in a step. If there are more, the answers take turns.

        `in_lanes`: whether a step computes the sequences together only as far as their ids are consecutive.
        """
        self._pacer = pacer
        self._policy = policy
        self._token_budget = token_budget
        self._max_decode = max_decode
        self._in_lanes = in_lanes
        self._num_unanswered = 1
        """Number of steps since the last one that continued answers."""

    def plan(self, running: list[Sequence]) -> Plan:
        """Returns the next step's plan. `running`, in order of arrival, must have pages for all known tokens."""
        plan = Plan()
        prompts = self._plan_decodes(plan, running)
        if prompts:
            self._plan_prefills(plan, prompts)
        if plan.num_decode and plan.num_prefill:
            is_urgent = self._num_unanswered < MAX_UNANSWERED and self._policy.is_urgent(prompts)
            if not self._pacer.mixes(plan.num_tokens) or (is_urgent and self._pacer.limits_mixing):
                self._take_turns(plan, prompts, is_urgent=is_urgent)
            elif self._num_unanswered and not self._pacer.mixes(plan.num_decode + MIN_CHUNK):
                self._take_turns(plan, prompts, is_urgent=False)  # the answers have just waited for a step of prompts
        return plan

    def observe(self, plan: Plan, seconds: float) -> None:
        """Record a computed step and its duration."""
        self._num_unanswered = 0 if plan.num_decode else self._num_unanswered + 1
        if not plan.num_drafted:  # other steps say little about those without drafts
            num_answers, num_prompts = plan.num_decode + plan.num_fillers, plan.num_prefill - plan.num_fillers
            self._pacer.observe(num_answers, num_prompts, plan.num_pairs, seconds)

    def spare_seconds(self, running: list[Sequence]) -> float | None:
        """Returns how long other work may take before the next step; infinity while no sequence is answering.

        None if answers wait and the last step held prompts only: the next step must continue the answers. While there
        are both answers and prompts, half of the pacer's time.
        """
        num_answers = sum(sequence.is_answering for sequence in running)
        if not num_answers:
            return math.inf
        if self._num_unanswered:
            return None
        return self._pacer.spare_seconds / (1 if num_answers == len(running) else 2)

    # -- answers -----------------------------------------------------------------------------------------------------

    def _plan_decodes(self, plan: Plan, running: list[Sequence]) -> list[Sequence]:
        """Plan all answers. Returns the sequences that have more tokens to compute before their next token."""
        others = []
        for sequence in running:
            num_tokens = sequence.num_remaining
            # The same as is_answering, inlined for speed: this runs for every sequence in every step.
            if num_tokens <= sequence.num_sampled and num_tokens <= self._max_decode:
                plan.chunks.append(Chunk(sequence, sequence.num_known - num_tokens, num_tokens, samples=True))
                plan.num_decode += num_tokens
            else:
                others.append(sequence)
        if plan.num_decode > self._max_decode:
            self._leave_some_out(plan)
        plan.chunks.sort(key=by_id)  # llama.cpp computes lanes together only if their ids are consecutive
        plan.num_answers = len(plan.chunks)
        return others

    def _leave_some_out(self, plan: Plan) -> None:
        """Divide the answers among several equal steps, in the policy's order."""
        num_steps = -(-plan.num_decode // self._max_decode)
        room = -(-plan.num_decode // num_steps)
        plan.chunks = self._policy.turns(plan.chunks)
        ends = list(accumulate(chunk.num_tokens for chunk in plan.chunks))
        count = max(1, bisect_right(ends, room))
        del plan.chunks[count:]
        plan.num_decode = ends[count - 1]

    # -- prompts -----------------------------------------------------------------------------------------------------

    def _plan_prefills(self, plan: Plan, prompts: list[Sequence]) -> None:
        """Give the rest of the budget to the prompts, in the policy's order and shares."""
        budget = self._token_budget - plan.num_decode
        if plan.num_decode:
            context = max(sequence.num_computed for sequence in prompts)
            is_shared = len(prompts) > 1 and prompts[0].num_remaining > self._token_budget
            budget = min(budget, self._pacer.num_prefill_tokens(plan.num_decode, context, is_shared=is_shared))
        chunks: list[Chunk] = []
        scored = MAX_SCORED_TOKENS
        for sequence, share in self._policy.prefill_shares(prompts, budget):
            num_tokens = min(sequence.num_remaining, share, budget)
            rest = sequence.num_remaining - num_tokens
            if num_tokens and rest <= min(MAX_REST, self._token_budget - plan.num_tokens - num_tokens):
                num_tokens += rest
            if chunks and chunks[-1].samples and num_tokens < min(MIN_CHUNK, sequence.num_remaining):
                continue  # a slow chunk that ends nothing: the next step begins with this prompt
            scores = sequence.num_unscored > 0
            if scores:
                num_tokens = min(num_tokens, scored)
                scored -= num_tokens
            if num_tokens:
                samples = num_tokens == sequence.num_remaining
                chunks.append(Chunk(sequence, sequence.num_computed, num_tokens, samples, scores))
                budget = max(0, budget - num_tokens)
                plan.num_prefill += num_tokens
        # llama.cpp computes lanes with ascending ids together up to the length of the shortest chunk, then the rest.
        # This is fastest for chunks of equal length. For other chunks, descending ids give each chunk its own
        # micro-batch, which has full speed from 64 tokens on.
        is_uneven = len({chunk.num_tokens for chunk in chunks}) > 1
        plan.chunks += sorted(chunks, key=by_id, reverse=is_uneven)

    def _take_turns(self, plan: Plan, prompts: list[Sequence], *, is_urgent: bool) -> None:
        """Defer either the answers or the prompts to the next step."""
        if is_urgent or not self._num_unanswered:
            del plan.chunks[: plan.num_answers]
            plan.num_answers = plan.num_decode = 0
        else:
            del plan.chunks[plan.num_answers :]
            plan.num_prefill = 0
            if self._in_lanes and plan.num_decode == plan.num_answers:
                self._fill_lanes(plan, prompts)

    def _fill_lanes(self, plan: Plan, prompts: list[Sequence]) -> None:
        """Add a token of each prompt between two lanes of answers, if this makes these lanes consecutive.

        Otherwise the answers on both sides would take a pass over the weights each.
        """
        fillers = {
            sequence.sequence_id: sequence
            for sequence in prompts
            if sequence.num_remaining > 1 and not sequence.num_unscored
        }
        for left, right in pairwise([chunk.sequence.sequence_id for chunk in plan.chunks]):
            between = range(left + 1, right)
            room = min(MAX_FILLERS, self._token_budget - plan.num_tokens)
            if len(between) <= room and fillers.keys() >= set(between):
                chosen = map(fillers.__getitem__, between)
                plan.chunks += [Chunk(sequence, sequence.num_computed, 1, samples=False) for sequence in chosen]
                plan.num_prefill = plan.num_fillers = plan.num_fillers + len(between)
