"""What is learned from templates that were written for this test, one for each shape, is what they write."""

from pathlib import Path

import pytest

from api.text.dialects.probing import describe, learn
from api.text.dialects.probing.marks import first_mark, repeated
from api.text.dialects.syntax import (
    AnswerSyntax,
    Calls,
    JsonArguments,
    Learned,
    TaggedArguments,
    Thoughts,
    Wrapper,
    form,
)
from api.text.template import ChatTemplate

CONTENT = "{{ m.content or '' }}"
LINE = "{{ '\\n' }}"
EACH = "{% for c in m.tool_calls or [] %}"
END = "{% endfor %}"
ITEMS = "{% for k, v in c.function.arguments.items() %}"
VALUE = "{{ v if v is string else v | tojson }}"
COMMA = "{% if not loop.last %}, {% endif %}"
ARGUMENTS = "{{ c.function.arguments | tojson }}"
NAME = "{{ c.function.name }}"
FUNCTION = "{{ c.function | tojson }}"
TYPE = (
    "{% if v is string %}text{% elif v is boolean %}flag{% elif v is integer %}whole{% elif v is number %}real"
    "{% elif v is mapping %}map{% elif v is none %}nothing{% else %}list{% endif %}"
)
JSON = form('{"name": "$name", "arguments": $arguments}')


class Vocabulary:
    bos_id = None
    bos_token = "<s>"
    eos_token = "</s>"
    add_bos = False

    def __init__(self, *control_texts: str) -> None:
        self.control_texts = control_texts

    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]:
        raise AssertionError("the prompts of a probe are not tokenized")


def turns(answer: str, prompt: str = "", tools: str = "{{ tools | tojson }}") -> str:
    """A template that writes the assistant's messages like this, and nothing else of note."""
    return (
        f"{{% if tools %}}<|system|>{tools}<|over|>\n{{% endif %}}"
        "{% for m in messages %}<|{{ m.role }}|>"
        f"{{% if m.role == 'assistant' %}}{answer}{{% else %}}{{{{ m.content }}}}{{% endif %}}<|over|>\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|assistant|>{prompt}{{% endif %}}"
    )


def learned(source: str, *control_texts: str) -> Learned:
    return learn(ChatTemplate(source, Vocabulary("<|over|>", *control_texts)))


