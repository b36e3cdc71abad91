"""POST /v1/rerank over a fake engine, and the scores of a tiny reranker beside llama.cpp's own."""

import base64
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import orjson
import pytest
from llama_cpp import llama_cpp

from api.protocols.rerank.types import Ranking
from api.text.pairs import pair
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig, EngineInfo
from scheduler.llama.load import load
from scheduler.messages import Embed, Embedded
from tests.api.fakes import INFO, MODEL, Server
from tests.models import write_bert

LIMIT = 16
RANKS = replace(INFO, generates=False, pooling="rank", embedding_size=1, max_text_tokens=LIMIT)
DOCUMENTS = ["a", "a b c", {"text": "a b"}]
QUERY, TEXTS = "the cat", ("the cat sat on the mat", "a dog ran", "mat")
TEMPLATE = "[CLS]{query}[SEP]{document}[SEP]"


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    """The score of a pair is a tenth of the number of its tokens."""
    server = Server(tokenizer, url="/v1/rerank")
    server.engine.info = RANKS
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, [encoded(len(text)) for text in embed.texts])]
    return server


def encoded(length: int) -> str:
    return base64.b64encode(np.array([length / 10], "<f4").tobytes()).decode()


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "query": "what", "documents": DOCUMENTS} | fields


async def respond(server: Server, **fields: Any) -> dict[str, Any]:
    response = await server.post(body(**fields))
    data = await response.get_data(as_text=False)
    assert response.status_code == 200, data
    Ranking.model_validate_json(data)
    found: dict[str, Any] = orjson.loads(data)
    return found


async def test_documents_come_in_the_order_of_their_relevance(server: Server) -> None:
    answer = await respond(server)
    assert [each["index"] for each in answer["results"]] == [1, 2, 0]
    [embed] = [message for message in server.engine.posted if isinstance(message, Embed)]
    lengths = [len(text) for text in embed.texts]
    assert answer["results"][0]["relevance_score"] == pytest.approx(lengths[1] / 10)
    assert answer["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
    assert "document" not in answer["results"][0]
    assert answer["model"] == MODEL


async def test_the_best_are_returned_with_their_texts(server: Server) -> None:
    answer = await respond(server, top_n=2, return_documents=True, user="me", priority="batch", rank_fields=["text"])
    assert [each["document"] for each in answer["results"]] == [{"text": "a b c"}, {"text": "a b"}]


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank", "/v1/reranking", "/reranking"])
async def test_it_has_the_paths_of_other_servers(server: Server, path: str) -> None:
    server.url = path
    assert len((await respond(server))["results"]) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", {"image": "x"}]}, "documents[1].text"),
        ({"documents": ["a", "b " * LIMIT]}, "documents[1]"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 8}, "max_tokens_per_doc"),
        ({"input": "a"}, "input"),
    ],
)
async def test_invalid_requests_are_refused(server: Server, fields: dict[str, Any], param: str) -> None:
    response = await server.post(body(**fields))
    assert response.status_code == 400
    assert orjson.loads(await response.get_data(as_text=False))["error"]["param"] == param


@pytest.mark.parametrize(("path", "fields"), [("/v1/embeddings", {"input": "a"}), ("/v1/completions", {"prompt": "a"})])
async def test_a_reranker_neither_embeds_nor_generates(server: Server, path: str, fields: dict[str, Any]) -> None:
    server.url = path
    assert "POST /v1/rerank" in await misuse(server, {"model": MODEL} | fields)


@pytest.mark.parametrize("info", [INFO, replace(INFO, pooling="mean", embedding_size=4, max_text_tokens=LIMIT)])
async def test_other_models_do_not_rank(server: Server, info: EngineInfo) -> None:
    server.engine.info = info
    assert "does not rank documents" in await misuse(server, body())


async def misuse(server: Server, fields: dict[str, Any]) -> str:
    response = await server.post(fields)
    error = orjson.loads(await response.get_data(as_text=False))["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_model")
    return str(error["message"])


