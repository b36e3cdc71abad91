"""The state of one sequence of tokens: known tokens, computed tokens, and status."""

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from kvcache.tree import TOKEN_BYTES, KVHandle
from scheduler.grammar import Grammar
from scheduler.messages import Submit
from scheduler.sampling import SamplerState
from scheduler.thoughts import ThoughtCounter


class Status(IntEnum):
    """Values above RUNNING mean that the sequence has ended."""

    WAITING = 0
    PREEMPTED = 1
    """Waits again, without memory, after it has run."""
    RUNNING = 2
    STOPPED = 3
    LENGTH = 4
    CANCELLED = 5
    FAILED = 6


FINISH_REASONS = {Status.STOPPED: "stop", Status.LENGTH: "length", Status.FAILED: "error"}


class Sequence:
    """A sequence has known tokens, the first `num_computed` of which are computed. Each step computes more of them.

    While the sequence is answering, only the tokens that its last step sampled are not computed.
    """

    __slots__ = (
        "arrival",
        "cache_salt",
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
        "prediction",
        "priority",
        "queue_seconds",
        "request_id",
        "sampler",
        "status",
        "submitted_at",
        "tenant",
        "thoughts",
        "weight",
    )

    def __init__(
        self,
        submit: Submit,
        arrival: int,
        grammar: Grammar | None = None,
        piece: Callable[[int], bytes] | None = None,
        now: float = 0.0,
    ) -> None:
        """`piece` returns the text of a token, also of a control token. A limit on reasoning needs it.

        `now`: when the sequence arrived, on the scheduler's clock.
        """
        self.request_id = submit.request_id
        self.tenant = submit.tenant
        self.weight = submit.weight
        self.priority = submit.priority
        self.cache_salt = submit.cache_salt.encode()
        self.submitted_at = now
        self.queue_seconds = 0.0
        """Seconds from its arrival to its first admission."""
        self.arrival = arrival
        """Position in the order of arrival. A preemption does not change it."""
        self.known = bytearray(np.array(submit.tokens, dtype="<i4").tobytes())
        """Prompt and generated tokens, in the format of kvcache.tree."""
        self.prediction = np.array(submit.prediction, dtype="<i4").tobytes()
        """Tokens that the answer probably contains, in the same format."""
        self.last_token = submit.tokens[-1]
        self.num_prompt = len(submit.tokens)
        self.max_known = self.num_prompt + submit.max_tokens
        self.sampler = SamplerState(submit.params, submit.tokens)
        self.grammar = grammar
        """The grammar of the answer. It has consumed the known tokens of the answer."""
        self.thoughts: ThoughtCounter | None = None
        """Counts the reasoning of an answer whose reasoning is limited."""
        if submit.thoughts is not None and piece is not None:
            self.thoughts = ThoughtCounter(submit.thoughts, piece)
        self.logprobs = submit.logprobs
        """How many of the best tokens to return with each token; None for no log probabilities."""
        self.last_step = 0
        """Number of the step that sampled the latest token."""
        self.num_sampled = 1
        """Number of tokens that the last step sampled."""
        self.num_unscored = max(0, self.num_prompt - 1 - submit.num_scored) if submit.score_prompt else 0
        """Tokens at the end of the prompt whose log probabilities are still to be returned."""
        self.status = Status.WAITING
        self.handle: KVHandle | None = None
        """The KV memory. None unless the sequence runs."""
        self.cached_tokens: int | None = None
        """Length of the prefix hit at the first admission."""
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
        """llama.cpp's sequence id. Only running sequences have one."""
        assert self.handle is not None, "only running sequences have an id"
        return self.handle.id

    @property
    def num_remaining(self) -> int:
        """Number of known tokens that are not computed."""
        return len(self.known) // TOKEN_BYTES - (self.handle.num_tokens if self.handle is not None else 0)

    @property
    def is_answering(self) -> bool:
        """Whether only the tokens that the last step sampled are not computed, so that the next step is a decode.

        Tokens that a grammar forces count as a prompt. The last token of a prompt whose other tokens are cached counts
        as an answer.
        """
        return self.num_remaining <= self.num_sampled

    @property
    def needs_whole_rows(self) -> bool:
        """Whether the request needs all logits of a row: for log probabilities or for a grammar."""
        return self.grammar is not None or self.logprobs is not None or self.num_unscored > 0

    @property
    def max_hit(self) -> int | None:
        """Maximum length of a prefix hit, because scored tokens must be computed. None for no limit."""
        return self.num_prompt - 1 - self.num_unscored if self.num_unscored else None

    def token(self, position: int) -> int:
        """Returns a known token."""
        return int.from_bytes(self.known[position * TOKEN_BYTES : (position + 1) * TOKEN_BYTES], "little")

    def tokens(self, start: int, stop: int) -> bytes:
        return bytes(self.known[start * TOKEN_BYTES : stop * TOKEN_BYTES])

    def advance(self, token: int, eog_tokens: frozenset[int]) -> tuple[list[int], Status | None]:
        """Append a sampled token and the tokens that the grammar forces after it.

        Returns the appended tokens, and STOPPED or LENGTH if the sequence ends with them. Raises GrammarError, and
        appends nothing, if the grammar does not accept the token or if the answer ends before it is complete.
        """
        tokens = [token]
        is_last = token in eog_tokens and not self.sampler.params.ignore_eos
        if self.grammar is not None:
            if is_last:
                self.grammar.end(token)
            else:
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
        if self.thoughts is not None:
            self.thoughts.accept(token)
