"""What a step computes, and what it returns."""

from dataclasses import dataclass, field
from typing import Protocol

from scheduler.messages import TokenLogprob
from scheduler.sequence import Sequence


@dataclass(slots=True)
class Chunk:
    """Known tokens [start, start + num_tokens) of one sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    """Whether these are the last known ones, so that the next token can be sampled."""
    scores: bool = False
    """Whether the probabilities of the prompt's tokens are wanted, so that every token of the chunk gives logits."""

    @property
    def num_outputs(self) -> int:
        """Rows of logits."""
        return self.num_tokens if self.scores else int(self.samples)


@dataclass(slots=True)
class Plan:
    """One llama_decode: decodes first, then the prompts."""

    chunks: list[Chunk] = field(default_factory=list)
    num_answers: int = 0
    """Chunks that continue answers: the first ones."""
    num_decode: int = 0
    """Tokens of these chunks. A chunk has one, or as many as the last step sampled for its sequence."""
    num_prefill: int = 0
    """Tokens of prompts, of answers computed again, and those that a grammar dictates."""

    @property
    def num_tokens(self) -> int:
        return self.num_decode + self.num_prefill

    @property
    def num_pairs(self) -> int:
        """Cells that each of its tokens attends to, together; a chunk's own tokens count as if all were seen."""
        return sum(chunk.num_tokens * (chunk.start + chunk.num_tokens) for chunk in self.chunks)

    @property
    def num_outputs(self) -> int:
        """Rows of logits."""
        return sum(chunk.num_outputs for chunk in self.chunks)

    def __str__(self) -> str:
        """For the log of a failed step: lengths, never text."""
        chunks = " ".join(f"{chunk.sequence.request_id}:{chunk.start}+{chunk.num_tokens}" for chunk in self.chunks)
        return f"{self.num_decode} decode and {self.num_prefill} prefill tokens ({chunks})"


@dataclass(slots=True)
class Result:
    """For each chunk that samples, the next token, or several if the runner can tell more than one.

    All of them become known, and none of them is computed: the runner leaves no cells in memory behind the chunk's, and
    the sequence's next chunk is a decode of as many tokens. They must be the tokens that the runner would have returned
    one at a time. Those behind the end of the answer, or behind tokens that a grammar forces, are dropped.
    """

    tokens: list[list[int]]
    """For each chunk that samples, in the plan's order: at least one token."""
    seconds: float
    """Wall time of the step."""
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    """In the form of `tokens`, an empty list for a chunk where not asked for; empty if nobody asked."""
    prompt_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    """For each chunk that scores, in the plan's order: of the prompt's tokens behind each of its tokens."""


class StepError(Exception):
    """llama_decode refused or broke off a step; what it computed of it is not to be relied on."""


class Runner(Protocol):
    """Whatever computes a plan: llama.cpp, or the tests' fake."""

    def run(self, plan: Plan) -> Result:
        """Compute the chunks and sample the next tokens. Raises StepError."""
