"""Answers as careless models write them: what a client gets of each."""

from itertools import pairwise

import pytest

from api.text.dialects import CallArguments, CallBegin, Content, Reasoning, Tool, ToolUse, families, merged
from api.text.dialects.common import HERMES, THINK
from api.text.dialects.parsing import AnswerParser
from api.text.dialects.syntax import AnswerSyntax, Calls, TaggedArguments, Thoughts, Wrapper, form

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
USE = ToolUse((Tool("get", None, CITY), Tool("get_all", None, {})), "auto")
CODER = Calls(
    (form("<tool_call>\n<function=$name>\n$arguments\n</function>\n</tool_call>"),),
    TaggedArguments(form("<parameter=$key>\n$value\n</parameter>"), separator="\n"),
    separator="\n",
)
TAGS = AnswerSyntax(THINK, calls=CODER)
JSON = AnswerSyntax(THINK, calls=HERMES)
KIMI = AnswerSyntax(THINK, calls=families.KIMI_K2)
WRAPPED = AnswerSyntax(
    Thoughts(("<|think|>",), ("<|/think|>",), unopened=True),
    Wrapper(("<|say|>",), ("<|/say|>",)),
    Calls((form('{"name": "$name", "arguments": $arguments}'),), begin="<|do|>[", separator=", ", end="]<|/do|>"),
    ends=("<|over|>",),
)
ROME = "<function=get>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
CALL = f"<tool_call>\n{ROME}"
ASKED = '<tool_call>\n{"name": "get", "arguments": {"city": "Rome"}}\n</tool_call>'
CALLED = 'get({"city": "Rome"})'
HARMONY_CALL = '<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"city": "Rome"}'

Got = tuple[str, str, list[str]]
"""Reasoning, text and calls."""


def read(syntax: AnswerSyntax, text: str, *, is_thinking: bool = False, keeps: bool = False) -> Got:
    """Asserts that the pieces of the answer do not matter."""
    results = []
    for size in (1, 3, len(text) or 1):
        parser = AnswerParser(syntax, USE, is_thinking=is_thinking, keeps_reasoning=keeps)
        events = [event for at in range(0, len(text), size) for event in parser.push(text[at : at + size])]
        got: tuple[list[str], list[str], list[str]] = ([], [], [])
        for event in merged(events + parser.finish()):
            match event:
                case Reasoning(piece):
                    got[0].append(piece)
                case Content(piece):
                    got[1].append(piece)
                case CallBegin(_, _, name):
                    got[2].append(name)
                case CallArguments(index, arguments):
                    got[2][index] += f"({arguments})"
        results.append(("".join(got[0]), "".join(got[1]), got[2]))
    assert all(one == other for one, other in pairwise(results))
    return results[0]


