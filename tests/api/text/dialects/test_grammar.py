"""The grammars of each family, checked by llguidance on the real vocabulary."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from api.text.dialects import Dialect, Tool, ToolUse
from api.text.dialects.common import HERMES
from api.text.dialects.syntax import AnswerSyntax, Calls, Learned, TaggedArguments, Thoughts, Wrapper, form
from api.text.schemas import json_rule, schema_rule
from api.text.tokenizer import Tokenizer
from scheduler.llama.model import Model
from tests import dialects

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "Of a city.", CITY), Tool("clock", None, {}))


@pytest.fixture(scope="module")
def vocabulary(model_path: str) -> Iterator[LLTokenizer]:
    model = Model(model_path, 0)
    yield model.grammar_tokenizer()
    model.close()


def matcher(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    assert not matcher.is_error(), (matcher.get_error(), grammar)
    return matcher


def accepts(vocabulary: LLTokenizer, grammar: str, text: str) -> bool:
    """Whether the grammar accepts this as a complete answer."""
    follower = matcher(vocabulary, grammar)
    tokens = vocabulary.tokenize_str(text)
    return follower.try_consume_tokens(tokens) == len(tokens) and follower.is_accepting()


def grammar_of(dialect: Dialect, choice: Any, *, parallel: bool = True, content: str | None = None) -> str:
    return dialect.grammar(ToolUse(TOOLS, choice, parallel), content=content, token_id=lambda _: None)


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


HINTS: dict[str, dict[str, Any]] = {
    "names": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
    "set": {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
    "path": {"type": "string", "format": "path"},
    "not": {"type": "object", "not": {"required": ["x"]}},
    "one of": {"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]},
    "few": {"type": "object", "properties": {"x": {"type": "string"}}, "minProperties": 1},
    "looks ahead": {"type": "string", "pattern": "^(?!x).*$"},
    "no type": {"type": "any"},
    "nowhere": {"$ref": "#/$defs/Missing"},
}


@pytest.mark.parametrize(
    "dialect",
    [dialects.in_words(), dialects.hermes(), dialects.llama(), dialects.mistral()],
    ids=lambda dialect: dialect.name,
)
@pytest.mark.parametrize("name", HINTS)
def test_unsupported_parts_of_a_tools_schema_are_left_out(vocabulary: LLTokenizer, dialect: Dialect, name: str) -> None:
    schema: dict[str, Any] = CITY | {"properties": {"it": HINTS[name]}, "required": ["it"]}
    for parameters in (schema, HINTS[name]):
        use = ToolUse((Tool("f", None, parameters), Tool("g", None, CITY)), "auto")
        matcher(vocabulary, dialect.grammar(use, content=None, token_id=lambda _: None))


def test_supported_parts_of_a_schema_are_kept(vocabulary: LLTokenizer) -> None:
    grammar = f"start: {schema_rule(CITY | {'propertyNames': {'pattern': 'c'}})}"
    assert accepts(vocabulary, grammar, '{"city": "Rome"}')
    assert not accepts(vocabulary, grammar, '{"city": 5}')
    assert not accepts(vocabulary, grammar, "{}")


CALLS: list[tuple[Dialect, str, str]] = [
    # one call, and two
    (dialects.hermes(), hermes("weather", '{"city": "Rome"}'), hermes("clock", "{}") + "\n" + hermes("clock", "{}")),
    (dialects.in_words(), hermes("clock", "{}"), hermes("weather", '{"city": "a}\\""}') + "\n" + hermes("clock", "{}")),
    (
        dialects.llama(),
        '{"name": "weather", "parameters": {"city": "Rome"}}',
        '{"name": "clock", "parameters": {}}; {"name": "clock", "parameters": {}}',
    ),
    (
        dialects.mistral(),
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]',
        '[TOOL_CALLS][{"name": "clock", "arguments": {}}, {"name": "clock", "arguments": {}}]',
    ),
    (
        dialects.mistral_named(),
        '[TOOL_CALLS]weather[CALL_ID]abcdef123[ARGS]{"city": "Rome"}',
        "[TOOL_CALLS]clock[CALL_ID]abcdef123[ARGS]{}[TOOL_CALLS]clock[ARGS]{}",
    ),
    (
        dialects.mistral_named(),
        '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}',
        "[TOOL_CALLS]clock[ARGS]{}[TOOL_CALLS]clock[ARGS]{}",
    ),
]
FAMILIES = pytest.mark.parametrize(("dialect", "one", "two"), CALLS, ids=[call[0].name for call in CALLS])


@FAMILIES
def test_a_required_call_must_be_valid(vocabulary: LLTokenizer, dialect: Dialect, one: str, two: str) -> None:
    grammar = grammar_of(dialect, "required")
    assert accepts(vocabulary, grammar, one)
    assert accepts(vocabulary, grammar, two)
    assert not accepts(vocabulary, grammar, "Just words.")
    assert not accepts(vocabulary, grammar, one.replace("weather", "whether").replace("clock", "cloak"))
    assert not accepts(vocabulary, grammar, one[:-3])
    single = grammar_of(dialect, "required", parallel=False)
    assert accepts(vocabulary, single, one)
    assert not accepts(vocabulary, single, two)


@FAMILIES
def test_an_optional_call_must_be_valid_once_it_starts(
    vocabulary: LLTokenizer, dialect: Dialect, one: str, two: str
) -> None:
    grammar = grammar_of(dialect, "auto")
    assert accepts(vocabulary, grammar, "Just words.")
    assert accepts(vocabulary, grammar, one)
    assert accepts(vocabulary, grammar, two)
    wrong = one.replace("weather", "whether").replace("clock", "cloak")
    assert not accepts(vocabulary, grammar, wrong)
    if dialect.name != "llama":
        assert accepts(vocabulary, grammar, f"Let me see.\n{one}")
        assert not accepts(vocabulary, grammar, f"Let me see.\n{wrong}")


@FAMILIES
def test_text_answers_can_be_constrained_too(vocabulary: LLTokenizer, dialect: Dialect, one: str, two: str) -> None:
    grammar = grammar_of(dialect, "auto", content=json_rule({"const": 5}))
    assert accepts(vocabulary, grammar, "5")
    assert accepts(vocabulary, grammar, one)
    assert not accepts(vocabulary, grammar, "Just words.")


@FAMILIES
def test_a_model_may_reason_before_a_constrained_answer(
    vocabulary: LLTokenizer, dialect: Dialect, one: str, two: str
) -> None:
    assert dialect.syntax.calls is not None
    thinking = dialects.native(dialect.syntax.calls, dialect.name, thinks=True)
    grammar = grammar_of(thinking, "required")
    assert accepts(vocabulary, grammar, one)
    assert accepts(vocabulary, grammar, f"<think>\nHm.\n</think>\n\n{one}")
    assert not accepts(vocabulary, grammar, "<think>\nHm.\n</think>\n\nWords.")
    begun = thinking.grammar(
        None, content=json_rule({"const": 5}), token_id=lambda _: None, prompt_tail="assistant\n<think>\n"
    )
    assert accepts(vocabulary, begun, "Hm.</think>\n5")
    assert not accepts(vocabulary, begun, "5")


def test_a_required_call_comes_before_any_text(vocabulary: LLTokenizer) -> None:
    """Also if the text has marks around it: a model could write it until the answer is full, and never call."""
    syntax = AnswerSyntax(Thoughts(("<t>",), ("</t>",)), Wrapper(("<say>",), ("</say>",)), HERMES)
    dialect = Dialect(Learned(syntax, lists_tools=True, renders_calls=True))
    call, text = hermes("clock", "{}"), "<say>Hi.</say>"
    answers = [call, f"<say></say>{call}", text + call, text]
    for choice, allowed in (("auto", answers), ("required", answers[:2])):
        grammar = grammar_of(dialect, choice)
        assert [each for each in answers if accepts(vocabulary, grammar, f"<t>Hm.</t>\n{each}")] == allowed


def test_white_space_after_reasoning_has_a_limit(vocabulary: LLTokenizer) -> None:
    grammar = grammar_of(dialects.hermes(thinks=True), "required")
    call = hermes("clock", "{}")
    assert accepts(vocabulary, grammar, f"<think>Hm.</think>\n\n{call}")
    assert not accepts(vocabulary, grammar, f"<think>Hm.</think>{chr(10) * 100}{call}")


def test_special_tokens_are_used_by_id(vocabulary: LLTokenizer, tokenizer: Tokenizer) -> None:
    """Other special tokens stand in for Qwen's, which this vocabulary lacks."""
    stand_ins = {"<tool_call>": "<repo_name>", "</tool_call>": "<file_sep>"}
    ids = {text: tokenizer.special_ids[stand_in] for text, stand_in in stand_ins.items()}
    for choice in ("required", "auto"):
        use = ToolUse(TOOLS, choice)
        follower = matcher(vocabulary, dialects.hermes().grammar(use, content=None, token_id=ids.get))
        body = vocabulary.tokenize_str('\n{"name": "clock", "arguments": {}}\n')
        answer = [ids["<tool_call>"], *body, ids["</tool_call>"]]
        if choice == "auto":
            answer = vocabulary.tokenize_str("Let me see. ") + answer
        assert follower.try_consume_tokens(answer) == len(answer)
        assert follower.is_accepting()


