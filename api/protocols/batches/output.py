"""Writes the output file and the error file of a batch, in the order of its input."""

from typing import Final, Literal

from api.protocols.batches.work import output_line
from api.storage.batch import Answered, Batch, Ending
from api.storage.batches import BatchStore
from api.storage.files import FileStore, Upload

PURPOSE: Final = "batch_output"
Kind = Literal["output", "error"]
KINDS: Final[tuple[Kind, ...]] = ("output", "error")

_UNANSWERED: Final[dict[Ending, tuple[str, str]]] = {
    "cancelled": ("batch_cancelled", "This request was not executed before the batch was cancelled."),
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "completed": ("input_file_deleted", "This request was not executed: the input file does not exist any more."),
}
"""Codes and messages of lines without an answer, by how their batch ends."""


class ResultFile:
    """One of the two files. All methods block: call them in threads, one at a time."""

    def __init__(self, batches: BatchStore, files: FileStore, batch: Batch, kind: Kind) -> None:
        self._batches, self._files = batches, files
        self._batch, self._kind = batch, kind
        self._after = 0
        self._upload: Upload | None = None

    def write(self) -> bool:
        """Write some lines. Returns whether there are more. A file without a line is not made.

        The batch gets the file in the transaction that adds it, so there are never two. Raises StorageError.
        """
        if self._is_written():
            return False
        batch = self._batch
        lines = self._batches.answered(batch.number, self._after, is_error=self._kind == "error")
        if lines:
            if self._upload is None:
                name = f"{batch.id}_{self._kind}.jsonl"
                self._upload = self._files.begin(batch.owner, name, PURPOSE, batch.output_seconds, is_bounded=False)
            self._upload.write(b"".join(map(self._line, lines)))
            self._after = lines[-1].line
        elif self._upload is not None:
            self._upload.finish(self._batches.takes(batch.number, self._kind))
        return bool(lines)

    def abort(self) -> None:
        """Remove what was written, unless the file is complete."""
        if self._upload is not None:
            self._upload.abort()

    def _is_written(self) -> bool:
        """Whether the batch got the file before the last end of the process, or before a failed try."""
        batch = self._batches.by_number(self._batch.number) if self._after == 0 else self._batch
        return (batch.output_file if self._kind == "output" else batch.error_file) is not None

    def _line(self, answered: Answered) -> bytes:
        if answered.data is not None:
            return answered.data
        assert self._batch.ending is not None
        code, message = _UNANSWERED[self._batch.ending]
        return output_line(answered.custom_id, None, {"code": code, "message": message})
