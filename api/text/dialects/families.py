"""Families whose answers differ from what their templates write, or that have a structure of their own.

Each override is a value of the syntax. It replaces what probing finds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from api.text.dialects.common import LLAMA, MISTRAL, MISTRAL_NAMED
from api.text.dialects.parsing.patterns import json_call
from api.text.dialects.syntax import (
    AnswerSyntax,
    Calls,
    Learned,
    TaggedArguments,
    Thoughts,
    Wrapper,
    form,
)

_JSON_TYPES: Final = ("string", "number", "boolean", "object", "array", "null")

_HARMONY_CALLS: Final = tuple(
    form(f"{head}<|message|>$arguments")
    for channel, kind in product(("commentary", "analysis"), (" <|constrain|>json", " json", ""))
    for head in (f"<|channel|>{channel} to=functions.$name{kind}", f" to=functions.$name<|channel|>{channel}{kind}")
)
HARMONY: Final = AnswerSyntax(
    thoughts=Thoughts(
        ("<|channel|>analysis<|message|>",), ("<|end|><|start|>assistant", "<|end|>", "<|return|>"), anywhere=True
    ),
    content=Wrapper(
        (
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",
            "<|channel|>final <|constrain|>json<|message|>",
            "<|channel|>final json<|message|>",
        ),
        ("<|end|><|start|>assistant", "<|end|>", "<|return|>"),
    ),
    calls=Calls(_HARMONY_CALLS, separator="<|start|>assistant"),
    noise=("<|start|>assistant", "<|call|>", "<|channel|>commentary to=assistant", "<|channel|>final to=assistant"),
)
"""OpenAI's harmony. A message has a channel: analysis is reasoning, final and commentary are text."""

MUSE: Final = AnswerSyntax(
    thoughts=Thoughts((" to=self<|message|>",), ("<|eom|><|start|>assistant", "<|eom|>", "<|eot|>"), anywhere=True),
    content=Wrapper((" to=user<|message|>",), ("<|eom|><|start|>assistant", "<|eom|>", "<|eot|>")),
    calls=Calls(
        (
            form(
                ' to=$name<|message|><atem:function_calls>\n<atem:invoke name="$name">\n$arguments</atem:invoke>\n'
                "</atem:function_calls>"
            ),
        ),
        TaggedArguments(form('<atem:parameter name="$key">$value</atem:parameter>\n')),
        separator="<|eom|><|start|>assistant",
        loose=False,
    ),
    noise=("<|start|>assistant",),
)
"""Muse: a message has a recipient, which is the model itself, the user or a tool."""

GEMMA4: Final = AnswerSyntax(
    thoughts=Thoughts(("<|channel>thought\n", "<|channel>thought"), ("<channel|>",), anywhere=True),
    calls=Calls(
        (form("<|tool_call>call:$name{$arguments}<tool_call|>"),),
        TaggedArguments(form("$key:$value"), separator=",", encoding="gemma"),
    ),
    noise=("<|channel>", "<channel|>"),
    ends=("<turn|>",),
)

LFM2: Final = Calls(
    (form("$name($arguments)"),),
    TaggedArguments(form("$key=$value"), separator=", ", encoding="python"),
    begin="<|tool_call_start|>[",
    separator=", ",
    end="]<|tool_call_end|>",
)

KIMI_K2: Final = Calls(
    (form("<|tool_call_begin|>functions.$name:$index<|tool_call_argument_begin|>$arguments<|tool_call_end|>"),),
    begin="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
)

KIMI_K3: Final = AnswerSyntax(
    thoughts=Thoughts(("<|open|>think<|sep|>",), ("<|close|>think<|sep|>",)),
    content=Wrapper(("<|open|>response<|sep|>",), ("<|close|>response<|sep|>",)),
    calls=Calls(
        (form('<|open|>call tool="$name" index="$index"<|sep|>$arguments<|close|>call<|sep|>'),),
        TaggedArguments(
            form('<|open|>argument key="$key" type="$type"<|sep|>$value<|close|>argument<|sep|>'),
            types=tuple((kind, kind) for kind in _JSON_TYPES),
        ),
        begin="<|open|>tools<|sep|>",
        end="<|close|>tools<|sep|>",
    ),
    ends=("<|close|>message<|sep|>",),
)

_MINIMAX: Final = "]<]minimax[>["
MINIMAX_M3: Final = AnswerSyntax(
    thoughts=Thoughts(("<mm:think>",), ("</mm:think>",), unopened=True),
    calls=Calls(
        (form(f'{_MINIMAX}<invoke name="$name">$arguments{_MINIMAX}</invoke>\n'),),
        TaggedArguments(form(f"{_MINIMAX}<$key>$value{_MINIMAX}</$key>"), encoding="nested"),
        begin=f"{_MINIMAX}<tool_call>\n",
        end=f"{_MINIMAX}</tool_call>",
    ),
)

