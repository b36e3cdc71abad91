"""Recorded answers of each family, parsed into events in any pieces."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.text.dialects import (
    AnswerParser,
    CallArguments,
    CallBegin,
    Content,
    Dialect,
    Event,
    Reasoning,
    Tool,
    ToolUse,
    merged,
)
from api.text.dialects.syntax import AnswerSyntax, Calls, TaggedArguments, form
from tests import dialects

USE = ToolUse((Tool("weather", None, {}), Tool("clock", None, {})), "auto")
Part = str | tuple[str, str]
"""Content, or a call: its name and its arguments."""

HERMES: list[tuple[str, list[Part]]] = [
    ("Just words.", ["Just words."]),
    ('<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', [("clock", "{}")]),
    ('<tool_call>{"name":"clock","arguments":{"a":1}}</tool_call>', [("clock", '{"a":1}')]),
    (
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        ["Let me see.\n", ("weather", '{"city": "Rome"}')],
    ),
    (
        (
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>\n'
        ),
        [("weather", '{"city": "Rome"}'), ("clock", "{}")],
    ),
    (
        '<tool_call>\n{"name": "weather", "arguments": {"q": "}\\"{[", "deep": [{"a": [1, 2]}]}}\n</tool_call> Done.',
        [("weather", '{"q": "}\\"{[", "deep": [{"a": [1, 2]}]}'), "Done."],
    ),
    (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich ☃"}}\n</tool_call>',
        [("weather", '{"city": "Zürich ☃"}')],
    ),
    ('\n\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', [("clock", "{}")]),
    ("\n <tool", ["\n <tool"]),
    ("\n <tool_call> b", ["\n <tool_call> b"]),
    ("\n b", ["\n b"]),
    ("a <tool_call> b", ["a <tool_call> b"]),
    ("x < y and <tool", ["x < y and <tool"]),
    (
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        ['<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'],
    ),
    ('<tool_call>\n{"arguments": {}}\n</tool_call>', ['<tool_call>\n{"arguments": {}}\n</tool_call>']),
    (
        '<tool_call><tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        ["<tool_call>", ("clock", "{}")],
    ),
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Ro', [("weather", '{"city": "Ro')]),
    ('<tool_call>\n{"name": "wea', ['<tool_call>\n{"name": "wea']),
]
LLAMA: list[tuple[str, list[Part]]] = [
    ("Just words.", ["Just words."]),
    ('{"name": "weather", "parameters": {"city": "Rome"}}', [("weather", '{"city": "Rome"}')]),
    ('<|python_tag|>{"name": "clock", "parameters": {}}', [("clock", "{}")]),
    (
        '{"name": "weather", "parameters": {"city": "Rome"}}; {"name": "clock", "parameters": {}}',
        [("weather", '{"city": "Rome"}'), ("clock", "{}")],
    ),
    ('\n\n{"name": "clock", "parameters": {}}', [("clock", "{}")]),
    ('{"answer": 42}', ['{"answer": 42}']),
    ('Here: {"name": "clock", "parameters": {}}', ['Here: {"name": "clock", "parameters": {}}']),
    ('{"name": "nobody", "parameters": {}}', ['{"name": "nobody", "parameters": {}}']),
]
MISTRAL: list[tuple[str, list[Part]]] = [
    ("Just words.", ["Just words."]),
    ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]', [("weather", '{"city": "Rome"}')]),
    (
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "clock", "arguments": {}}]',
        [("weather", '{"city": "Rome"}'), ("clock", "{}")],
    ),
    (
        '[TOOL_CALLS][{"name": "clock", "arguments": {}, "id": "a}b\\"cdefg"}, {"name": "clock", "arguments": {}}]',
        [("clock", "{}"), ("clock", "{}")],
    ),
    ("[TOOL_CALLS] nothing", ["[TOOL_CALLS] nothing"]),
    ("[1, 2, 3]", ["[1, 2, 3]"]),
]
MISTRAL_NAMED: list[tuple[str, list[Part]]] = [
    ('[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', [("weather", '{"city": "Rome"}')]),
    ('[TOOL_CALLS]weather[CALL_ID]abcdef123[ARGS]{"city": "Rome"}', [("weather", '{"city": "Rome"}')]),
    ('[TOOL_CALLS]clock[ARGS]{}[TOOL_CALLS]weather[ARGS]{"a": []}', [("clock", "{}"), ("weather", '{"a": []}')]),
]
RECORDED: list[tuple[Dialect, str, list[Part]]] = [
    *((dialects.hermes(), text, parts) for text, parts in HERMES),
    *((dialects.in_words(), text, parts) for text, parts in HERMES),
    *((dialects.llama(), text, parts) for text, parts in LLAMA),
    *((dialects.mistral(), text, parts) for text, parts in MISTRAL),
    *((dialects.mistral_named(), text, parts) for text, parts in MISTRAL_NAMED),
]


def parsed(parser: AnswerParser | None, pieces: Sequence[str]) -> list[Event]:
    assert parser is not None
    events = [event for piece in pieces for event in parser.push(piece)]
    return merged(events + parser.finish())


def parts_of(events: Sequence[Event]) -> list[Part]:
    parts: list[Part] = []
    for event in events:
        match event:
            case Content(text):
                parts.append(text)
            case CallBegin(_, _, name):
                parts.append((name, ""))
            case CallArguments(index, text):
                assert index == sum(isinstance(one, tuple) for one in parts) - 1
                last = parts[-1]
                assert isinstance(last, tuple)
                parts[-1] = (last[0], last[1] + text)
    return parts


def name_of(value: object) -> str:
    return value.name if isinstance(value, Dialect) else str(value)[:50]


@pytest.mark.parametrize(("dialect", "text", "parts"), RECORDED, ids=name_of)
def test_recorded_answers_are_parsed(dialect: Dialect, text: str, parts: list[Part]) -> None:
    events = parsed(dialect.parser(USE), [text])
    assert parts_of(events) == parts
    ids = [event.id for event in events if isinstance(event, CallBegin)]
    assert len(set(ids)) == len(ids)
    if dialect.name == "mistral":
        assert all(len(each) == 9 and each.isalnum() for each in ids)


@given(recorded=st.sampled_from(RECORDED), cuts=st.lists(st.integers(0, 200), max_size=12))
def test_the_pieces_of_an_answer_do_not_matter(recorded: tuple[Dialect, str, list[Part]], cuts: list[int]) -> None:
    dialect, text, parts = recorded
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(ends)]
    assert parts_of(parsed(dialect.parser(USE), pieces)) == parts


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "{",
    "}",
    '"name"',
    ":",
    '"clock"',
    ",",
    '"arguments"',
    "x",
    "<",
    "[TOOL_CALLS]",
    "[",
    "]",
    "<think>",
    "</think>",
]


@given(
    text=st.lists(st.sampled_from([*PIECES, " ", "\n"])).map("".join),
    dialect=st.sampled_from(
        [
            dialects.hermes(),
            dialects.llama(),
            dialects.mistral(),
            dialects.mistral_named(),
            dialects.hermes(thinks=True),
        ]
    ),
)
def test_no_text_is_lost_or_invented(text: str, dialect: Dialect) -> None:
    """Text that is neither a call nor reasoning is content, except white space between them."""
    events = parsed(dialect.parser(USE), list(text))
    if not any(isinstance(event, CallBegin | Reasoning) for event in events) and not dialect.thinks:
        assert "".join(event.text for event in events if isinstance(event, Content)) == text
    for event in events:
        if isinstance(event, Content | Reasoning | CallArguments):
            assert event.text in text or "".join(event.text.split()) in "".join(text.split())


@pytest.mark.parametrize(
    ("text", "tail", "events"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "", [Reasoning("Hm."), Content("Yes.")]),
        ("Hm.\n\nWell.\n</think>\n\nYes.", "assistant\n<think>\n", [Reasoning("Hm.\n\nWell."), Content("Yes.")]),
        ("<think>\n\n</think>\n\nYes.", "", [Content("Yes.")]),
        ("Yes.", "<think>\n\n</think>\n\n", [Content("Yes.")]),
        ("Yes <think>no</think>", "", [Content("Yes <think>no</think>")]),
        ("<think>cut off", "", [Reasoning("cut off")]),
        ("<thin", "", [Content("<thin")]),
        (" \n", "", [Content(" \n")]),
    ],
)
def test_reasoning_is_separated_from_content(text: str, tail: str, events: list[Event]) -> None:
    dialect = dialects.hermes(thinks=True)
    assert parsed(dialect.parser(None, tail), [text]) == events
    assert parsed(dialect.parser(None, tail), list(text)) == events


def test_a_call_may_follow_reasoning() -> None:
    text = '<think>\nThe clock.\n</think>\n\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    begin, *rest = parsed(dialects.hermes(thinks=True).parser(USE), list(text))
    assert begin == Reasoning("The clock.")
    assert parts_of(rest) == [("clock", "{}")]


def test_without_tools_or_thoughts_there_is_nothing_to_parse() -> None:
    assert dialects.hermes().parser(None) is None


def test_text_is_held_back_only_while_it_may_start_a_call() -> None:
    parser = dialects.hermes().parser(USE)
    assert parser is not None
    assert parser.push("a <b") == [Content("a <b")]
    assert parser.push("<tool") == []
    assert parser.push("box>") == [Content("<toolbox>")]


def test_a_name_in_the_last_mark_of_a_call_belongs_to_it() -> None:
    """Its beginning is also that of the mark that ends the answer."""
    calls = Calls((form("<do><$name>$arguments</$name></do>"),), TaggedArguments(form("<$key>$value</$key>")))
    syntax = AnswerSyntax(calls=calls, ends=("</assistant>",))
    parser = AnswerParser(syntax, ToolUse((Tool("clock", None, {}),), "auto"))
    text = "<do><clock><zone>UTC</zone></clock></do>"
    events = [*parser.push(f"{text}{text}</assistant>"), *parser.finish()]
    assert not [event for event in events if isinstance(event, Content)]
    assert sum(isinstance(event, CallBegin) for event in events) == 2
    assert parser.ended
