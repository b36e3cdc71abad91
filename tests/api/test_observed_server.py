"""A real server whose log has the JSON format: its metrics and its log agree with what its client got."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.api.servers import MODEL, CortexServer, wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CortexServer]:
    flags = ("--log-format=json", "--log-requests", "--ctx-len=256", "--max-seqs=2", "--disk-cache=0")
    with CortexServer(tmp_path, *flags) as server:
        yield server


def scraped(server: CortexServer) -> dict[str, float]:
    """The samples without labels or with those of the model only, by name."""
    text = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: sample.value for sample in samples if sample.labels == {"model_name": MODEL}}


def test_metrics_and_log_agree_with_the_usage(server: CortexServer) -> None:
    secret = "xylophone"
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Say {secret} and more."}],
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers={"x-request-id": "mine"},
                extra_body={"ignore_eos": True},
            )
        )
    usage = chunks[-1].usage
    assert usage is not None

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.log.splitlines()]

    wait_until(lambda: any(line["logger"] == "cortex.requests" for line in lines()), "the request is logged")
    [line] = [line for line in lines() if line["logger"] == "cortex.requests"]
    assert secret not in server.log
    assert (line["request_id"], line["operation"], line["finish"]) == ("mine", "chat_completions", "length")
    assert (line["prompt_tokens"], line["answer_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert line["seconds"] >= line["first_token_seconds"] >= line["queue_seconds"] >= 0
    server.assert_nothing_is_held()
    metrics = scraped(server)
    assert metrics["vllm:prompt_tokens_total"] == metrics["cortex_prefill_tokens_total"] == usage.prompt_tokens
    assert metrics["vllm:generation_tokens_total"] == usage.completion_tokens == 12
    assert metrics["vllm:time_to_first_token_seconds_count"] == 1
    assert metrics["vllm:inter_token_latency_seconds_count"] == 11
    details = usage.completion_tokens_details
    drafted = (details.accepted_prediction_tokens or 0) if details is not None else 0
    assert metrics["cortex_steps_total"] + drafted >= 12
    assert (metrics["vllm:num_requests_running"], metrics["vllm:kv_cache_usage_perc"]) == (0, 0)
    load = httpx.get(f"http://127.0.0.1:{server.port}/v1/loads").json()["loads"][0]
    assert (load["num_used_tokens"], load["num_running_reqs"]) == (0, 0)
