"""POST /v1/rerank: tokenizes pairs of a query and a document, and renders their order."""

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from api.protocols import texts
from api.protocols.call import Call
from api.protocols.rerank.request import RerankRequest
from api.serving.prompts import INLINE_CHARACTERS
from api.text.pairs import pair
from api.text.tokenizer import Tokenizer


async def rerank(call: Call[RerankRequest]) -> dict[str, Any]:
    """Raises ApiError 400 for a model that does not rank, and for pairs that are too long for it."""
    request = call.request
    service = await call.accepting(request.model, "rank")
    call.record.model = service.names[0]
    documents = request.texts()
    with service.admission.enter() as place:
        limit = service.engine.ready_info().max_text_tokens
        tokenize = partial(_pairs, service.tokenizer, request.query, documents, limit)
        characters = len(request.query) * len(documents) + sum(map(len, documents))
        pairs = await trio.to_thread.run_sync(tokenize) if characters > INLINE_CHARACTERS else tokenize()
        found = await texts.computed(service, call, place, pairs, request.wished_class)
    scores = [float(texts.numbers(each)[0]) for each in found]
    best = sorted(range(len(scores)), key=lambda index: scores[index], reverse=True)
    num_tokens = sum(map(len, pairs))
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": request.model,
        "results": [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": documents[index]}} if request.return_documents else {})
            for index in best[: request.top_n]
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _pairs(tokenizer: Tokenizer, query: str, documents: Sequence[str], limit: int) -> list[list[int]]:
    """The tokens of each pair. Raises ApiError 400 for a pair with more than `limit` tokens."""
    pairs = []
    for index, document in enumerate(documents):
        tokens = pair(tokenizer, query, document)
        texts.check_length(f"documents[{index}]", len(tokens), limit, "a query with a document")
        pairs.append(tokens)
    return pairs
