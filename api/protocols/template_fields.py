"""The request fields that decide how the chat template renders a conversation, with the names of other servers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator

from api.errors import ApiError
from api.protocols.conversation import Message
from api.protocols.fields import Strict
from api.text.template import PromptEnd


def _open_variables(variables: dict[str, Any]) -> dict[str, Any]:
    taken = next((name for name in RENDERED if name in variables and variables[name] is not RENDERED[name]), None)
    if taken is not None:
        raise ValueError(f"{taken!r} is set by the server")
    return variables


RENDERED: Final = {
    "messages": None,
    "tools": None,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "bos_token": None,
    "eos_token": None,
}
"""Template variables that the server sets, and the only value of each that a request may give."""
TemplateVariables = Annotated[dict[str, Any], AfterValidator(_open_variables)]
"""Other variables for the chat template."""


def template_variables(
    given: Mapping[str, Any] | None,
    effort: str | None = None,
    enable_thinking: bool | None = None,
    budget: int | None = None,
    *,
    asks: bool = False,
) -> dict[str, Any]:
    """A request's variables for the model's template. Templates turn reasoning on and off by the effort.

    `budget`: maximum number of reasoning tokens, which some templates write into the prompt. If nothing else says
    whether to reason, a budget of 0 turns reasoning off, and another one turns it on if its field `asks` for that.

    Raises ApiError 400 if `enable_thinking` is given twice with different values.
    """
    variables = dict(given or {})
    if enable_thinking is not None and variables.setdefault("enable_thinking", enable_thinking) != enable_thinking:
        message = "'enable_thinking' and 'chat_template_kwargs.enable_thinking' contradict each other."
        raise ApiError(400, message, param="enable_thinking", code="invalid_value")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        variables.setdefault("enable_thinking", effort != "none")
    if budget is not None:
        variables.setdefault("thinking_budget", budget)
    if budget == 0 or (budget is not None and asks):
        variables.setdefault("enable_thinking", budget > 0)
    return variables


class TemplateFields(Strict):
    chat_template_kwargs: TemplateVariables | None = None
    enable_thinking: bool | None = None
    """The same as in `chat_template_kwargs`."""
    add_generation_prompt: bool | None = None
    """Whether the prompt ends with the beginning of the assistant's turn."""
    continue_final_message: bool | None = None
    """Whether the model continues the final message, which must be an assistant's text."""

    def variables(
        self,
        effort: str | None = None,
        *,
        enabled: bool | None = None,
        budget: int | None = None,
        asks: bool = False,
    ) -> dict[str, Any]:
        """The template's variables. `enabled`: whether to reason, if `enable_thinking` does not say it."""
        wanted = enabled if self.enable_thinking is None else self.enable_thinking
        return template_variables(self.chat_template_kwargs, effort, wanted, budget, asks=asks)

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