# A tiny model


@pytest.fixture(scope="module", params=[None, TEMPLATE], ids=["marks", "template"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "reranker.gguf"
    write_bert(path, gguf.PoolingType.RANK, rerank_template=request.param)
    return str(path)


@contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any, Any]]:
    """The model, its vocabulary and a context that ranks, of llama.cpp."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    wanted = llama_cpp.llama_context_default_params()
    wanted.embeddings, wanted.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_RANK
    wanted.n_threads = wanted.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, wanted)
    try:
        yield model, llama_cpp.llama_model_get_vocab(model), context
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def tokens_of(vocab: Any, text: str, *, parse_special: bool) -> list[int]:
    buffer = (ctypes.c_int32 * 256)()
    count = llama_cpp.llama_tokenize(vocab, text.encode(), len(text), buffer, 256, False, parse_special)
    return list(buffer[:count])


def llama_cpps_pair(model: Any, vocab: Any, document: str) -> list[int]:
    """As llama-server's `format_prompt_rerank` has it."""
    template = llama_cpp.llama_model_chat_template(model, b"rerank")
    if template:
        text = template.decode().replace("{query}", QUERY).replace("{document}", document)
        return tokens_of(vocab, text, parse_special=True)
    eos = llama_cpp.llama_vocab_eos(vocab)
    end = [eos if eos >= 0 else llama_cpp.llama_vocab_sep(vocab)] if llama_cpp.llama_vocab_get_add_eos(vocab) else []
    return [
        *([llama_cpp.llama_vocab_bos(vocab)] if llama_cpp.llama_vocab_get_add_bos(vocab) else []),
        *tokens_of(vocab, QUERY, parse_special=False),
        *end,
        *([llama_cpp.llama_vocab_sep(vocab)] if llama_cpp.llama_vocab_get_add_sep(vocab) else []),
        *tokens_of(vocab, document, parse_special=False),
        *end,
    ]


def score(context: Any, tokens: list[int]) -> float:
    array = (ctypes.c_int32 * len(tokens))(*tokens)  # the batch keeps only a pointer
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
    return float(llama_cpp.llama_get_embeddings_seq(context, 0)[0])


def test_scores_are_those_of_llama_cpp(reranker: str) -> None:
    tokenizer = Tokenizer(reranker)
    pairs = [pair(tokenizer, QUERY, text) for text in TEXTS]
    with opened(reranker) as (model, vocab, context):
        assert pairs == [llama_cpps_pair(model, vocab, text) for text in TEXTS]
        expected = [score(context, tokens) for tokens in pairs]
    parts = load(EngineConfig(reranker, gpu_layers=0, threads=1))
    info, embedder = parts.info, parts.embedder
    assert (info.generates, info.pooling, info.embedding_size) == (False, "rank", 1)
    assert embedder is not None
    assert embedder.submit(Embed(1, pairs)) is None
    [done] = [each for _ in iter(lambda: embedder.has_work, False) for each in embedder.step(1.0)]
    found = [float(np.frombuffer(base64.b64decode(each), "<f4")[0]) for each in done.embeddings]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert len({round(each, 4) for each in found}) == len(TEXTS)


def test_control_tokens_in_texts_stay_text(reranker: str) -> None:
    tokenizer = Tokenizer(reranker)
    separators = pair(tokenizer, "cat", "mat").count(3)
    assert pair(tokenizer, "cat", "mat [SEP] dog").count(3) == separators
    assert pair(tokenizer, "[SEP]", "{query}").count(3) == separators


def test_a_reranker_keeps_the_limits_of_its_context(tmp_path: Path) -> None:
    write_bert(tmp_path / "reranker.gguf", gguf.PoolingType.RANK)
    parts = load(EngineConfig(str(tmp_path / "reranker.gguf"), gpu_layers=0, threads=1, ctx_len=64))
    assert parts.info.max_text_tokens == 64
    assert parts.embedder is not None
    assert parts.embedder.submit(Embed(1, [[5] * 65])) is not None
