"""The plan of a step and its result."""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Protocol, TypeVar

from scheduler.failures import RequestError, describe
from scheduler.messages import TokenLogprob
from scheduler.sequence import Sequence

_log = logging.getLogger("cortex.engine")

MAX_DRAFTED: Final = 64
"""Maximum drafted tokens of a step. Each gives a row of logits."""

Work = TypeVar("Work")
Done = TypeVar("Done")


@dataclass(slots=True)
class Chunk:
    """Known tokens [start, start + num_tokens) of one sequence that this step computes, and drafted ones after them."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    """Whether the chunk ends with the last known token, so that the next token can be sampled."""
    scores: bool = False
    """Whether log probabilities of prompt tokens are requested, so that every token of the chunk gives logits."""
    drafts: Items[int] = ()
    """Guesses of the next tokens. They are computed too, and each gives a row of logits. Only if the chunk samples."""
    source: str = ""
    """The drafter of `drafts`."""
    num_accepted: int = 0
    """How many of the drafts equal the sampled tokens, after the step."""

    @property
    def num_outputs(self) -> int:
        """Number of rows of logits."""
        return self.num_tokens if self.scores else self.samples + len(self.drafts)


by_id = attrgetter("sequence.sequence_id")
"""The order of chunks in which llama.cpp computes lanes together."""


@dataclass(slots=True)
class Plan:
    """One llama_decode: chunks of answers first, then chunks of prompts."""

    chunks: list[Chunk] = field(default_factory=list)
    num_answers: int = 0
    """Number of chunks that continue answers. They come first."""
    num_decode: int = 0
    """Tokens of these chunks: per chunk as many as the last step sampled for its sequence, usually one."""
    num_prefill: int = 0
    """All other tokens: of prompts, of answers that are computed again, and tokens that a grammar forces."""
    num_fillers: int = 0
    """How many of these tokens are computed with the answers, because their lanes lie between those of answers."""
    num_drafted: int = 0
    """Drafted tokens after the known tokens of chunks that sample."""

    @property
    def num_tokens(self) -> int:
        return self.num_decode + self.num_prefill + self.num_drafted

    @property
    def num_pairs(self) -> int:
        """Sum over all tokens of the cells that each attends to. Each token counts all tokens of its chunk."""
        sizes = ((chunk.start, chunk.num_tokens + len(chunk.drafts)) for chunk in self.chunks)
        return sum(size * (start + size) for start, size in sizes)

    @property
    def num_outputs(self) -> int:
        """Number of rows of logits."""
        return sum(chunk.num_outputs for chunk in self.chunks)

    def __str__(self) -> str:
        """A summary for the log of a failed step: request ids, positions and lengths, but no tokens."""
        chunks = " ".join(f"{chunk.sequence.request_id}:{chunk.start}+{chunk.num_tokens}" for chunk in self.chunks)
        drafted = f" and {self.num_drafted} drafted" if self.num_drafted else ""
        return f"{self.num_decode} decode{drafted} and {self.num_prefill} prefill tokens ({chunks})"


@dataclass(slots=True)
class Result:
    """The result of a step: for each chunk that samples, one or more next tokens.

    They must equal the tokens that the runner would return one at a time. The scheduler drops tokens after the end of
    the answer, and tokens after a position where a grammar forces others. The runner leaves no cells in memory for the
    tokens, only for the chunk's drafts. The scheduler keeps those cells whose drafts became known tokens, and removes
    the others. The sequence's next chunk is a decode of the tokens that are known, but not computed.
    """

    tokens: list[list[int]]
    """At least one token for each chunk that samples, in the plan's order. Empty lists for requests in `failures`."""
    seconds: float
    """Wall time of the step."""
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    """Like `tokens`, with an empty list for a chunk without a request for them. Empty if no chunk needs any."""
    prompt_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    """For each chunk that scores, in the plan's order: log probabilities of the prompt tokens after its tokens."""
    failures: dict[int, RequestError] = field(default_factory=dict)
    """The requests that failed in a step that is valid for the others, by id."""


class StepError(Exception):
    """llama_decode rejected or aborted a step. Its results are not reliable."""


class NoRoomError(StepError):
    """The KV memory has no room for the step's tokens."""


class Runner(Protocol):
    """Computes plans: with llama.cpp, or as a fake in the tests."""

    def run(self, plan: Plan) -> Result:
        """Compute the chunks and sample the next tokens. An exception, such as StepError, makes the step fail.

        A failure of one request belongs into `Result.failures`.
        """


def attempt_step(compute: Callable[[Work], Done], work: Work) -> Done | StepError:
    """Compute a plan or a batch of texts. Returns a StepError if this raises any exception, and logs it."""
    try:
        return compute(work)
    except StepError as error:
        _log.error("step failed: %s; plan: %s", error, work)
        return error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # also llguidance's panics
        _log.exception("step failed; plan: %s", work)
        return StepError(describe(error))
