"""One answer as it grows, whose end may come from the engine, from a stop string or from its own grammar of calls."""

import pytest

from api.serving.choice import Choice, Delta
from api.text.dialects import Hermes, Tool, ToolUse
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
USE = ToolUse((Tool("weather", None, {}),), "auto")


@pytest.mark.parametrize(
    ("stop", "finish_reason"),
    [("city", "stop"), ('"Rome"', "stop"), ("</tool_call>", "tool_calls"), ("never", "tool_calls")],
)
def test_a_call_that_a_stop_string_cut_is_not_to_be_made(tokenizer: Tokenizer, stop: str, finish_reason: str) -> None:
    choice = Choice(tokenizer.piece, [stop], Hermes().parser(USE))
    deltas: list[Delta] = [choice.push(Output(1, [token])) for token in tokenizer.encode(CALL, parse_special=False)]
    deltas.append(choice.push(Output(1, [], "stop")))
    assert choice.finish_reason == finish_reason
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [finish_reason]
