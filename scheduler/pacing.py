"""Pacing: how many prompt tokens a step may have while answers stream, and whether a step may mix both."""

from typing import Final

from scheduler.cost import SMOOTHING, StepCost

FULL_SPEED_TOKENS: Final = 128
"""The default ITL target is the time of such a chunk at the best speed, but at least COMFORTABLE_SECONDS."""
COMFORTABLE_SECONDS: Final = 0.03
"""Nobody notices gaps of this length. On a GPU, FULL_SPEED_TOKENS take less, and larger steps have a higher speed."""
MIN_CHUNK: Final = 64
"""Smaller chunks are slower per token on a CPU, where llama.cpp computes attention in blocks of 64 rows. Avoided within
STRETCH."""
SMALLEST_CHUNK: Final = 32
"""A chunk may have this many tokens in any case."""
PATIENCE: Final = 256
STRETCH: Final = 1.5
"""A step may take this many times its target to fit a chunk of MIN_CHUNK, unless the user gave the target."""
MIN_ANSWER_COST: Final = 0.5
MAX_ANSWER_COST: Final = 4.0


class Pacer:
    """Sizes prefill chunks by measured time, so that the ITL of running streams meets a target.

    The default target is the time of a chunk that is just large enough for full speed with this model on this machine.
    """

    def __init__(
        self,
        seconds_per_token: float,
        max_mixed_tokens: int | None = None,
        target_seconds: float | None = None,
        *,
        full_speed: int = MIN_CHUNK,
    ) -> None:
        """`seconds_per_token`: the initial estimate for a prompt token at an empty context.

        Steps of more than `max_mixed_tokens` should not mix prompts and answers. None for no limit. If steps of prompts
        and of answers alternate, a step of prompts has at most `full_speed` tokens, because more are hardly faster.
        """
        self._cost = StepCost(seconds_per_token)
        self._best = seconds_per_token
        self._max_mixed_tokens = max_mixed_tokens
        self._given_target = target_seconds
        self._full_speed = full_speed
        self._decode_seconds = 0.0
        """Smoothed duration of a step without prompts."""
        self._answer_seconds = 0.0
        """The same, divided by the number of the step's tokens."""

    def mixes(self, num_tokens: int) -> bool:
        """Whether prompts and answers may share a step of `num_tokens` tokens."""
        return self._max_mixed_tokens is None or num_tokens <= self._max_mixed_tokens

    @property
    def limits_mixing(self) -> bool:
        """Whether a step takes longer if prompts and answers share it, as on a CPU."""
        return self._max_mixed_tokens is not None

    def observe(self, num_decode: int, num_prefill: int, num_pairs: int, seconds: float) -> None:
        """Record the duration of a step. `num_pairs`: the sum over its tokens of the cells that each attends to."""
        if not num_prefill:
            self._decode_seconds += SMOOTHING * (seconds - self._decode_seconds)
            self._answer_seconds += SMOOTHING * (seconds / max(num_decode, 1) - self._answer_seconds)
        if num_prefill < SMALLEST_CHUNK:  # mostly the cost of reading the weights
            return
        num_tokens = num_decode + num_prefill
        self._cost.observe(num_tokens, num_pairs, seconds)
        if num_prefill >= MIN_CHUNK:  # the machine may have been busy during the first measurement
            self._best = min(self._best, seconds / num_tokens)

    @property
    def answer_cost(self) -> float:
        """Cost of a token of an answer, in prompt tokens, for the number of answers that ran lately.

        Limited to MIN_ANSWER_COST and MAX_ANSWER_COST. A GPU computes hundreds of prompt tokens in the time of a single
        answer's step, but that step would have had room for others.
        """
        if not self._answer_seconds or not self._best:
            return 1.0
        return min(max(self._answer_seconds / self._best, MIN_ANSWER_COST), MAX_ANSWER_COST)

    def num_tokens(self, seconds: float) -> int:
        """Returns how many prompt tokens can be computed in this time at the best speed."""
        return int(seconds / self._best) if self._best else 0

    @property
    def target_seconds(self) -> float:
        """Maximum duration of a step while answers stream."""
        return self._given_target or max(FULL_SPEED_TOKENS * self._best, COMFORTABLE_SECONDS)

    @property
    def spare_seconds(self) -> float:
        """Maximum duration of other work between two steps that continue answers."""
        return max(0.0, self.target_seconds - self._decode_seconds)

    def num_prefill_tokens(self, num_decode: int, context: int = 0, *, is_shared: bool = False) -> int:
        """Returns how many prompt tokens fit into a step beside `num_decode` tokens, or between two such steps.

        `context`: tokens before the prompts' tokens. A step takes the whole target if the user gave it, or if answers
        and prompts share the step. Otherwise it takes a chunk that is just long enough for full speed, however many
        prompts wait: a longer one is hardly faster, and all answers would wait for it. `is_shared`: it takes two such
        chunks, because a long prompt and others compute one each.
        """
        fitting = self._fitting(self.target_seconds, num_decode, context)
        if self._given_target is None:
            stretched = min(self._fitting(STRETCH * self.target_seconds, num_decode, context), self._full_speed)
            if self.mixes(num_decode + MIN_CHUNK):
                fitting = max(fitting, min(stretched, MIN_CHUNK))
            else:
                fitting = 2 * stretched if is_shared else stretched
        return max(fitting, SMALLEST_CHUNK)

    def _fitting(self, seconds: float, num_decode: int, context: int) -> int:
        """Returns how many prompt tokens can be computed in `seconds` together with the decode tokens."""
        each = self._cost.token_seconds(context)
        mixes = self.mixes(num_decode + SMALLEST_CHUNK)
        answers = num_decode * each if mixes else self._decode_seconds
        return int((seconds - answers - self._cost.fixed_seconds) / each + 1e-6)
