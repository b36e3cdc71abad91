"""Converts requests for chat completions to the neutral form."""

from dataclasses import replace

from api.protocols.chat.request import ChatRequest
from api.protocols.structured import constraint, format_constraint
from api.serving.spec import Conversation, GenerationSpec


def as_spec(request: ChatRequest) -> GenerationSpec:
    """Raises ApiError 400 if there is more than one constraint on the answer."""
    return replace(
        request.generation(as_conversation(request)),
        max_tokens=request.requested_tokens,
        constraint=constraint(request, format_constraint("response_format", request.response_format)),
        tool_use=request.tool_use(),
        logprobs=request.num_logprobs,
        reasoning_budget=request.thought_budget(),
        keeps_reasoning=request.keeps_reasoning,
        prediction=request.prediction.text if request.prediction else "",
    )


def as_conversation(request: ChatRequest) -> Conversation:
    return Conversation(
        [message.neutral() for message in request.messages],
        request.all_tools() if request.tool_choice != "none" else (),
        request.template_variables(),
        end=request.prompt_end(request.messages),
    )
