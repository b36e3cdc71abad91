"""Adds drafted tokens to the plans of steps, and learns from their outcomes."""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import mul
from typing import Any, Final

from kvcache.cache import KVCache
from kvcache.tree import PAGE_TOKENS, TOKEN_BYTES
from scheduler.drafts.acceptance import Acceptance
from scheduler.drafts.amount import Amounts, Offer
from scheduler.drafts.drafter import Drafter
from scheduler.drafts.matching import common_tokens, token_bytes
from scheduler.messages import Output
from scheduler.plan import MAX_DRAFTED, Chunk, Plan, Result
from scheduler.sequence import Sequence

_log = logging.getLogger("cortex.engine")


@dataclass(slots=True)
class _Proposal:
    """What a drafter guessed after the first `num_known` tokens of a sequence, whether it was computed or not."""

    drafter: Drafter
    num_known: int
    tokens: list[int]
    estimates: list[float]
    """Those of the drafter."""
    chances: list[float]
    """For each token the probability that it and all tokens before it are accepted."""

    @property
    def value(self) -> float:
        """The expected number of accepted tokens."""
        return sum(self.chances)


@dataclass(slots=True)
class _Counts:
    num_drafts: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0


FEW_ANSWERS: Final = 4
"""With at most so many answers, each step may draft."""
BARREN_STEPS: Final = 8
PAUSE: Final = 4
"""With more answers, after BARREN_STEPS steps in a row in which no draft was worth it, only each PAUSE-th step asks the
drafters. Asking takes up to 1% of such a step."""


