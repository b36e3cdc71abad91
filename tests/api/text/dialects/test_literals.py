"""Values that are literals: the text after one never becomes part of it, and what is none is not changed into one."""

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from api.text.dialects import CallArguments, Tool, ToolUse, families, merged
from api.text.dialects.parsing import AnswerParser
from api.text.dialects.syntax import AnswerSyntax, Calls, TaggedArguments, form
from tests.api.text.dialects.test_round_trips import refused
from tests.api.text.dialects.test_value_rules import PYTHON, gemma, grammar, python, vocabulary

__all__ = ["vocabulary"]
USE = ToolUse((Tool("f", None, {"type": "object", "properties": {"a": {}, "b": {}, "x": {}}}),), "auto")


def arguments(syntax: AnswerSyntax, text: str) -> tuple[str, bool]:
    """The JSON text of a call's arguments, and whether the call is complete."""
    parser = AnswerParser(syntax, USE)
    events = [event for character in text for event in parser.push(character)] + parser.finish()
    pieces = [event.text for event in merged(events) if isinstance(event, CallArguments)]
    return "".join(pieces), bool(pieces) and not parser.is_calling


def value(syntax: AnswerSyntax, text: str) -> Any:
    read, is_complete = arguments(syntax, text)
    assert is_complete, read
    return json.loads(read)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"C:\x", r"C:\x"),
        (r"\u12", r"\u12"),
        (r"\U0001", r"\U0001"),
        (r"\x4\x41", r"\x4A"),
        (r"\xé\n", "\\xé\n"),
        (r"\u12\\", "\\u12\\"),
        (r"\033[0m\0", "\x1b[0m\0"),
        (r"\x41\u0041\U00000041", "AAA"),
        (r"\d+\/", r"\d+/"),
    ],
)
def test_an_escape_ends_where_its_digits_end(written: str, read: str) -> None:
    call = f"<|tool_call_start|>[f(a='{written}', b=1)]<|tool_call_end|>"
    assert value(PYTHON, call) == {"a": read, "b": 1}


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        (r"'C:\x'", False),
        (r"'\u12'", False),
        (r"'\U0001'", False),
        (r"'\U00110000'", False),
        (r"'\N'", False),
        (r"'\x41 \u0041 \U0001F600 \d \0 \' \\'", True),
    ],
)
def test_the_grammar_allows_complete_escapes_only(vocabulary: LLTokenizer, text: str, is_allowed: bool) -> None:
    assert (refused(vocabulary, grammar(PYTHON, {"type": "string"}), python(text)) == "") == is_allowed


VALUES = [5, -1.5e3, True, False, None, "x <v> y", [1, "<"], {"c": 2}]


@pytest.mark.parametrize("read", VALUES, ids=json.dumps)
@pytest.mark.parametrize(
    ("argument", "separator", "footer"),
    [
        ("<k>$key</k><v>$value</v>\n", "", "</call>"),
        ("<k>$key</k><v>$value</v>", "", "</call>"),
        ("<k>$key</k>$value", "", "</call>"),
        ("<k>$key</k>$value", "|", "</call>"),
        ("$key is $value", "; ", "[/call]"),
        ("$key: $value\n", "", "</call>"),
    ],
)
def test_a_value_ends_before_the_text_after_it(argument: str, separator: str, footer: str, read: Any) -> None:
    calls = Calls(
        (form(f"<call>$name\n$arguments{footer}"),),
        TaggedArguments(form(argument), separator=separator, encoding="json"),
    )
    made = {"a": read, "b": read}
    members = separator.join(argument.replace("$key", key).replace("$value", json.dumps(read)) for key in made)
    assert value(AnswerSyntax(calls=calls), f"<call>f\n{members}{footer}") == made


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("{x y:1}", {"x y": 1}),
        ("{ x y z : 1, u  v:{w x:[true]} }", {"x y z": 1, "u  v": {"w x": [True]}}),
        ('[{a b:<|"|>c d<|"|>,e:null , f g:2}]', [{"a b": "c d", "e": None, "f g": 2}]),
        ('{ <|"|>a b<|"|> : 1 }', {"a b": 1}),
        ("{ }", {}),
    ],
)
def test_a_bare_key_may_have_white_space(written: str, read: Any) -> None:
    assert value(families.GEMMA4, gemma(written)) == {"x": read}


@pytest.mark.parametrize(
    "written",
    [
        "[1 2]",
        "[1,2)",
        "(1, 2]",
        "{'c': 1]",
        "['c' 'd']",
        "['c''d']",
        "[[1] 2]",
        "['c' d]",
        "[c(1)]",
        "c(1)",
        "['c'(1)]",
    ],
)
def test_what_is_no_literal_breaks_the_call(written: str) -> None:
    read, is_complete = arguments(PYTHON, f"<|tool_call_start|>[f(a={written}, b=1)]<|tool_call_end|>")
    assert not is_complete
    assert "b" not in read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[1 , 2 ,]", [1, 2]),
        ("( 1 , 'c' )", [1, "c"]),
        ("{ 'c' : (1,) , \"d\" : { } }", {"c": [1], "d": {}}),
        ("[[ ] , [1 ] , True\n]", [[], [1], True]),
    ],
)
def test_a_literal_may_have_white_space(written: str, read: Any) -> None:
    assert value(PYTHON, f"<|tool_call_start|>[f(a={written}, b=1)]<|tool_call_end|>") == {"a": read, "b": 1}
