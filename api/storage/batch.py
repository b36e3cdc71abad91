"""A batch, its lines and their answers, as the database has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Ending = Literal["completed", "expired", "cancelled"]
ENDED: Final = ("failed", "completed", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class InputError:
    """Why a batch failed."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """Its number in the input file, from 1."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a line, or of all lines of a batch."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it was when it was read. Times are seconds since the epoch."""

    number: int
    id: str
    owner: str
    tenant: str
    """The name of the tenant whose shares its lines use."""
    endpoint: str
    input_file: str
    metadata: Mapping[str, str] | None
    output_seconds: int | None
    """Seconds after which its output files expire; None for never."""
    status: Status
    ending: Ending | None
    """The status that it gets when its files are written."""
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    models: Sequence[str]
    """The names of models in its lines. The place of a name is the group of its lines."""
    known_models: Sequence[str]
    """Those that the server had when it read the file."""
    errors: Sequence[InputError]
    total: int
    completed: int
    failed: int
    usage: Usage
    output_file: str | None
    error_file: str | None

    @property
    def is_over(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Line:
    """Where a request is in the input file."""

    line: int
    """Its number in the file, from 1."""
    custom_id: str
    start: int
    """Its first byte in the file."""
    size: int
    model_group: int
    place: int
    """In the order of execution."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A line with its answer, for the output files."""

    line: int
    custom_id: str
    data: bytes | None
    """The line of the output file; None without an answer."""
