"""How many prompt tokens a step may take while answers are streaming, and whether beside them or in turn."""

from typing import Final

from scheduler.cost import SMOOTHING, StepCost

FULL_SPEED_TOKENS: Final = 128
"""Chunks beyond this gain no speed on a CPU; a step that streams wait for may take as long as one of them at first."""
MIN_CHUNK: Final = 64
"""Chunks below this lose speed, down to three quarters of it at half the size; so they are avoided, but for STRETCH."""
SMALLEST_CHUNK: Final = 32
STRETCH: Final = 1.5
"""How much longer a step may take than it should to avoid smaller chunks, where nobody said how long it should."""


class Pacer:
    """Sizes prefill chunks by the clock, so that the gap in running streams meets a target.

    Without a given target it follows from the model's own speed on this machine: the time of a chunk that is just
    large enough for full speed.
    """

    def __init__(
        self, seconds_per_token: float, max_mixed_tokens: int | None = None, target_seconds: float | None = None
    ) -> None:
        """Starts from the cost of a prompt token at an empty context.

        Steps of more than `max_mixed_tokens` had better hold prompts only; None if answers may be in them, too.
        """
        self._cost = StepCost(seconds_per_token)
        self._best = seconds_per_token
        self._max_mixed_tokens = max_mixed_tokens
        self._given_target = target_seconds
        self._decode_seconds = 0.0
        """Of a step that only continues answers."""

    def mixes(self, num_tokens: int) -> bool:
        """Whether prompts and answers may share a step of so many tokens."""
        return self._max_mixed_tokens is None or num_tokens <= self._max_mixed_tokens

    def observe(self, num_decode: int, num_prefill: int, num_pairs: int, seconds: float) -> None:
        """`num_pairs`: the cells that each token of the step attends to, together."""
        if not num_prefill:
            self._decode_seconds += SMOOTHING * (seconds - self._decode_seconds)
        if num_prefill < SMALLEST_CHUNK:  # mostly the cost of reading the weights
            return
        num_tokens = num_decode + num_prefill
        self._cost.observe(num_tokens, num_pairs, seconds)
        if num_prefill >= MIN_CHUNK:  # the start may have been measured on a busy machine
            self._best = min(self._best, seconds / num_tokens)

    @property
    def target_seconds(self) -> float:
        """What a step that answers wait for may take."""
        return self._given_target or FULL_SPEED_TOKENS * self._best

    @property
    def spare_seconds(self) -> float:
        """What other work between two steps that continue answers may take."""
        return max(0.0, self.target_seconds - self._decode_seconds)

    def num_prefill_tokens(
        self, num_decode: int, num_prompts: int = 1, context: int = 0, num_answers: int | None = None
    ) -> int:
        """The tokens of so many prompts that fit beside so many tokens of answers, or between two steps of theirs.

        `num_answers`: the answers that the decode tokens are of; None for one token each. `context`: tokens that come
        before the prompts'. Unless told how long a step may take, one may take longer while more users wait for their
        first token than for their next, in that proportion.
        """
        target = self.target_seconds
        if self._given_target is None:
            target *= max(1.0, num_prompts / max(1, num_decode if num_answers is None else num_answers))
        fitting = self._fitting(target, num_decode, context)
        stretched = self._fitting(STRETCH * target, num_decode, context) if self._given_target is None else 0
        return max(fitting, min(stretched, MIN_CHUNK), SMALLEST_CHUNK)

    def _fitting(self, seconds: float, num_decode: int, context: int) -> int:
        """Tokens of prompts that can be computed in so long, answers included."""
        each = self._cost.token_seconds(context)
        mixes = self.mixes(num_decode + SMALLEST_CHUNK)
        answers = num_decode * each if mixes else self._decode_seconds
        return int((seconds - answers - self._cost.fixed_seconds) / each + 1e-6)