class Drafting:
    """Asks the drafters, decides how many of their tokens a step computes, and counts the accepted ones."""

    def __init__(
        self,
        drafters: Items[Drafter],
        amounts: Amounts | None = None,
        *,
        max_tokens: int = MAX_DRAFTED,
        max_top_k: int = 0,
    ) -> None:
        """`drafters` in the order of preference among equals; without any, there are no drafts.

        `amounts` decides how many tokens are drafted; None for as many as possible. `max_tokens`: of a step, its
        answers' own tokens included. `max_top_k`: number of best tokens that the backend finds. A sequence for which
        they suffice has one row of logits in a step, so it gets no drafts.
        """
        self._drafters = list(drafters)
        self._amounts = amounts
        self._max_tokens = max_tokens
        self._max_top_k = max_top_k
        self._acceptance = Acceptance()
        self._proposals: dict[int, _Proposal] = {}
        """The last proposal of each running sequence, by request id."""
        self._counts = {drafter.source: _Counts() for drafter in drafters}
        self._per_position = [0] * MAX_DRAFTED
        self._num_barren = 0
        """Steps in a row that could have drafted, and did not."""

    @property
    def is_on(self) -> bool:
        return bool(self._drafters)

    def stop(self, reason: str) -> None:
        """Draft no more."""
        if self._drafters:
            _log.warning("no tokens are drafted any more: %s", reason)
        self._drafters.clear()
        self._proposals.clear()

    # -- before a step -----------------------------------------------------------------------------------------------

    def extend(self, plan: Plan, cache: KVCache, num_running: int) -> None:
        """Add drafts to the plan and reserve pages for them: to answers alone, or to the end of a prompt alone."""
        if not plan.chunks:
            return
        if plan.num_prefill or plan.num_decode != plan.num_answers:
            if num_running == 1 and plan.chunks[0].samples:
                self._extend_prompt(plan, cache)
            return
        if num_running > plan.num_answers > 1:  # prompts take turns with the answers, which wait long enough
            return
        room = min(MAX_DRAFTED, self._max_tokens - plan.num_tokens)
        if room <= 0:
            return
        self._num_barren += 1
        if plan.num_answers > FEW_ANSWERS and self._num_barren > BARREN_STEPS and self._num_barren % PAUSE:
            return
        chunks = [
            chunk
            for chunk in plan.chunks
            if chunk.sequence.num_known > chunk.sequence.num_prompt and self._may_draft(chunk.sequence)
        ]
        for chunk in chunks:
            self._learn(chunk.sequence)
        limits = [min(room, chunk.sequence.max_known - chunk.sequence.num_known - 1) for chunk in chunks]
        self._propose(plan, chunks, limits, self._drafters)
        offers = [
            Offer(number, proposal.chances)
            for number, chunk in enumerate(plan.chunks)
            if (proposal := self._proposals.get(chunk.sequence.request_id)) is not None
        ]
        if not offers:
            return
        if self._amounts is None:
            counts = {offer.number: offer.num_tokens for offer in offers}
        else:
            counts = self._amounts.choose(plan, offers, room)
        for number, count in counts.items():
            self._add(plan, plan.chunks[number], min(count, room - plan.num_drafted), cache, num_running)

    def _extend_prompt(self, plan: Plan, cache: KVCache) -> None:
        """Add drafts to the only chunk of the plan, which ends a prompt. Asks no drafter that takes time."""
        chunk, room = plan.chunks[0], min(MAX_DRAFTED, self._max_tokens - plan.num_tokens)
        sequence = chunk.sequence
        if room <= 0 or chunk.scores or not self._may_draft(sequence):
            return
        self._learn(sequence)
        drafters = [drafter for drafter in self._drafters if not drafter.seconds(1, 1)]
        self._propose(plan, [chunk], [min(room, sequence.max_known - sequence.num_known - 1)], drafters)
        proposal = self._proposals.get(sequence.request_id)
        if proposal is None:
            return
        count = len(proposal.tokens)
        if self._amounts is not None:
            count = self._amounts.choose_after_prompt(chunk, Offer(0, proposal.chances), room)
        self._add(plan, chunk, count, cache, 1)

    def _add(self, plan: Plan, chunk: Chunk, count: int, cache: KVCache, num_running: int) -> None:
        """Add as many tokens of the sequence's proposal to its chunk as have pages, at most `count`."""
        proposal = self._proposals[chunk.sequence.request_id]
        count = _reserve(chunk.sequence, count, cache, num_running)
        if count > 0:
            chunk.drafts, chunk.source = proposal.tokens[:count], proposal.drafter.source
            self._num_barren = 0
            plan.num_drafted += count

    def _may_draft(self, sequence: Sequence) -> bool:
        """Whether the sequence's places can be sampled one after another.

        Mirostat's limit at a place depends on the probabilities at all places before it.
        """
        if sequence.num_unscored or sequence.sampler.params.mirostat:
            return False
        if sequence.max_known - sequence.num_known < 2:
            return False
        if not self._max_top_k or sequence.needs_whole_rows:
            return True
        return not sequence.sampler.best_suffice(self._max_top_k)

    def _propose(self, plan: Plan, chunks: list[Chunk], limits: list[int], drafters: Items[Drafter]) -> None:
        """Ask the drafters. Those that take time are asked only for what may be worth it."""
        for drafter in drafters:
            asked = [(chunk.sequence, limit) for chunk, limit in zip(chunks, limits, strict=True)]
            if drafter.seconds(1, 1) > 0.0 and self._amounts is not None:
                asked = self._worth_asking(drafter, plan, chunks, limits)
            if not asked:
                continue
            drafts = drafter.draft([sequence for sequence, _ in asked], [limit for _, limit in asked])
            for (sequence, _), draft in zip(asked, drafts, strict=True):
                if not draft.tokens:
                    continue
                tokens = draft.tokens
                if sequence.grammar is not None:
                    tokens = tokens[: sequence.grammar.num_allowed(tokens)]
                chances = self._acceptance.chances(sequence.request_id, drafter.source, draft.estimates[: len(tokens)])
                proposal = _Proposal(drafter, sequence.num_known, tokens, draft.estimates, chances)
                other = self._proposals.get(sequence.request_id)
                if tokens and (other is None or proposal.value > other.value):
                    self._proposals[sequence.request_id] = proposal

    def _worth_asking(
        self, drafter: Drafter, plan: Plan, chunks: list[Chunk], limits: list[int]
    ) -> list[tuple[Sequence, int]]:
        """Returns the sequences for which a drafter that takes time may pay, and how many tokens."""
        assert self._amounts is not None, "the caller checked it"
        numbers = {id(chunk): number for number, chunk in enumerate(plan.chunks)}
        offers, sequences = [], {}
        for chunk, limit in zip(chunks, limits, strict=True):
            sequence, number = chunk.sequence, numbers[id(chunk)]
            expected = self._acceptance.mean(sequence.request_id, drafter.source)
            other = self._proposals.get(sequence.request_id)
            if other is None or other.chances[0] < expected:
                offers.append(Offer(number, list(accumulate(repeat(expected, limit), mul))))
                sequences[number] = sequence
        counts = self._amounts.choose(plan, offers, max(limits, default=0), drafter.seconds)
        return [(sequences[number], count) for number, count in counts.items()]

    def _learn(self, sequence: Sequence) -> None:
        """Compare the sequence's last proposal with the tokens that followed it, whether it was computed or not.

        So a drafter is judged in steps without drafts too, at no cost.
        """
        proposal = self._proposals.pop(sequence.request_id, None)
        if proposal is None:
            return
        following = sequence.known[proposal.num_known * TOKEN_BYTES :]
        guessed = token_bytes(proposal.tokens)
        num_equal = common_tokens(following, guessed)
        is_wrong = num_equal < min(len(following) // TOKEN_BYTES, len(proposal.tokens))
        self._acceptance.observe(
            sequence.request_id, proposal.drafter.source, proposal.estimates, num_equal, is_wrong=is_wrong
        )

    # -- after a step ------------------------------------------------------------------------------------------------

    def observe(self, plan: Plan, result: Result) -> None:
        """Record a computed step. Sets the number of accepted drafts of its chunks."""
        if self._amounts is not None:
            self._amounts.observe(plan, result.seconds)
        if plan.num_drafted:
            sampling = (chunk for chunk in plan.chunks if chunk.samples)
            for chunk, tokens in zip(sampling, result.tokens, strict=True):
                chunk.num_accepted = common_tokens(token_bytes(chunk.drafts), token_bytes(tokens))

    def settle(self, chunk: Chunk, output: Output, cache: KVCache, *, keeps: bool) -> int:
        """Keep the cells of the drafts that became known tokens, and remove the others. Returns how many are kept.

        The last known token stays without a cell: it must be computed to get logits. If the memory cannot remove cells,
        the sequence has none left. Without `keeps`, changes no cells, because nothing of the sequence will be kept.
        """
        sequence, first = chunk.sequence, chunk.start + chunk.num_tokens
        assert sequence.handle is not None, "the sequence runs until its drafts are settled"
        output.accepted_drafts = self._count(chunk)
        output.rejected_drafts = len(chunk.drafts) - output.accepted_drafts
        if not keeps:
            return 0
        num_kept = min(output.accepted_drafts, sequence.num_known - 1 - first)
        cache.commit(sequence.handle, sequence.tokens(first, first + num_kept))
        sequence.num_sampled = max(1, sequence.num_sampled - num_kept)
        if num_kept < len(chunk.drafts) and not cache.rollback(sequence.handle):
            self.stop("the model's memory cannot remove rejected drafts")
        return num_kept

    def _count(self, chunk: Chunk) -> int:
        """Returns how many of the chunk's drafts have become known tokens of its sequence, and counts them."""
        first = (chunk.start + chunk.num_tokens) * TOKEN_BYTES
        following = chunk.sequence.known[first : first + len(chunk.drafts) * TOKEN_BYTES]
        num_accepted = common_tokens(following, token_bytes(chunk.drafts))
        counts = self._counts[chunk.source]
        counts.num_drafts += 1
        counts.draft_tokens += len(chunk.drafts)
        counts.accepted_draft_tokens += num_accepted
        for position in range(num_accepted):
            self._per_position[position] += 1
        return num_accepted

    def ended(self, sequence: Sequence) -> None:
        """A running sequence has ended or was preempted."""
        self._proposals.pop(sequence.request_id, None)
        self._acceptance.forget(sequence.request_id)
        for drafter in self._drafters:
            drafter.ended(sequence)

    def statistics(self) -> dict[str, Any]:
        """Returns the fields of SchedulerStatistics."""
        counts = self._counts.values()
        return {
            "num_drafts": sum(each.num_drafts for each in counts),
            "draft_tokens": sum(each.draft_tokens for each in counts),
            "accepted_draft_tokens": sum(each.accepted_draft_tokens for each in counts),
            "accepted_per_position": list(self._per_position),
            "draft_sources": {
                source: {
                    "num_drafts": each.num_drafts,
                    "draft_tokens": each.draft_tokens,
                    "accepted_draft_tokens": each.accepted_draft_tokens,
                }
                for source, each in self._counts.items()
            },
        }


def _reserve(sequence: Sequence, num_tokens: int, cache: KVCache, spare_pages: int) -> int:
    """Reserve pages for drafts after the known tokens, without an eviction. Returns how many drafts have pages."""
    assert sequence.handle is not None, "a planned sequence runs"
    num_known = sequence.num_known
    cache.reserve_free(sequence.handle, num_known + num_tokens, spare_pages)
    return max(0, min(num_tokens, sequence.handle.num_pages * PAGE_TOKENS - num_known))
