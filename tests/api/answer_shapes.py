"""Shapes of answers: chat templates, and what a model that was trained with one answers.

The calls are get_weather of Lisbon for 3 days, and of Oporto for 1 day. The thought is "Hm.", the text is "Sunny.".
"""

from dataclasses import dataclass
from typing import Any, Final

from tests.api.text.dialects import made_up
from tests.api.text.dialects.made_up import MadeUp
from tests.api.text.dialects.made_up_more import ALL_TAGS, EVERYTHING, PYTHON_LIST

WEATHER: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"enum": ["Lisbon", "Oporto"]}, "days": {"type": "integer", "enum": [1, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS: Final = {"get_weather": WEATHER, "clock": CLOCK}
TWO: Final = [("get_weather", {"city": "Lisbon", "days": 3}), ("get_weather", {"city": "Oporto", "days": 1})]

CONTROLS: Final = {
    "<|calls|>": "<jupyter_start>",
    "<|call|>": "<jupyter_code>",
    "<|args|>": "<jupyter_text>",
    "<|/call|>": "<jupyter_output>",
    "<|/calls|>": "<empty_output>",
    "<|fin|>": "<|im_end|>",
}
"""Marks of a template, and control tokens of SmolLM2 that stand in for them."""

CHANNELS: Final = """\
<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>
{%- if tools %}{{ '<|start|>developer<|message|>' + tools | tojson + '<|end|>' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.thinking and (message.tool_calls or loop.last and not add_generation_prompt) %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '<|start|>assistant to=functions.' + call.function.name + '<|channel|>commentary json<|message|>' }}
{{- call.function.arguments | tojson + '<|call|>' }}
{%- endfor %}
{%- if message.content %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- elif message.role == 'tool' %}
{{- '<|start|>functions.f to=assistant<|channel|>commentary<|message|>' + message.content + '<|end|>' }}
{%- else %}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
"""
"""Like gpt-oss, whose answers differ from what its template writes of them."""
_HEAD: Final = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
_WRITTEN: Final = "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"


@dataclass(frozen=True, slots=True)
class Shape:
    source: str
    """Jinja."""
    two: str
    """Both calls."""
    text: str = "Sunny."
    thought: str = ""
    """The thought with its marks, except the one that the prompt ends with; empty if the model does not think."""
    before: str = "Let me look."
    """The text "Let me look." before calls; empty if the model cannot write any."""
    end: str = ""
    """The mark at the end of an answer; empty if it is a token that ends an answer."""
    history: str = ""
    """Both calls as the template writes them, if it does not write them as the model does."""

    opened: str = ""
    """The mark of the thought with which the prompt ends."""

    @property
    def thinks(self) -> bool:
        return bool(self.thought)


def _shape(made: MadeUp, **fields: str) -> Shape:
    values = {"two": made.two, "end": made.end if made.has_end else ""} | fields
    return Shape(made.source, **values)


def _with_controls(shape: Shape) -> Shape:
    def replaced(text: str) -> str:
        for mark, control in CONTROLS.items():
            text = text.replace(mark, control)
        return text

    return Shape(replaced(shape.source), replaced(shape.two))


_OPENED_THOUGHT: Final = "Hm.\n</reflect>\n\n"
SHAPES: Final[dict[str, Shape]] = {
    "json-in-tags": _shape(
        made_up.OPENED,
        two=made_up.OPENED.two.removeprefix(_OPENED_THOUGHT),
        thought=_OPENED_THOUGHT,
        opened="<reflect>\n",
    ),
    "json-in-a-list": _shape(made_up.ONE_LIST),
    "bare-json": _shape(made_up.BARE, before=""),
    "name-last": _shape(made_up.ARGUMENTS_FIRST),
    "tags-per-argument": _shape(made_up.ATTRIBUTES),
    "typed-arguments": _shape(made_up.TYPED),
    "keys-and-values": _shape(made_up.KEYS_AND_VALUES, thought="<musing>Hm.</musing>\n"),
    "python": _shape(PYTHON_LIST),
    "nested": _shape(ALL_TAGS, thought='<thought kind="own">Hm.</thought>'),
    "section": _with_controls(_shape(made_up.SECTION)),
    "wrapper": _shape(
        EVERYTHING,
        text="<|say|>Sunny.<|/say|>",
        thought="<|deep|>Hm.<|/deep|>",
        before="<|say|>Let me look.<|/say|>",
    ),
    "channels": Shape(
        CHANNELS,
        two=_HEAD + '{"city": "Lisbon", "days": 3}<|start|>assistant' + _HEAD + '{"city": "Oporto", "days": 1}',
        text="<|channel|>final<|message|>Sunny.",
        thought="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant",
        before="<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant",
        history=f'{_WRITTEN}{{"city": "Lisbon", "days": 3}}<|call|>{_WRITTEN}{{"city": "Oporto", "days": 1}}<|call|>',
    ),
    "lines": Shape(made_up.BULLETS.source.replace("\\n---\\n", "<|im_end|>\\n"), two=made_up.BULLETS.two),
    "in-words": _shape(
        made_up.NO_TOOLS,
        two='<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}\n</tool_call>',
    ),
}
