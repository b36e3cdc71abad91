"""GET /metrics, /v1/loads and /readyz."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from api.flags import ModelOptions
from api.serving.fleet import Fleet
from api.serving.service import ModelService
from api.tenants.tenant import Priority
from api.text.tokenizer import Tokenizer
from bench.null_memory import NullMemory
from kvcache.cache import KVCache
from kvcache.pool import PoolLayout
from scheduler.config import EngineConfig
from scheduler.engine import report
from scheduler.fair import FairShares
from scheduler.messages import Report, Submit
from scheduler.pacing import Pacer
from scheduler.plan import Result
from scheduler.scheduler import Scheduler
from tests.api.fakes import INFO, MODEL, PATH, FakeEngine, Server, chat

SCHEDULER = {
    "running": 2,
    "waiting": 3,
    "steps": 10,
    "step_seconds": 1.5,
    "prefill_tokens": 60,
    "decode_tokens": 100,
    "preemptions": 1,
    "failed_steps": 2,
    "num_drafts": 4,
    "draft_tokens": 12,
    "accepted_draft_tokens": 7,
    "accepted_per_position": [4, 2, 1],
    "draft_sources": {"suffix": {"num_drafts": 4, "draft_tokens": 12, "accepted_draft_tokens": 7}},
}
CACHE = {
    "page_tokens": 32,
    "pages": 64,
    "held_pages": 16,
    "cached_pages": 40,
    "free_pages": 8,
    "hit_tokens": 20,
    "loaded_tokens": 5,
    "evicted_pages": 4,
    "merged_pages": 3,
    "host_bytes": 1000,
    "host_pages": 10,
    "disk_bytes": 2000,
    "disk_pages": 20,
}
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


async def scrape(server: Server) -> Samples:
    """All samples by name and labels."""
    response = await server.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples: Samples = {}
    for family in text_string_to_metric_families(await response.get_data(as_text=True)):
        for sample in family.samples:
            of_name = samples.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in of_name, "each sample occurs once"
            of_name[labels] = sample.value
    return samples


def of_model(samples: Samples, name: str, **labels: str) -> float:
    return samples[name][tuple(sorted({"model_name": MODEL, **labels}.items()))]


async def test_the_numbers_of_an_engine(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    server.engine.report = Report(SCHEDULER, CACHE)
    samples = await scrape(server)
    assert of_model(samples, "vllm:num_requests_running") == 2
    assert of_model(samples, "vllm:num_requests_waiting") == 3
    assert of_model(samples, "vllm:kv_cache_usage_perc") == 0.25, "idle cached pages do not count"
    assert of_model(samples, "vllm:prefix_cache_queries_total") == 80
    assert of_model(samples, "vllm:prefix_cache_hits_total") == 20
    assert of_model(samples, "vllm:num_preemptions_total") == 1
    assert of_model(samples, "vllm:spec_decode_num_drafts_total") == 4
    assert of_model(samples, "vllm:spec_decode_num_draft_tokens_total") == 12
    assert of_model(samples, "vllm:spec_decode_num_accepted_tokens_total") == 7
    assert of_model(samples, "cortex_draft_tokens_total", source="suffix", result="rejected") == 5
    for position, count in enumerate((4, 2, 1)):
        name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
        assert of_model(samples, name, position=str(position)) == count
    assert of_model(samples, "cortex_step_seconds_total") == 1.5
    assert of_model(samples, "cortex_failed_steps_total") == 2
    assert of_model(samples, "cortex_tier_bytes", tier="disk") == 2000
    assert of_model(samples, "cortex_kv_pages", use="cached") == 40
    assert of_model(samples, "cortex_model_status", status="ready") == 1
    assert of_model(samples, "cortex_model_status", status="failed") == 0


async def test_counters_go_on_when_an_engine_is_replaced(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    server.engine.report = Report(SCHEDULER, CACHE)
    await scrape(server)
    server.engine.info, server.engine.report = None, None
    samples = await scrape(server)
    assert of_model(samples, "cortex_steps_total") == 10
    assert of_model(samples, "vllm:num_requests_running") == 0
    server.engine.info = replace(INFO, pid=5)
    server.engine.report = Report(SCHEDULER | {"steps": 12}, CACHE)
    for _ in range(2):
        assert of_model(await scrape(server), "cortex_steps_total") == 22


async def test_without_an_engine_everything_waits(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    with server.engine.generate([Submit(server.engine.next_id(), [1], 1)]):
        assert of_model(await scrape(server), "vllm:num_requests_waiting") == 1


async def test_the_numbers_of_requests(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    server.answers("Fine.")
    assert (await server.post(chat(user="ann"))).status_code == 200
    assert (await server.post(chat(temperature=-1, user="bob"))).status_code == 400
    samples = await scrape(server)
    answer, prompt = len(server.encode("Fine.")), len(server.engine.submitted[0].tokens)
    assert of_model(samples, "vllm:generation_tokens_total") == answer
    assert of_model(samples, "vllm:prompt_tokens_total") == prompt
    assert of_model(samples, "vllm:request_success_total", finished_reason="stop") == 1
    for name in ("time_to_first_token", "request_queue_time", "e2e_request_latency"):
        assert of_model(samples, f"vllm:{name}_seconds_count") == 1
        assert of_model(samples, f"vllm:{name}_seconds_bucket", le="+Inf") == 1
    assert of_model(samples, "vllm:inter_token_latency_seconds_count") == 0
    assert samples["cortex_tenant_prompt_tokens_total"] == {(("tenant", "keyless"),): prompt}
    responses = samples["cortex_http_requests_total"]
    assert responses[("operation", "chat_completions"), ("status", "200")] == 1
    assert responses[("operation", "chat_completions"), ("status", "400")] == 1


async def test_what_schedulers_report_of_tenants_has_bounded_labels(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    scheduler = fair_scheduler()
    for request, tenant in enumerate(("ann", "ann", "user:bob", "address:::1", "user:eve")):
        scheduler.submit(Submit(request, [request] * 40, 8, tenant=tenant, priority=Priority.BATCH))
    plan = scheduler.plan()
    scheduler.commit(plan, Result([[7]] * sum(chunk.samples for chunk in plan.chunks), 0.01))
    server.engine.report = report(scheduler)
    samples = await scrape(server)
    assert len(samples["cortex_tenant_service"]) == 2
    counts = {
        (name, tenant): of_model(samples, f"cortex_tenant_{name}", tenant=tenant, priority="batch")
        for name in ("running", "waiting")
        for tenant in ("ann", "keyless")
    }
    assert sum(counts.values()) == 5
    assert counts["running", "ann"] + counts["running", "keyless"] == of_model(samples, "vllm:num_requests_running")
    assert of_model(samples, "cortex_tenant_service", tenant="ann", priority="batch") > 0


def fair_scheduler() -> Scheduler:
    """A real scheduler, over memory that keeps nothing."""
    cache, pacer = KVCache(NullMemory(), PoolLayout(num_pages=64, num_ids=4)), Pacer(0.004)
    policy = FairShares(128, pacer)
    return Scheduler(cache, pacer, max_seqs=3, token_budget=128, ctx_len=512, policy=policy)


class AskedEngine(FakeEngine):
    """Answers late, as a busy engine does."""

    num_asked = 0

    async def inspect(self) -> Report | None:
        self.num_asked += 1
        await trio.sleep(0.1)
        return Report(SCHEDULER, CACHE)


@pytest.mark.parametrize("path", ["/metrics", "/v1/loads"])
async def test_each_engine_is_asked_once_and_all_at_the_same_time(
    tokenizer: Tokenizer, autojump_clock: MockClock, path: str
) -> None:
    server = Server(tokenizer)
    engines = [AskedEngine() for _ in range(5)]
    for number, engine in enumerate(engines):
        service = ModelService((f"model-{number}",), tokenizer, engine, max_waiting=8)
        server.fleet.adopt(ModelOptions(f"model-{number}", PATH, EngineConfig(str(PATH))), service)
    begun = trio.current_time()
    assert (await server.client.get(path)).status_code == 200
    assert [engine.num_asked for engine in engines] == [1] * 5
    assert trio.current_time() - begun == pytest.approx(0.1)


async def test_loads_have_the_form_of_smg(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = Server(tokenizer)
    server.engine.report = Report(SCHEDULER, CACHE)

    async def load() -> dict[str, Any]:
        response = await server.client.get("/v1/loads?include=core,queues")
        [found] = orjson.loads(await response.get_data(as_text=False))["loads"]
        assert isinstance(found, dict)
        return found

    assert await load() == {
        "model": MODEL,
        "dp_rank": 0,
        "num_running_reqs": 2,
        "num_waiting_reqs": 3,
        "num_waiting_uncached_tokens": 0,
        "num_used_tokens": 16 * 32,
        "max_total_num_tokens": 64 * 32,
        "token_usage": 0.25,
        "gen_throughput": 0.0,
        "cache_hit_rate": 0.25,
    }
    await trio.sleep(2)
    server.engine.report = Report(SCHEDULER | {"decode_tokens": 150}, CACHE)
    assert (await load())["gen_throughput"] == 0.0  # SMG would send nearly all requests to another, idle node
    async with server.stream(chat()) as stream:
        await server.engine.wait_active()
        assert (await load())["num_waiting_uncached_tokens"] == len(server.engine.submitted[0].tokens)
        await stream.leave()


async def test_the_load_of_memory_that_follows_the_load(tokenizer: Tokenizer) -> None:
    """Routers leave out a server whose memory is in use, so it counts against the size that the memory can have."""
    server = Server(tokenizer)
    server.engine.report = Report(SCHEDULER, CACHE, memory={"kv_tokens": 64 * 32, "kv_max": 256 * 32})
    body = orjson.loads(await (await server.client.get("/v1/loads")).get_data(as_text=False))
    [load] = body["loads"]
    assert (load["num_used_tokens"], load["max_total_num_tokens"], load["token_usage"]) == (512, 8192, 0.0625)
    assert of_model(await scrape(server), "vllm:kv_cache_usage_perc") == 0.0625


async def test_only_models_with_an_engine_have_a_load(tokenizer: Tokenizer) -> None:
    """A model that loads has neither memory nor requests. The numbers of the others stay."""
    server = Server(tokenizer)
    server.fleet._add(ModelOptions("loading", PATH, EngineConfig(str(PATH))))
    engine = FakeEngine()
    engine.report = server.engine.report = Report(SCHEDULER, CACHE)
    service = ModelService(("third",), tokenizer, engine, max_waiting=8)
    server.fleet.adopt(ModelOptions("third", PATH, EngineConfig(str(PATH))), service)

    async def loads() -> list[tuple[str, int, int]]:
        found = orjson.loads(await (await server.client.get("/v1/loads")).get_data(as_text=False))["loads"]
        return [(each["model"], each["dp_rank"], each["num_waiting_reqs"]) for each in found]

    assert await loads() == [(MODEL, 0, 3), ("third", 2, 3)]
    server.engine.info, server.engine.report = INFO, None
    with server.engine.generate([Submit(server.engine.next_id(), [1], 1)]):
        assert await loads() == [(MODEL, 0, 1), ("third", 2, 3)], "without numbers, everything waits"


async def test_readyz_says_whether_the_server_would_answer_now(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, max_waiting=0)

    async def ready() -> tuple[int, Any]:
        response = await server.client.get("/readyz")
        return response.status_code, orjson.loads(await response.get_data(as_text=False))

    assert await ready() == (200, {"ready": True, "reason": None})
    submits = [Submit(server.engine.next_id(), [1], 1) for _ in range(INFO.max_seqs)]
    with server.engine.generate(submits):
        assert await ready() == (503, {"ready": False, "reason": "queue_full"})
    assert (await ready())[0] == 200
    server.engine.info = None
    assert await ready() == (503, {"ready": False, "reason": "loading"})
    server.engine.info = INFO
    server.fleet.drain()
    assert await ready() == (503, {"ready": False, "reason": "draining"})


def test_a_server_without_a_model_is_not_ready_and_an_unloaded_model_is() -> None:
    fleet = Fleet(max_waiting=8)
    assert fleet.unready_reason == "no_model"
    fleet._add(ModelOptions(MODEL, PATH, EngineConfig(str(PATH))))
    assert fleet.unready_reason is None
