"""Calls as each family writes them: the parser reads them back, and the grammar allows them."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from api.text.dialects import CallArguments, CallBegin, Content, Tool, ToolUse, common, families, merged
from api.text.dialects.grammars.answer import answer_grammar
from api.text.dialects.parsing.parser import AnswerParser
from api.text.dialects.syntax import AnswerSyntax, Calls, Slot, TaggedArguments, form
from api.text.dialects.writer import written
from scheduler.llama.model import Model

Made = list[tuple[str, dict[str, Any]]]

TAGGED = TaggedArguments(form("<parameter=$key>\n$value\n</parameter>"), separator="\n")
SHAPES: dict[str, AnswerSyntax] = {
    "JSON in tags": AnswerSyntax(calls=common.HERMES),
    "bare JSON": AnswerSyntax(calls=common.LLAMA),
    "JSON in a list": AnswerSyntax(calls=common.MISTRAL),
    "name, id and JSON": AnswerSyntax(calls=common.MISTRAL_NAMED),
    "section of calls": AnswerSyntax(calls=families.KIMI_K2),
    "fenced JSON": AnswerSyntax(calls=families.DEEPSEEK_R1),
    "channels": families.HARMONY,
    "recipients": families.MUSE,
    "bare names": families.FUNCTIONARY,
    "typed arguments": families.KIMI_K3,
    "nested tags": families.MINIMAX_M3,
    "other quotes": families.GEMMA4,
    "Python": AnswerSyntax(calls=families.LFM2),
    "tags": AnswerSyntax(
        calls=Calls(
            (form("<tool_call>\n<function=$name>\n$arguments\n</function>\n</tool_call>"),), TAGGED, separator="\n"
        )
    ),
    "keys and values": AnswerSyntax(
        calls=Calls(
            (form("<tool_call>$name\n$arguments\n</tool_call>"),),
            TaggedArguments(form("<arg_key>$key</arg_key>\n<arg_value>$value</arg_value>"), separator="\n"),
        )
    ),
    "lines": AnswerSyntax(
        calls=Calls(
            (form("<call>\nname: $name\n$arguments</call>"),),
            TaggedArguments(form("$key: $value\n"), encoding="json"),
            separator="\n",
        )
    ),
    "JSON values in tags": AnswerSyntax(
        calls=Calls(
            (form("<call>$name\n$arguments</call>"),),
            TaggedArguments(form("<k>$key</k><v>$value</v>\n"), encoding="json"),
        )
    ),
    "name as key": AnswerSyntax(
        calls=Calls((form('{"$name": $arguments}'),), begin="<calls>[", separator=", ", end="]</calls>")
    ),
    "arguments first": AnswerSyntax(calls=Calls((form("<call>$arguments</call><name>$name</name>"),))),
    "markup in CDATA": AnswerSyntax(
        calls=Calls(
            (form('<function name="$name">$arguments</function>'),),
            TaggedArguments(form('<param name="$key">$value</param>'), cdata=True),
        )
    ),
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
        "place": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "name": {"type": "string"}},
            "required": ["x"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"type": "string"}},
        "unit": {"type": "string", "enum": ["C", "degrees F"]},
        "code": {"$ref": "#/$defs/Code"},
    },
    "required": ["city", "days"],
    "$defs": {"Code": {"type": "string"}},
}
TOOLS = (Tool("get", None, SCHEMA), Tool("get_all", None, {}))
TEXTS = st.sampled_from(
    ["", "Lisbon", 'a "quoted" one', "two\nlines", "Zürich ☃", "</x>", "a < b & c", '{"a": 1}', " space ", "42", "null"]
    + ["it's", "back\\slash \\n", "]", "true", "<parameter", ")"]
)
WORDS = st.sampled_from(["x y", "é", "b-c"])
ARGUMENTS = st.fixed_dictionaries(
    {"city": TEXTS, "days": st.sampled_from([0, -3, 10**12])},
    optional={
        "exact": st.booleans(),
        "note": st.none() | WORDS,
        "place": st.sampled_from([{"x": 1.5}, {"x": 2, "name": "x y"}]),
        "tags": st.lists(WORDS, max_size=2),
        "unit": st.sampled_from(["C", "degrees F"]),
        "code": WORDS,
    },
).map(lambda made: {key: made[key] for key in SCHEMA["properties"] if key in made})
CALLS = st.lists(ARGUMENTS.map(lambda made: ("get", made)) | st.just(("get_all", {})), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def vocabulary(model_path: str) -> Iterator[LLTokenizer]:
    model = Model(model_path, 0)
    yield model.grammar_tokenizer()
    model.close()


def read(syntax: AnswerSyntax, pieces: list[str]) -> tuple[Made, str]:
    """The calls and the text that a client gets."""
    parser = AnswerParser(syntax, ToolUse(TOOLS, "auto"))
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    calls: list[list[str]] = []
    content = ""
    for event in merged(events):
        match event:
            case Content(text):
                content += text
            case CallBegin(_, _, name):
                calls.append([name, ""])
            case CallArguments(index, text):
                calls[index][1] += text
    return [(name, json.loads(arguments)) for name, arguments in calls], content


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25, deadline=None)
@given(made=CALLS, cuts=st.lists(st.integers(0, 400), max_size=6))
def test_the_parser_reads_what_the_writer_writes(shape: str, made: Made, cuts: list[int]) -> None:
    syntax = SHAPES[shape]
    assert syntax.calls is not None
    text = written(syntax.calls, made)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    assert read(syntax, [text[a:b] for a, b in pairwise(ends)]) == (made, "")


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=4, deadline=None)
@given(made=CALLS)
def test_the_grammar_allows_what_the_writer_writes(vocabulary: LLTokenizer, shape: str, made: Made) -> None:
    syntax = SHAPES[shape]
    assert syntax.calls is not None
    text = written(syntax.calls, made)
    for choice in ("required", "auto"):
        grammar = partial(answer_grammar, syntax, content=None, token_id=lambda _: None)
        assert refused(vocabulary, grammar(ToolUse(TOOLS, choice)), text) == ""
    for wrong in (text.replace("get", "got"), text[:-1] if not text.endswith("]") else text[:-2]):
        assert refused(vocabulary, grammar(ToolUse(TOOLS, "required")), wrong)


def refused(vocabulary: LLTokenizer, grammar: str, text: str) -> str:
    """Where a grammar stops to accept a text; empty if it accepts the whole text."""
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = vocabulary.tokenize_str(text)
    taken = matcher.try_consume_tokens(tokens)
    if taken < len(tokens):
        return f"stops at {vocabulary.decode_str(tokens[taken:])}"
    return "" if matcher.is_accepting() else "more must follow"


def test_each_slot_occurs() -> None:
    """The shapes cover the whole of the syntax."""
    forms = [each for syntax in SHAPES.values() if syntax.calls for each in syntax.calls.forms]
    arguments = [syntax.calls.arguments for syntax in SHAPES.values() if syntax.calls]
    forms += [each.argument for each in arguments if isinstance(each, TaggedArguments)]
    assert {part for parts in forms for part in parts if isinstance(part, Slot)} == set(Slot)
    encodings = {each.encoding for each in arguments if isinstance(each, TaggedArguments)}
    assert encodings == {"raw", "json", "python", "gemma", "nested"}
