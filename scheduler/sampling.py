"""Exact sampling of the next token from a row of logits, without sorting the vocabulary.

The steps run in llama.cpp's order: logit bias, penalties, DRY, top_n_sigma, top_k, typical_p, top_p, min_p, XTC,
temperature. All cuts (scheduler.cuts) use the distribution at temperature 1, like llama-server.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from scheduler.cuts import candidates
from scheduler.failures import GrammarError, RequestError, attempt, check_best
from scheduler.history import History
from scheduler.messages import SamplingParams
from scheduler.mirostat import mirostat
from scheduler.softmax import Logits, Tokens, draw_from, draw_from_row, kept_array, weights_of

Mask = NDArray[np.int32]
"""Packed bits of a grammar: bit i % 32 of word i // 32 is 1 if token i may come next."""

MIN_TEMPERATURE: Final = 1e-6
"""At this temperature the best token is certain. A lower one would overflow single precision."""

_TOKEN_DRAW, _XTC_DRAW = 0, 1


class SamplerState:
    """The sampling state of one sequence. The random numbers at index i depend on the seed and on i only."""

    __slots__ = ("_bias", "_changes_logits", "_history", "_mu", "_next_mu", "index", "params")

    def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
        self.params = params
        self.index = 0
        """Tokens generated so far."""
        self._history = History(params, prompt) if History.is_needed(params) else None
        self._bias: tuple[Tokens, Logits] | None = None
        if params.logit_bias:
            tokens, values = zip(*params.logit_bias, strict=True)
            self._bias = np.array(tokens, np.intp), np.array(values, np.float32)
        self._changes_logits = self._history is not None or self._bias is not None
        self._mu = 2 * params.mirostat_tau
        """Mirostat's limit in bits: tokens with more surprise are cut."""
        self._next_mu = self._mu
        """The limit after the token that was drawn last. It counts once the token is accepted."""

    def copy(self) -> Self:
        """Returns an independent state, to look ahead."""
        other = copy.copy(self)
        if self._history is not None:
            other._history = self._history.copy()
        return other

    def accept(self, token: int) -> None:
        self.index += 1
        self._mu = self._next_mu
        if self._history is not None:
            self._history.append(token)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the next token is simply the best one of the unchanged row."""
        return self.takes_best and not self.hides_eog

    @property
    def takes_best(self) -> bool:
        """Whether the next token is the best one of the unchanged row, unless it is an end that is not allowed yet."""
        params = self.params
        is_greedy = params.temperature == 0.0 and params.typical_p >= 1.0 and not params.xtc_probability
        return is_greedy and not self._changes_logits

    def limit(self, top_k: int) -> None:
        """Limit top_k, unless another parameter needs the logits of all tokens."""
        if self._reads_best_only:
            self.params = replace(self.params, top_k=min(self.params.top_k or top_k, top_k))

    def best_suffice(self, count: int) -> bool:
        """Whether the `count` best tokens, end-of-generation tokens not counted, are enough to sample from."""
        return self._reads_best_only and (self.is_plain_greedy or 0 < self.params.top_k <= count)

    @property
    def _reads_best_only(self) -> bool:
        return not (self._changes_logits or self.params.mirostat or self.params.top_n_sigma > 0.0)

    @property
    def hides_eog(self) -> bool:
        """Whether end-of-generation tokens are not allowed yet."""
        return self.params.ignore_eos or self.index < self.params.min_tokens

    def adjusted(self, logits: Logits, eog_tokens: Tokens, mask: Mask | None = None) -> Logits:
        """Returns the row after bias, penalties and mask, without end-of-generation tokens if they are not allowed yet.

        `logits` is not changed. The result is valid until this thread adjusts another row. Raises GrammarError if the
        grammar allows no token.
        """
        if not self._changes_logits and not self.hides_eog and mask is None:
            return logits
        row = kept_array("adjusted", len(logits))
        np.copyto(row, logits)
        if self._bias is not None:
            np.add.at(row, *self._bias)
        if self._history is not None:
            self._history.penalize(row)
        if mask is not None:
            _forbid(row, mask, eog_tokens if self.hides_eog else None)
        elif self.hides_eog:
            row[eog_tokens] = -np.inf
        return row

    def draw(self, stream: int = _TOKEN_DRAW) -> float:
        """Returns a uniform number in [0, 1) that depends on seed, index and stream only."""
        seed = (self.params.seed & (2**64 - 1)).to_bytes(8, "little") + self.index.to_bytes(8, "little")
        digest = blake2b(seed, digest_size=8, salt=stream.to_bytes(1, "little") if stream else b"").digest()
        return int.from_bytes(digest, "little") / 2.0**64

    @property
    def excludes_top(self) -> bool:
        """Whether XTC cuts the next token's candidates."""
        probability = self.params.xtc_probability
        return probability > 0.0 and self.draw(_XTC_DRAW) < probability

    @property
    def sharpness(self) -> float:
        """What logits are multiplied by: the inverse of the temperature."""
        return 1.0 / max(self.params.temperature, MIN_TEMPERATURE)

    def mirostat(self, weights: Logits) -> int:
        """Returns the next token by Mirostat, from the weights at the request's temperature."""
        params = self.params
        token, surprise = mirostat(weights, params.mirostat, self._mu, self.draw())
        self._next_mu = self._mu - params.mirostat_eta * (surprise - params.mirostat_tau)
        return token


