"""What a prompt ends with: the model's reasoning, or only a client's text about it."""

import pytest

from api.serving.prompts import PromptBuilder
from api.serving.spec import Conversation, Message
from api.text.template import PromptEnd
from api.text.tokenizer import Tokenizer

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ begun }}{% endif %}"
)
OPENED = PLAIN.replace("{{ begun }}", "<think>\n")
LONG = "word " * 200


@pytest.mark.parametrize(
    "text", ["Hi", "What does <think> mean?", "<think>", f"{LONG}<think>", "think", LONG, " ", "汉字<think>汉字"]
)
@pytest.mark.parametrize(("source", "is_thinking"), [(PLAIN, False), (OPENED, True)])
async def test_a_clients_text_begins_no_reasoning(
    tokenizer: Tokenizer, source: str, text: str, is_thinking: bool
) -> None:
    prompts = PromptBuilder(tokenizer, source)
    assert prompts.dialect.thinks
    conversation = Conversation([Message("user", text)])
    tail = prompts.tail(await prompts.chat(conversation), conversation)
    assert prompts.dialect.is_thinking(tail) == is_thinking


async def test_an_answer_that_is_continued_may_have_begun_reasoning(tokenizer: Tokenizer) -> None:
    prompts = PromptBuilder(tokenizer, PLAIN)
    messages = [Message("user", "Hi"), Message("assistant", "<think>Hm.</think> So")]
    conversation = Conversation(messages, end=PromptEnd.OPEN_MESSAGE)
    assert not prompts.dialect.is_thinking(prompts.tail(await prompts.chat(conversation), conversation))
