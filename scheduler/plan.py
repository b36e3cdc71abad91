"""What a step will do, and what came of it."""

from dataclasses import dataclass, field
from typing import Protocol

from scheduler.sequence import Sequence


@dataclass(slots=True)
class Chunk:
    """Known tokens [start, start + num_tokens) of one sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    """Whether these are the last known ones, so that the next token can be chosen."""


@dataclass(slots=True)
class Plan:
    """One llama_decode: decodes first, then the prompts."""

    chunks: list[Chunk] = field(default_factory=list)
    num_decode: int = 0
    """Tokens that continue answers."""
    num_prefill: int = 0
    """Tokens of prompts, and of answers computed again."""

    @property
    def num_tokens(self) -> int:
        return self.num_decode + self.num_prefill

    def __str__(self) -> str:
        """For the log of a failed step: lengths, never text."""
        chunks = " ".join(f"{chunk.sequence.request_id}:{chunk.start}+{chunk.num_tokens}" for chunk in self.chunks)
        return f"{self.num_decode} decode and {self.num_prefill} prefill tokens ({chunks})"


@dataclass(slots=True)
class Result:
    tokens: list[int]
    """The next token of each chunk that samples, in the plan's order."""
    seconds: float
    """Wall time of the step."""


class StepError(Exception):
    """llama_decode refused or broke off a step; what it computed of it is not to be relied on."""


class Runner(Protocol):
    """Whatever computes a plan: llama.cpp, or the tests' fake."""

    def run(self, plan: Plan) -> Result:
        """Compute the chunks and choose the next tokens. Raises StepError."""