OPENED: list[tuple[str, AnswerSyntax, str, Got]] = [
    # the prompt has begun the reasoning
    ("the thought is not ended", TAGS, f"Hm.\n{CALL}", ("Hm.", "", [CALLED])),
    ("nothing is thought", TAGS, f"{CALL}\nDone.", ("", "Done.", [CALLED])),
    ("a call is quoted", TAGS, f"Say {CALL} or so\n</think>\n{CALL}", (f"Say {CALL} or so", "", [CALLED])),
    ("a call is quoted at the end", TAGS, f"Say {CALL}</think>Yes.", (f"Say {CALL}", "Yes.", [])),
    (
        "a quotation is not complete",
        TAGS,
        "Say <tool_call>\n<function=get>\n</think>Yes.",
        ("Say <tool_call>\n<function=get>", "Yes.", []),
    ),
    (
        "an unknown function",
        JSON,
        'Say <tool_call>{"name": "no"}</think>Yes.',
        ('Say <tool_call>{"name": "no"}', "Yes.", []),
    ),
    ("the mark is repeated", JSON, "<think>\nHm.\n</think>\nYes.", ("Hm.", "Yes.", [])),
    ("no answer", JSON, "Hm", ("Hm", "", [])),
    ("the text begins without an end", WRAPPED, "Hm.<|say|>Yes.<|/say|>", ("Hm.", "Yes.", [])),
    (
        "two calls without marks between",
        KIMI,
        "Hm<|tool_call_begin|>functions.get:0<|tool_call_argument_begin|>{}<|tool_call_begin|>functions.get_all:1<|tool_call_argument_begin|>{}",
        ("Hm", "", ["get({})", "get_all({})"]),
    ),
]
ANSWERS: list[tuple[str, AnswerSyntax, str, Got]] = [
    ("the first mark is missing", TAGS, f"Well.\n{ROME}", ("", "Well.\n", [CALLED])),
    (
        "all last marks are missing",
        TAGS,
        "<tool_call>\n<function=get>\n<parameter=city>\nRome\n</parameter>",
        ("", "", [CALLED]),
    ),
    (
        "no white space",
        TAGS,
        "<tool_call><function=get><parameter=city>Rome</parameter></function></tool_call>",
        ("", "", [CALLED]),
    ),
    ("no arguments", TAGS, "<tool_call>\n<function=get_all>\n</function>\n</tool_call>", ("", "", ["get_all({})"])),
    ("it only looks like a call", TAGS, "Write <function=get> and more.", ("", "Write <function=get> and more.", [])),
    ("typed by the schema", TAGS, CALL.replace("city", "days").replace("Rome", "3"), ("", "", ['get({"days": 3})'])),
    ("text that a schema calls a string", TAGS, CALL.replace("Rome", '"3"'), ("", "", ['get({"city": "\\"3\\""})'])),
    (
        "a mark in an argument",
        TAGS,
        CALL.replace("Rome", "</think> <tool_call>"),
        ("", "", ['get({"city": "</think> <tool_call>"})']),
    ),
    (
        "members in another order",
        JSON,
        '<tool_call>{"id": 1, "arguments": {"city": "Rome"}, "name": "get"}</tool_call>',
        ("", "", [CALLED]),
    ),
    (
        "arguments as text",
        JSON,
        '<tool_call>{"name": "get", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>',
        ("", "", [CALLED]),
    ),
    (
        "arguments that are null",
        JSON,
        '<tool_call>{"name": "get_all", "arguments": null}</tool_call>',
        ("", "", ["get_all({})"]),
    ),
    ("no arguments at all", JSON, '<tool_call>{"name": "get_all"}</tool_call>', ("", "", ["get_all({})"])),
    ("text behind a call", JSON, f"{ASKED}\n\nDone.", ("", "Done.", [CALLED])),
    (
        "the section is not opened",
        KIMI,
        '<|tool_call_begin|>functions.get:0<|tool_call_argument_begin|>{"city": "Rome"}',
        ("", "", [CALLED]),
    ),
    (
        "thoughts, text and calls",
        WRAPPED,
        '<|think|>Hm.<|/think|><|say|>Yes.<|/say|><|do|>[{"name": "get_all", "arguments": {}}]<|/do|><|over|>more',
        ("Hm.", "Yes.", ["get_all({})"]),
    ),
    ("an end without a begin", WRAPPED, "<|/think|>Yes.", ("", "Yes.", [])),
    ("the turn ends", WRAPPED, "Yes.<|over|>\n<|user|>No.", ("", "Yes.", [])),
    ("a mark is cut", WRAPPED, "Yes.<|ov", ("", "Yes.<|ov", [])),
    (
        "channels",
        families.HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        ("Hm.", "Yes.", []),
    ),
    (
        "a preamble",
        families.HARMONY,
        f"<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant{HARMONY_CALL}<|call|>",
        ("", "Wait.", [CALLED]),
    ),
    (
        "the recipient comes first",
        families.HARMONY,
        ' to=functions.get<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
        ("", "", [CALLED]),
    ),
    ("marks of nothing", families.GEMMA4, "<|channel>thought\n<channel|>Yes.<channel|>", ("", "Yes.", [])),
    (
        "text that begins like a recipient",
        families.FUNCTIONARY,
        "all\nWe got all\nof it.",
        ("", "We got all\nof it.", []),
    ),
    (
        "Python's and JSON's words",
        AnswerSyntax(calls=families.LFM2),
        "<|tool_call_start|>[get(city=\"Rome\", days=None), get(city='it\\'s')]<|tool_call_end|>",
        ("", "", ['get({"city": "Rome", "days": null})', 'get({"city": "it\'s"})']),
    ),
]


