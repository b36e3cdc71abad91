"""Decides how many drafted tokens a step verifies: as many as make the most answer tokens per second.

More rows take longer, and all answers of the step wait for them. The duration of a pass over the weights is learned by
its number of rows; attention comes on top, by the cells that each row attends to (`scheduler.drafts.passes`). In lanes
llama.cpp cuts a batch at the shortest chunk, so answers with drafts beside answers without them cost another pass. In a
pool a step is one pass.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from typing import Final, NamedTuple, Protocol

import numpy as np

from scheduler.drafts.passes import FULL_ROWS, PassSeconds
from scheduler.plan import Chunk, Plan

COUNTS: Final = 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 63
"""Numbers of drafted tokens that are compared. With its own token, a chunk then has at most 64 rows."""
MIN_GAIN: Final = 1.1
"""Drafts must make so many times as many tokens per second. A smaller gain would be an error of the estimates."""

OTHERS_GAIN: Final = 0.25
"""Added to MIN_GAIN, times the share of answers without drafts: they wait longer, and get nothing for it."""

FIRST_TOKEN_WEIGHT: Final = 1.5
"""Drafts at the end of a prompt delay the first token. They must save so many times as much of the answer's time."""


class Offer(NamedTuple):
    """Drafted tokens for an answer of the plan."""

    number: int
    """Index of the answer's chunk in the plan."""
    chances: list[float]
    """For each token the probability that it and all tokens before it are accepted; at least one."""

    @property
    def num_tokens(self) -> int:
        return len(self.chances)

    def expected(self, count: int) -> float:
        """Returns the expected number of accepted tokens of the first `count`."""
        return sum(self.chances[:count])


TARGET_SHARE: Final = 0.5
"""A step with drafts for several answers may take this share of the pacer's target: about a chunk of 64 tokens."""


class Target(Protocol):
    """How long a step may take while several answers stream; see `scheduler.pacing.Pacer`."""

    @property
    def target_seconds(self) -> float: ...


Option = tuple[dict[int, int], float, float]
"""Drafted tokens by chunk, the expected number of accepted ones, and the seconds of the step."""

ExtraSeconds = Callable[[int, int], float]
"""Returns how long it takes to draft, for a number of sequences, a number of tokens each."""


def _nothing(num_sequences: int, num_tokens: int) -> float:  # noqa: ARG001
    return 0.0


