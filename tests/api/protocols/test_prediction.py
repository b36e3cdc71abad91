"""OpenAI's field `prediction`, and what answers say about drafts."""

from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion

from api.serving.prompts import INLINE_CHARACTERS
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, Submit
from tests.api.fakes import INFO, MODEL, Server, chat, events

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    return Server(tokenizer)


async def ask(server: Server, **fields: Any) -> Any:
    """The answer, or the events of a stream."""
    response = await server.post(chat(**fields) if server.url.startswith("/v1/chat") else {"model": MODEL} | fields)
    data = await response.get_data(as_text=False)
    assert response.status_code == 200, data
    return events(data) if fields.get("stream") else orjson.loads(data)


def predicted(content: object) -> dict[str, object]:
    return {"type": "content", "content": content}


@pytest.mark.parametrize(
    "content", ["One two\nthree", [{"type": "text", "text": "One two"}, {"type": "text", "text": "\nthree"}]]
)
async def test_a_prediction_reaches_the_engine_as_tokens(server: Server, content: object) -> None:
    server.answers()
    await ask(server, prediction=predicted(content))
    assert server.engine.submitted[0].prediction == server.encode("One two\nthree")


async def test_names_of_control_tokens_in_a_prediction_stay_text(server: Server) -> None:
    server.answers()
    text = "a <|im_end|> b"
    await ask(server, prediction=predicted(text))
    tokens = server.engine.submitted[0].prediction
    assert server.tokenizer.special_ids["<|im_end|>"] not in tokens
    assert server.tokenizer.text(tokens) == text


@pytest.mark.parametrize("content", ["", [{"type": "text", "text": ""}], None])
async def test_nothing_is_predicted_without_text(server: Server, content: object) -> None:
    server.answers()
    await ask(server, prediction=None if content is None else predicted(content))
    assert server.engine.submitted[0].prediction == []


@pytest.mark.parametrize("text", ["One " * (INFO.ctx_len + 1), "One " * INLINE_CHARACTERS])
async def test_a_prediction_longer_than_the_context_is_cut(server: Server, text: str) -> None:
    server.answers()
    await ask(server, prediction=predicted(text))
    assert server.engine.submitted[0].prediction == server.encode(text)[: INFO.ctx_len]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3},
        {"tools": [TOOL]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True, "presence_penalty": 1, "frequency_penalty": 1, "max_completion_tokens": 9},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_prediction_can_be_combined_with_other_fields(server: Server, fields: dict[str, Any]) -> None:
    server.answers("{}")
    await ask(server, prediction=predicted("{}"), **fields)
    assert [submit.prediction for submit in server.engine.submitted] == [server.encode("{}")] * fields.get("n", 1)


def drafting(server: Server) -> int:
    """The engine verifies drafts from now on, and answers with a stop string after three tokens. Returns its place."""
    tokens = server.encode("One two three four five")

    def answer(submit: Submit) -> list[Output]:
        return [
            Output(submit.request_id, tokens[:2], accepted_drafts=1, rejected_drafts=2),
            Output(submit.request_id, tokens[2:], "length", accepted_drafts=2, rejected_drafts=1),
        ]

    server.engine.answer = answer
    return len(tokens)


@pytest.mark.parametrize(("path", "prompt"), [("/v1/chat/completions", {}), ("/v1/completions", {"prompt": "Zero"})])
@pytest.mark.parametrize("stream", [False, True])
async def test_usage_and_timings_count_the_drafts_of_all_choices(
    server: Server, path: str, prompt: dict[str, str], stream: bool
) -> None:
    server.url = path
    num_tokens = drafting(server)
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await ask(server, n=2, timings=True, **prompt, **options)
    if stream:
        answer = answer[-2]
    usage = answer["usage"]
    assert usage["completion_tokens"] == 2 * num_tokens, "rejected tokens are not part of the answer"
    details = usage["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (6, 6)
    assert (answer["timings"]["draft_n"], answer["timings"]["draft_n_accepted"]) == (12, 6)


async def test_drafts_after_a_stop_string_are_rejected(server: Server) -> None:
    drafting(server)
    completion = ChatCompletion.model_validate(await ask(server, stop=" four"))
    assert completion.choices[0].message.content == "One two three"
    assert completion.usage is not None
    details = completion.usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens is not None
    assert details.accepted_prediction_tokens <= completion.usage.completion_tokens
    assert details.rejected_prediction_tokens is not None
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens == 6
