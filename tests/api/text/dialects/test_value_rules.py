"""Values in notations other than JSON: the grammar keeps the schema, and the parser reads what the grammar allows."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from api.text.dialects import CallArguments, Tool, ToolUse, families
from api.text.dialects.grammars.answer import answer_grammar
from api.text.dialects.kinds import ALL_KINDS
from api.text.dialects.parsing.parser import AnswerParser
from api.text.dialects.parsing.values import typed
from api.text.dialects.syntax import AnswerSyntax
from api.text.dialects.writer import written
from scheduler.llama.model import Model
from tests.api.text.dialects.test_round_trips import SHAPES, refused

PYTHON = AnswerSyntax(calls=families.LFM2)
TREE: dict[str, Any] = {"$ref": "#/$defs/Node"}
NODE: dict[str, Any] = {"type": "object", "properties": dict.fromkeys(("left", "right", "middle"), TREE)}


@pytest.fixture(scope="module")
def vocabulary(model_path: str) -> Iterator[LLTokenizer]:
    model = Model(model_path, 0)
    yield model.grammar_tokenizer()
    model.close()


def grammar(syntax: AnswerSyntax, schema: Any, *, strict: bool = False, others: Any = None) -> str:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], **(others or {})}
    use = ToolUse((Tool("f", None, parameters, strict),), "required")
    return answer_grammar(syntax, use, content=None, token_id=lambda _: None)


def python(value: str) -> str:
    return f"<|tool_call_start|>[f(x={value})]<|tool_call_end|>"


def gemma(value: str) -> str:
    return f"<|tool_call>call:f{{x:{value}}}<tool_call|>"


MIXED = {"enum": ["a", 1, None]}
PAIR = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
EITHER = {"anyOf": [{"type": "object", "properties": {"v": {"type": "integer"}}, "required": ["v"]}, {"type": "null"}]}
SHORT = {"type": "string", "maxLength": 3}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (MIXED, ['"a"', "1", "null"], ['"b"', "'b'", "2"]),
        (PAIR, ['["a"]', '["a", "b"]'], ["[]", '["a", "b", "c"]', "[1]"]),
        (EITHER, ['{"v": 1}', "null"], ["{}", "{'v': 'a'}"]),
        (SHORT, ['"abc"'], ['"abcd"', "'abcd'"]),
    ],
)
def test_strict_arguments_in_python_match_the_schema(
    vocabulary: LLTokenizer, schema: Any, right: list[str], wrong: list[str]
) -> None:
    rules = grammar(PYTHON, schema, strict=True, others={"additionalProperties": False})
    assert [refused(vocabulary, rules, python(value)) for value in right] == [""] * len(right)
    assert all(refused(vocabulary, rules, python(value)) for value in wrong)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (MIXED, ['<|"|>a<|"|>', "1", "null"], ['<|"|>b<|"|>', "2"]),
        (PAIR, ['[<|"|>a<|"|>]', '[<|"|>a<|"|>,<|"|>b<|"|>]'], ["[]", '[<|"|>a<|"|>,<|"|>b<|"|>,<|"|>c<|"|>]', "[1]"]),
        (EITHER, ["{v:1}", "null"], ["{}", '{v:<|"|>a<|"|>}']),
        (SHORT, ['<|"|>abc<|"|>'], ['<|"|>abcd<|"|>']),
    ],
)
def test_arguments_of_gemma_match_the_schema(
    vocabulary: LLTokenizer, schema: Any, right: list[str], wrong: list[str]
) -> None:
    rules = grammar(families.GEMMA4, schema)
    assert [refused(vocabulary, rules, gemma(value)) for value in right] == [""] * len(right)
    assert all(refused(vocabulary, rules, gemma(value)) for value in wrong)


@pytest.mark.parametrize("syntax", [families.GEMMA4, families.MINIMAX_M3, PYTHON], ids=["gemma", "nested", "python"])
def test_a_schema_that_refers_to_itself_often_gives_few_rules(syntax: AnswerSyntax) -> None:
    rules = grammar(syntax, TREE, others={"$defs": {"Node": NODE}})
    assert len(rules.splitlines()) < 500


@pytest.mark.parametrize("text", ["-9e4374", "1E999", "9" * 5000])
def test_numbers_of_any_size_stay_numbers(text: str) -> None:
    assert typed(text, ALL_KINDS - {"string"}) == text


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[NaN]"])
def test_what_json_cannot_write_is_a_string(text: str) -> None:
    assert json.loads(typed(text, ALL_KINDS)) == text


@pytest.mark.parametrize("syntax", [families.MINIMAX_M3, PYTHON, families.KIMI_K3], ids=["nested", "python", "typed"])
def test_arguments_without_a_list_of_names_have_the_type_of_the_schema(
    vocabulary: LLTokenizer, syntax: AnswerSyntax
) -> None:
    tool = Tool("f", None, {"type": "object", "additionalProperties": {"type": "integer"}})
    rules = answer_grammar(syntax, ToolUse((tool,), "required"), content=None, token_id=lambda _: None)
    assert syntax.calls is not None
    assert refused(vocabulary, rules, written(syntax.calls, [("f", {"x": 1, "y": 2})])) == ""
    assert refused(vocabulary, rules, written(syntax.calls, [("f", {"x": "one"})]))
    assert tool.kinds("x") == {"number"}


def test_nested_lists_are_as_long_as_the_schema_says(vocabulary: LLTokenizer) -> None:
    syntax = families.MINIMAX_M3
    assert syntax.calls is not None
    rules = grammar(syntax, PAIR)
    texts = [written(syntax.calls, [("f", {"x": ["a"] * size})]) for size in range(4)]
    assert [not refused(vocabulary, rules, text) for text in texts] == [False, True, True, False]


ODD: list[Any] = [
    "string",
    None,
    True,
    False,
    {"enum": 5},
    {"enum": []},
    {"type": 5},
    {"type": [5]},
    {"type": []},
    {"type": "any"},
    {"type": "integer", "enum": None},
    {"anyOf": None},
    {"oneOf": "x"},
    {"allOf": {}},
    {"anyOf": []},
    {"anyOf": [5, None]},
    {"type": "object", "additionalProperties": 5},
    {"type": "object", "properties": ["x"]},
    *({"type": "object", "properties": {"x": 5}, "required": odd} for odd in (True, None, [["x"]], "x")),
    {"type": "array", "items": "string"},
    {"type": "array", "items": [5]},
    {"$ref": 5},
    {"$ref": "#/odd"},
    {"type": "string", "minLength": None},
    {"type": "string", "maxLength": True},
    {"type": "string", "pattern": 5},
]
ODD_OBJECTS: list[Any] = [
    {"properties": ["a"]},
    {"properties": {"a": {}}, "required": True},
    {"properties": {"a": {}}, "required": [["a"]]},
    {"additionalProperties": 5},
    {"$ref": "#/odd"},
    {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": 5},
    {"type": 5},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_odd_schema_is_a_hint_that_breaks_nothing(vocabulary: LLTokenizer, shape: str) -> None:
    """Whatever a schema holds, the grammar compiles and the parser reads calls."""
    syntax = SHAPES[shape]
    assert syntax.calls is not None
    odd_properties = {f"a{i}": schema for i, schema in enumerate(ODD)}
    whole = {"type": "object", "properties": odd_properties, "odd": {"type": 5, "properties": 5, "required": 5}}
    schemas = [whole, *({"type": "object"} | odd for odd in ODD_OBJECTS)]
    for schema in (*schemas, {"type": "object", "properties": {"a0": whole, "a1": {"type": "array", "items": whole}}}):
        use = ToolUse((Tool("f", None, schema),), "required")
        rules = answer_grammar(syntax, use, content=None, token_id=lambda _: None)
        assert LLMatcher.validate_grammar(rules, vocabulary) == ""
        for value in ("x", 5, {"a0": 5, "x": [1]}, [{"a1": None}], None):
            given = dict.fromkeys(("a", *schema.get("properties", ())), value)
            parser = AnswerParser(syntax, use)
            events = [*parser.push(written(syntax.calls, [("f", given)])), *parser.finish()]
            arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
            assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("shape", ["tags", "keys and values", "markup in CDATA", "nested tags", "typed arguments"])
@pytest.mark.parametrize(
    ("limit", "right", "wrong"),
    [
        ({"pattern": "^[a-z]+$"}, ["ab"], ["aB", "", "ab\n"]),
        ({"minLength": 2}, ["ab", "a\n"], ["a"]),
        ({"maxLength": 2}, ["", "ab"], ["abc", "ab\n"]),
    ],
)
def test_a_limit_counts_the_text_and_not_the_form_around_it(
    vocabulary: LLTokenizer, shape: str, limit: Any, right: list[str], wrong: list[str]
) -> None:
    syntax = SHAPES[shape]
    assert syntax.calls is not None
    rules = grammar(syntax, {"type": "string", **limit})
    assert [refused(vocabulary, rules, written(syntax.calls, [("f", {"x": text})])) for text in right] == [""] * len(
        right
    )
    assert all(refused(vocabulary, rules, written(syntax.calls, [("f", {"x": text})])) for text in wrong)


@pytest.mark.parametrize("shape", ["nested tags", "other quotes"])
@pytest.mark.parametrize(
    ("sizes", "right", "wrong"),
    [
        ({"minItems": 3, "maxItems": 2}, [3, 4], [2]),
        ({"minItems": 1, "maxItems": 0}, [1, 2], []),
        ({"maxItems": True}, [1, 2], []),
        ({"minItems": True}, [1, 2], []),
        ({"minItems": 2.5, "maxItems": -1}, [1, 2], []),
    ],
)
def test_sizes_that_no_list_has_are_no_limit(
    vocabulary: LLTokenizer, shape: str, sizes: Any, right: list[int], wrong: list[int]
) -> None:
    syntax = SHAPES[shape]
    assert syntax.calls is not None
    rules = grammar(syntax, {"type": "array", "items": {"type": "string"}, **sizes})
    texts = {size: written(syntax.calls, [("f", {"x": ["a"] * size})]) for size in (*right, *wrong)}
    assert [size for size in texts if not refused(vocabulary, rules, texts[size])] == right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("listed", [{"enum": [""]}, {"const": ""}, {"enum": ["", "a/b", "C"]}], ids=json.dumps)
def test_an_empty_text_may_be_a_choice(vocabulary: LLTokenizer, shape: str, listed: Any) -> None:
    syntax = SHAPES[shape]
    assert syntax.calls is not None
    rules = grammar(syntax, {"type": "string", **listed})
    texts = {text: written(syntax.calls, [("f", {"x": text})]) for text in ("", "a/b", "C", "D")}
    allowed = [text for text in texts if not refused(vocabulary, rules, texts[text])]
    assert allowed == listed.get("enum", [""])
