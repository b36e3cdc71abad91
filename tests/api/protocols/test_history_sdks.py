"""Whatever an endpoint answers, added up by an SDK or not, is accepted as the history of the next turn."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from anthropic.types import (
    CitationCharLocation,
    DirectCaller,
    RedactedThinkingBlock,
    ServerToolCaller,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from openai.types.chat import ChatCompletionMessageFunctionToolCall as ChatCall
from openai.types.chat.chat_completion_message import Annotation, AnnotationURLCitation
from openai.types.chat.chat_completion_message_function_tool_call import Function
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputRefusal,
    ResponseOutputText,
    ResponseReasoningItem,
)
from openai.types.responses.response_output_text import AnnotationFileCitation, Logprob
from openai.types.responses.response_reasoning_item import Content, Summary
from pydantic import BaseModel

from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from tests import dialects
from tests.api.fakes import MODEL, Server
from tests.api.sdks import Sdks

Body = dict[str, Any]

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }} {{ m.reasoning_content | default('') | tojson }}"
    "{% for c in m.tool_calls %} {{ c.function | tojson }}{% endfor %}\n{% endfor %}"
)
"""Shows everything that an answer has, except the ids of its calls: they are new in each answer."""
NAMES = ("weather", "home.clock-2")
PARAMETERS: Body = {"type": "object", "properties": {}, "additionalProperties": True}
FUNCTIONS: list[Body] = [{"name": name, "parameters": PARAMETERS, "strict": True} for name in NAMES]
USER: Body = {"role": "user", "content": "Rome?"}
NEXT: Body = {"role": "user", "content": "And now?"}


@dataclass
class Turns:
    """A server whose answers are scripted, and the SDKs over it."""

    server: Server
    sdks: Sdks

    async def ask(self, function: Callable[..., Any], **fields: Any) -> Any:
        """Calls a method of an SDK."""
        return await self.sdks.call(function, model=MODEL, **fields)

    async def prompt_after(self, function: Callable[..., Any], **fields: Any) -> str:
        """The prompt of the next turn. The SDK raises an error if it is refused."""
        self.server.answers("Fine.")
        await self.ask(function, **fields)
        return self.server.tokenizer.text(self.server.engine.submitted[-1].tokens)


@pytest.fixture(scope="module")
def turns(tokenizer: Tokenizer) -> Callable[[], Turns]:
    """Returns the same server for all examples. The first example makes it, because it belongs to an event loop."""
    made: list[Turns] = []

    def get() -> Turns:
        if not made:
            server = Server(tokenizer, max_waiting=1000)
            server.service.prompts.dialect = dialects.hermes(thinks=True)
            server.service.prompts._template = ChatTemplate(TEMPLATE, tokenizer)
            made.append(Turns(server, Sdks(server)))
        made[0].server.engine.posted.clear()
        return made[0]

    return get


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=12)
ARGUMENTS = st.dictionaries(WORDS, st.none() | st.integers(-9, 9) | WORDS | st.lists(WORDS, max_size=2), max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), max_size=2)


def written(thought: str | None, content: str, calls: list[tuple[str, Body]]) -> str:
    """An answer as the model writes it."""
    text = content if thought is None else f"<think>\n{thought}\n</think>\n\n{content}"
    blocks = [json.dumps({"name": name, "arguments": given}, ensure_ascii=False) for name, given in calls]
    return text + "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)


WHOLE = st.builds(written, st.none() | WORDS, WORDS, CALLS)
CUT = st.tuples(WHOLE, st.floats(0, 1)).map(lambda cut: cut[0][: int(len(cut[0]) * cut[1])])
ANSWERS = st.tuples(WHOLE, st.just("stop")) | st.tuples(CUT, st.sampled_from(["stop", "length"]))
"""The text of an answer, and why it ends."""


def dumps(value: BaseModel) -> Iterator[Any]:
    """The forms in which clients keep an object of an SDK."""
    yield value
    yield value.model_dump()
    yield value.model_dump(exclude_none=True)
    yield value.model_dump(mode="json", by_alias=True)
    yield json.loads(value.model_dump_json(exclude_unset=True))
    yield value.to_dict()  # type: ignore[attr-defined]  # both SDKs have it


def added_up(chunks: Any) -> Body:
    """The message of a stream, as a client without helpers adds it up."""
    message: Body = {"role": "assistant", "content": ""}
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_none=True)
            for call in delta.pop("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append(call)
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            for name, text in delta.items():
                message[name] = text if name == "role" else message.get(name, "") + text
    return message


async def streamed(turns: Turns, helper: Callable[..., Any], last: Callable[[Any], Any], **fields: Any) -> Any:
    """What an SDK's stream helper has added up at the end."""

    def run(**fields: Any) -> Any:
        with helper(**fields) as stream:
            for _ in stream:
                pass
            return last(stream)

    return await turns.ask(run, **fields)


