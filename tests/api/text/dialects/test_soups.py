"""Answers that are no valid ones: nothing is lost or invented, and arguments are always the beginning of JSON."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.text.dialects import (
    AnswerParser,
    CallArguments,
    CallBegin,
    Content,
    Event,
    Reasoning,
    ToolUse,
    common,
    families,
    merged,
)
from api.text.dialects.marks import marks_of
from api.text.dialects.parsing.patterns import MAX_MATCHED
from api.text.dialects.parsing.values import JsonScanner
from api.text.dialects.syntax import AnswerSyntax
from api.text.dialects.writer import written
from tests.api.text.dialects.test_round_trips import SHAPES, TOOLS

USE = ToolUse(TOOLS, "auto")
THINKING = AnswerSyntax(common.THINK, calls=common.HERMES)
PYTHON = AnswerSyntax(calls=families.LFM2)
CALL = '<tool_call>\n{"name": "get_all", "arguments": {}}\n</tool_call>'
WORDS = ["hello", "é ", "<", "{", "}", "[", "]", '"', "'", ":", ",", "\\", "\n", " ", "3", "null", "city", "get"]


def parsed(
    syntax: AnswerSyntax, pieces: Sequence[str], *, is_thinking: bool = False
) -> tuple[AnswerParser, list[Event]]:
    ids = iter(range(1000))
    parser = AnswerParser(syntax, USE, is_thinking=is_thinking, make_id=lambda: str(next(ids)))
    return parser, merged([event for piece in pieces for event in parser.push(piece)] + parser.finish())


def soup(syntax: AnswerSyntax) -> st.SearchStrategy[str]:
    """Marks, words and parts of calls."""
    assert syntax.calls is not None
    calls = written(syntax.calls, [("get", {"city": "Rome", "days": 3}), ("get_all", {})])
    part = st.tuples(st.integers(0, len(calls)), st.integers(0, len(calls))).map(
        lambda ends: calls[min(ends) : max(ends)]
    )
    begun = st.integers(0, len(calls)).map(lambda end: calls[:end])
    mark = st.sampled_from(sorted(marks_of(syntax)))
    return st.lists(part | begun | mark | st.sampled_from([*WORDS, calls]), max_size=12).map("".join)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whatever_a_model_writes_arguments_are_the_beginning_of_json(shape: str, data: st.DataObject) -> None:
    syntax = SHAPES[shape]
    text = data.draw(soup(syntax))
    is_thinking = syntax.thoughts is not None and data.draw(st.booleans())
    parser, events = parsed(syntax, [text], is_thinking=is_thinking)
    assert parsed(syntax, list(text), is_thinking=is_thinking)[1] == events
    arguments: list[str] = []
    for event in events:
        match event:
            case CallBegin(index):
                assert index == len(arguments)
                arguments.append("")
            case CallArguments(index, piece):
                assert index == len(arguments) - 1
                arguments[-1] += piece
            case Content(piece) | Reasoning(piece):
                assert "".join(piece.split()) or piece
    for each in arguments:
        assert all(map(JsonScanner().push, each))
        assert parser.is_calling or isinstance(json.loads(each), dict)
    said = "".join(event.text for event in events if isinstance(event, Content | Reasoning))
    if not parser.is_calling and not parser.ended:
        assert (said + "".join(arguments)).count("hello") == text.count("hello")


@pytest.mark.parametrize(
    "text", ['{"a": [1, -2.5e+3, true, null, "\\u00e9\\n"], "b": {}}', "[]", '""', "-0.5", "false"]
)
def test_a_scanner_takes_json_and_nothing_else(text: str) -> None:
    scanner = JsonScanner()
    assert all(map(scanner.push, text))
    assert not scanner.push(",")
    assert scanner.done


@pytest.mark.parametrize(
    "text",
    [
        "{a",
        "{]",
        "[}",
        '{"a" 1',
        '{"a": }',
        '{"a": 1,}',
        "[1,]",
        "[01",
        "1.,",
        "-x",
        "+",
        "nul,",
        '"\\x',
        '"\\u12g',
        "N",
    ],
)
def test_a_scanner_refuses_what_is_no_json(text: str) -> None:
    scanner = JsonScanner()
    assert all(map(scanner.push, text[:-1]))
    assert not scanner.push(text[-1])
    assert scanner.failed


def test_a_call_that_turns_out_to_be_invalid_is_cut_and_its_rest_is_text() -> None:
    text = '<tool_call>\n{"name": "get", "arguments": {"city": "Rome" and "days"}}\n</tool_call>'
    parser, events = parsed(SHAPES["JSON in tags"], list(text))
    assert events == [
        CallBegin(0, "0", "get"),
        CallArguments(0, '{"city": "Rome" '),
        Content('and "days"}}\n</tool_call>'),
    ]
    assert parser.is_calling


def test_line_breaks_in_strings_are_escaped() -> None:
    text = '<tool_call>\n{"name": "get", "arguments": {"city": "two\nlines\t\\n"}}\n</tool_call>'
    _, events = parsed(SHAPES["JSON in tags"], list(text))
    assert events[1:] == [CallArguments(0, '{"city": "two\\nlines\\t\\n"}')]


def test_python_may_have_a_comma_at_the_end() -> None:
    text = "<|tool_call_start|>[get(city='a', tags=['b', 'c',], place={'x': 1,})]<|tool_call_end|>"
    _, events = parsed(PYTHON, list(text))
    assert events[1:] == [CallArguments(0, '{"city": "a", "tags": ["b", "c"], "place": {"x": 1}}')]


def test_the_end_of_a_thought_ends_a_call_that_is_quoted_in_it() -> None:
    quoted = '<tool_call>\n{"name": "get", "arguments": {"city": "'
    text = f"I could write {quoted}</think>\n{CALL}"
    assert parsed(THINKING, list(text), is_thinking=True)[1] == [
        Reasoning(f"I could write {quoted}"),
        CallBegin(0, "1", "get_all"),
        CallArguments(0, "{}"),
    ]


def test_a_mark_of_calls_after_a_thought_is_not_dropped() -> None:
    syntax = AnswerSyntax(common.THINK, calls=common.HERMES)
    text = "Hm.</think><think>no</think>"
    assert parsed(syntax, list(text), is_thinking=True)[1] == [Reasoning("Hm."), Content("<think>no</think>")]


@pytest.mark.parametrize(
    "shape", ["JSON in tags", "JSON in a list", "name, id and JSON", "channels", "typed arguments"]
)
def test_long_white_space_after_marks_is_no_call(shape: str) -> None:
    """A parser waits for a call in a short text only, so that it does not become slow."""
    syntax = SHAPES[shape]
    assert syntax.calls is not None
    whole = written(syntax.calls, [("get", {"city": "Rome", "days": 3})])
    start = whole[: whole.index("get")].partition("{")[0]
    space = " " * 2 * MAX_MATCHED
    parser = AnswerParser(syntax, USE)
    said = "".join(event.text for event in parser.push(start + space) if isinstance(event, Content))
    assert said.strip()


def test_many_quoted_arguments_are_read_only_once() -> None:
    """Text that may be a call is not held back as soon as it is no JSON."""
    parser = AnswerParser(AnswerSyntax(calls=common.HERMES), USE)
    text = '<tool_call>\n{"x": ['
    assert parser.push(text + text)[0] == Content(text)


def test_a_tag_may_follow_much_white_space() -> None:
    space = " " * 2 * MAX_MATCHED
    text = (
        "<tool_call>get\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>"
        f"{space}<arg_key>days</arg_key>\n<arg_value>3</arg_value>{space}</tool_call>"
    )
    _, events = parsed(SHAPES["keys and values"], [text])
    assert events[1:] == [CallArguments(0, '{"city": "Rome", "days": 3}')]


def test_an_id_has_no_marks() -> None:
    """A mark that comes instead of the id's end shows at once that this is no call."""
    begun = "[TOOL_CALLS]get[CALL_ID]call"
    parser = AnswerParser(SHAPES["name, id and JSON"], USE)
    assert parser.push(begun + begun) == [Content(begun)]
