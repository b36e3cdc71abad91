"""Templates that write calls otherwise than their models do, or not at all: what models write is read."""

from collections.abc import Iterator
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from api.text.dialects import Dialect, Tool, ToolUse, dialect_of
from api.text.dialects.syntax import AnswerSyntax, Calls, Learned, TaggedArguments, form
from api.text.template import ChatTemplate
from scheduler.llama.model import Model
from tests.api.text.dialects.test_leniency import Got, read
from tests.api.text.dialects.test_probe import CONTENT, EACH, END, FUNCTION, ITEMS, NAME, Vocabulary, learned, turns

PYTHON = Calls(
    (form("$name($arguments)"),),
    TaggedArguments(form("$key=$value"), ", ", "python"),
    begin="[",
    separator=", ",
    end="]",
    bare=True,
)
OBJECTS = Calls((form('{"name": "$name", "arguments": $arguments}'),), begin="[", separator=", ", end="]", bare=True)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
GET = Tool("get", None, CITY)
LAST = "{% if not loop.last %}, {% endif %}"


def python_list(value: str, comma: str = LAST) -> str:
    """A turn with calls in a list of Python, or with text."""
    calls = EACH + NAME + "(" + ITEMS + "{{ k }}=" + value + comma + END + ")" + LAST + END
    return "{% if m.tool_calls %}[" + calls + "]{% else %}" + CONTENT + "{% endif %}"


def dialect(answer: str, prompt: str = "") -> Dialect:
    return dialect_of(ChatTemplate(turns(answer, prompt), Vocabulary()))


@pytest.mark.parametrize(
    "answer",
    [
        python_list("{{ v }}"),
        python_list('"{{ v }}"'),
        python_list("'{{ v }}'"),
        python_list("{{ v | tojson }}", comma=""),
    ],
)
def test_calls_that_look_like_pythons_are_pythons(answer: str) -> None:
    """Strings without quotes, numbers with them, no commas: the template is careless, its model is not."""
    found = learned(turns(answer))
    assert found.syntax.calls == PYTHON
    assert (found.lists_tools, found.renders_calls, found.renders_results) == (True, False, True)


def test_calls_that_are_pythons_are_left_to_the_template() -> None:
    found = learned(turns(python_list("{{ v | tojson }}")))
    assert found.syntax.calls == PYTHON
    assert (found.renders_calls, found.renders_results) == (True, False)


def test_a_call_with_a_name_whose_quote_does_not_end_is_not_learned() -> None:
    call = '<call>{"name": "' + NAME + ', "arguments": {{ c.function.arguments | tojson }}"}</call>'
    assert learned(turns(CONTENT + EACH + call + END)).syntax.calls is None


def test_the_indentation_of_a_template_is_no_part_of_calls() -> None:
    section = "{% if m.tool_calls %}    <|calls|>" + EACH + "        <|call|>" + FUNCTION + "<|/call|>" + END
    found = learned(turns(CONTENT + section + "    <|/calls|>{% endif %}")).syntax.calls
    call = form('<|call|>{"name": "$name", "arguments": $arguments}<|/call|>')
    assert found == Calls((call,), begin="<|calls|>", end="<|/calls|>")


# -- answers -----------------------------------------------------------------------------------------------------------

CALLED = 'get({"city": "Rome"})'
ASKED = '{"name": "get", "arguments": {"city": "Rome"}}'
MARKED = Calls((form('<call>{"name": "$name", "arguments": $arguments}</call>'),))
NOISY = Calls((form('{"name": "$name", "parameters": $arguments}'),), begin="<|tool|>", separator="; ", bare=True)


@pytest.mark.parametrize(
    ("syntax", "text", "got"),
    [
        (AnswerSyntax(calls=PYTHON), '```tool_code\n[get(city="Rome")]\n```', ("", "", [CALLED])),
        (AnswerSyntax(calls=PYTHON), '```python\nget(city="Rome")\n```', ("", "", [CALLED])),
        (AnswerSyntax(calls=PYTHON), "```python\nprint(1)\n```", ("", "```python\nprint(1)\n```", [])),
        (AnswerSyntax(calls=PYTHON), "[get(city='Rome')]\n```\nx", ("", "```\nx", [CALLED])),
        (AnswerSyntax(calls=PYTHON), "[1] and [see](x)", ("", "[1] and [see](x)", [])),
        (AnswerSyntax(calls=OBJECTS), f"```json\n[{ASKED}]\n```", ("", "", [CALLED])),
        (AnswerSyntax(calls=MARKED), f"<call>{ASKED.replace('arguments', 'parameters')}</call>", ("", "", [CALLED])),
        (AnswerSyntax(calls=NOISY, noise=("<|code|>", "<|/code|>")), f"<|code|>{ASKED}<|/code|>", ("", "", [CALLED])),
        (AnswerSyntax(calls=MARKED, noise=("<|end|><|start|>",), ends=("<|end|>",)), "Hi.<|end|>", ("", "Hi.", [])),
    ],
)
def test_careless_answers_are_read(syntax: AnswerSyntax, text: str, got: Got) -> None:
    """Blocks of code, other words for the arguments, marks of code, marks that begin like longer ones."""
    assert read(syntax, text) == got


