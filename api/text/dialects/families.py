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

PHI4_MINI: Final = Calls(
    (form('{"name": "$name", "arguments": $arguments}'),), begin="functools[", separator=", ", end="]"
)

APERTUS: Final = Thoughts(("<|inner_prefix|>",), ("<|inner_suffix|>",), anywhere=True)

GLM4: Final = Calls((form("$name\n$arguments"),), separator="\n", bare=True, loose=False)
"""GLM-4 of 2024 and 2025. A turn with calls ends where the model expects their results."""

HYPERCLOVA: Final = AnswerSyntax(
    thoughts=Thoughts(("/think\n",), ("<|im_end|>\n<|im_start|>assistant", "<|im_end|>")),
    calls=Calls(
        (form('{"name": "$name", "arguments": $arguments}'),),
        begin=" -> tool/function_call\n[",
        separator=", ",
        end="]",
    ),
    ends=("<|im_end|>", "<|endofturn|>", "<|stop|>"),
)
"""HyperCLOVA X: the header of each message, which the model completes, says whether it is reasoning or calls."""

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
    """Most of its templates write results, but no calls. MiniCPM 3 uses its mark for calls of another form."""
    found = learned.syntax.calls
    if found is not None and not found.begin.startswith(LFM2.begin):
        return learned
    return replace(_calls(LFM2)(learned), renders_results=True)


def _kimi_k2(learned: Learned) -> Learned:
    """Most of its templates take the names of earlier calls from their ids."""
    return replace(_calls(KIMI_K2)(learned), renders_calls=True, names_in_ids=True)


def _apertus(learned: Learned) -> Learned:
    """Its template reads thoughts only from messages in a form of its own."""
    return replace(learned, syntax=replace(learned.syntax, thoughts=APERTUS))


def _hunyuan(learned: Learned) -> Learned:
    """Its answers have marks around the text that its template does not write."""
    return replace(learned, syntax=replace(learned.syntax, noise=("<answer>", "</answer>")))


def _mistral(learned: Learned) -> Learned:
    """Earlier templates have a space between the mark and the list, as earlier vocabularies do."""
    found = learned.syntax.calls
    begin = found.begin if found and "".join(found.begin.split()) == MISTRAL.begin else MISTRAL.begin
    return _calls(replace(MISTRAL, begin=begin))(learned)


def _phi4_mini(learned: Learned) -> Learned:
    """Its template writes calls without the mark that it asks for."""
    return replace(_calls(PHI4_MINI)(learned), renders_calls=False, renders_results=True)


def _glm4(learned: Learned) -> Learned:
    """Its template writes neither calls nor results of the protocols' form."""
    return replace(
        learned, syntax=replace(learned.syntax, calls=GLM4, ends=("<|observation|>", "<|user|>", "<|endoftext|>"))
    )


def _llama4(learned: Learned) -> Learned:
    """Its marks of code may stand around calls, which are JSON as before, or Python."""
    found = learned.syntax.calls
    if found is None or not isinstance(found.arguments, TaggedArguments):
        learned = _calls(LLAMA)(learned)
    return replace(learned, syntax=replace(learned.syntax, noise=("<|python_start|>", "<|python_end|>")))


FAMILIES: Final = (
    Family("harmony", ("<|channel|>analysis<|message|>", "<|start|>assistant"), _answers(HARMONY)),
    Family("muse", (" to=self<|message|>", "atem:invoke"), _answers(MUSE)),
    Family("gemma-4", ("<|tool_call>call:", "<|channel>"), _answers(GEMMA4)),
    Family("kimi-k3", ("open_tag('think')", "<|open|>"), _answers(KIMI_K3)),
    Family("kimi-k2", ("<|tool_call_begin|>", "<|tool_call_argument_begin|>"), _kimi_k2),
    Family("minimax-m3", (_MINIMAX,), _answers(MINIMAX_M3)),
    Family("functionary-3.2", (">>>all\\n", "recipient==all"), _answers(FUNCTIONARY)),
    Family("lfm2", ("<|im_start|>", "List of tools: ["), _lfm2),
    Family("lfm2", ("<|tool_list_start|>",), _lfm2),
    Family("lfm2", ("<|tool_call_start|>",), _lfm2),
    Family("command-r+", ("Action:", "`directly-answer`"), _answers(COMMAND_R_PLUS)),
    Family("phi-4-mini", ("functools marker",), _phi4_mini),
    Family("firefunction", (" functools[",), _calls(FIREFUNCTION)),
    Family("deepseek-r1", ("<｜tool▁call▁begin｜>", "```json"), _calls(DEEPSEEK_R1)),
    Family("mistral", ("[TOOL_CALLS]", "[ARGS]"), _calls(MISTRAL_NAMED)),
    Family("mistral", ("[TOOL_CALLS]",), _mistral),
    Family("apertus", ("<|inner_prefix|>", "<|inner_suffix|>"), _apertus),
    Family("hunyuan-a13b", ("<|extra_0|>", "<tool_calls>"), _hunyuan),
    Family("glm-4", ("[gMASK]", "metadata", "observation"), _glm4),
    Family("hyperclova-x", ("assistant -> tool/function_call",), _answers(HYPERCLOVA)),
    Family("llama-4", ("<|header_start|>", "ipython"), _llama4),
    Family("llama", ("ipython", '"parameters": '), _if_confirmed(LLAMA)),
)


def family_of(source: str) -> Family | None:
    """The family whose signs are in a template's source; None for all others, whose templates say everything."""
    return next((family for family in FAMILIES if all(sign in source for sign in family.signs)), None)
