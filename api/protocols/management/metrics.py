"""GET /metrics and /v1/loads: what the server counts, for Prometheus and for routers."""

from typing import Any

from api.protocols.call import Call, Reply
from api.protocols.management.request import LoadsQuery
from api.serving.metrics import CONTENT_TYPE, EngineState


async def metrics(call: Call[None]) -> Reply:
    return Reply(await call.server.metrics.text(call.server.fleet), content_type=CONTENT_TYPE)


async def loads(call: Call[LoadsQuery]) -> dict[str, Any]:
    """The load of each model, in the form that SMG reads. A model without an engine and without requests has none."""
    states = await call.server.metrics.engines(call.server.fleet)
    waiting = call.server.metrics.requests.tokens_before_answers()
    loaded = [(rank, state) for rank, state in enumerate(states) if state.report is not None or state.num_active]
    return {"loads": [_load(rank, state, waiting.get(state.name, 0)) for rank, state in loaded]}


def _load(rank: int, state: EngineState, waiting_tokens: int) -> dict[str, Any]:
    totals = state.totals
    needed = totals["hit_tokens"] + totals["prefill_tokens"]
    return {
        "model": state.name,
        "dp_rank": rank,
        "num_running_reqs": state.running,
        "num_waiting_reqs": state.waiting,
        "num_waiting_uncached_tokens": waiting_tokens,
        "num_used_tokens": int(state.held_tokens),
        "max_total_num_tokens": int(state.memory("kv_max")),
        "token_usage": round(state.kv_usage, 4),
        # SMG takes a rate for a node's speed, and 0 for unknown. Beside a busy node an idle one with the rate 0 would
        # look much faster, and get nearly all requests.
        "gen_throughput": 0.0,
        "cache_hit_rate": round(totals["hit_tokens"] / needed, 4) if needed else 0.0,
    }
