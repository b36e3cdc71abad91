"""GET /healthz and /health with several engines."""

from typing import Any

import orjson
import pytest
import trio
from quart import Response
from trio.testing import MockClock

from api.flags import ModelOptions
from api.serving.service import ModelService
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig
from scheduler.messages import Report
from tests.api.fakes import MODEL, PATH, FakeEngine, Server


async def body_of(response: Response) -> Any:
    return orjson.loads(await response.get_data(as_text=False))


async def test_health_asks_all_models_at_once(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    """Engines that do not answer delay it by the time of one of them. Their last statistics have their age."""
    server = Server(tokenizer)
    cache = {"page_tokens": 32, "held_pages": 3, "cached_pages": 10, "free_pages": 51}
    for number in range(5):
        engine = SlowEngine()
        engine.report = Report({"running": number, "waiting": 0}, cache)
        service = ModelService((f"slow-{number}",), tokenizer, engine, max_waiting=8)
        server.fleet.adopt(ModelOptions(f"slow-{number}", PATH, EngineConfig(str(PATH))), service)
    begun = trio.current_time()
    body = await body_of(await server.client.get("/healthz"))
    assert trio.current_time() - begun == pytest.approx(SlowEngine.SECONDS)
    assert [model["model"] for model in body["models"]] == [MODEL, *(f"slow-{number}" for number in range(5))]
    assert [model["running"] for model in body["models"]] == [0, *range(5)]
    assert {model["statistics_age"] for model in body["models"][1:]} == {30.0}


class SlowEngine(FakeEngine):
    """Gives its last statistics, which are 30 seconds old, after as long as a busy engine may delay them."""

    SECONDS = 0.1
    report_age = 30.0

    async def inspect(self) -> Report | None:
        await trio.sleep(self.SECONDS)
        return await super().inspect()


async def test_readiness_asks_no_engine_and_has_llama_servers_form(tokenizer: Tokenizer) -> None:
    class DeafEngine(FakeEngine):
        async def inspect(self) -> Report | None:
            raise AssertionError("an engine was asked")

    server = Server(tokenizer)
    service = ModelService(("deaf",), tokenizer, DeafEngine(), max_waiting=8)
    server.fleet.adopt(ModelOptions("deaf", PATH, EngineConfig(str(PATH))), service)
    response = await server.client.get("/health")
    assert (response.status_code, await body_of(response)) == (200, {"status": "ok"})
    server.engine.info = service.engine.info = None  # type: ignore[misc]  # fakes can set it
    response = await server.client.get("/health")
    assert (response.status_code, await body_of(response)) == (503, {"status": "loading"})
    server.fleet.drain()
    response = await server.client.get("/health")
    assert (response.status_code, await body_of(response)) == (503, {"status": "draining"})
