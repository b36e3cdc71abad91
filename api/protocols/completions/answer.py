"""POST /v1/completions: prompts as they are, and the text that follows."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from api.protocols.answer import Drafted
from api.protocols.call import Call
from api.protocols.choice import Choice, Delta
from api.protocols.chunks import ChunkedAnswer
from api.protocols.completions.request import CompletionRequest
from api.protocols.logprobs import CompletionLogprobs
from api.protocols.structured import constraint
from api.serving.service import ModelService
from api.text.dialects import Content
from scheduler.messages import Submit, TokenLogprob


class TextCompletion(ChunkedAnswer[CompletionRequest]):
    """The completions of one request's prompts."""

    kind = chunk_kind = "text_completion"
    _echoes: list[str]
    """The prompts' texts, one for each choice."""

    @classmethod
    async def create(cls, service: ModelService, request: CompletionRequest) -> Self:
        """Raises ApiError 400 for what the model's vocabulary, its context or a grammar cannot hold."""
        request = service.defaults.fill(request)
        wish = constraint(request)
        requested: int | None = max(request.requested_tokens, 1)
        if request.max_tokens is None and service.defaults.token_limit is not None:
            requested = None  # so that the model's own limit holds
        prompts = await service.text_prompts(request.prompts(), request.suffix)
        params = await service.sampling(request)
        logprobs = request.logprobs
        if logprobs is None and request.num_candidates > request.num_choices:
            logprobs = 0  # to know the best
        drafts = [
            Submit(
                service.engine.next_id(),
                prompt.tokens,
                service.token_limit(len(prompt.tokens), requested, "prompt"),
                replace(params, seed=params.seed + number),
                logprobs=logprobs,
                score_prompt=request.scores_prompt,
                grammar=wish.whole() if wish else "",
            )
            for prompt in prompts
            for number in range(request.num_candidates)
        ]
        choices = [Choice(service.tokenizer.piece, request.stop or ()) for _ in drafts]
        drafted = Drafted(drafts, choices, wish.param if wish else None)
        completion = cls(service, request, f"cmpl-{uuid.uuid4().hex}", drafted, len(prompts))
        completion._echoes = [prompt.text for prompt in prompts for _ in range(request.num_candidates)]
        return completion

    @cached_property
    def _forms(self) -> dict[int, CompletionLogprobs]:
        """Of the choices that have begun."""
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
        """As many of a prompt's candidates as were asked for, the most probable for each of their tokens first."""
        if len(indexes) == self._request.num_choices:
            return indexes
        return sorted(indexes, key=self._mean_logprob, reverse=True)[: self._request.num_choices]

    def _mean_logprob(self, index: int) -> float:
        choice = self._choices[index]
        return choice.total_logprob / max(choice.num_tokens, 1)

    def _begin(self) -> list[dict[str, Any]]:
        return []

    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """One, or none while there is nothing to say yet."""
        if not (delta.events or delta.tokens or delta.finish_reason):
            return []
        text = "".join(event.text for event in delta.events if isinstance(event, Content))
        tokens: list[int] = delta.tokens
        logprobs: list[TokenLogprob | None] = [*delta.logprobs]
        finish_reason = delta.finish_reason
        if self._request.max_tokens == 0:  # the engine generates one at least
            text, tokens, logprobs, finish_reason = "", [], [], "length"
        form = self._forms.get(index)
        if form is None:
            form = self._forms[index] = CompletionLogprobs(self._service.tokenizer.spelled)
            if self._request.echo:
                text = self._echoes[index] + text
                tokens = [*self._drafts[index].tokens, *tokens]
                logprobs = [None, *self._choices[index].prompt_logprobs, *logprobs]
        told = form.push(tokens, logprobs) if self._request.logprobs is not None else None
        return [{"text": text, "logprobs": told, "finish_reason": finish_reason}]


async def create(call: Call[CompletionRequest]) -> TextCompletion:
    service = await call.server.fleet.accepting(call.request.model)
    return await TextCompletion.create(service, call.request)


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for piece in pieces for value in piece[name]] for name in names}
