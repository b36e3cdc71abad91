"""POST /v1/completions: renders text completions, whole or as a stream of chunks."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from api.protocols.call import Call
from api.protocols.chunks import ChunkedAnswer
from api.protocols.completions.request import DEFAULT_MAX_TOKENS, CompletionRequest
from api.protocols.logprobs import CompletionLogprobs
from api.protocols.rendered import rendered
from api.protocols.structured import constraint
from api.serving.choice import Choice, Delta
from api.serving.service import ModelService
from api.serving.spec import GenerationSpec, Texts
from api.text.dialects import Content
from scheduler.messages import TokenLogprob


class TextCompletion(ChunkedAnswer[CompletionRequest]):
    """The completions of one request's prompts."""

    kind = chunk_kind = "text_completion"

    @classmethod
    async def create(cls, service: ModelService, call: Call[CompletionRequest]) -> Self:
        """Raises ApiError 400 if the model cannot serve the request."""
        prepared = await service.prepare(call.owned(_as_spec(call.request)))
        return cls(service, call.request, f"cmpl-{uuid.uuid4().hex}", prepared)

    @cached_property
    def _logprob_formats(self) -> dict[int, CompletionLogprobs]:
        """The state of the log probabilities of each choice that has begun, by its index."""
        return {}

    def _num_tokens(self, choice: Choice) -> int:
        return 0 if self._request.max_tokens == 0 else choice.num_tokens

    def _whole_choices(self, deltas: list[list[Delta]]) -> list[dict[str, Any]]:
        indexes = [
            index
            for first in range(0, len(self._choices), self._per_prompt)
            for index in self._best(range(first, first + self._per_prompt))
        ]
        whole = []
        for number, index in enumerate(indexes):
            pieces = [piece for delta in deltas[index] for piece in self._pieces(index, delta)]
            whole.append(
                {
                    "index": number,
                    "text": "".join(piece["text"] for piece in pieces),
                    "logprobs": _joined([piece["logprobs"] for piece in pieces if piece["logprobs"]])
                    if self._request.logprobs is not None
                    else None,
                    "finish_reason": pieces[-1]["finish_reason"],
                }
            )
        return whole

    def _best(self, indexes: Sequence[int]) -> Sequence[int]:
        """Indexes of a prompt's best candidates: as many as requested, the highest mean log probability first."""
        if len(indexes) == self._request.num_choices:
            return indexes
        return sorted(indexes, key=self._mean_logprob, reverse=True)[: self._request.num_choices]

    def _mean_logprob(self, index: int) -> float:
        choice = self._choices[index]
        return choice.total_logprob / max(choice.num_tokens, 1)

    def _begin(self) -> list[dict[str, Any]]:
        return []

    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """One chunk, or none if the delta is empty."""
        if not (delta.events or delta.tokens or delta.finish_reason):
            return []
        text = "".join(event.text for event in delta.events if isinstance(event, Content))
        tokens: list[int] = delta.tokens
        logprobs: list[TokenLogprob | None] = [*delta.logprobs]
        finish_reason = delta.finish_reason
        if self._request.max_tokens == 0:  # the engine generates at least one token
            text, tokens, logprobs, finish_reason = "", [], [], "length"
        formatted = self._logprob_formats.get(index)
        if formatted is None:
            formatted = self._logprob_formats[index] = CompletionLogprobs(self._service.tokenizer.spelled)
            if self._request.echo:
                prompt = self._prompts[index // self._per_prompt]
                text = prompt.text + text
                tokens = [*prompt.tokens, *tokens]
                logprobs = [None, *self._choices[index].prompt_logprobs, *logprobs]
        described = formatted.push(tokens, logprobs) if self._request.logprobs is not None else None
        return [{"text": text, "logprobs": described, "finish_reason": finish_reason}]


def _as_spec(request: CompletionRequest) -> GenerationSpec:
    """Raises ApiError 400 if there is more than one constraint on the answer."""
    logprobs = request.logprobs
    if logprobs is None and request.num_candidates > request.num_choices:
        logprobs = 0  # to rank the candidates
    return replace(
        request.generation(Texts(request.prompts(), request.suffix)),
        num_choices=request.num_candidates,
        max_tokens=None if request.max_tokens is None else max(request.max_tokens, 1),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        constraint=constraint(request),
        logprobs=logprobs,
        score_prompt=request.scores_prompt,
    )


async def create(call: Call[CompletionRequest]) -> TextCompletion:
    service = await call.accepting(call.request.model)
    return await TextCompletion.create(service, call)


async def render(call: Call[CompletionRequest]) -> list[dict[str, Any]]:
    """Each prompt as tokens. Raises ApiError as the generation would."""
    service = await call.service(call.request.model)
    return await rendered(service, call.request, _as_spec(call.request), "cmpl")


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for piece in pieces for value in piece[name]] for name in names}