def sample(
    logits: NDArray[np.float32],
    states: Sequence[SamplerState],
    eog_tokens: Tokens,
    masks: Sequence[Mask | RequestError | None] = (),
) -> list[int | RequestError]:
    """Returns the next token of each sequence from its row of `logits` [sequences, vocabulary], which are not changed.

    `masks` has an entry per sequence, None for sequences without a grammar. It is empty if no sequence has one. A row
    from which nothing can be sampled, for any reason, gives an error in place of its token.
    """
    if not masks and all(state.takes_best for state in states):
        tokens: list[int | RequestError] = logits.argmax(axis=1).tolist()  # a NaN counts as the best
        if _are_allowed(logits, tokens, states, eog_tokens):
            return tokens
    masks = masks or [None] * len(states)
    rows = zip(logits, states, masks, strict=True)
    return [attempt(_next_token, row, state, eog_tokens, mask) for row, state, mask in rows]


def _are_allowed(
    logits: NDArray[np.float32], best: Sequence[int | RequestError], states: Sequence[SamplerState], eog_tokens: Tokens
) -> bool:
    """Whether the best token of each row is valid, and no end that is not allowed yet."""
    for row, token, state in zip(logits, best, states, strict=True):
        if not math.isfinite(row[token]) or (state.hides_eog and token in eog_tokens.tolist()):
            return False
    return True


def sample_best(tokens: Tokens, logits: Logits, state: SamplerState, eog_tokens: Tokens) -> int:
    """Returns the next token of a sequence from the best `tokens` of its row, in any order, and their logits.

    Raises RequestError if nothing can be sampled from them.
    """
    check_best(float(logits.max()))
    order = np.argsort(-logits, kind="stable")
    ends = np.flatnonzero(np.isin(tokens[order], eog_tokens))
    return int(tokens[order[_sample_row(logits[order], state, ends, None)]])


def _next_token(logits: Logits, state: SamplerState, eog_tokens: Tokens, mask: Mask | RequestError | None) -> int:
    """Returns the next token from a row. Raises RequestError."""
    if isinstance(mask, RequestError):
        raise mask
    if mask is not None or state.hides_eog:  # the adjusted row could hide an invalid logit
        check_best(float(logits.max()))
    return _sample_row(logits, state, eog_tokens, mask)


def _check_adjusted(best: float, logits: Logits, *, has_grammar: bool) -> None:
    """Raises RequestError if nothing can be sampled. `best` is the best adjusted logit of the row `logits`."""
    if math.isfinite(best):
        return
    check_best(float(logits.max()))
    if best == -math.inf and has_grammar:
        raise GrammarError("logit_bias or the model excludes every token that the grammar allows")
    if best == -math.inf:
        raise RequestError("logit_bias, min_tokens or ignore_eos excludes every token")
    raise RequestError("logit_bias or a penalty is too large: a logit is no longer a finite number")


def _sample_row(raw: Logits, state: SamplerState, eog_tokens: Tokens, mask: Mask | None) -> int:
    params = state.params
    logits = state.adjusted(raw, eog_tokens, mask)
    if params.temperature == 0.0 and params.typical_p >= 1.0 and not params.xtc_probability:
        token = int(logits.argmax())
        _check_adjusted(float(logits[token]), raw, has_grammar=mask is not None)
        return token
    best = logits.max()
    _check_adjusted(float(best), raw, has_grammar=mask is not None)
    if params.mirostat and params.temperature > 0.0:
        return state.mirostat(weights_of(logits, best, state.sharpness))
    tokens = candidates(logits, best, params, excludes_top=state.excludes_top)
    if tokens is None and params.temperature == 0.0:
        return int(logits.argmax())
    if tokens is None:
        return draw_from_row(weights_of(logits, best, state.sharpness), state.draw())
    kept = logits[tokens]
    if params.temperature == 0.0:
        return int(tokens[kept.argmax()])
    return int(tokens[draw_from(weights_of(kept, kept.max(), state.sharpness), state.draw())])


def _forbid(row: Logits, mask: Mask, hidden: Tokens | None) -> None:
    """Give -inf to the tokens that the mask forbids, and to the `hidden` ones unless only they are allowed.

    Raises GrammarError if the mask allows no token.
    """
    allowed = np.unpackbits(mask.view(np.uint8), count=len(row), bitorder="little")
    num_allowed = np.count_nonzero(allowed)
    if not num_allowed:
        raise GrammarError("the grammar allows no token to continue the answer")
    if hidden is not None and num_allowed > np.count_nonzero(allowed[hidden]):
        allowed[hidden] = 0
    # An assignment to the forbidden tokens takes ten times as long.
    bounds = np.subtract(allowed, np.float32(0.5), out=kept_array("bounds", len(row)))
    np.multiply(bounds, np.float32(np.inf), out=bounds)
    np.minimum(row, bounds, out=row)