@pytest.mark.parametrize(("syntax", "text", "got"), [case[1:] for case in OPENED], ids=[case[0] for case in OPENED])
def test_an_answer_that_begins_inside_the_reasoning(syntax: AnswerSyntax, text: str, got: Got) -> None:
    assert read(syntax, text, is_thinking=True) == got


@pytest.mark.parametrize(("syntax", "text", "got"), [case[1:] for case in ANSWERS], ids=[case[0] for case in ANSWERS])
def test_an_answer(syntax: AnswerSyntax, text: str, got: Got) -> None:
    assert read(syntax, text) == got


def test_reasoning_may_stay_in_the_text() -> None:
    """Every character of it, and the calls behind it are calls all the same."""
    assert read(JSON, f"<think>\nHm.\n</think>\n\nYes.{ASKED}", keeps=True) == (
        "",
        "<think>\nHm.\n</think>\n\nYes.",
        [CALLED],
    )
    assert read(JSON, f"Say {ASKED} so.\n</think>\nYes.", is_thinking=True, keeps=True) == (
        "",
        f"Say {ASKED} so.\n</think>\nYes.",
        [],
    )


def test_a_call_in_unended_reasoning_is_reported_at_the_end() -> None:
    """Until then it may be a quotation."""
    parser = AnswerParser(JSON, USE, is_thinking=True)
    assert parser.push(f"Hm. {ASKED}\n") == [Reasoning("Hm.")]
    assert parser.is_reasoning
    assert not parser.is_calling
    begin, arguments = parser.finish()
    assert isinstance(begin, CallBegin)
    assert arguments == CallArguments(0, '{"city": "Rome"}')


def test_arguments_are_streamed() -> None:
    parser = AnswerParser(TAGS, USE)
    begin, *rest = parser.push("<tool_call>\n<function=get>\n<parameter=city>\nRo")
    assert isinstance(begin, CallBegin)
    assert rest == [CallArguments(0, '{"city": "Ro')]
    assert parser.is_calling
    assert parser.push("me\n</par") == [CallArguments(0, "me")]
    assert parser.push("ameter>\n</function>") == [CallArguments(0, '"}')]
    assert not parser.is_calling


ODD = Tool("put", None, {"type": "object", "properties": {"a>b": {"type": "string"}, "a": {"type": "object"}}})


def pushed(text: str) -> str:
    """The arguments of a call that is cut."""
    parser = AnswerParser(TAGS, ToolUse((ODD,), "auto"))
    events = parser.push(f"<tool_call>\n<function=put>\n{text}") + parser.finish()
    return "".join(event.text for event in events if isinstance(event, CallArguments))


def test_a_key_may_have_characters_of_marks() -> None:
    assert pushed("<parameter=a>b>\nx\n</parameter>\n</function>") == '{"a>b": "x"}'
    assert pushed('<parameter=a>\n{"x": 1}\n</parameter>\n</function>') == '{"a": {"x": 1}}'


def test_no_text_of_a_cut_argument_is_lost() -> None:
    assert pushed('<parameter=a>\n{"x": 1') == '{"a": {"x": 1'
    assert pushed("<parameter=a>\nno JSON") == '{"a": "no JSON'
    assert pushed("<parameter=a>\n") == '{"a": '