SHAPES: dict[str, tuple[str, Calls]] = {
    "a JSON object between tags": (
        EACH + LINE + "<call>\n" + FUNCTION + "\n</call>" + END,
        Calls((form('<call>\n{"name": "$name", "arguments": $arguments}\n</call>'),), separator="\n"),
    ),
    "all calls in one list": (
        "{% if m.tool_calls %}[CALLS][" + EACH + FUNCTION + COMMA + END + "]{% endif %}",
        Calls((JSON,), begin="[CALLS][", separator=", ", end="]"),
    ),
    "a section around calls": (
        "{% if m.tool_calls %}<|calls|>"
        + EACH
        + "<|call|>"
        + NAME
        + "<|of|>"
        + ARGUMENTS
        + "<|/call|>"
        + END
        # the end of the section and a mark that ends the turn
        + "<|/calls|><|stop|>{% endif %}",
        Calls((form("<|call|>$name<|of|>$arguments<|/call|>"),), begin="<|calls|>", end="<|/calls|>"),
    ),
    "the name as key": (
        EACH + '<do>{"' + NAME + '": ' + ARGUMENTS + "}</do>" + END,
        Calls((form('<do>{"$name": $arguments}</do>'),)),
    ),
    "arguments before the name": (
        EACH + '<do>{"with": ' + ARGUMENTS + ', "call": "' + NAME + '"}</do>' + END,
        Calls((form('<do>{"with": $arguments, "call": "$name"}</do>'),)),
    ),
    "JSON without a mark": (
        EACH + '{"tool": "' + NAME + '", "input": ' + ARGUMENTS + "}" + END,
        Calls((form('{"tool": "$name", "input": $arguments}'),), bare=True),
    ),
    "JSON in a JSON string": (
        EACH + '<call>{"name": "' + NAME + '", "arguments": {{ c.function.arguments | tojson | tojson }}}</call>' + END,
        Calls((form('<call>{"name": "$name", "arguments": $arguments}</call>'),), JsonArguments(quoted=True)),
    ),
    "indented JSON in a fence": (
        EACH + LINE + "```json\n{{ c.function | tojson(indent=2) }}\n```" + END,
        Calls(
            (form('```json\n{\n  "name": "$name",\n  "arguments": $arguments\n}\n```'),),
            JsonArguments(layout="indented"),
            separator="\n",
        ),
    ),
    "ids": (
        EACH + "[CALL]{{ c.id }} " + NAME + " " + ARGUMENTS + END,
        Calls((form("[CALL]$id $name $arguments"),)),
    ),
    "numbers": (
        EACH + "<call {{ loop.index }}>" + FUNCTION + "</call {{ loop.index }}>" + END,
        Calls((form('<call $index>{"name": "$name", "arguments": $arguments}</call $index>'),)),
    ),
    "JSON that the template writes itself": (
        EACH
        + "<c>"
        + NAME
        + "{{ '{' }}"
        + ITEMS
        + '"{{ k }}": {% if v is string %}"{{ v }}"{% else %}{{ v }}{% endif %}'
        + COMMA
        + END
        + "{{ '}' }}</c>"
        + END,
        Calls((form("<c>$name$arguments</c>"),)),
    ),
    "pipes around arguments": (
        EACH + "<c>" + NAME + "|" + ITEMS + "{{ k }}=" + VALUE + "|" + END + "</c>" + END,
        Calls((form("<c>$name|$arguments</c>"),), TaggedArguments(form("$key=$value|"))),
    ),
    "numbers in a list": (
        EACH + LINE + "{{ loop.index }}. " + NAME + "(" + ARGUMENTS + ")" + END,
        Calls((form("$index. $name($arguments)"),), separator="\n", bare=True),
    ),
    "indented lines": (
        EACH + "<c>\nname: " + NAME + "\nwith:\n" + ITEMS + "  {{ k }}: " + VALUE + "\n" + END + "</c>" + END,
        Calls((form("<c>\nname: $name\nwith:\n  $arguments</c>"),), TaggedArguments(form("$key: $value\n"), "  ")),
    ),
    "pipes": (
        EACH + "|call|" + NAME + "|" + ARGUMENTS + "|end|" + END,
        Calls((form("|call|$name|$arguments|end|"),)),
    ),
    "labels": (
        EACH + LINE + "Action: " + NAME + "\nInput: " + ARGUMENTS + END,
        Calls((form("Action: $name\nInput: $arguments"),), separator="\n"),
    ),
    "a tag for each argument": (
        EACH + "<fn=" + NAME + ">\n" + ITEMS + "<p={{ k }}>\n" + VALUE + "\n</p>\n" + END + "</fn>" + END,
        Calls((form("<fn=$name>\n$arguments\n</fn>"),), TaggedArguments(form("<p=$key>\n$value\n</p>"), "\n")),
    ),
    "attributes with types": (
        EACH
        + '<c n="'
        + NAME
        + '">'
        + ITEMS
        + '<a n="{{ k }}" t="'
        + TYPE
        + '">'
        + VALUE
        + "</a>"
        + END
        + "</c>"
        + END,
        Calls(
            (form('<c n="$name">$arguments</c>'),),
            TaggedArguments(
                form('<a n="$key" t="$type">$value</a>'),
                types=(
                    ("string", "text"),
                    ("integer", "whole"),
                    ("number", "real"),
                    ("boolean", "flag"),
                    ("object", "map"),
                    ("array", "list"),
                    ("null", "nothing"),
                ),
            ),
        ),
    ),
    "the key as the value's tag": (
        EACH + "<c>" + NAME + ITEMS + "<{{ k }}>" + VALUE + "</{{ k }}>" + END + "</c>" + END,
        Calls((form("<c>$name$arguments</c>"),), TaggedArguments(form("<$key>$value</$key>"))),
    ),
    "an object as tags": (
        "{% macro tags(map) %}{% for k, v in map.items() %}<{{ k }}>{% if v is mapping %}{{ tags(v) }}"
        "{% else %}"
        + VALUE
        + "{% endif %}</{{ k }}>{% endfor %}{% endmacro %}"
        + EACH
        + "<c><n>"
        + NAME
        + "</n>{{ tags(c.function.arguments) }}</c>"
        + END,
        Calls(
            (form("<c><n>$name</n>$arguments</c>"),), TaggedArguments(form("<$key>$value</$key>"), encoding="nested")
        ),
    ),
    "key and value in tags": (
        EACH + "<c>" + NAME + "\n" + ITEMS + "<k>{{ k }}</k>\n<v>" + VALUE + "</v>\n" + END + "</c>" + END,
        Calls((form("<c>$name\n$arguments\n</c>"),), TaggedArguments(form("<k>$key</k>\n<v>$value</v>"), "\n")),
    ),
    "lines like YAML": (
        EACH + "<c>\nname: " + NAME + "\n" + ITEMS + "{{ k }}: " + VALUE + "\n" + END + "</c>" + END,
        Calls((form("<c>\nname: $name\n$arguments</c>"),), TaggedArguments(form("$key: $value\n"))),
    ),
    "marks that begin and end with one token": (
        EACH
        + "<|open|>call n="
        + NAME
        + "<|sep|>"
        + ITEMS
        + "<|open|>arg n={{ k }}<|sep|>"
        + VALUE
        + "<|close|>arg<|sep|>"
        + END
        + "<|close|>call<|sep|>"
        + END,
        Calls(
            (form("<|open|>call n=$name<|sep|>$arguments<|close|>call<|sep|>"),),
            TaggedArguments(form("<|open|>arg n=$key<|sep|>$value<|close|>arg<|sep|>")),
        ),
    ),
    "CDATA": (
        EACH + "<c>" + NAME + ITEMS + "<{{ k }}>{% if v is string and ('<' in v or '\n' in v) %}<![CDATA[{{ v }}]]>"
        "{% else %}" + VALUE + "{% endif %}</{{ k }}>" + END + "</c>" + END,
        Calls((form("<c>$name$arguments</c>"),), TaggedArguments(form("<$key>$value</$key>"), cdata=True)),
    ),
    "Python calls in a list": (
        "{% if m.tool_calls %}<py>[" + EACH + NAME + "(" + ITEMS + "{{ k }}={% if v is string %}'{{ v }}'"
        "{% else %}{{ v }}{% endif %}" + COMMA + END + ")" + COMMA + END + "]</py>{% endif %}",
        Calls(
            (form("$name($arguments)"),),
            TaggedArguments(form("$key=$value"), ", ", "python"),
            begin="<py>[",
            separator=", ",
            end="]</py>",
        ),
    ),
    "calls with JSON values": (
        EACH + "`" + NAME + "(" + ITEMS + "{{ k }}: {{ v | tojson }}" + COMMA + END + ")`" + END,
        Calls((form("`$name($arguments)`"),), TaggedArguments(form("$key: $value"), ", ", "json")),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_of_each_shape_are_learned(shape: str) -> None:
    answer, expected = SHAPES[shape]
    found = learned(turns(CONTENT + answer), "<|call|>", "<|open|>", "<|sep|>", "<|close|>")
    assert found.syntax.calls == expected
    assert (found.lists_tools, found.renders_calls, found.arguments_as_text) == (True, True, False)
    assert found.syntax.ends[0] == "<|over|>"


UNLEARNABLE = {
    "no calls": CONTENT,
    "Python's text of a list": CONTENT + "{{ m.tool_calls or '' }}",
    "the end of a value is not visible": CONTENT + EACH + "$ " + NAME + ITEMS + " --{{ k }}={{ v }}" + END + END,
    "values are escaped": CONTENT + EACH + "<c>" + NAME + ITEMS + "<{{ k }}>{{ v | e }}</{{ k }}>" + END + "</c>" + END,
    "one call differs from two": (
        CONTENT + EACH + "{% if loop.length > 1 %}<several>{% else %}<single>{% endif %}" + FUNCTION + END
    ),
    "the name is not written": CONTENT + EACH + "<c>" + ARGUMENTS + "</c>" + END,
}


@pytest.mark.parametrize("reason", UNLEARNABLE)
def test_calls_that_cannot_be_written_back_are_not_learned(reason: str) -> None:
    assert learned(turns(UNLEARNABLE[reason])).syntax.calls is None


def test_arguments_are_given_as_text_to_a_template_that_writes_them_as_they_are() -> None:
    found = learned(
        turns(CONTENT + EACH + '<call>{"name": "' + NAME + '", "arguments": {{ c.function.arguments }}}' + END)
    )
    assert found.syntax.calls == Calls((form('<call>{"name": "$name", "arguments": $arguments}'),))
    assert found.arguments_as_text


def test_calls_are_learned_from_a_template_that_takes_one_call_or_needs_its_result() -> None:
    expected = Calls((form('<call>{"name": "$name", "arguments": $arguments}</call>'),))
    one = "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    call = EACH + "<call>" + FUNCTION + "</call>" + END
    assert learned(turns(CONTENT + one + call)).syntax.calls == expected
    assert learned(turns(CONTENT + "{% if not loop.last %}" + call + "{% endif %}")).syntax.calls == expected
    assert (
        learned(turns("{% if m.tool_calls %}" + call + "{% else %}" + CONTENT + "{% endif %}")).syntax.calls == expected
    )


def test_marks_of_a_text_in_front_of_calls_are_no_part_of_them() -> None:
    call = EACH + "<call>" + FUNCTION + "</call>" + END
    expected = Calls((form('<call>{"name": "$name", "arguments": $arguments}</call>'),))
    marked = "{% if m.tool_calls %}<|say|>{{ m.content }}<|/say|>{% else %}" + CONTENT + "{% endif %}"
    of_its_own = (
        "{% if m.tool_calls and m.content %}{{ m.content }}<|over|><|assistant|>{% else %}" + CONTENT + "{% endif %}"
    )
    assert learned(turns(marked + call)).syntax.calls == expected
    assert learned(turns(of_its_own + call)).syntax.calls == expected


def test_ids_of_nine_letters_are_learned() -> None:
    check = "{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    found = learned(turns(CONTENT + EACH + check + "[CALL]" + NAME + ARGUMENTS + END))
    assert found.syntax.calls is not None
    assert found.syntax.calls.id_pattern == "[a-zA-Z0-9]{9}"


def test_a_prompt_without_the_tools_is_seen() -> None:
    found = learned(turns(CONTENT + EACH + "<c>" + FUNCTION + "</c>" + END, tools="You have tools."))
    assert not found.lists_tools
    assert found.renders_calls


REASON = "{% if m.reasoning_content %}"
THOUGHTS: dict[str, tuple[str, Thoughts]] = {
    "tags": (
        turns(REASON + "<mull>\n{{ m.reasoning_content }}\n</mull>\n\n{% endif %}" + CONTENT),
        Thoughts(("<mull>",), ("</mull>",)),
    ),
    "brackets": (
        turns(REASON + "[[{{ m.reasoning_content }}]]{% endif %}" + CONTENT),
        Thoughts(("[[",), ("]]",)),
    ),
    "a symbol": (
        turns(REASON + "🤔{{ m.reasoning_content }}💡{% endif %}" + CONTENT),
        Thoughts(("🤔",), ("💡",)),
    ),
    "headings": (
        turns(REASON + "### Thinking\n{{ m.reasoning_content }}\n### Answer\n{% endif %}" + CONTENT),
        Thoughts(("### Thinking",), ("### Answer",)),
    ),
    "the prompt and all turns begin it": (
        turns("<mull>{{ m.reasoning_content or '' }}</mull>" + CONTENT, prompt="<mull>"),
        Thoughts(("<mull>",), ("</mull>",)),
    ),
    "the end mark alone": (
        turns(REASON + "<mull>{{ m.reasoning_content }}{% endif %}</mull>" + CONTENT),
        Thoughts(("<mull>",), ("</mull>",), unopened=True),
    ),
    "an ordinary word begins it": (
        turns(REASON + "My thoughts: {{ m.reasoning_content }} [FINAL ANSWER]{% endif %}" + CONTENT),
        Thoughts((), ("[FINAL ANSWER]",)),
    ),
    "only beside calls": (
        turns("{% if m.thinking and m.tool_calls %}<mull>{{ m.thinking }}</mull>{% endif %}" + CONTENT),
        Thoughts(("<mull>",), ("</mull>",)),
    ),
    "thoughts as a part of the content": (
        turns(
            "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
            "{% if p.type == 'thinking' %}<mull>{{ p.thinking }}</mull>{% else %}{{ p.text }}{% endif %}"
            "{% endfor %}{% endif %}"
        ),
        Thoughts(("<mull>",), ("</mull>",)),
    ),
    "an empty thought in the prompt": (
        turns(CONTENT, "{% if not enable_thinking %}<|in>thought\n<in|>{% endif %}"),
        Thoughts(("<|in>thought",), ("<in|>",)),
    ),
    "thoughts that the template drops": (
        turns("{{ (m.content or '').split('[/MY_THINKING]')[-1] }}"),
        Thoughts(("[MY_THINKING]",), ("[/MY_THINKING]",)),
    ),
}


@pytest.mark.parametrize("shape", THOUGHTS)
def test_thoughts_are_learned(shape: str) -> None:
    source, expected = THOUGHTS[shape]
    found = learned(source)
    assert found.syntax.thoughts == expected
    assert found.syntax.content is None


@pytest.mark.parametrize(
    "answer",
    [CONTENT, REASON + "I thought: {{ m.reasoning_content }}\n\n{% endif %}" + CONTENT, "{{ m.content | tojson }}"],
)
def test_ordinary_text_is_no_mark_of_thoughts(answer: str) -> None:
    assert learned(turns(answer)).syntax.thoughts is None


def test_switches_change_the_prompt() -> None:
    prompt = (
        "{% if enable_thinking is defined and not enable_thinking %}<mull></mull>{% endif %}"
        "{% if ponder %}<mull>{% endif %}{{ date_string or 'today' }}{% if polite %}Please!{% endif %}"
    )
    found = learned(turns(REASON + "<mull>{{ m.reasoning_content }}</mull>{% endif %}" + CONTENT, prompt))
    assert found.switches == ("enable_thinking", "ponder")


def test_switches_are_found_beside_the_tags_of_training() -> None:
    source = turns(CONTENT, "{% if thinking %}<mull>{% endif %}")
    assert learned("{% generation %}" + source + "{% endgeneration %}").switches == ("thinking",)


def test_a_wrapper_of_the_text_is_learned_with_thoughts_and_calls_beside_it() -> None:
    answer = (
        REASON + "<|open|>thought<|sep|>{{ m.reasoning_content }}<|close|>thought<|sep|>{% endif %}"
        "{% if m.content %}<|open|>text<|sep|>{{ m.content }}<|close|>text<|sep|>{% endif %}"
        "{% if m.tool_calls %}<|open|>tools<|sep|>" + EACH + FUNCTION + END + "<|close|>tools<|sep|>{% endif %}"
    )
    assert learned(turns(answer), "<|open|>", "<|sep|>", "<|close|>").syntax == AnswerSyntax(
        Thoughts(("<|open|>thought<|sep|>",), ("<|close|>thought<|sep|>",)),
        Wrapper(("<|open|>text<|sep|>",), ("<|close|>text<|sep|>",)),
        Calls((JSON,), begin="<|open|>tools<|sep|>", end="<|close|>tools<|sep|>"),
        ends=("<|over|>",),
    )


def test_the_header_of_a_message_behind_the_thoughts_is_noise() -> None:
    answer = REASON + "<|think|>{{ m.reasoning_content }}<|/think|><|go|>on{% endif %}<|text|>" + CONTENT + "<|/text|>"
    syntax = learned(turns(answer)).syntax
    assert (syntax.content, syntax.noise) == (Wrapper(("<|text|>",), ("<|/text|>",)), ("<|go|>on",))


def test_a_header_that_differs_in_white_space_is_no_wrapper() -> None:
    source = (
        "{% for m in messages %}\n\n<|{{ m.role }}|>\n\n{{ m.content }}<|over|>\n\n{% endfor %}\n"
        "{% if add_generation_prompt %}\n <|assistant|>\n{% endif %}\n"
    )
    assert learned(source).syntax == AnswerSyntax(ends=("<|over|>",))


def test_the_end_of_a_turn_is_learned_if_only_the_next_turn_shows_it() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' and not loop.first %}<|over|>{% endif %}<|{{ m.role }}|>"
        "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert learned(source).syntax.ends == ("<|over|>",)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "{{ raise_exception('no') }}",
        "{{ messages[5].content.x }}",
        "{{ 1 / 0 }}",
        "{% for m in messages %}{{ m }}{% endfor %}",
    ],
)
def test_nothing_is_learned_from_templates_that_fail(source: str) -> None:
    assert learned(source).syntax == AnswerSyntax()


