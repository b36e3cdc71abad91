"""Texts that a model reads without an answer: their tokens, and what the engine computes of them."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import orjson
import trio
from numpy.typing import NDArray

from api.errors import ApiError
from api.protocols.call import Call
from api.serving.admission import Place
from api.serving.prompts import INLINE_CHARACTERS
from api.serving.service import ModelService
from api.tenants.tenant import Priority
from api.text.tokenizer import Tokenizer

INLINE_NUMBERS: Final = 20_000
"""Up to this many components are serialized on the event loop, in a few milliseconds; more of them in a thread."""


async def tokenized(
    service: ModelService, inputs: Mapping[str, str | list[int]], *, cuts: bool = False
) -> list[list[int]]:
    """The tokens of all inputs, by their wire names. Texts get the special tokens of the vocabulary.

    `cuts`: texts that are too long for the model are cut. Raises ApiError 400 for unknown tokens, for inputs without
    tokens, and for inputs that are too long.
    """
    limit = service.engine.ready_info().max_text_tokens
    tokenize = partial(_tokenized, service.tokenizer, inputs, limit, cuts=cuts)
    if sum(map(len, inputs.values())) > INLINE_CHARACTERS:
        return await trio.to_thread.run_sync(tokenize)
    return tokenize()


def _tokenized(
    tokenizer: Tokenizer, inputs: Mapping[str, str | list[int]], limit: int, *, cuts: bool
) -> list[list[int]]:
    texts = []
    for name, given in inputs.items():
        tokens = tokenizer.encode_whole(given, limit if cuts else None) if isinstance(given, str) else given
        if not tokens:
            raise ApiError(400, f"{name!r} has no tokens.", param=name, code="invalid_value")
        if max(tokens) >= tokenizer.vocab_size:
            message = f"Token {max(tokens)} is not in the model's vocabulary of {tokenizer.vocab_size}."
            raise ApiError(400, message, param=name, code="invalid_value")
        check_length(name, len(tokens), limit)
        texts.append(tokens)
    return texts


def check_length(name: str, num_tokens: int, limit: int, what: str = "a text to embed") -> None:
    """Raises ApiError 400 for a text that the model cannot read whole."""
    if num_tokens > limit:
        message = (
            f"This model's maximum length of {what} is {limit} tokens. However, {name!r} has "
            f"{num_tokens} tokens. Please reduce its length."
        )
        raise ApiError(400, message, param=name, code="context_length_exceeded")


def embedding_size(service: ModelService, dimensions: int | None) -> int:
    """The number of components of an embedding. Raises ApiError 400 if the model's embeddings have fewer dimensions."""
    largest = service.engine.ready_info().embedding_size
    if dimensions is not None and dimensions > largest:
        message = f"This model's embeddings have {largest} dimensions; {dimensions} were requested."
        raise ApiError(400, message, param="dimensions", code="invalid_value")
    return dimensions or largest


async def computed(
    service: ModelService, call: Call[Any], place: Place, texts: Sequence[list[int]], wished: Priority | None
) -> list[str]:
    """What the engine computes of each text, as float32 in base64. Releases the place, and records the stations.

    Raises ApiError 429 over a limit, 500 if the engine fails.
    """
    num_tokens = sum(map(len, texts))
    call.ticket.reserve(num_tokens)
    call.record.prepared(prompt_tokens=num_tokens, num_sequences=len(texts))
    with service.engine.embed(list(texts), call.tenant, wished, call.ticket) as running:
        place.release()
        call.record.submitted = trio.current_time()
        found = await running.receive()
    call.record.last_output, call.record.finish = trio.current_time(), "stop"
    return found


async def written(embeddings: list[str], size: int, *, shortened: bool, as_base64: bool = False) -> list[Any]:
    """The embeddings as JSON numbers or as base64. If `shortened`, they are cut to `size` and renormalized."""
    if as_base64 and not shortened:
        return list(embeddings)  # already in this format
    write = partial(_written, embeddings, size if shortened else None, as_base64=as_base64)
    return await trio.to_thread.run_sync(write) if len(embeddings) * size > INLINE_NUMBERS else write()


def _written(embeddings: list[str], size: int | None, *, as_base64: bool) -> list[Any]:
    found: list[Any] = []
    for text in embeddings:
        embedding = numbers(text)
        if size is not None:
            embedding = embedding[:size] / (np.linalg.norm(embedding[:size]) or 1.0)
        embedding = np.ascontiguousarray(embedding, np.float32)
        if as_base64:
            found.append(base64.b64encode(embedding.astype("<f4").tobytes()).decode())
        else:
            found.append(orjson.Fragment(orjson.dumps(embedding, option=orjson.OPT_SERIALIZE_NUMPY)))
    return found


def numbers(text: str) -> NDArray[np.float32]:
    """The numbers of a float32 array in base64."""
    return np.frombuffer(base64.b64decode(text), "<f4")