# -- families ----------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[str, str, str, Got]] = {
    "phi-4-mini": (
        "{# functools marker #}" + CONTENT + EACH + FUNCTION + LAST + END,
        "",
        f"functools[{ASKED}]",
        ("", "", [CALLED]),
    ),
    "glm-4": (
        "{# [gMASK] metadata observation #}" + CONTENT,
        "",
        'get\n{"city": "Rome"}<|observation|>',
        ("", "", [CALLED]),
    ),
    "hyperclova-x": (
        "{# assistant -> tool/function_call #}" + CONTENT,
        "",
        f"/think\nHm.<|im_end|>\n<|im_start|>assistant -> tool/function_call\n[{ASKED}]<|im_end|><|stop|>",
        ("Hm.", "", [CALLED]),
    ),
    "apertus": (
        "{# <|inner_prefix|> <|inner_suffix|> #}" + CONTENT + EACH + "<call>" + FUNCTION + "</call>" + END,
        "",
        f"<|inner_prefix|>Hm.<|inner_suffix|><call>{ASKED}</call>",
        ("Hm.", "", [CALLED]),
    ),
    "hunyuan-a13b": (
        "{# <|extra_0|> #}"
        + CONTENT
        + "{% if m.tool_calls %}<tool_calls>["
        + EACH
        + FUNCTION
        + LAST
        + END
        + "]</tool_calls>{% endif %}",
        "",
        f"<answer><tool_calls>[{ASKED}]</tool_calls></answer>",
        ("", "", [CALLED]),
    ),
    "lfm2": (
        CONTENT
        + "{% if m.tool_calls %}<|tool_call_start|>\n```python\n"
        + EACH
        + NAME
        + "("
        + ITEMS
        + "{{ k }}={{ v | tojson }}"
        + LAST
        + END
        + ")\n"
        + END
        + "```\n<|tool_call_end|>{% endif %}",
        "",
        '<|tool_call_start|>\n```python\nget(city="Rome")\n```\n<|tool_call_end|>',
        ("", "", [CALLED]),
    ),
    "llama-4": (
        "{# <|header_start|> ipython #}" + python_list('"{{ v }}"'),
        "",
        "<|python_start|>[get(city='Rome')]<|python_end|>",
        ("", "", [CALLED]),
    ),
    "mistral": (
        CONTENT + "{% if m.tool_calls %}[TOOL_CALLS] [" + EACH + FUNCTION + LAST + END + "]{% endif %}",
        "",
        f"[TOOL_CALLS] [{ASKED}]",
        ("", "", [CALLED]),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_of_a_family_are_read(name: str) -> None:
    answer, prompt, text, got = FAMILIES[name]
    found = dialect(answer, prompt)
    assert found.name == name
    assert read(found.syntax, text) == got


def test_a_mistral_without_a_space_in_front_of_the_list_keeps_it_so() -> None:
    answer = CONTENT + "{% if m.tool_calls %}[TOOL_CALLS][" + EACH + FUNCTION + LAST + END + "]{% endif %}"
    calls = dialect(answer).syntax.calls
    assert calls is not None
    assert calls.begin == "[TOOL_CALLS]["


# -- grammars and prompts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(model_path: str) -> Iterator[LLTokenizer]:
    model = Model(model_path, 0)
    yield model.grammar_tokenizer()
    model.close()


def native(calls: Calls) -> Dialect:
    return Dialect(Learned(AnswerSyntax(calls=calls), lists_tools=True, renders_calls=False, renders_results=True))


@pytest.mark.parametrize(("calls", "call"), [(PYTHON, "get(city='Rome')"), (OBJECTS, ASKED)])
def test_a_list_of_calls_has_both_of_its_brackets(vocabulary: LLTokenizer, calls: Calls, call: str) -> None:
    def allowed(choice: Any, texts: list[str]) -> list[str]:
        grammar = native(calls).grammar(ToolUse((GET,), choice), content=None, token_id=lambda _: None)
        return [text for text in texts if accepts(vocabulary, grammar, text)]

    lists = [f"[{call}]", f"[{call}, {call}]"]
    assert allowed("required", [*lists, call, f"{call}]", f"[{call}"]) == lists
    texts = ["Hello.", "[1] says so", "[see](x)", "["]
    assert allowed("auto", [*lists, *texts]) == [*lists, *texts]


def accepts(vocabulary: LLTokenizer, grammar: str, text: str) -> bool:
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = vocabulary.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def history(*ids: str) -> list[dict[str, Any]]:
    calls = [{"id": i, "type": "function", "function": {"name": "get", "arguments": '{"city": "Rome"}'}} for i in ids]
    results = [{"role": "tool", "tool_call_id": i, "content": "Sunny."} for i in ids]
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": calls}, *results]


@pytest.mark.parametrize(("calls", "call"), [(PYTHON, "get(city='Rome')"), (OBJECTS, ASKED)])
def test_an_earlier_list_of_calls_has_both_of_its_brackets(calls: Calls, call: str) -> None:
    messages, _ = native(calls).prepare(history("a", "b"), [GET])
    assert "".join(messages[1]["content"]) == f"[{call}, {call}]"


def test_a_template_that_writes_ids_in_place_of_names_gets_ids_with_names() -> None:
    call = "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}"
    kimi = dialect(CONTENT + EACH + call + "<|tool_call_end|>" + END)
    assert kimi.name == "kimi-k2"
    messages, _ = kimi.prepare([*history("a", "b"), *history("c")], [GET])
    ids = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    assert ids == ["functions.get:0", "functions.get:1", "functions.get:2"]
    assert [message["tool_call_id"] for message in messages if message["role"] == "tool"] == ids
