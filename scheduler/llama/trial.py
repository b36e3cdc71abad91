"""Computes tokens to find out whether llama.cpp moves and shares KV correctly: the logits afterwards must be alike."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.llama.context import Context

Row = NDArray[np.float32]


class TrialError(Exception):
    """llama.cpp does not do what the trial needs. The message completes a sentence of the log."""


class Part(NamedTuple):
    """Consecutive tokens of one sequence."""

    sequence_id: int
    tokens: Sequence[int]
    start: int
    """Position of the first token."""


def compute(context: Context, *parts: Part) -> list[Row]:
    """Computes the parts in one step. Returns the logits after the last token of each. Raises StepError."""
    end = 0
    for part in parts:
        start, end = end, end + len(part.tokens)
        context.tokens[start:end] = part.tokens
        context.positions[start:end] = np.arange(part.start, part.start + len(part.tokens))
        context.ids[start:end] = part.sequence_id
        context.outputs[start:end] = 0
        context.outputs[end - 1] = 1
    context.decode(end)
    return list(context.logits(len(parts)).copy())


def check_alike(row: Row, expected: Row, other: Row, complaint: str, limit: float = 0.5) -> None:
    """Raises TrialError(complaint) unless `row` is nearly `expected`.

    The limit is relative to the distance between `expected` and `other`, the logits after the same token two tokens
    later, or after another token. There is no fixed limit, because rounding depends on the processor and on the model.
    A number that is added to all logits changes no probability, so it does not count: in Gemma 3 it varies more than
    everything else.
    """
    allowed = expected > -np.inf  # some models exclude tokens
    if not allowed.any():
        raise TrialError(complaint)
    row, expected, other = (_centred(each[allowed]) for each in (row, expected, other))
    if not np.linalg.norm(row - expected) <= limit * np.linalg.norm(other - expected):  # a NaN is not alike either
        raise TrialError(complaint)


def _centred(row: Row) -> Row:
    centred: Row = row - row.mean()
    return centred
