"""POST /v1/embeddings: tokenizes texts and renders their embeddings."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
import trio

from api.errors import ApiError
from api.protocols.call import Call
from api.protocols.embeddings.request import EmbeddingsRequest
from api.serving.admission import Place
from api.serving.prompts import INLINE_CHARACTERS
from api.serving.service import ModelService
from api.text.tokenizer import Tokenizer

INLINE_NUMBERS: Final = 20_000
"""Up to this many components are serialized on the event loop, in a few milliseconds; more of them in a thread."""


async def embed(call: Call[EmbeddingsRequest]) -> dict[str, Any]:
    """Raises ApiError 400 for texts or dimensions that do not fit the model, 429 over a limit, 500 on failure."""
    request = call.request
    service = await call.accepting(request.model, embeds=True)
    call.record.model = service.names[0]
    with service.admission.enter() as place:
        return await _embed(service, call, place)


async def _embed(service: ModelService, call: Call[EmbeddingsRequest], place: Place) -> dict[str, Any]:
    request = call.request
    info = service.engine.ready_info()
    size = request.dimensions or info.embedding_size
    if size > info.embedding_size:
        message = f"This model's embeddings have {info.embedding_size} dimensions; {size} were requested."
        raise ApiError(400, message, param="dimensions", code="invalid_value")
    inputs = request.inputs()
    if sum(map(len, inputs.values())) > INLINE_CHARACTERS:
        texts = await trio.to_thread.run_sync(_tokenized, service.tokenizer, inputs, info.max_text_tokens)
    else:
        texts = _tokenized(service.tokenizer, inputs, info.max_text_tokens)
    num_tokens = sum(map(len, texts))
    call.ticket.reserve(num_tokens)
    call.record.prepared(prompt_tokens=num_tokens, num_sequences=len(texts))
    with service.engine.embed(texts, call.tenant, request.wished_class, call.ticket) as running:
        place.release()
        call.record.submitted = trio.current_time()
        embeddings = await running.receive()
    call.record.last_output, call.record.finish = trio.current_time(), "stop"
    shortened = size if request.dimensions is not None else None
    if request.encoding_format == "base64" and shortened is None:
        written: Sequence[Any] = embeddings  # already in the requested format
    elif len(embeddings) * size > INLINE_NUMBERS:
        written = await trio.to_thread.run_sync(_written, embeddings, shortened, request.encoding_format)
    else:
        written = _written(embeddings, shortened, request.encoding_format)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(written)],
        "model": request.model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _tokenized(tokenizer: Tokenizer, inputs: Mapping[str, str | list[int]], limit: int) -> list[list[int]]:
    """The tokens of all inputs. Texts get the special tokens of the vocabulary; tokens are not changed.

    Raises ApiError 400 for unknown tokens, and for inputs without tokens or with more than `limit`.
    """
    texts = []
    for name, given in inputs.items():
        tokens = tokenizer.encode_whole(given) if isinstance(given, str) else given
        if not tokens:
            raise ApiError(400, f"{name!r} has no tokens.", param=name, code="invalid_value")
        if max(tokens) >= tokenizer.vocab_size:
            message = f"Token {max(tokens)} is not in the model's vocabulary of {tokenizer.vocab_size}."
            raise ApiError(400, message, param=name, code="invalid_value")
        if len(tokens) > limit:
            message = (
                f"This model's maximum length of a text to embed is {limit} tokens. However, {name!r} has "
                f"{len(tokens)} tokens. Please reduce its length."
            )
            raise ApiError(400, message, param=name, code="context_length_exceeded")
        texts.append(tokens)
    return texts


def _written(embeddings: list[str], size: int | None, encoding_format: str | None) -> list[Any]:
    """The embeddings as JSON numbers or as base64, truncated to `size` components and renormalized if it is given."""
    written: list[Any] = []
    for text in embeddings:
        embedding = np.frombuffer(base64.b64decode(text), "<f4")
        if size is not None:
            embedding = embedding[:size] / (np.linalg.norm(embedding[:size]) or 1.0)
        embedding = np.ascontiguousarray(embedding, np.float32)
        if encoding_format == "base64":
            written.append(base64.b64encode(embedding.astype("<f4").tobytes()).decode())
        else:
            written.append(orjson.Fragment(orjson.dumps(embedding, option=orjson.OPT_SERIALIZE_NUMPY)))
    return written
