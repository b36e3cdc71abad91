"""GET and DELETE /v1/responses/{response_id}, and its input items: stored responses."""

from typing import Any

import orjson

from api.errors import ApiError
from api.protocols.call import Call
from api.protocols.responses.request import LOGPROBS, ListQuery, RetrieveQuery
from api.protocols.store import KeptResponse, items_of


async def retrieve(call: Call[RetrieveQuery]) -> dict[str, Any]:
    """A stored response.

    Raises ApiError 404 if it is not stored, 400 if `include` asks for log probabilities that it does not have.
    """
    found = _found(call)
    if LOGPROBS in (call.request.include or ()) and not found.has_logprobs:
        message = f"'include' is not supported with {LOGPROBS!r}: the response was created without it."
        raise ApiError(400, message, param="include", code="unsupported_parameter")
    response: dict[str, Any] = orjson.loads(found.data)
    return response


async def delete(call: Call[None]) -> dict[str, Any]:
    """Raises ApiError 404 if the response is not stored."""
    response_id = call.path["response_id"]
    if not call.server.responses.delete(call.keeper, response_id):
        raise _not_found(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


async def list_input(call: Call[ListQuery]) -> dict[str, Any]:
    """A page of the input items of a response, latest first by default.

    Raises ApiError 404 if the response is not stored, 400 if the page is to begin after an unknown item.
    """
    query, items = call.request, list(_found(call).input)
    if query.order == "desc":
        items.reverse()
    if query.after is not None:
        before = next((index for index, item in enumerate(items) if item.id == query.after), None)
        if before is None:
            message = f"Item with id '{query.after}' is not part of the input."
            raise ApiError(400, message, param="after", code="invalid_value")
        items = items[before + 1 :]
    page = items[: query.limit]
    return {
        "object": "list",
        "data": items_of(page),
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(items) > len(page),
    }


def _found(call: Call[Any]) -> KeptResponse:
    response_id = call.path["response_id"]
    found = call.server.responses.find(call.keeper, response_id)
    if found is None:
        raise _not_found(response_id)
    return found


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id '{response_id}' not found.")
