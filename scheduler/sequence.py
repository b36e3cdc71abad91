"""One stream of tokens of a request: what is known of it, what of that is computed, and how it ends."""

from enum import IntEnum

import numpy as np

from kvcache.tree import TOKEN_BYTES, KVHandle
from scheduler.grammar import Grammar
from scheduler.messages import Submit
from scheduler.sampling import SamplerState


class Status(IntEnum):
    """In order: whatever is behind RUNNING has ended."""

    WAITING = 0
    PREEMPTED = 1
    """Waits again, for the memory it gave back."""
    RUNNING = 2
    STOPPED = 3
    LENGTH = 4
    CANCELLED = 5
    FAILED = 6


FINISH_REASONS = {Status.STOPPED: "stop", Status.LENGTH: "length", Status.FAILED: "error"}


class Sequence:
    """A sequence has known tokens and computed tokens; each step lets the computed ones catch up.

    `num_computed <= num_known`. While the sequence answers, the two differ by the tokens that its last step sampled.
    """

    __slots__ = (
        "arrival",
        "cached_tokens",
        "grammar",
        "handle",
        "known",
        "last_step",
        "last_token",
        "logprobs",
        "max_known",
        "num_prompt",
        "num_sampled",
        "num_unscored",
        "request_id",
        "sampler",
        "status",
    )

    def __init__(self, submit: Submit, arrival: int, grammar: Grammar | None = None) -> None:
        self.request_id = submit.request_id
        self.arrival = arrival
        """Its place in line, kept when preempted."""
        self.known = bytearray(np.array(submit.tokens, dtype="<i4").tobytes())
        """Prompt and generated tokens, as in kvcache.tree."""
        self.last_token = submit.tokens[-1]
        self.num_prompt = len(submit.tokens)
        self.max_known = self.num_prompt + submit.max_tokens
        self.sampler = SamplerState(submit.params, submit.tokens)
        self.grammar = grammar
        """What its answer must match, and how far it has come. It has taken in what is known of the answer."""
        self.logprobs = submit.logprobs
        """How many of the best tokens to tell with each token; None for no probabilities at all."""
        self.last_step = 0
        """The step that gave it its latest token."""
        self.num_sampled = 1
        """How many tokens the last step sampled for it."""
        self.num_unscored = max(0, self.num_prompt - 1 - submit.num_scored) if submit.score_prompt else 0
        """Tokens at the prompt's end whose probabilities are still to be told."""
        self.status = Status.WAITING
        self.handle: KVHandle | None = None
        """Its KV memory; only while it runs."""
        self.cached_tokens: int | None = None
        """Prompt tokens found in memory when it was first admitted."""
        for token in submit.answer:
            self.append(token)

    @property
    def num_known(self) -> int:
        return len(self.known) // TOKEN_BYTES

    @property
    def num_computed(self) -> int:
        return self.handle.num_tokens if self.handle is not None else 0

    @property
    def sequence_id(self) -> int:
        """llama.cpp's number for it while it runs."""
        assert self.handle is not None, "only running sequences have an id"
        return self.handle.id

    @property
    def num_remaining(self) -> int:
        """Known tokens still to compute."""
        return len(self.known) // TOKEN_BYTES - (self.handle.num_tokens if self.handle is not None else 0)

    @property
    def is_answering(self) -> bool:
        """Whether it only waits for its next token: it has nothing to compute but what its last step sampled.

        So forced tokens of a grammar count as a prompt. The last token of a prompt that was found in memory does not.
        """
        return self.num_remaining <= self.num_sampled

    @property
    def needs_whole_rows(self) -> bool:
        """Whether more is asked of the logits than the next token, or a grammar has its say in it."""
        return self.grammar is not None or self.logprobs is not None or self.num_unscored > 0

    @property
    def max_hit(self) -> int | None:
        """How many tokens may be taken from memory: not those that must give logits. None for no limit."""
        return self.num_prompt - 1 - self.num_unscored if self.num_unscored else None

    def tokens(self, start: int, stop: int) -> bytes:
        return bytes(self.known[start * TOKEN_BYTES : stop * TOKEN_BYTES])

    def advance(self, token: int, eog_tokens: frozenset[int]) -> tuple[list[int], Status | None]:
        """Append a sampled token, and those that the grammar forces behind it.

        Returns what was appended, and STOPPED or LENGTH if the sequence ends with it. Raises GrammarError, with nothing
        appended, if the grammar cannot take the token.
        """
        tokens = [token]
        is_last = token in eog_tokens and not self.sampler.params.ignore_eos
        if self.grammar is not None and not is_last:
            tokens += self.grammar.advance(token, forces=self.logprobs is None)
            room = self.max_known - self.num_known
            is_last = self.grammar.is_complete and len(tokens) <= room
            del tokens[room:]
        for known in tokens:
            self.append(known)
        if is_last:
            return tokens, Status.STOPPED
        if len(self.known) >= self.max_known * TOKEN_BYTES:
            return tokens, Status.LENGTH
        return tokens, None

    def append(self, token: int) -> None:
        self.known += token.to_bytes(TOKEN_BYTES, "little")
        self.last_token = token
        self.sampler.accept(token)
