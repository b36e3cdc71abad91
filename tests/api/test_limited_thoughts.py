"""Reasoning that is limited, on a tiny model behind a template that begins the reasoning, through the SDKs.

A bias lets the model write one word only, in its reasoning and in its answer. So the expected texts are certain.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from anthropic import Anthropic
from openai import OpenAI

from api.text.tokenizer import Tokenizer
from tests.api.servers import SECONDS, CortexServer

TEMPLATE = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is not false %}<think>
{% else %}<think>

</think>

{% endif %}"""
MARK = 3
"""Tokens of the mark `</think>` in this vocabulary."""
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
CALL: Any = {"type": "function", "function": {"name": "clock", "parameters": EMPTY}}


@pytest.fixture(scope="module")
def server(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    folder = tmp_path_factory.mktemp("thinker")
    (folder / "thinker.gguf").symlink_to(tiny_model_path)
    (folder / "model.yaml").write_text(yaml.safe_dump({"chat_template": TEMPLATE}))
    with CortexServer(folder / "home", "--ctx-len=512", model=str(folder / "thinker.gguf")) as server:
        yield server


@pytest.fixture(scope="module")
def bias(tokenizer: Tokenizer) -> dict[str, int]:
    """Makes the model write the word "yes" again and again."""
    [yes] = tokenizer.encode("yes", parse_special=False)
    return {str(yes): 100}


@pytest.fixture
def client(server: CortexServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS) as client:
        yield client


def model_of(client: OpenAI) -> str:
    return next(iter(client.models.list())).id


def chat(client: OpenAI, budget: int, **fields: Any) -> tuple[str, str, int]:
    """The reasoning, the text, and the number of reasoning tokens."""
    extra = {"reasoning_budget": budget, "enable_thinking": True}
    messages: Any = [{"role": "user", "content": "Hi."}]
    answer = client.chat.completions.create(model=model_of(client), messages=messages, extra_body=extra, **fields)
    message, usage = answer.choices[0].message, answer.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    counted = usage.completion_tokens_details.reasoning_tokens
    return getattr(message, "reasoning_content", ""), message.content or "", counted or 0


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_thought_has_the_tokens_of_its_budget(client: OpenAI, bias: dict[str, int], budget: int) -> None:
    thought, text, counted = chat(client, budget, logit_bias=bias, max_tokens=budget + MARK + 4)
    assert (thought, text) == ("yes" * budget, "yes" * 4)
    assert budget <= counted <= budget + MARK


def test_it_is_the_same_with_a_grammar(client: OpenAI, bias: dict[str, int]) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"const": "Rome"}}}
    assert chat(client, 3, logit_bias=bias, response_format=schema)[:2] == ("yes" * 3, '"Rome"')
    messages: Any = [{"role": "user", "content": "Hi."}]
    answer = client.chat.completions.create(
        model=model_of(client),
        messages=messages,
        tools=[CALL],
        tool_choice="required",
        logit_bias=bias,
        extra_body={"reasoning_budget": 2, "parallel_tool_calls": False},
    )
    message: Any = answer.choices[0].message
    assert message.reasoning_content == "yesyes"
    assert json.loads(message.tool_calls[0].function.arguments) == {}


def test_forced_tokens_have_log_probabilities(client: OpenAI, bias: dict[str, int]) -> None:
    messages: Any = [{"role": "user", "content": "Hi."}]
    answer = client.chat.completions.create(
        model=model_of(client),
        messages=messages,
        logprobs=True,
        max_tokens=2 + MARK + 2,
        logit_bias=bias,
        extra_body={"reasoning_budget": 2},
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == "yesyes</think>yesyes"
    assert all(entry.logprob <= 0 for entry in logprobs.content)


def test_responses_and_streams_have_the_budget_too(client: OpenAI, bias: dict[str, int]) -> None:
    extra = {"reasoning": {"max_tokens": 3}, "logit_bias": bias}
    fields: dict[str, Any] = {"model": model_of(client), "input": "Hi.", "max_output_tokens": 3 + MARK + 2}
    response: Any = client.responses.create(**fields, extra_body=extra)
    assert [item.content[0].text for item in response.output] == ["yesyesyes", "yesyes"]
    pieces = {"response.reasoning_text.delta": "", "response.output_text.delta": ""}
    for event in client.responses.create(**fields, extra_body=extra, stream=True):
        if event.type in pieces:
            pieces[event.type] += event.delta
    assert list(pieces.values()) == ["yesyesyes", "yesyes"]


def test_anthropics_budget_tokens_are_the_budget(server: CortexServer, client: OpenAI) -> None:
    """This protocol has no bias, so the thought may end earlier."""
    url = server.url.removesuffix("/v1")
    with Anthropic(base_url=url, api_key="none", max_retries=0, timeout=SECONDS) as anthropic:
        message = anthropic.messages.create(
            model=model_of(client),
            max_tokens=60,
            messages=[{"role": "user", "content": "Tell me about apples."}],
            thinking={"type": "enabled", "budget_tokens": 4},
            output_config={"format": {"type": "json_schema", "schema": {"const": "Rome"}}},
        )
    assert message.content[-1].type == "text"
    assert message.content[-1].text == '"Rome"'
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens <= 4 + 3 + MARK