def test_without_tools_and_content_there_is_no_constraint() -> None:
    assert dialects.hermes(thinks=True).grammar(None, content=None, token_id=lambda _: None) == ""


def test_json_has_a_compact_layout(vocabulary: LLTokenizer) -> None:
    grammar = f"start: {json_rule({'type': 'object', 'properties': {'a': {'type': 'array'}}, 'required': ['a']})}"
    assert accepts(vocabulary, grammar, json.dumps({"a": [1, 2]}))
    assert not accepts(vocabulary, grammar, '{  "a": []}')


TYPED = Calls(
    (form("<call $name>$arguments</call>"),),
    TaggedArguments(
        form('<arg name="$key" type="$type">$value</arg>'),
        types=(("string", "string"), ("number", "number"), ("integer", "integer")),
    ),
)


@pytest.mark.parametrize(
    ("schema", "word", "value", "is_right"),
    [
        ({"type": "integer"}, "integer", "3", True),
        ({"type": "integer"}, "number", "3", False),
        ({"type": "number"}, "number", "3.5", True),
        ({"type": "number"}, "integer", "3", True),
        ({"type": "number"}, "integer", "3.5", False),
        ({"enum": [1, 3]}, "integer", "3", True),
        ({"enum": [1, 3]}, "integer", "2", False),
        ({"type": ["string", "integer"]}, "integer", "2", True),
        ({"type": ["string", "integer"]}, "string", "2", True),
        ({"type": "string"}, "integer", "2", False),
    ],
)
def test_the_word_for_a_type_fits_the_value(
    vocabulary: LLTokenizer, schema: dict[str, Any], word: str, value: str, is_right: bool
) -> None:
    use = ToolUse((Tool("f", None, {"type": "object", "properties": {"a": schema}, "required": ["a"]}),), "required")
    grammar = dialects.native(TYPED, "typed").grammar(use, content=None, token_id=lambda _: None)
    text = f'<call f><arg name="a" type="{word}">{value}</arg></call>'
    assert accepts(vocabulary, grammar, text) == is_right


def test_a_required_call_may_follow_line_breaks(vocabulary: LLTokenizer) -> None:
    """Some templates write them before calls, so their models do, too."""
    grammar = grammar_of(dialects.hermes(), "required")
    assert accepts(vocabulary, grammar, "\n" + hermes("clock", "{}"))
    assert not accepts(vocabulary, grammar, "\n\n\n" + hermes("clock", "{}"))
