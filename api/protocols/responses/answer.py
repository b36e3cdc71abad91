"""POST /v1/responses: renders responses, whole or as a stream of events, and stores them."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self, TypeVar

import orjson

from api.errors import ApiError
from api.protocols.answer import Answer, event
from api.protocols.call import Call
from api.protocols.logprobs import chat_logprobs
from api.protocols.priorities import served_tier
from api.protocols.rendered import rendered
from api.protocols.responses.conversation import as_conversation, as_spec
from api.protocols.responses.items import Item, ItemReference, new_id, new_item_id
from api.protocols.responses.output_items import Event, OutputItems
from api.protocols.responses.request import InputTokensRequest, ResponseRequest
from api.protocols.store import KeptItem, KeptResponse, items_of
from api.serving.choice import Delta
from api.serving.service import ModelService, Prepared
from api.serving.spec import GenerationSpec
from scheduler.messages import Output

RequestT = TypeVar("RequestT", bound=InputTokensRequest)
EndStatus = Literal["completed", "incomplete"]


class ModelResponse(Answer):
    """One response to a conversation."""

    def __init__(
        self,
        service: ModelService,
        request: ResponseRequest,
        conversation: tuple[KeptItem, ...],
        prepared: Prepared,
        keep: Callable[[str, KeptResponse], None],
    ) -> None:
        """`keep` stores the response under its id. Raises ApiError 503 without an engine."""
        super().__init__(service, prepared)
        self._request = request
        self._hides_reasoning = request.hides_reasoning()
        self._conversation = conversation
        self._store = keep
        self._id = new_id("resp")
        self._created = int(time.time())
        self._output = OutputItems(request.names_of_calls(), request.custom_names())
        self._num_events = 0

    @classmethod
    async def create(cls, service: ModelService, call: Call[ResponseRequest]) -> Self:
        """Raises ApiError 400 if the model cannot serve the request, 400 or 404 for references that are not stored."""
        conversation = _conversation(call)
        prepared = await service.prepare(call.owned(await _spec(service, call.request, conversation)))
        return cls(service, call.request, conversation, prepared, partial(call.server.responses.keep, call.keeper))

    def _steps(self, output: Output) -> Sequence[Output]:
        """One output for each token if log probabilities are requested, to match texts with their tokens."""
        if not self._request.wants_logprobs or len(output.tokens) < 2:
            return (output,)
        steps = [
            replace(
                output, tokens=[token], logprobs=[logprob], finish_reason=None, accepted_drafts=0, rejected_drafts=0
            )
            for token, logprob in zip(output.tokens, output.logprobs, strict=True)
        ]
        steps[-1].finish_reason = output.finish_reason
        return steps

    def _whole(self, deltas: list[list[Delta]]) -> dict[str, Any]:
        for delta in deltas[0]:
            self._push(delta)
        status = self._status
        self._output.finish(status)
        return self._keep(status)

    def _beginning(self) -> bytes:
        begun = self._object("in_progress")
        return self._events_of({"type": f"response.{name}", "response": begun} for name in ("created", "in_progress"))

    def _news(self, index: int, delta: Delta) -> bytes:  # noqa: ARG002 - there is only one
        return self._events_of(self._push(delta))

    def _end(self) -> bytes:
        status = self._status
        events = self._events_of(self._output.finish(status))
        return events + self._events_of([{"type": f"response.{status}", "response": self._keep(status)}])

    def _failure(self, error: ApiError) -> bytes:
        """The events that end a stream after an error, which may occur before the first event."""
        begun = b"" if self._num_events else self._beginning()
        code = "invalid_prompt" if error.status == 400 else "server_error"
        failed = self._object("failed") | {"error": {"code": code, "message": error.message}}
        return begun + self._events_of([{"type": "response.failed", "response": failed}])

    @property
    def _status(self) -> EndStatus:
        """The final status, read before the last item is finished. A call that a stop string cut is incomplete."""
        [choice] = self._choices
        is_cut = choice.finish_reason == "length" or (choice.stop is not None and self._output.is_in_call)
        return "incomplete" if is_cut else "completed"

    def _push(self, delta: Delta) -> list[Event]:
        wanted = self._request.wants_logprobs
        piece = self._service.answer_piece
        return self._output.push(delta, chat_logprobs(delta.tokens, delta.logprobs, piece)["content"] if wanted else ())

    def _events_of(self, events: Iterable[Event]) -> bytes:
        data = b""
        for each in events:
            data += event(each | {"sequence_number": self._num_events}, each["type"])
            self._num_events += 1
        return data

    def _keep(self, status: EndStatus) -> dict[str, Any]:
        """Returns the final response, and stores it if that is requested."""
        reason = "max_output_tokens" if self._choices[0].finish_reason == "length" else None
        response = self._object(status) | {
            "completed_at": int(time.time()) if status == "completed" else None,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "usage": self._usage(),
        }
        if self._request.is_kept:
            output = tuple(KeptItem.of(item, is_ours=True) for item in self._output.items)
            kept = KeptResponse(orjson.dumps(response), self._conversation, output, self._request.wants_logprobs)
            self._store(self._id, kept)
        return response

    def _object(self, status: str) -> dict[str, Any]:
        [submit] = self._submits
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": self._output.items,
            "usage": None,
        } | self._request.echo(
            submit.params,
            self._request.max_output_tokens or self._service.defaults.token_limit,
            served_tier(self._request.service_tier, submit.priority),
        )

    def _usage(self) -> dict[str, Any]:
        [choice], [submit] = self._choices, self._submits
        return {
            "input_tokens": len(submit.tokens),
            "input_tokens_details": {"cached_tokens": choice.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": choice.num_tokens,
            "output_tokens_details": {"reasoning_tokens": choice.num_reasoning_tokens},
            "total_tokens": len(submit.tokens) + choice.num_tokens,
        }


async def create(call: Call[ResponseRequest]) -> ModelResponse:
    service = await call.accepting(call.request.model)
    return await ModelResponse.create(service, call)


async def render(call: Call[ResponseRequest]) -> dict[str, Any]:
    """The conversation's prompt as tokens. Raises ApiError as the generation would."""
    service = await call.service(call.request.model)
    spec = await _spec(service, call.request, _conversation(call))
    [prompt] = await rendered(service, call.request, spec, "resp")
    return prompt


