"""An engine with a real model publishes what its KV cache has."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import zmq

from scheduler.config import EngineConfig
from scheduler.errors import ModelError
from scheduler.llama.load import load
from scheduler.messages import SamplingParams, Submit
from tests.models import write_bert
from tests.scheduler.kv_events.consumer import Consumer, replayed
from tests.tiny_models import write_tiny_model

FREE = "tcp://127.0.0.1:*"


@pytest.mark.parametrize("layout", ["lanes", "pool"])
def test_the_pages_of_a_prompt_and_its_answer_are_published(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_model(path, "dense", seed=1)
    config = EngineConfig(str(path), ctx_len=256, max_seqs=2, threads=1, kv_layout=layout)
    parts = load(replace(config, kv_events=FREE, kv_events_replay=FREE, kv_events_topic="kv"))
    assert parts.publisher is not None
    parts.publisher.start()
    tokens = [1, *range(10, 50)]
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    parts.scheduler.submit(Submit(1, list(tokens), 60, params))
    while parts.scheduler.has_work:
        plan = parts.scheduler.plan()
        for output in parts.scheduler.commit(plan, parts.runner.run(plan)):
            tokens += output.tokens
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(parts.publisher.endpoints[1])
        consumer = Consumer()
        while len(consumer.blocks) < 3:  # a pool evicts some of them at the end
            consumer = Consumer()
            for _, batch in replayed(dealer, 0):
                consumer.receive(batch)
        dealer.close(linger=0)
    blocks = dict(consumer.blocks.values())
    chain: list[int] = []
    parent = None
    for _ in range(3):
        chain += blocks[parent]
        parent = next(each for each, (before, _) in consumer.blocks.items() if before == parent)
    assert chain == tokens[:96]
    parts.publisher.close()


def test_a_model_that_generates_no_text_has_no_events(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path, gguf.PoolingType.CLS)
    for _ in range(2):  # the endpoint is free again
        with pytest.raises(ModelError, match=r"^--kv-events: .*bert.gguf generates no text$"):
            load(EngineConfig(str(path), kv_events=FREE))
