"""Operations that show what a prompt becomes: tokens, text, requests for routers."""

from typing import Final

from api.http.operation import READS, Operation
from api.protocols.chat import answer as chat
from api.protocols.chat.request import ChatRequest
from api.protocols.completions import answer as completions
from api.protocols.completions.request import CompletionRequest
from api.protocols.rendered import RenderedRequest, RenderedRequests
from api.protocols.responses import answer as responses
from api.protocols.responses.request import ResponseRequest
from api.protocols.tokens import answer as tokens
from api.protocols.tokens.request import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from api.protocols.tokens.types import RenderedPrompt, Text, Tokens

PROMPTS: Final = (
    Operation(
        "tokenize",
        "POST",
        "/tokenize",
        "Convert text or a conversation to tokens",
        tokens.tokenize,
        Tokens,
        TokenizeRequest,
        errors=READS,
    ),
    Operation(
        "detokenize",
        "POST",
        "/detokenize",
        "Convert tokens to text",
        tokens.detokenize,
        Text,
        DetokenizeRequest,
        errors=(400, 403, 404, 413),
    ),
    Operation(
        "apply_template",
        "POST",
        "/apply-template",
        "The prompt that the model's chat template makes of a conversation",
        tokens.apply_template,
        RenderedPrompt,
        ApplyTemplateRequest,
        errors=READS,
    ),
    Operation(
        "render_chat_completion",
        "POST",
        "/v1/chat/completions/render",
        "The prompt tokens of a chat, in vLLM's form, for routers",
        chat.render,
        RenderedRequest,
        ChatRequest,
        errors=READS,
    ),
    Operation(
        "render_completion",
        "POST",
        "/v1/completions/render",
        "The prompt tokens of completions, in vLLM's form, for routers",
        completions.render,
        RenderedRequests,
        CompletionRequest,
        errors=READS,
    ),
    Operation(
        "render_response",
        "POST",
        "/v1/responses/render",
        "The prompt tokens of a response, in vLLM's form, for routers",
        responses.render,
        RenderedRequest,
        ResponseRequest,
        errors=READS,
    ),
)