async def _spec(service: ModelService, request: ResponseRequest, conversation: Sequence[KeptItem]) -> GenerationSpec:
    items = items_of(conversation)
    if request.truncation == "auto":
        room = request.max_output_tokens or service.defaults.token_limit or 1
        items = await _fitting(service, request, items, room)
    return as_spec(request, items)


def _conversation(call: Call[RequestT]) -> tuple[KeptItem, ...]:
    """The items of the previous response, then the input. Raises ApiError 400 or 404 if one of them is not stored."""
    request, kept, owner = call.request, call.server.responses, call.keeper
    items: list[KeptItem] = []
    if request.previous_response_id is not None:
        previous = kept.find(owner, request.previous_response_id)
        if previous is None:
            message = f"Previous response with id '{request.previous_response_id}' not found."
            raise ApiError(400, message, param="previous_response_id", code="previous_response_not_found")
        items += previous.conversation
    for item in request.input or ():
        if isinstance(item, ItemReference):
            found = kept.find_item(owner, item.id)
            if found is None:
                raise ApiError(404, f"Item with id '{item.id}' not found.", param="input")
            items.append(found)
        else:
            listed = item.listed()
            if listed is None:
                continue
            sent = KeptItem.of(listed, is_ours=not item.id)
            found = kept.find_item(
                owner, sent.id
            )  # an item that is sent back unchanged stays the stored one, with its id
            items.append(found if found is not None and found.data == sent.data else sent)
    return tuple(_with_distinct_ids(items))


def _with_distinct_ids(items: Iterable[KeptItem]) -> Iterator[KeptItem]:
    """The items, with new ids for those whose id occurred before: pages of items begin after an id."""
    ids: set[str] = set()
    for item in items:
        distinct = item
        if item.id in ids:
            again = item.load()
            distinct = KeptItem.of(again | {"id": new_item_id(again["type"])}, is_ours=True)
        ids.add(distinct.id)
        yield distinct


async def count_input(call: Call[InputTokensRequest]) -> dict[str, Any]:
    """Raises ApiError 400 if the template refuses the conversation, 400 or 404 for references that are not stored."""
    request = call.request
    service = await call.service(request.model)
    items = items_of(_conversation(call))
    if request.truncation == "auto":
        items = await _fitting(service, request, items, room=1)
    tokens = await service.prompts.chat(as_conversation(request, items))
    return {"object": "response.input_tokens", "input_tokens": len(tokens)}


async def _fitting(service: ModelService, request: InputTokensRequest, items: list[Item], room: int) -> list[Item]:
    """The items without the oldest turns that do not fit in the context. The last turn is always kept.

    A turn begins with a user's message. `room`: tokens that are left for the answer, at most half of the context.
    Raises ApiError 400 if the model's template refuses the conversation.
    """
    context = service.engine.ready_info().ctx_len
    longest = context - min(room, context // 2)
    starts = [0, *(index for index, item in enumerate(items) if index and item.get("role") == "user")]

    async def fits(start: int) -> bool:
        return len(await service.prompts.chat(as_conversation(request, items[start:]))) <= longest

    if len(starts) == 1 or await fits(0):
        return items
    low, high = 1, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(starts[middle]):
            high = middle
        else:
            low = middle + 1
    return items[starts[low] :]
