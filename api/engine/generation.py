"""One request to an engine: the sequences that it generates, or the texts that it embeds."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol, Self

import trio

from api.engine.deadline import NEVER, Deadline
from api.engine.mailbox import Mailbox
from api.errors import ApiError, InterruptedRequestError, server_error
from scheduler.messages import Embed, Embedded, Output, Submit

UNREAD_LIMIT: Final = 60.0
"""Seconds that a stream may leave tokens unread while the engine generates more. Then the request is dropped."""
INVALID_GRAMMAR: Final = "invalid_grammar"
_LATE: Final = "the deadline is over"


class Engine(Protocol):
    """The part of api.engine.client.EngineClient that requests need."""

    def start(self, request_id: int, request: "Generation | Embedding") -> None: ...
    def cancel(self, request_id: int) -> None: ...


class Watcher(Protocol):
    """Is informed when the sequences of a request, or a request for embeddings, come forward and end."""

    def advanced(self, index: int, num_tokens: int) -> None:
        """A sequence has an output with this many tokens of the answer."""

    def ended(self, index: int) -> None:
        """A sequence has ended, for any reason. Called once for each that has begun."""


class Generation:
    """The sequences of one request. They run in the engine while the `with` block around this object lasts.

    Leaving the block cancels the sequences that still run. Only `receive` is asynchronous, so a task
    that is being cancelled can leave the block.
    """

    def __init__(self, engine: Engine, submits: Sequence[Submit], watcher: Watcher | None = None) -> None:
        self._engine = engine
        self._watcher = watcher
        self._submits = submits
        self._mailbox = Mailbox()
        self._indexes = {submit.request_id: index for index, submit in enumerate(submits)}
        self._answers: list[list[int]] = [[] for _ in submits]
        """All tokens received so far, for each sequence."""
        self._num_scored = [0] * len(submits)
        """Number of prompt log probabilities received so far, for each sequence."""
        self._has_output = False
        self._is_interrupted = False
        self.position: int | None = None
        """Its first sequence's position among those that wait, from 1 on; None if it is not known, or has output."""
        self.deadline: Deadline = NEVER
        """When the sequences end, even if nobody reads them."""

    def __enter__(self) -> Self:
        for submit in self._submits:
            self._engine.start(submit.request_id, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for index in range(len(self._submits)):
            self.end(index)

    def end(self, index: int) -> None:
        """Cancel one sequence if it still runs."""
        self._engine.cancel(self._submits[index].request_id)

    async def receive(self) -> list[tuple[int, Output]]:
        """Returns the outputs since the last call, each with the index of its sequence. Waits if there are none.
        Returns nothing if only the position has changed.

        Raises ApiError 400 if the engine refused the grammar, 500 if it failed or the request was dropped, 504 if it
        was dropped after its deadline; InterruptedRequestError if the engine was stopped.
        """
        outputs = await self._mailbox.get()
        for output in outputs:
            if output.finish_reason == "refused":
                raise ApiError(400, f"The grammar is not supported: {output.error}", code=INVALID_GRAMMAR)
            if output.error == _LATE:
                raise self.deadline.error()
            if output.error is not None:
                raise _failure(output.error, is_interrupted=self._is_interrupted)
        return [(self._indexes[output.request_id], output) for output in outputs]

    def deliver(self, output: Output) -> bool:
        """Hand over an output (for the engine client).

        Returns False if outputs were left unread for too long, or after the deadline.
        """
        is_late = trio.current_time() > self.deadline.at
        is_read = self._mailbox.seconds_unread <= UNREAD_LIMIT
        if is_late:
            output = Output(output.request_id, [], "error", error=_LATE)
        elif not is_read:
            output = Output(output.request_id, [], "error", error="the client did not read the answer for too long")
        index = self._indexes[output.request_id]
        self._answers[index] += output.tokens
        self._num_scored[index] += len(output.prompt_logprobs)
        self._mailbox.put(output)
        if output.tokens or output.prompt_logprobs:  # an empty output only says that the grammar is accepted
            self._has_output, self.position = True, None
            if self._watcher is not None:
                self._watcher.advanced(index, len(output.tokens))
        return is_read and not is_late

    def move(self, position: int) -> None:
        """Record its position among those that wait (for the engine client)."""
        if not self._has_output and position != self.position:
            self.position = position
            self._mailbox.nudge()

    def message(self, request_id: int, *, num_alone: int = 0) -> Submit:
        """The message that starts or resumes a sequence (for the engine client).

        `num_alone`: how many tokens it must get alone; 0 if it is no suspect.
        """
        index = self._indexes[request_id]
        return replace(
            self._submits[index],
            answer=list(self._answers[index]),
            num_scored=self._num_scored[index],
            suspect=num_alone > 0,
            num_alone=num_alone,
        )

    def forget(self, request_id: int) -> None:
        """The engine has ended a sequence, or will (for the engine client)."""
        if self._watcher is not None:
            self._watcher.ended(self._indexes[request_id])

    def fail(self, request_id: int, reason: str, *, is_interrupted: bool = False) -> None:
        """End a sequence with an error (for the engine client). `is_interrupted`: the engine was stopped."""
        self._is_interrupted |= is_interrupted
        self.deliver(Output(request_id, [], "error", error=reason))


class Embedding:
    """The texts of one request. The engine embeds them while the `with` block around this object lasts.

    As with a Generation, leaving the block cancels the request, and only `receive` is asynchronous.
    """

    def __init__(self, engine: Engine, embed: Embed, watcher: Watcher | None = None) -> None:
        self._engine = engine
        self._watcher = watcher
        self._embed = embed
        self._embeddings: list[str] = []
        self._error: str | None = None
        self._is_interrupted = False
        self._ended = trio.Event()

    def __enter__(self) -> Self:
        self._engine.start(self._embed.request_id, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.cancel(self._embed.request_id)

    async def receive(self) -> list[str]:
        """Returns the embeddings of all texts in order, each as little-endian float32 in base64.

        Raises ApiError 500 if the engine failed, InterruptedRequestError if it was stopped.
        """
        await self._ended.wait()
        if self._error is not None:
            raise _failure(self._error, is_interrupted=self._is_interrupted)
        return self._embeddings

    def deliver(self, embedded: Embedded) -> bool:
        """Hand over some embeddings or an error (for the engine client). Returns whether the request has ended."""
        self._embeddings += embedded.embeddings
        self._error = embedded.error
        if self._watcher is not None:
            self._watcher.advanced(0, 0)
        if self._error is not None or len(self._embeddings) == len(self._embed.texts):
            self._ended.set()
        return self._ended.is_set()

    def message(self, request_id: int) -> Embed:
        """The message that requests the missing embeddings (for the engine client)."""
        return replace(self._embed, request_id=request_id, texts=self._embed.texts[len(self._embeddings) :])

    def forget(self, request_id: int) -> None:  # noqa: ARG002 - as a generation has it
        """The engine has ended the request, or will (for the engine client)."""
        if self._watcher is not None:
            self._watcher.ended(0)

    def fail(self, request_id: int, reason: str, *, is_interrupted: bool = False) -> None:
        """End the request with an error (for the engine client). `is_interrupted`: the engine was stopped."""
        self._is_interrupted = is_interrupted
        self.deliver(Embedded(request_id, error=reason))


def _failure(reason: str, *, is_interrupted: bool) -> ApiError:
    return InterruptedRequestError(reason) if is_interrupted else server_error(reason)
