"""Decides whether two answers come from the same computation.

Two rules must hold. The first is fixed: log probabilities may differ by LOGPROB_LIMIT. It fits real models, but tiny
models of random weights may hardly depend on their prompt. So the second rule compares whole rows of logits, with a
limit that is measured for each model, as tests.closeness does: the geometric mean of the *noise* (the same prompt in
chunks of other sizes) and of the *control* (a prompt with wrong tokens). The control is the smallest fault that stands
out from the noise.
"""

import math
from dataclasses import dataclass

import numpy as np

from tests.zoo.served import Answer

LOGPROB_LIMIT = 0.1
CLEAR = 4.0
"""A control must be this many times the noise."""
LEAST_NOISE = 0.1
"""Lower bound of the noise, relative to the control. Some logits are more sensitive than those that are measured."""


def distances(some: Answer, other: Answer) -> list[float]:
    """The root mean square of the difference of each row of logits, until the answers have different tokens."""
    found = []
    for index, (row, another) in enumerate(zip(some.logits, other.logits, strict=False)):
        if some.tokens[:index] != other.tokens[:index]:
            break
        found.append(float(np.sqrt(np.mean((row - another) ** 2))))
    return found


@dataclass(frozen=True)
class Scale:
    """The smallest fault that the second rule notices, and its limit."""

    notices: str
    """The control; empty if no control stands out from the noise."""
    limit: float
    """Infinite if no control stands out."""


def scale_of(noise: float, controls: dict[str, float]) -> Scale:
    """`controls`: the distances that faults cause, the smallest fault first."""
    for name, control in controls.items():
        if control > CLEAR * noise:
            return Scale(name, math.sqrt(max(noise, LEAST_NOISE * control) * control))
    return Scale("", math.inf)


def difference(expected: Answer, answer: Answer, scale: Scale) -> str:
    """Returns how the answers differ. Empty if they are the same but for rounding.

    The first rule applies to the first token. The second rule applies to all tokens until the answers have different
    ones, which a narrow lead allows.
    """
    if expected.error or answer.error:
        return f"error: {expected.error or answer.error}"
    if not answer.tokens:
        return "no answer"
    if found := _first_token_differs(expected, answer):
        return found
    for index, far in enumerate(distances(expected, answer)):
        if not far <= scale.limit:
            return f"logits of token {index} differ by {far:.2g}, and {scale.limit:.2g} is the limit"
    return ""


def _first_token_differs(expected: Answer, answer: Answer) -> str:
    """The first rule. The best token may be another one only where it leads by less than LOGPROB_LIMIT."""
    (logprob, best), (other, _) = expected.logprobs[0], answer.logprobs[0]
    if expected.tokens[0] == answer.tokens[0]:
        is_near = abs(logprob - other) <= LOGPROB_LIMIT
        return "" if is_near else f"log probability {other:.3f} instead of {logprob:.3f}"
    lead = best[0][1] - best[1][1]
    if lead < LOGPROB_LIMIT:
        return ""
    return f"token {answer.tokens[0]} instead of {expected.tokens[0]}, which leads by {lead:.2f}"