def test_a_line_describes_what_was_learned() -> None:
    thinking = REASON + "<mull>{{ m.reasoning_content }}</mull>{% endif %}" + CONTENT
    lines = {
        thinking + SHAPES["a JSON object between tags"][0]: "tool calls: <call> JSON, thoughts: <mull>",
        CONTENT + SHAPES["a tag for each argument"][0]: "tool calls: <fn= tags, thoughts: none",
        CONTENT + SHAPES["Python calls in a list"][0]: "tool calls: <py> Python, thoughts: none",
        CONTENT + SHAPES["JSON without a mark"][0]: "tool calls: JSON, thoughts: none",
        CONTENT + SHAPES["labels"][0]: "tool calls: Action: JSON, thoughts: none",
        CONTENT: "tool calls: in words, thoughts: none",
    }
    assert {answer: describe(learned(turns(answer))) for answer in lines} == lines


FAMILIES = {
    "gemma-2": "tool calls: in words, thoughts: none",
    "hermes-2-pro": "tool calls: <tool_call> JSON, thoughts: none",
    "llama-3.1": "tool calls: JSON, thoughts: none",
    "llama-3.2": "tool calls: JSON, thoughts: none",
    "mistral-nemo": "tool calls: [TOOL_CALLS] JSON, thoughts: none",
    "mistral-small-3.2": "tool calls: [TOOL_CALLS] JSON, thoughts: none",
    "phi-3.5": "tool calls: in words, thoughts: none",
    "qwen-2.5": "tool calls: <tool_call> JSON, thoughts: none",
    "qwen-3": "tool calls: <tool_call> JSON, thoughts: <think>",
    "qwen-3-coder": "tool calls: <tool_call> tags, thoughts: none",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_templates_of_families_are_described(family: str) -> None:
    source = (Path(__file__).parent / "templates" / f"{family}.jinja").read_text()
    assert describe(learned(source)) == FAMILIES[family]


def test_a_split_gives_the_texts_again() -> None:
    texts = (
        ("<a><b>", "</b><b>", "</b></a>"),
        ("[{", "}, {", "}]"),
        ("<x>", "</x>\n<x>", "</x>"),
        ("|", "|", "|"),
        ("", "", ""),
    )
    for before, middle, after in texts:
        split = repeated(before, middle, after)
        assert split.begin + split.item_begin == before
        assert split.item_end + split.separator + split.item_begin == middle
        assert split.item_end + split.end == after


def test_marks_with_a_word_between_them_belong_together() -> None:
    assert first_mark("<|close|>text<|sep|><|over|>") == "<|close|>text<|sep|>"
    assert first_mark(" </mull>\n\nText") == "</mull>"
    assert first_mark("### Answer\nText") == "### Answer"
    assert first_mark("Text") == ""
