"""Embeddings on llama.cpp: a text's embedding does not depend on other texts, for encoders and generating models."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.config import EngineConfig
from scheduler.embedder import Embedder
from scheduler.errors import ModelError
from scheduler.llama.load import Parts, load
from scheduler.messages import Embed, Submit
from scheduler.texts import Batch, Piece, Text
from tests.closeness import Scale, scale_of
from tests.models import BERT_CONTEXT, BERT_TOKENS, EMBEDDING, write_bert, write_mamba, write_t5_encoder
from tests.scheduler.fakes import GREEDY, unwire

POOLINGS = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS, "last": gguf.PoolingType.LAST}
LENGTHS = (5, 100, 1, 33, 128, 7, 2, 50, 64, 90)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[gguf.PoolingType | None], str]:
    """Returns the path of a model file with a given pooling type."""
    folder = tmp_path_factory.mktemp("models")

    def write(pooling: gguf.PoolingType | None) -> str:
        path = folder / f"{pooling}.gguf"
        if not path.exists():
            write_bert(path, pooling)
        return str(path)

    return write


Bert = Callable[[gguf.PoolingType | None], str]


@pytest.fixture(scope="module")
def mamba(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "mamba.gguf"
    write_mamba(path, model_path)
    return str(path)


def open_engine(path: str, **options: Any) -> tuple[Parts, Embedder]:
    parts = load(EngineConfig(path, **{"gpu_layers": 0, "max_seqs": 2, "threads": 1, **options}))
    assert parts.embedder is not None
    return parts, parts.embedder


def embeddings(embedder: Embedder, *requests: list[list[int]], seconds: float = math.inf) -> list[NDArray[np.float32]]:
    """Returns the embeddings of all texts of requests that are submitted together."""
    results: dict[int, list[NDArray[np.float32]]] = {}
    for number, texts in enumerate(requests):
        assert embedder.submit(Embed(number, texts)) is None
        results[number] = []
    while embedder.has_work:
        for embedded in embedder.step(seconds):
            assert embedded.error is None
            results[embedded.request_id] += [unwire(embedding) for embedding in embedded.embeddings]
    embedder.check_integrity()
    return [embedding for number in results for embedding in results[number]]


def texts_of(num_tokens: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(5, num_tokens, length).tolist() for length in lengths]


def scales(embedder: Embedder, texts: list[list[int]], pooling: str) -> list[Scale]:
    """Returns a scale for each text, from an embedding beside a copy of the text and one with a wrong token."""
    wrong = [list(text) for text in texts]
    for text in wrong:
        text[{"cls": 0, "mean": len(text) // 2, "last": -1}[pooling]] ^= 1
    return [
        scale_of(
            embeddings(embedder, [text])[0], [embedding_beside_a_copy(embedder, text)], embeddings(embedder, [other])[0]
        )
        for text, other in zip(texts, wrong, strict=True)
    ]


def embedding_beside_a_copy(embedder: Embedder, tokens: list[int]) -> NDArray[np.float32]:
    """Returns the embedding of a text from a batch with two copies of it, without the embedder."""
    reader = embedder._reader
    assert reader is not None
    twice = [Text(0, np.array(tokens, np.int32), sequence_id=sequence_id) for sequence_id in (0, 1)]
    embedding = reader.read(Batch([Piece(text, 0, len(tokens)) for text in twice])).embeddings[0]
    for text in twice:
        reader.forget(text.sequence_id)
    return embedding / np.float32(np.linalg.norm(embedding))


def assert_same(scales: list[Scale], some: list[NDArray[np.float32]], others: list[NDArray[np.float32]]) -> None:
    for scale, one, other in zip(scales, some, others, strict=True):
        scale.assert_same(one, other)


def assert_other_texts_change_nothing(embedder: Embedder, texts: list[list[int]], pooling: str) -> None:
    alone = [embeddings(embedder, [text])[0] for text in texts]
    for embedding in alone:
        assert float(np.linalg.norm(embedding)) == pytest.approx(1, abs=1e-5)
    measured = scales(embedder, texts, pooling)
    assert_same(measured[:3], [embeddings(embedder, [text])[0] for text in texts[:3]], alone[:3])
    assert_same(measured, embeddings(embedder, texts), alone)
    assert_same(measured, embeddings(embedder, texts[:6], texts[6:]), alone)
    assert_same(measured, embeddings(embedder, texts, seconds=0.0), alone)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoder_embeds_each_text_as_if_alone(bert: Bert, pooling: str) -> None:
    parts, embedder = open_engine(bert(POOLINGS[pooling]))
    info = parts.info
    assert (info.generates, info.pooling, info.embedding_size) == (False, pooling, EMBEDDING)
    assert (info.ctx_len, info.max_text_tokens, info.kv_tokens) == (BERT_CONTEXT, BERT_CONTEXT, 0)
    assert_other_texts_change_nothing(embedder, texts_of(len(BERT_TOKENS)), pooling)


def test_an_encoder_rejects_generation_and_has_no_pages(bert: Bert) -> None:
    parts, _ = open_engine(bert(gguf.PoolingType.MEAN))
    refusal = parts.scheduler.submit(Submit(1, [5, 6], 4, GREEDY))
    assert refusal is not None
    assert refusal.finish_reason == "error"
    assert not parts.scheduler.has_work
    parts.scheduler.cache.check_integrity()
    assert parts.scheduler.cache.statistics().pages == 0


def test_only_a_shorter_context_limits_the_texts(bert: Bert) -> None:
    path = bert(gguf.PoolingType.MEAN)
    parts, embedder = open_engine(path, ctx_len=64)
    assert parts.info.max_text_tokens == 64
    refusal = embedder.submit(Embed(1, [[5] * 65]))
    assert refusal is not None
    assert refusal.error is not None
    assert "64" in refusal.error
    assert open_engine(path, ctx_len=4096)[0].info.max_text_tokens == BERT_CONTEXT


def test_the_pooling_option_overrides_the_file(bert: Bert) -> None:
    texts = texts_of(len(BERT_TOKENS))
    _, named = open_engine(bert(gguf.PoolingType.CLS))
    as_named = embeddings(named, texts)
    measured = scales(named, texts, "cls")
    for other in (gguf.PoolingType.MEAN, None):
        assert_same(measured, embeddings(open_engine(bert(other), pooling="cls")[1], texts), as_named)


@pytest.mark.parametrize(
    ("named", "pooling", "reason"),
    [
        (None, "auto", "--pooling"),
        (gguf.PoolingType.MEAN, "none", "--pooling"),
    ],
)
def test_an_encoder_without_a_valid_pooling_is_rejected(
    bert: Bert, named: gguf.PoolingType | None, pooling: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        load(EngineConfig(bert(named), gpu_layers=0, pooling=pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_generating_model_embeds_each_text_as_if_alone(exact_model_path: str, pooling: str) -> None:
    parts, embedder = open_engine(exact_model_path, ctx_len=256, pooling=pooling)
    info = parts.info
    assert (info.generates, info.pooling, info.embedding_size, info.max_text_tokens) == (True, pooling, 576, 256)
    texts = texts_of(49_000, (5, 60, 1, 150))
    alone = [embeddings(embedder, [text])[0] for text in texts]
    measured = scales(embedder, texts, pooling)
    assert_same(measured, embeddings(embedder, texts), alone)
    before = embedder.statistics().batches
    cut = embeddings(embedder, texts, seconds=0.0)
    assert embedder.statistics().batches - before > 150 // 32
    assert_same(measured, cut, alone)


def test_a_generating_model_makes_no_embeddings_by_default(model_path: str) -> None:
    parts = load(EngineConfig(model_path, gpu_layers=0, ctx_len=256, max_seqs=2, threads=1))
    assert (parts.embedder, parts.info.pooling, parts.info.embedding_size) == (None, "none", 0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_recurrent_model_embeds_each_text_as_if_alone(mamba: str, pooling: str) -> None:
    _, embedder = open_engine(mamba, ctx_len=256, pooling=pooling, host_cache=0)
    assert_other_texts_change_nothing(embedder, texts_of(49_000), pooling)


def test_a_t5_encoder_embeds_each_text_as_if_alone(model_path: str, tmp_path: Path) -> None:
    write_t5_encoder(tmp_path / "t5.gguf", model_path)
    parts, embedder = open_engine(str(tmp_path / "t5.gguf"), pooling="mean")
    assert not parts.info.generates
    assert_other_texts_change_nothing(embedder, texts_of(49_000), "mean")
    with pytest.raises(ModelError, match="--pooling"):
        load(EngineConfig(str(tmp_path / "t5.gguf"), gpu_layers=0))