class Amounts:
    """See the module."""

    def __init__(self, passes: PassSeconds, target: Target, *, in_lanes: bool) -> None:
        self._passes = passes
        self._target = target
        self._in_lanes = in_lanes

    def observe(self, plan: Plan, seconds: float) -> None:
        """Record the duration of a step. Steps with prompts do not count."""
        if not plan.num_prefill and plan.num_decode:
            rows = step_passes(plan, in_lanes=self._in_lanes)
            self._passes.observe(rows, seconds, self._attention(plan.chunks))
            if plan.num_drafted:
                self._passes.hope(max(rows))

    def choose(self, plan: Plan, offers: Items[Offer], room: int, extra: ExtraSeconds = _nothing) -> dict[int, int]:
        """Returns how many tokens of each offer to verify, by the number of its chunk. Those without any are left out.

        `room`: maximum number of drafted tokens in all. `extra`: the time to make the drafts that are offered.
        """
        best: dict[int, int] = {}
        num_answers = len(plan.chunks)
        attention = self._attention(plan.chunks)
        seconds = sum(map(self._passes, step_passes(plan, in_lanes=self._in_lanes))) + attention
        least = self._passes.least_row_seconds * num_answers / seconds
        offers = [offer for offer in offers if offer.chances[0] > least]  # the others cannot pay for their rows
        limit = TARGET_SHARE * self._target.target_seconds if num_answers > 1 else float("inf")
        if sum(offer.expected(offer.num_tokens) for offer in offers) <= (MIN_GAIN - 1) * num_answers:
            return best
        rate = 0.0
        options = self._in_groups if self._in_lanes else self._in_one_pass
        for counts, gain, duration in options(plan, offers, room, extra):
            duration += attention + self._more_attention(plan, counts)
            each = (num_answers + gain) / duration
            others = 1 - len(counts) / num_answers
            if duration <= limit and each > max(rate, (MIN_GAIN + OTHERS_GAIN * others) * num_answers / seconds):
                best, rate = counts, each
        return best

    def choose_after_prompt(self, chunk: Chunk, offer: Offer, room: int) -> int:
        """Returns how many drafted tokens to verify in the same step as the end of a prompt, which is alone in it.

        Otherwise the next steps would verify them. On a CPU, a little less than FULL_ROWS rows take longer than
        FULL_ROWS, so drafts that fill the step up may cost nothing.
        """
        rows, most = chunk.num_tokens, min(offer.num_tokens, room)
        counts = {count for count in (*COUNTS, FULL_ROWS - rows) if 0 < count <= most}
        end = chunk.start + rows
        later = max((1 + offer.expected(count)) / self._seconds(end, 1 + count) for count in (0, *counts))
        plain = self._seconds(chunk.start, rows)
        best, most_saved = 0, 0.0
        for count in counts:
            delay = self._seconds(chunk.start, rows + count) - plain
            saved = offer.expected(count) / later - FIRST_TOKEN_WEIGHT * delay
            if saved > most_saved:
                best, most_saved = count, saved
        return best

    def _seconds(self, start: int, rows: int) -> float:
        """Returns the seconds of a step with these rows of one sequence, from position `start` on."""
        return self._passes(rows) + self._passes.attention(start + rows, rows)

    def _attention(self, chunks: Items[Chunk]) -> float:
        """Returns the seconds that the rows of these chunks take for attention."""
        return sum(self._attention_of(chunk, len(chunk.drafts)) for chunk in chunks)

    def _more_attention(self, plan: Plan, counts: dict[int, int]) -> float:
        """Returns how much longer attention takes with so many drafted tokens, by the number of their chunk."""
        return sum(
            self._attention_of(chunk, count) - self._attention_of(chunk, 0)
            for chunk, count in ((plan.chunks[number], count) for number, count in counts.items())
        )

    def _attention_of(self, chunk: Chunk, num_drafted: int) -> float:
        rows = chunk.num_tokens + num_drafted
        return self._passes.attention(chunk.start + rows, rows)

    def _in_groups(self, plan: Plan, offers: Items[Offer], room: int, extra: ExtraSeconds) -> Iterator[Option]:
        """Yields options in which some answers get equally many drafted tokens, and the others none."""
        ids = [chunk.sequence.sequence_id for chunk in plan.chunks]
        plain = sum(map(self._passes, _run_lengths(ids)))
        for count in COUNTS:
            able = [offer for offer in offers if offer.num_tokens >= count]
            able.sort(key=lambda offer: -offer.expected(count))
            most = min(len(able), room // count)
            for size in {*(1 << power for power in range(most.bit_length())), most} - {0}:
                group = able[:size]
                if size == len(ids):
                    seconds = sum(self._passes(run * (1 + count)) for run in _run_lengths(ids))
                else:
                    runs = _run_lengths(sorted(ids[offer.number] for offer in group))
                    seconds = plain + sum(self._passes(run * count) for run in runs)
                counts = dict.fromkeys((offer.number for offer in group), count)
                yield counts, sum(offer.expected(count) for offer in group), seconds + extra(size, count)

    def _in_one_pass(self, plan: Plan, offers: Items[Offer], room: int, extra: ExtraSeconds) -> Iterator[Option]:
        """Yields options that verify the most probable tokens of all answers."""
        chances = np.concatenate([offer.chances for offer in offers])
        owners = np.repeat(np.arange(len(offers)), [offer.num_tokens for offer in offers])
        order = np.argsort(-chances, kind="stable")[:room]
        gains = np.cumsum(chances[order])
        for count in {*(count for count in COUNTS if count < len(order)), len(order)}:
            shares = np.bincount(owners[order[:count]], minlength=len(offers)).tolist()
            counts = {offer.number: share for offer, share in zip(offers, shares, strict=True) if share}
            seconds = self._passes(plan.num_tokens + count) + extra(len(counts), max(counts.values()))
            yield counts, float(gains[count - 1]), seconds


def step_passes(plan: Plan, *, in_lanes: bool) -> list[int]:
    """Returns the number of rows of each pass over the weights that a step with answers takes on a CPU."""
    if not in_lanes:
        return [plan.num_tokens]
    if not plan.num_drafted and plan.num_decode == plan.num_answers:
        return _run_lengths([chunk.sequence.sequence_id for chunk in plan.chunks])
    sizes = {chunk.sequence.sequence_id: chunk.num_tokens + len(chunk.drafts) for chunk in plan.chunks}
    rows, done = [], 0
    while sizes:
        shortest = min(sizes.values())
        rows += [run * (shortest - done) for run in _run_lengths(sorted(sizes))]
        sizes = {number: size for number, size in sizes.items() if size > shortest}
        done = shortest
    return rows


def _run_lengths(ids: list[int]) -> list[int]:
    """Returns the lengths of the runs of consecutive ids, which are in ascending order.

    llama.cpp computes lanes in one pass only while their ids are consecutive.
    """
    lengths: list[int] = []
    last = -2
    for number in ids:
        if number == last + 1:
            lengths[-1] += 1
        else:
            lengths.append(1)
        last = number
    return lengths
