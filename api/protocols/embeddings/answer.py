"""POST /v1/embeddings: renders the embeddings of texts."""

from typing import Any

from api.protocols import texts
from api.protocols.call import Call
from api.protocols.embeddings.request import EmbeddingsRequest


async def embed(call: Call[EmbeddingsRequest]) -> dict[str, Any]:
    """Raises ApiError 400 for texts or dimensions that do not fit the model, 429 over a limit, 500 on failure."""
    request = call.request
    service = await call.accepting(request.model, "embed")
    call.record.model = service.names[0]
    with service.admission.enter() as place:
        size = texts.embedding_size(service, request.dimensions)
        tokens = await texts.tokenized(service, request.inputs())
        embeddings = await texts.computed(service, call, place, tokens, request.wished_class)
    as_base64 = request.encoding_format == "base64"
    written = await texts.written(embeddings, size, shortened=request.dimensions is not None, as_base64=as_base64)
    num_tokens = sum(map(len, tokens))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(written)],
        "model": request.model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
