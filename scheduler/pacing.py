"""How many prompt tokens a step may take while answers are streaming, and whether beside them or in turn."""

from typing import Final

FULL_SPEED_TOKENS: Final = 128
"""Chunks beyond this gain no speed on a CPU; a step that streams wait for may take as long as one of them at first."""
MIN_CHUNK: Final = 64
"""Chunks below this lose speed, down to three quarters of it at half the size; so they are avoided, but for STRETCH."""
SMALLEST_CHUNK: Final = 32
STRETCH: Final = 1.5
"""How much longer a step may take than it should to avoid smaller chunks."""
SMOOTHING: Final = 0.5
"""Weight of the newest step: the cost of a token grows with the context, a few percent from one chunk to the next."""


class Pacer:
    """Sizes prefill chunks by the clock, from a running estimate of what a token costs in a mixed step.

    In a step with a chunk of a prompt every token costs about the same, whether it continues an answer or reads a
    prompt; but the more context there is, the more. The limit follows from the model's own speed on this machine.
    """

    def __init__(self, seconds_per_token: float, max_mixed_tokens: int | None = None) -> None:
        """Starts from the cost of a prompt token at an empty context.

        Steps of more than `max_mixed_tokens` had better hold prompts only; None if answers may be in them, too.
        """
        self._best = self._current = seconds_per_token
        self._max_mixed_tokens = max_mixed_tokens
        self._decode_seconds = 0.0
        """Of a step that only continues answers."""

    def mixes(self, num_tokens: int) -> bool:
        """Whether prompts and answers may share a step of so many tokens."""
        return self._max_mixed_tokens is None or num_tokens <= self._max_mixed_tokens

    def observe(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        if not num_prefill:
            self._decode_seconds += SMOOTHING * (seconds - self._decode_seconds)
        if num_prefill < SMALLEST_CHUNK:  # mostly the cost of reading the weights
            return
        measured = seconds / (num_decode + num_prefill)
        self._current += SMOOTHING * (measured - self._current)
        if num_prefill >= MIN_CHUNK:  # the start may have been measured on a busy machine
            self._best = min(self._best, measured)

    @property
    def target_seconds(self) -> float:
        """What a step that answers wait for may take."""
        return FULL_SPEED_TOKENS * self._best

    def num_prefill_tokens(self, num_decode: int, num_prompts: int = 1) -> int:
        """The tokens of so many prompts that fit beside so many decodes, or between two steps of theirs.

        While more users wait for their first token than for their next, a step may take longer in that proportion.
        """
        mixes = self.mixes(num_decode + SMALLEST_CHUNK)
        decodes = num_decode if mixes else round(self._decode_seconds / self._current)
        target = self.target_seconds * max(1.0, num_prompts / max(1, num_decode))
        fitting = int(target / self._current) - decodes
        stretched = int(STRETCH * target / self._current) - decodes
        return max(fitting, min(stretched, MIN_CHUNK), SMALLEST_CHUNK)
