"""Answers in the format of OpenAI's two completion endpoints: an object with choices, or a stream of chunks."""

import time
from abc import abstractmethod
from typing import Any, Final, Generic, TypeVar

from api.errors import ApiError
from api.protocols.answer import Answer, event
from api.protocols.timings import TimedRequest, timings
from api.serving.choice import Choice, Delta
from api.serving.service import ModelService, Prepared

DONE: Final = b"data: [DONE]\n\n"

RequestT = TypeVar("RequestT", bound=TimedRequest)


class ChunkedAnswer(Answer, Generic[RequestT]):
    """The choices of one request, grouped by prompt, with the same number for each prompt."""

    kind: str
    """`object` of the whole answer."""
    chunk_kind: str
    """`object` of a chunk."""

    def __init__(self, service: ModelService, request: RequestT, response_id: str, prepared: Prepared) -> None:
        super().__init__(service, prepared)
        self._request = request
        self._id = response_id
        self._created = int(time.time())
        self._per_prompt = len(prepared.choices) // len(prepared.prompts)

    def _whole(self, deltas: list[list[Delta]]) -> dict[str, Any]:
        whole = self._object(self.kind, self._whole_choices(deltas)) | {"usage": self._usage()}
        return whole | (self._timings() if self._request.wants_timings else {})

    def _beginning(self) -> bytes:
        return b"".join(self._chunk(index, choice) for index in range(len(self._choices)) for choice in self._begin())

    def _news(self, index: int, delta: Delta) -> bytes:
        return b"".join(self._chunk(index, choice) for choice in self._pieces(index, delta))

    def _end(self) -> bytes:
        if not self._request.include_usage:
            return DONE
        last = self._object(self.chunk_kind, []) | {"usage": self._usage()}
        return event(last | (self._timings() if self._request.wants_timings else {})) + DONE

    def _failure(self, error: ApiError) -> bytes:
        return event(error.body())

    def _usage(self) -> dict[str, Any]:
        firsts = range(0, len(self._choices), self._per_prompt)
        prompt = sum(len(each.tokens) for each in self._prompts)
        completion = sum(self._num_tokens(choice) for choice in self._choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(self._choices[first].cached_tokens for first in firsts),
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.num_reasoning_tokens for choice in self._choices),
                "audio_tokens": 0,
                "accepted_prediction_tokens": sum(choice.accepted_drafts for choice in self._choices),
                "rejected_prediction_tokens": sum(choice.rejected_drafts for choice in self._choices),
            },
        }

    def _num_tokens(self, choice: Choice) -> int:
        return choice.num_tokens

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
            "choices": choices,
            "system_fingerprint": self._fingerprint,
        }

    def _chunk(self, index: int, choice: dict[str, Any]) -> bytes:
        chunk = self._object(self.chunk_kind, [{"index": index, **choice}])
        if self._request.include_usage:
            chunk["usage"] = None
        is_last = self._finished and choice["finish_reason"] is not None and not self._request.include_usage
        if self._request.timings_per_token or (is_last and self._request.timings):
            chunk |= self._timings()
        return event(chunk)

    def _timings(self) -> dict[str, Any]:
        """The field `timings`; nothing before the first token."""
        usage = self._usage()
        details = usage["completion_tokens_details"]
        found = timings(
            self._record,
            num_prompt=usage["prompt_tokens"],
            num_cached=usage["prompt_tokens_details"]["cached_tokens"],
            num_answer=usage["completion_tokens"],
            num_accepted=details["accepted_prediction_tokens"],
            num_rejected=details["rejected_prediction_tokens"],
        )
        return {"timings": found} if found else {}

    @abstractmethod
    def _whole_choices(self, deltas: list[list[Delta]]) -> list[dict[str, Any]]:
        """The choices of the whole object, from all deltas of each choice."""

    @abstractmethod
    def _begin(self) -> list[dict[str, Any]]:
        """The first chunks of every choice in a stream."""

    @abstractmethod
    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of a stream for a delta of a choice."""
