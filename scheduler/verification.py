"""Samples the next tokens of a step, and verifies its drafted tokens.

A draft is kept only if it equals the token that is sampled at its place. Each place is sampled with its own random
number and with the penalties, limits and masks that the tokens before it imply. So the tokens are those of steps
without drafts.
"""

from collections.abc import Sequence as Rows
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from scheduler.failures import RequestError, attempt
from scheduler.logprobs import log_probabilities
from scheduler.messages import TokenLogprob
from scheduler.plan import Chunk
from scheduler.sampling import Mask, sample
from scheduler.softmax import Tokens
from scheduler.thoughts import with_forced

RowMasks = Rows[Mask | RequestError | None]


def sample_chunks(
    chunks: list[Chunk],
    logits: NDArray[np.float32],
    eog_tokens: Tokens,
    masks: RowMasks,
    failures: dict[int, RequestError],
) -> list[list[int]]:
    """Returns the next tokens of each chunk: one, and one more for each draft that equals the token before it.

    `chunks`: those that sample. `logits` and `masks` have a row for each chunk and one for each draft after it; `masks`
    is empty without grammars. A request from whose first row nothing can be sampled gets no tokens, and an entry in
    `failures`. A failure of a later row is no failure yet: the tokens before it are returned.
    """
    has_drafts = len(logits) > len(chunks)
    firsts = first_rows(chunks) if has_drafts else ()
    rows = logits[firsts] if has_drafts else logits
    first_masks = [masks[row] for row in firsts] if masks and has_drafts else masks
    sampled = sample(rows, [chunk.sequence.sampler for chunk in chunks], eog_tokens, first_masks)
    sampled = with_forced([chunk.sequence.thoughts for chunk in chunks], sampled, first_masks)
    tokens = first_tokens(chunks, sampled, failures)
    if has_drafts:
        for chunk, first, known in zip(chunks, firsts, tokens, strict=True):
            if known and known[0] in chunk.drafts[:1]:
                ahead = slice(first + 1, first + 1 + len(chunk.drafts))
                known += _verify(chunk, logits[ahead], eog_tokens, masks[ahead])
    return tokens


def first_tokens(
    chunks: list[Chunk], sampled: Rows[int | RequestError], failures: dict[int, RequestError]
) -> list[list[int]]:
    """Returns the sampled token of each chunk in a list, which is empty after an error. Adds errors to `failures`."""
    tokens: list[list[int]] = []
    for chunk, each in zip(chunks, sampled, strict=True):
        if isinstance(each, RequestError):
            failures[chunk.sequence.request_id] = each
            tokens.append([])
        else:
            tokens.append([each])
    return tokens


def first_rows(chunks: list[Chunk]) -> list[int]:
    """Returns the index of each chunk's first row."""
    return list(accumulate((1 + len(chunk.drafts) for chunk in chunks), initial=0))[:-1]


def _verify(chunk: Chunk, logits: NDArray[np.float32], eog_tokens: Tokens, masks: RowMasks) -> list[int]:
    """Returns the tokens after the first draft, which is accepted. `logits` and `masks` are the rows of the drafts."""
    sequence, drafts = chunk.sequence, chunk.drafts
    if sequence.sampler.is_plain_greedy and sequence.thoughts is None and sequence.grammar is None:
        return _verify_greedy(drafts, logits)
    state, thoughts = sequence.sampler.copy(), sequence.thoughts and sequence.thoughts.copy()
    tokens: list[int] = []
    for index, draft in enumerate(drafts):
        if draft in eog_tokens and not state.params.ignore_eos:
            break
        state.accept(draft)
        if thoughts is not None:
            thoughts.accept(draft)
            if thoughts.forced is not None:
                break
        (token,) = sample(logits[index : index + 1], [state], eog_tokens, masks[index : index + 1])
        if isinstance(token, RequestError):
            break
        tokens.append(token)
        if token not in drafts[index + 1 : index + 2]:
            break
    return tokens


def _verify_greedy(drafts: Rows[int], logits: NDArray[np.float32]) -> list[int]:
    """Does the same as `_verify` for the best tokens of unchanged rows."""
    best = logits.argmax(axis=1)  # a NaN counts as the best
    valid = np.isfinite(logits[np.arange(len(best)), best])
    equal = best[:-1] == np.asarray(drafts[1:])
    num_equal = len(equal) if equal.all() else int(equal.argmin())
    num_valid = len(valid) if valid.all() else int(valid.argmin())
    tokens: list[int] = best[: min(num_equal + 1, num_valid)].tolist()
    return tokens


def log_probabilities_of(
    chunks: list[Chunk], logits: NDArray[np.float32], tokens: list[list[int]], failures: dict[int, RequestError]
) -> list[list[TokenLogprob]]:
    """Returns the log probabilities of the sampled tokens, empty lists for requests without; empty if none has any.

    Adds requests that fail to `failures`. If a later token fails, it and the tokens after it are removed.
    """
    if all(chunk.sequence.logprobs is None for chunk in chunks):
        return []
    logprobs: list[list[TokenLogprob]] = []
    for chunk, first, sampled in zip(chunks, first_rows(chunks), tokens, strict=True):
        found: list[TokenLogprob] = []
        logprobs.append(found)
        if chunk.sequence.logprobs is None:
            continue
        for row, token in enumerate(sampled, first):
            each = attempt(log_probabilities, logits[row], token, chunk.sequence.logprobs)
            if isinstance(each, RequestError):
                if row == first:
                    failures[chunk.sequence.request_id] = each
                del sampled[len(found) or 1 :]
                break
            found.append(each)
    return logprobs
