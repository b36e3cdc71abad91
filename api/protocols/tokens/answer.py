"""POST /tokenize, /detokenize, /apply-template. Answers have the fields of both llama-server and vLLM."""

from typing import Any

import trio

from api.errors import ApiError
from api.protocols.call import Call
from api.protocols.tokens.request import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from api.serving.service import ModelService


async def tokenize(call: Call[TokenizeRequest]) -> dict[str, Any]:
    request = call.request
    service = await call.service(request.model)
    if (conversation := request.conversation()) is not None:
        tokens = await service.prompts.chat(conversation)
    else:
        tokens = await trio.to_thread.run_sync(_encode, service, request)
    spelled = [service.tokenizer.spelled(token).decode(errors="replace") for token in tokens]
    answer: dict[str, Any] = {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": service.engine.ready_info().ctx_len,
    }
    if request.with_pieces:
        answer["tokens"] = [{"id": token, "piece": piece} for token, piece in zip(tokens, spelled, strict=True)]
    if request.return_token_strs:
        answer["token_strs"] = spelled
    return answer


async def detokenize(call: Call[DetokenizeRequest]) -> dict[str, Any]:
    request = call.request
    service = await call.service(request.model)
    unknown = next((token for token in request.tokens if token >= service.tokenizer.vocab_size), None)
    if unknown is not None:
        message = f"Token {unknown} is not in the model's vocabulary of {service.tokenizer.vocab_size}."
        raise ApiError(400, message, param="tokens", code="invalid_value")
    text = service.tokenizer.text(request.tokens)
    return {"content": text, "prompt": text}


async def apply_template(call: Call[ApplyTemplateRequest]) -> dict[str, Any]:
    """The prompt as text, including its control tokens."""
    service = await call.service(call.request.model)
    return {"prompt": service.tokenizer.text(await service.prompts.chat(call.request.conversation()))}


def _encode(service: ModelService, request: TokenizeRequest) -> list[int]:
    """The tokens of a text. By default, `prompt` gets BOS as in vLLM; `content` gets none as in llama-server."""
    tokenizer = service.tokenizer
    adds = request.add_special if request.add_special_tokens is None else request.add_special_tokens
    if adds is None:
        adds = request.prompt is not None
    text = request.content if request.content is not None else request.prompt or ""
    tokens = tokenizer.encode(text, parse_special=request.parse_special is not False)
    if adds and tokenizer.add_bos and tokenizer.bos_id is not None and tokens[:1] != [tokenizer.bos_id]:
        tokens.insert(0, tokenizer.bos_id)
    return tokens
