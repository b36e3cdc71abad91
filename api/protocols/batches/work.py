"""Runs one line of a batch as the HTTP server runs a request."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import orjson
import trio

from api.errors import ApiError, InterruptedRequestError, server_error
from api.protocols.answer import Answer
from api.protocols.batches.lines import InvalidLineError, checked
from api.protocols.call import Call, Server
from api.protocols.fields import Strict, parse
from api.serving.observer import CURRENT, RequestRecord
from api.serving.tickets import Ticket
from api.storage.batch import Usage
from api.tenants.tenant import Priority, Tenant

_log = logging.getLogger("cortex.api")

TEMPORARY: Final = (429, 503)
"""Statuses of refusals that pass: the line is tried again."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An operation that lines may call."""

    name: str
    """In metrics."""
    request: type[Strict]
    handler: Callable[[Call[Any]], Awaitable[Any]]
    fixed: dict[str, object] = field(default_factory=dict)
    """Fields that every line has, whatever its body says."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of a line."""

    status: int
    body: dict[str, Any]
    request_id: str

    @classmethod
    def refused(cls, error: ApiError) -> Self:
        """The answer of a line that never ran."""
        return cls(error.status, error.body(), _new_request_id())

    @property
    def is_error(self) -> bool:
        return self.status != 200

    def usage(self) -> Usage | None:
        """The tokens that it used; None for an error."""
        if self.is_error:
            return None
        used = self.body.get("usage") or {}
        read = used.get("prompt_tokens_details") or used.get("input_tokens_details") or {}
        written = used.get("completion_tokens_details") or used.get("output_tokens_details") or {}
        return Usage(
            used.get("prompt_tokens", used.get("input_tokens", 0)),
            read.get("cached_tokens", 0),
            used.get("completion_tokens", used.get("output_tokens", 0)),
            written.get("reasoning_tokens", 0),
        )

    def line(self, custom_id: str) -> bytes:
        """The line of the output file."""
        response = {"status_code": self.status, "request_id": self.request_id, "body": self.body}
        return output_line(custom_id, response, None)


def output_line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    """A line of an output file. `error`: why the line has no response."""
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


class Work:
    """The request of a line, validated."""

    def __init__(self, data: bytes, path: str, endpoint: Endpoint) -> None:
        """`data`: the line. May take long: call it in a thread. Raises ApiError 400 for an invalid request."""
        try:
            _, body = checked(data, path)
        except InvalidLineError as error:  # it was valid: the file has changed
            raise ApiError(400, str(error), param=error.param, code=error.code) from error
        if body.get("stream"):
            message = "'stream' must be false in a batch: its answers are in a file."
            raise ApiError(400, message, param="stream", code="invalid_value")
        try:
            self.request = parse(endpoint.request, body | endpoint.fixed)
        except RecursionError as error:
            raise ApiError(400, "The request body is nested too deeply.", code="invalid_value") from error
        self.num_sequences = self.request.num_sequences
        self._endpoint = endpoint

    @property
    def model(self) -> str:
        return str(getattr(self.request, "model", ""))

    async def run(self, server: Server, tenant: Tenant, *, waits_for_model: bool) -> Outcome | None:
        """Run it for a tenant, in the class `batch`. Returns None if it is to be tried again later.

        `waits_for_model`: whether it is tried again if there is no such model. The record of the request begins and
        ends here.
        """
        request_id = _new_request_id()
        record = RequestRecord(
            request_id=request_id,
            operation=self._endpoint.name,
            tenant=tenant.name,
            model=server.fleet.own_name(self.model),
            arrived_at=time.time(),
            arrival=trio.current_time(),
        )
        CURRENT.set(record)
        server.observers.began(record)
        as_batch = replace(tenant, priority=Priority.BATCH)
        call = Call(server, self.request, request_id, tenant=as_batch, record=record, ticket=Ticket())
        try:
            body = await self._answer(call)
        except ApiError as error:
            record.status, record.error = error.status, error.code or ""
            if _is_temporary(error) or (waits_for_model and error.code == "model_not_found"):
                return None
            return Outcome(error.status, error.body(), request_id)
        except Exception as error:
            _log.error("request %s failed", request_id, exc_info=error)
            failed = server_error("The server had an error while processing your request.")
            record.status, record.error = failed.status, failed.code or ""
            return Outcome(failed.status, failed.body(), request_id)
        else:
            record.status = 200
            return Outcome(200, body, request_id)
        finally:
            server.observers.ended(record, trio.current_time())

    async def _answer(self, call: Call[Any]) -> dict[str, Any]:
        service = await call.service(self.model)
        with service.admission.aside(self.num_sequences):
            reply = await self._endpoint.handler(call)
            body: dict[str, Any] = await reply.whole() if isinstance(reply, Answer) else reply
        return body


def _is_temporary(error: ApiError) -> bool:
    return error.status in TEMPORARY or isinstance(error, InterruptedRequestError)


def _new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"
