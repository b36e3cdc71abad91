"""POST /api/embed and /api/embeddings: renders embeddings in Ollama's format."""

from typing import Any

import trio

from api.protocols import texts
from api.protocols.call import Call
from api.protocols.ollama.answer import nanoseconds, opened
from api.protocols.ollama.request import OllamaEmbeddingsRequest, OllamaEmbedRequest


async def embed(call: Call[OllamaEmbedRequest]) -> dict[str, Any]:
    """Raises ApiError 400 for texts or dimensions that do not fit the model, 429 over a limit, 500 on failure."""
    request = call.request
    inputs, cuts = request.inputs(), request.truncate is not False
    embeddings, num_tokens, seconds = await _computed(call, inputs, request.dimensions, cuts=cuts)
    return {
        "model": request.model,
        "embeddings": embeddings,
        "total_duration": nanoseconds(trio.current_time() - call.record.arrival),
        "load_duration": nanoseconds(seconds),
        "prompt_eval_count": num_tokens,
    }


async def embed_one(call: Call[OllamaEmbeddingsRequest]) -> dict[str, Any]:
    """The older form of `embed`."""
    inputs: dict[str, str | list[int]] = {"prompt": call.request.prompt} if call.request.prompt else {}
    embeddings, _, _ = await _computed(call, inputs, None, cuts=True)
    return {"embedding": embeddings[0] if embeddings else []}


async def _computed(
    call: Call[Any], inputs: dict[str, str | list[int]], dimensions: int | None, *, cuts: bool
) -> tuple[list[Any], int, float]:
    """The embeddings, the number of their tokens, and the seconds that loading the model took."""
    service, seconds = await opened(call, "embed")
    call.record.model = service.names[0]
    if not inputs:
        return [], 0, seconds
    with service.admission.enter() as place:
        size = texts.embedding_size(service, dimensions)
        tokens = await texts.tokenized(service, inputs, cuts=cuts)
        embeddings = await texts.computed(service, call, place, tokens, call.request.wished_class)
    written = await texts.written(embeddings, size, shortened=dimensions is not None)
    return written, sum(map(len, tokens)), seconds