FUNCTIONARY: Final = AnswerSyntax(
    content=Wrapper(("all\n",), ()),
    calls=Calls((form("$name\n$arguments"), form(">>>$name\n$arguments")), separator=">>>", bare=True, loose=False),
    noise=(">>>all\n",),
)
"""Functionary 3.2: the prompt ends with `>>>`, and the answer begins with its recipient."""

COMMAND_R_PLUS: Final = AnswerSyntax(
    calls=Calls(
        (form('    {\n        "tool_name": "$name",\n        "parameters": $arguments\n    }'),),
        begin="Action:\n```json\n[\n",
        separator=",\n",
        end="\n]```",
    ),
    noise=("<|CHATBOT_TOKEN|>",),
    ends=("<|END_OF_TURN_TOKEN|>",),
)

FIREFUNCTION: Final = Calls(
    (form('{"name": "$name", "arguments": $arguments}'),), begin=" functools[", separator=", ", end="]"
)

DEEPSEEK_R1: Final = Calls(
    (
        form(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>$name\n```json\n$arguments\n```<｜tool▁call▁end｜>",
        ),
    ),
    begin="<｜tool▁calls▁begin｜>",
    separator="\n",
    end="<｜tool▁calls▁end｜>",
)


@dataclass(frozen=True, slots=True)
class Family:
    """A family and how its templates are recognized."""

    name: str
    signs: tuple[str, ...]
    """Texts that are all in the template."""
    learn: Callable[[Learned], Learned]
    """What is known of it, from what probing finds."""


def _answers(syntax: AnswerSyntax) -> Callable[[Learned], Learned]:
    def learn(learned: Learned) -> Learned:
        return replace(learned, syntax=syntax)

    return learn


def _calls(calls: Calls) -> Callable[[Learned], Learned]:
    def learn(learned: Learned) -> Learned:
        return replace(learned, syntax=replace(learned.syntax, calls=calls))

    return learn


def _if_confirmed(calls: Calls) -> Callable[[Learned], Learned]:
    """The calls, unless the template writes a call in another way."""

    def learn(learned: Learned) -> Learned:
        found = learned.syntax.calls
        return _calls(calls)(learned) if found is None or json_call(found.forms[0]) else learned

    return learn


def _lfm2(learned: Learned) -> Learned:
    """Most of its templates write results, but no calls."""
    return replace(_calls(LFM2)(learned), renders_results=True)


FAMILIES: Final = (
    Family("harmony", ("<|channel|>analysis<|message|>", "<|start|>assistant"), _answers(HARMONY)),
    Family("muse", (" to=self<|message|>", "atem:invoke"), _answers(MUSE)),
    Family("gemma-4", ("<|tool_call>call:", "<|channel>"), _answers(GEMMA4)),
    Family("kimi-k3", ("open_tag('think')", "<|open|>"), _answers(KIMI_K3)),
    Family("kimi-k2", ("<|tool_call_begin|>", "<|tool_call_argument_begin|>"), _calls(KIMI_K2)),
    Family("minimax-m3", (_MINIMAX,), _answers(MINIMAX_M3)),
    Family("functionary-3.2", (">>>all\\n", "recipient==all"), _answers(FUNCTIONARY)),
    Family("lfm2", ("<|im_start|>", "List of tools: ["), _lfm2),
    Family("lfm2", ("<|tool_list_start|>",), _lfm2),
    Family("lfm2", ("<|tool_call_start|>",), _lfm2),
    Family("command-r+", ("Action:", "`directly-answer`"), _answers(COMMAND_R_PLUS)),
    Family("firefunction", (" functools[",), _calls(FIREFUNCTION)),
    Family("deepseek-r1", ("<｜tool▁call▁begin｜>", "```json"), _calls(DEEPSEEK_R1)),
    Family("mistral", ("[TOOL_CALLS]", "[ARGS]"), _calls(MISTRAL_NAMED)),
    Family("mistral", ("[TOOL_CALLS]",), _calls(MISTRAL)),
    Family("llama", ("ipython", '"parameters": '), _if_confirmed(LLAMA)),
)


def family_of(source: str) -> Family | None:
    """The family whose signs are in a template's source; None for all others, whose templates say everything."""
    return next((family for family in FAMILIES if all(sign in source for sign in family.signs)), None)
