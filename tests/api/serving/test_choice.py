"""One choice of an answer. The engine, a stop string or a complete tool call may end it."""

import pytest

from api.serving.choice import Choice, Delta
from api.text.dialects import Tool, ToolUse
from api.text.dialects.syntax import Calls, TaggedArguments, form
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output
from tests import dialects

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
USE = ToolUse((Tool("weather", None, {}),), "auto")


@pytest.mark.parametrize(
    ("stop", "finish_reason"),
    [("city", "stop"), ('"Rome"', "stop"), ("</tool_call>", "tool_calls"), ("never", "tool_calls")],
)
def test_a_call_cut_by_a_stop_string_does_not_finish_as_tool_calls(
    tokenizer: Tokenizer, stop: str, finish_reason: str
) -> None:
    choice = Choice(tokenizer.piece, [stop], dialects.hermes().parser(USE))
    deltas: list[Delta] = [choice.push(Output(1, [token])) for token in tokenizer.encode(CALL, parse_special=False)]
    deltas.append(choice.push(Output(1, [], "stop")))
    assert choice.finish_reason == finish_reason
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [finish_reason]


def test_a_call_without_an_end_mark_of_its_own_ends_with_the_answer(tokenizer: Tokenizer) -> None:
    lines = Calls((form("call $name\n$arguments"),), TaggedArguments(form("- $key: $value\n"), encoding="json"))
    choice = Choice(tokenizer.piece, [], dialects.native(lines, "lines").parser(USE))
    choice.push(Output(1, tokenizer.encode("call weather\n- days: 3", parse_special=False)))
    assert choice.finish_reason is None
    last = choice.push(Output(1, [], "stop"))
    assert last.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("text", "finish_reason"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}', "tool_calls"),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Ro', "stop"),
        ('<tool_call>\n{"name": "weather", "arguments": {"city" Rome}}\n</tool_call>', "stop"),
    ],
)
def test_a_model_may_leave_out_the_last_mark_of_a_call_but_no_argument(
    tokenizer: Tokenizer, text: str, finish_reason: str
) -> None:
    choice = Choice(tokenizer.piece, [], dialects.hermes().parser(USE))
    choice.push(Output(1, tokenizer.encode(text, parse_special=False)))
    choice.push(Output(1, [], "stop"))
    assert choice.finish_reason == finish_reason
