"""The API's end of one request: the sequences that it generates, or the texts that it embeds."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol, Self

import trio

from api.engine.mailbox import Mailbox
from api.errors import ApiError, server_error
from scheduler.messages import Embed, Embedded, Output, Submit

UNREAD_LIMIT: Final = 60.0
"""Seconds that a stream may leave its tokens unread while the engine generates more. Then it is dropped."""
INVALID_GRAMMAR: Final = "invalid_grammar"


class Engine(Protocol):
    """The part of api.engine.client.EngineClient that requests need."""

    def start(self, request_id: int, request: "Generation | Embedding") -> None: ...
    def cancel(self, request_id: int) -> None: ...


class Generation:
    """The sequences of one request in the engine, for as long as the `with` block around it lasts.

    Leaving the block cancels what still runs. Everything in it but `receive` is synchronous, so it works in a task that
    is being cancelled.
    """

    def __init__(self, engine: Engine, submits: Sequence[Submit]) -> None:
        self._engine = engine
        self._submits = submits
        self._mailbox = Mailbox()
        self._indexes = {submit.request_id: index for index, submit in enumerate(submits)}
        self._answers: list[list[int]] = [[] for _ in submits]
        """All tokens received so far, of each sequence."""
        self._num_scored = [0] * len(submits)
        """Log probabilities received so far, of the tokens of each prompt."""

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
        """Cancel one sequence, if it still runs."""
        self._engine.cancel(self._submits[index].request_id)

    async def receive(self) -> list[tuple[int, Output]]:
        """Outputs since the last call, each with the index of its sequence. Waits if there are none.

        Raises ApiError if the engine failed, dropped or refused the request.
        """
        outputs = await self._mailbox.get()
        for output in outputs:
            if output.finish_reason == "refused":
                raise ApiError(400, f"The grammar cannot be served: {output.error}", code=INVALID_GRAMMAR)
            if output.error is not None:
                raise server_error(output.error)
        return [(self._indexes[output.request_id], output) for output in outputs]

    def deliver(self, output: Output) -> bool:
        """For the client: hand over an output. Returns False if nobody reads any more."""
        is_read = self._mailbox.seconds_unread <= UNREAD_LIMIT
        if not is_read:
            output = Output(output.request_id, [], "error", error="the answer was left unread for too long")
        index = self._indexes[output.request_id]
        self._answers[index] += output.tokens
        self._num_scored[index] += len(output.prompt_logprobs)
        self._mailbox.put(output)
        return is_read

    def message(self, request_id: int) -> Submit:
        """For the client: the message that asks an engine for the rest of a sequence."""
        index = self._indexes[request_id]
        return replace(self._submits[index], answer=list(self._answers[index]), num_scored=self._num_scored[index])

    def fail(self, request_id: int, reason: str) -> None:
        """For the client: end a sequence with an error."""
        self.deliver(Output(request_id, [], "error", error=reason))


class Embedding:
    """The texts of one request in the engine, for as long as the `with` block around it lasts.

    As with a Generation, leaving the block cancels what has not ended, and only `receive` waits.
    """

    def __init__(self, engine: Engine, embed: Embed) -> None:
        self._engine = engine
        self._embed = embed
        self._embeddings: list[str] = []
        self._error: str | None = None
        self._ended = trio.Event()

    def __enter__(self) -> Self:
        self._engine.start(self._embed.request_id, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.cancel(self._embed.request_id)

    async def receive(self) -> list[str]:
        """The embeddings of all texts, in their order: little-endian float32, in base64. Raises ApiError 500."""
        await self._ended.wait()
        if self._error is not None:
            raise server_error(self._error)
        return self._embeddings

    def deliver(self, embedded: Embedded) -> bool:
        """For the client: hand over some embeddings, or an error. Returns whether that was the end."""
        self._embeddings += embedded.embeddings
        self._error = embedded.error
        if self._error is not None or len(self._embeddings) == len(self._embed.texts):
            self._ended.set()
        return self._ended.is_set()

    def message(self, request_id: int) -> Embed:
        """For the client: the message that asks an engine for the embeddings that are missing."""
        return Embed(request_id, self._embed.texts[len(self._embeddings) :])

    def fail(self, request_id: int, reason: str) -> None:
        """For the client: end it with an error."""
        self.deliver(Embedded(request_id, error=reason))
