"""The official SDKs over the app of a fake server, without a network."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import httpx2
import trio
from anthropic import Anthropic
from openai import OpenAI

from tests.api.fakes import Server

AnswerT = TypeVar("AnswerT")


class AppTransport(httpx2.BaseTransport):
    """Sends requests to the app of a server. The SDK must run in a thread that trio started."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.bodies: list[bytes] = []
        """The bodies that the SDK sent."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(request.read())
        return trio.from_thread.run(self._send, request)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        send = getattr(self._server.client, request.method.lower())
        answer = await send(request.url.raw_path.decode(), data=request.read(), headers=dict(request.headers))
        body = bytes(await answer.get_data(as_text=False))
        return httpx2.Response(answer.status_code, headers=list(answer.headers.items()), content=body)


class Sdks:
    """Both SDKs over one server."""

    def __init__(self, server: Server, api_key: str = "none") -> None:
        self.transport = AppTransport(server)
        client = httpx2.Client(transport=self.transport)
        self.openai = OpenAI(base_url="http://app/v1", api_key=api_key, max_retries=0, http_client=client)
        self.anthropic = Anthropic(base_url="http://app", api_key=api_key, max_retries=0, http_client=client)

    async def call(self, function: Callable[..., AnswerT], /, **fields: Any) -> AnswerT:
        return await trio.to_thread.run_sync(partial(function, **fields))
