"""The request fields that decide how the chat template renders a conversation, with the names of other servers."""

from collections.abc import Sequence
from typing import Any

from api.errors import ApiError
from api.protocols.conversation import Message
from api.protocols.fields import Strict, TemplateVariables, template_variables
from api.text.template import PromptEnd


class TemplateFields(Strict):
    chat_template_kwargs: TemplateVariables | None = None
    enable_thinking: bool | None = None
    """The same as in `chat_template_kwargs`."""
    add_generation_prompt: bool | None = None
    """Whether the prompt ends with the beginning of the assistant's turn."""
    continue_final_message: bool | None = None
    """Whether the model continues the final message, which must be an assistant's text."""

    def variables(self, effort: str | None = None, *, enabled: bool | None = None) -> dict[str, Any]:
        """The template's variables. `enabled`: whether to reason, if `enable_thinking` does not say it."""
        wanted = enabled if self.enable_thinking is None else self.enable_thinking
        return template_variables(self.chat_template_kwargs, effort, wanted)

    def prompt_end(self, messages: Sequence[Message]) -> PromptEnd:
        """Raises ApiError 400 if the fields contradict each other, or if the final message cannot be continued."""
        if not self.continue_final_message:
            return PromptEnd.MESSAGES if self.add_generation_prompt is False else PromptEnd.NEW_TURN
        final = messages[-1]
        if self.add_generation_prompt:
            reason = "cannot be combined with 'add_generation_prompt': true"
        elif final.role != "assistant":
            reason = f"needs a final message of role 'assistant', not {final.role!r}"
        elif final.tool_calls:
            reason = "cannot continue a message with tool calls"
        else:
            return PromptEnd.OPEN_MESSAGE
        message = f"'continue_final_message' {reason}."
        raise ApiError(400, message, param="continue_final_message", code="invalid_value")
