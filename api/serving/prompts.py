"""Turns conversations and texts into prompt tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from api.errors import ApiError
from api.serving.spec import Conversation, Texts
from api.text.dialects import describe, dialect_of, with_object_arguments
from api.text.guard import TemplateRefusal
from api.text.template import ChatTemplate, PromptEnd, strings
from api.text.tokenizer import Tokenizer
from scheduler.messages import ThoughtLimit

TAIL: Final = 32
"""Tokens at the end of a prompt that are searched for the beginning of reasoning."""
INLINE_CHARACTERS: Final = 20_000
"""Prompts up to this length are tokenized on the event loop, in a few milliseconds; longer ones in a thread."""


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: list[int]
    text: str = ""
    """Text to echo; empty for a conversation."""


class PromptBuilder:
    """Builds the prompts of one model."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        """`template`: Jinja source; None means ChatML. Raises ModelError if it does not compile."""
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template, tokenizer)
        self.dialect = dialect_of(self._template, tokenizer.end_texts)
        self.learned_line = describe(self.dialect.learned)
        """What the template shows about calls and thoughts, in one line."""

    async def build(self, prompt: Conversation | Texts) -> list[Prompt]:
        """The prompts of a request. Raises ApiError 400 if the model's template or vocabulary does not allow one."""
        if isinstance(prompt, Conversation):
            return [Prompt(await self.chat(prompt))]
        if sum(map(len, prompt.prompts)) > INLINE_CHARACTERS:
            return await trio.to_thread.run_sync(self._texts, prompt)
        return self._texts(prompt)

    async def chat(self, conversation: Conversation) -> list[int]:
        """The tokens of a conversation and its prefill.

        Raises ApiError 400 if the model's template refuses it, or if the template opens the reasoning, so that the
        prefill would become a part of it.
        """
        messages = [message.for_template() for message in conversation.messages]
        prepared, listed = self.dialect.prepare(messages, list(conversation.tools))
        variables = with_switches(conversation.variables, self.dialect.learned.switches)
        prefill, end = conversation.prefill, conversation.end
        try:
            if sum(map(len, strings([prepared, listed, variables, prefill]))) > INLINE_CHARACTERS:
                render = self._render
                tokens = await trio.to_thread.run_sync(render, prepared, listed, variables, prefill, end)
            else:
                tokens = self._render(prepared, listed, variables, prefill, end)
        except TemplateRefusal as error:
            message = f"The model's chat template refuses these messages: {error}"
            raise ApiError(400, message, param=conversation.param, code="invalid_messages") from error
        if conversation.begun and self.dialect.is_thinking(self.tail(tokens, conversation)):
            message = "'messages' cannot end with an assistant message (prefill): this model begins with reasoning."
            if end is PromptEnd.OPEN_MESSAGE:
                message = "The final message cannot be continued: it ends inside the model's reasoning."
            raise ApiError(400, message, param=conversation.param, code="unsupported_value")
        return tokens

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
        prefill: str,
        end: PromptEnd,
    ) -> list[int]:
        """Raises TemplateRefusal, but not because the arguments of an earlier call are no JSON object."""
        try:
            return self._template.render_tokens(messages, tools, variables, prefill, end)
        except TemplateRefusal:
            repaired = with_object_arguments(messages)
            if repaired == messages:
                raise
            return self._template.render_tokens(repaired, tools, variables, prefill, end)

    def tail(self, prompt: Sequence[int], conversation: Conversation) -> str:
        """The text at the prompt's end that may have begun reasoning, including all of the answer that is begun.

        Marks in the last message are the client's text, so it is left out as far as it is found.
        """
        begun = conversation.begun
        text = self._tokenizer.text(prompt[-TAIL - 4 * len(begun) :])  # a character has at most four tokens
        if conversation.end is PromptEnd.OPEN_MESSAGE or not conversation.messages:
            return text
        said = conversation.messages[-1].content.strip()
        ends = (said[-size:] for size in (40, 20, 10, 5))  # the tail may have only a part of a long message
        end = next((end for end in ends if end and end in text), "")
        return text.partition(end)[2] if end else text

    def thought_limit(self, budget: int | None, tail: str) -> ThoughtLimit | None:
        """The limit on the reasoning of an answer after a prompt that ends with `tail`. None for no limit.

        `budget`: maximum number of reasoning tokens; None for no limit. A model that does not reason needs no limit.
        """
        thoughts, content = self.dialect.thoughts, self.dialect.syntax.content
        if budget is None or thoughts is None:
            return None
        encode = partial(self._tokenizer.encode, parse_special=True, continues=True)
        return ThoughtLimit(
            budget,
            encode(thoughts.ends[0]),
            list(thoughts.begins),
            list(thoughts.ends),
            self.dialect.is_thinking(tail),
            thoughts.anywhere,
            encode(content.begins[0]) if content is not None and thoughts.anywhere else [],
        )

    async def predicted(self, text: str, limit: int) -> list[int]:
        """At most `limit` tokens of a predicted answer. Names of control tokens stay text."""
        if len(text) > INLINE_CHARACTERS:
            return await trio.to_thread.run_sync(self._predicted, text, limit)
        return self._predicted(text, limit)

    def _predicted(self, text: str, limit: int) -> list[int]:
        return self._tokenizer.encode(text, parse_special=False, continues=True)[:limit]

    def _texts(self, texts: Texts) -> list[Prompt]:
        return [self._text(prompt, texts) for prompt in texts.prompts]

    def _text(self, prompt: str | list[int], texts: Texts) -> Prompt:
        tokenizer, suffix = self._tokenizer, texts.suffix
        if isinstance(prompt, str):
            tokens, text = tokenizer.encode(prompt, parse_special=True), prompt
            if suffix is not None:
                tokens = self._around(tokens, suffix)
            bos = tokenizer.bos_id
            if bos is not None and (tokenizer.add_bos or not tokens) and tokens[:1] != [bos]:
                tokens = [bos, *tokens]
        else:
            check_tokens(tokenizer, prompt, texts.param)
            tokens, text = prompt, tokenizer.text(prompt)
            if suffix is not None:
                tokens = self._around(tokens, suffix)
        if not tokens:
            raise ApiError(400, "The prompt is empty.", param=texts.param, code="invalid_value")
        return Prompt(tokens, text)

    def _around(self, before: list[int], suffix: str) -> list[int]:
        after = self._tokenizer.encode(suffix, parse_special=True, continues=True)
        tokens = self._tokenizer.fill_in_the_middle(before, after)
        if tokens is None:
            message = "'suffix' is not supported: the model has no tokens for filling in the middle."
            raise ApiError(400, message, param="suffix", code="unsupported_parameter")
        return tokens


def with_switches(variables: Mapping[str, Any], switches: Sequence[str]) -> dict[str, Any]:
    """The variables, with the value of `enable_thinking` for each of the template's own switches that they do not set.

    Templates have different names for the switch that turns reasoning on and off.
    """
    if "enable_thinking" not in variables:
        return dict(variables)
    return dict.fromkeys(switches, variables["enable_thinking"]) | dict(variables)


def check_tokens(tokenizer: Tokenizer, tokens: Sequence[int], param: str) -> None:
    """Raises ApiError 400 if a token is not in the vocabulary."""
    unknown = next((token for token in tokens if token >= tokenizer.vocab_size), None)
    if unknown is not None:
        message = f"Token {unknown} is not in the model's vocabulary of {tokenizer.vocab_size}."
        raise ApiError(400, message, param=param, code="invalid_value")