@settings(max_examples=12)
@given(answer=ANSWERS, logprobs=st.booleans())
async def test_a_chat_completion_is_accepted_as_history(
    turns: Callable[[], Turns], answer: tuple[str, str], logprobs: bool
) -> None:
    here = turns()
    completions = here.sdks.openai.chat.completions
    fields: Body = {"messages": [USER], "tools": [{"type": "function", "function": each} for each in FUNCTIONS]}
    fields |= {"logprobs": True, "top_logprobs": 2} if logprobs else {}
    here.server.answers(*answer)
    whole = (await here.ask(completions.create, **fields)).choices[0].message
    kept: list[Any] = [*dumps(whole), added_up(await here.ask(completions.create, **fields, stream=True))]
    if answer[1] == "stop":  # else the SDK's helpers raise an error
        added = await streamed(here, completions.stream, lambda stream: stream.current_completion_snapshot, **fields)
        kept += dumps(added.choices[0].message)
    if answer[1] == "stop" and all(is_json(call.function.arguments) for call in whole.tool_calls or ()):
        kept += dumps((await here.ask(completions.parse, **fields)).choices[0].message)
    prompts = {
        await here.prompt_after(completions.create, messages=[USER, message, *results_of(message), NEXT])
        for message in kept
    }
    assert len(prompts) == 1


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def results_of(message: Any) -> Iterator[Body]:
    """A result for each call of a chat's message."""
    dumped = message if isinstance(message, dict) else message.model_dump()
    for call in dumped.get("tool_calls") or ():
        yield {"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": "Done."}]}


@settings(max_examples=12)
@given(answer=ANSWERS, logprobs=st.booleans())
async def test_the_output_of_a_response_is_accepted_as_input(
    turns: Callable[[], Turns], answer: tuple[str, str], logprobs: bool
) -> None:
    here = turns()
    responses = here.sdks.openai.responses
    fields: Body = {"input": [USER], "tools": [{"type": "function"} | each for each in FUNCTIONS]}
    fields |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2} if logprobs else {}
    here.server.answers(*answer)
    whole = await here.ask(responses.create, **fields)
    events = list(await here.ask(responses.create, **fields, stream=True))
    outputs = [whole.output, [event.item for event in events if event.type == "response.output_item.done"]]
    is_whole = whole.status == "completed"  # else the SDK's helper raises an error
    if is_whole and all(is_json(item.arguments) for item in whole.output if item.type == "function_call"):
        parsed = await streamed(here, responses.stream, lambda stream: stream.get_final_response(), **fields)
        outputs += [parsed.output, (await here.ask(responses.parse, **fields)).output]
    prompts = set()
    for output in outputs:
        for form in zip(*map(dumps, output), strict=True):
            said = [USER, *form, *outputs_of(output), NEXT]
            prompts.add(await here.prompt_after(responses.create, input=said))
    said = [*outputs_of(whole.output), NEXT]
    prompts.add(await here.prompt_after(responses.create, input=said, previous_response_id=whole.id))
    assert len(prompts) == 1


def outputs_of(items: list[Any]) -> Iterator[Body]:
    """An output for each call of a response."""
    for item in items:
        if item.type == "function_call":
            yield {"type": "function_call_output", "call_id": item.call_id, "output": "Done."}


@settings(max_examples=12)
@given(answer=ANSWERS)
async def test_the_content_of_a_message_is_accepted_as_history(
    turns: Callable[[], Turns], answer: tuple[str, str]
) -> None:
    here = turns()
    messages = here.sdks.anthropic.messages
    tools = [{"name": each["name"], "input_schema": PARAMETERS} for each in FUNCTIONS]
    fields: Body = {"messages": [USER], "tools": tools, "max_tokens": 99}
    here.server.answers(*answer)
    whole = await here.ask(messages.create, **fields)
    final = await streamed(here, messages.stream, lambda stream: stream.get_final_message(), **fields)
    prompts = set()
    for message in (whole, final):
        contents: list[Any] = [message.content, *zip(*map(dumps, message.content), strict=True)]
        turns_of = [{"role": "assistant", "content": list(content)} for content in contents]
        turns_of += [message.model_dump(), message.to_dict()]
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "Done."}
            for block in message.content
            if block.type == "tool_use"
        ]
        for turn in turns_of:
            history = [USER, turn, {"role": "user", "content": [*results, {"type": "text", "text": "And now?"}]}]
            prompts.add(await here.prompt_after(messages.create, messages=history, max_tokens=9))
    assert len(prompts) == 1


# Answers that other servers made, built of the SDKs' own types

LISTED = st.lists(st.builds(Logprob, token=WORDS, bytes=st.just([1]), logprob=st.just(-1.0), top_logprobs=st.just([])))
CHAT_MESSAGES = st.builds(
    ChatCompletionMessage,
    role=st.just("assistant"),
    content=st.none() | WORDS,
    refusal=st.none() | WORDS,
    annotations=st.none()
    | st.lists(
        st.builds(
            Annotation,
            type=st.just("url_citation"),
            url_citation=st.builds(
                AnnotationURLCitation, url=WORDS, title=WORDS, start_index=st.just(0), end_index=st.just(1)
            ),
        ),
        max_size=1,
    ),
    tool_calls=st.none()
    | st.lists(
        st.builds(
            ChatCall,
            id=WORDS,
            type=st.just("function"),
            function=st.builds(Function, name=WORDS, arguments=WORDS | ARGUMENTS.map(json.dumps)),
        ),
        max_size=2,
    ),
    reasoning=st.none() | WORDS,
    reasoning_details=st.none() | st.lists(st.fixed_dictionaries({"type": st.just("reasoning.text"), "text": WORDS})),
)
OUTPUT_TEXTS = st.builds(
    ResponseOutputText,
    type=st.just("output_text"),
    text=WORDS,
    annotations=st.lists(
        st.builds(
            AnnotationFileCitation, type=st.just("file_citation"), file_id=WORDS, filename=WORDS, index=st.just(0)
        ),
        max_size=1,
    ),
    logprobs=st.none() | LISTED,
)
IDS = st.text("abc_", min_size=1, max_size=6)
STATUS = st.sampled_from(["in_progress", "completed", "incomplete"])
RESPONSE_ITEMS = st.one_of(
    st.builds(
        ResponseOutputMessage,
        id=IDS,
        type=st.just("message"),
        role=st.just("assistant"),
        status=STATUS,
        content=st.lists(OUTPUT_TEXTS | st.builds(ResponseOutputRefusal, type=st.just("refusal"), refusal=WORDS)),
        phase=st.sampled_from([None, "commentary", "final_answer"]),
    ),
    st.builds(
        ResponseReasoningItem,
        id=IDS,
        type=st.just("reasoning"),
        summary=st.lists(st.builds(Summary, type=st.just("summary_text"), text=WORDS), max_size=2),
        content=st.none() | st.lists(st.builds(Content, type=st.just("reasoning_text"), text=WORDS), max_size=2),
        status=st.none() | STATUS,
    ),
    st.builds(
        ResponseFunctionToolCall,
        id=st.none() | IDS,
        type=st.just("function_call"),
        call_id=WORDS,
        name=WORDS,
        arguments=WORDS | ARGUMENTS.map(json.dumps),
        status=st.none() | STATUS,
        caller=st.sampled_from([None, {"type": "direct"}, {"type": "program", "caller_id": "x"}]),
        async_=st.sampled_from([None, True, False]),
    ),
)
LOCATIONS = st.builds(
    CitationCharLocation,
    type=st.just("char_location"),
    cited_text=WORDS,
    document_index=st.just(0),
    document_title=st.none() | WORDS,
    file_id=st.none(),
    start_char_index=st.just(0),
    end_char_index=st.just(1),
)
CLAUDE_BLOCKS = st.one_of(
    st.builds(TextBlock, type=st.just("text"), text=WORDS, citations=st.none() | st.lists(LOCATIONS, max_size=1)),
    st.builds(ThinkingBlock, type=st.just("thinking"), thinking=WORDS, signature=WORDS),
    st.builds(RedactedThinkingBlock, type=st.just("redacted_thinking"), data=WORDS),
    st.builds(
        ToolUseBlock,
        type=st.just("tool_use"),
        id=WORDS,
        name=WORDS,
        input=ARGUMENTS,
        caller=st.none()
        | st.builds(DirectCaller, type=st.just("direct"))
        | st.builds(ServerToolCaller, type=st.just("code_execution_20250825"), tool_id=WORDS),
    ),
)


@settings(max_examples=25)
@given(message=CHAT_MESSAGES)
async def test_a_chat_message_of_another_server_is_accepted(
    turns: Callable[[], Turns], message: ChatCompletionMessage
) -> None:
    here = turns()
    create = here.sdks.openai.chat.completions.create
    prompts = {await here.prompt_after(create, messages=[USER, each, NEXT]) for each in dumps(message)}
    assert len(prompts) == 1


@settings(max_examples=25)
@given(output=st.lists(RESPONSE_ITEMS, min_size=1, max_size=3))
async def test_items_of_another_server_are_accepted(turns: Callable[[], Turns], output: list[BaseModel]) -> None:
    here = turns()
    create = here.sdks.openai.responses.create
    prompts = {
        await here.prompt_after(create, input=[USER, *form, NEXT]) for form in zip(*map(dumps, output), strict=True)
    }
    assert len(prompts) == 1


@settings(max_examples=25)
@given(content=st.lists(CLAUDE_BLOCKS, min_size=1, max_size=3))
async def test_blocks_of_another_server_are_accepted(turns: Callable[[], Turns], content: list[BaseModel]) -> None:
    here = turns()
    create = here.sdks.anthropic.messages.create
    prompts = {
        await here.prompt_after(
            create, messages=[USER, {"role": "assistant", "content": list(form)}, NEXT], max_tokens=9
        )
        for form in zip(*map(dumps, content), strict=True)
    }
    assert len(prompts) == 1
