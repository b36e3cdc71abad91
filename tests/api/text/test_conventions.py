"""What real chat templates expect of a conversation besides OpenAI's form, on small templates of each kind."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from api.text.guard import TemplateRefusal
from api.text.template import CHATML, NO_VOCABULARY, ChatTemplate, PromptEnd, end_of_turn

Message = Mapping[str, Any]

TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]
QUESTION = {"role": "user", "content": "Why?"}
THOUGHTFUL = {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}


class Served(ChatTemplate):
    """A template whose prompts are texts instead of tokens."""

    def __init__(self, source: str) -> None:
        super().__init__(source, _Letters())

    def prompt(
        self,
        messages: Sequence[Message] = (QUESTION,),
        tools: Sequence[Message] | None = None,
        end: PromptEnd = PromptEnd.NEW_TURN,
        **variables: Any,
    ) -> str:
        return "".join(map(chr, self.render_tokens(messages, tools, variables, end=end)))


class _Letters:
    """A vocabulary in which each character is a token."""

    bos_id = None
    bos_token = eos_token = ""
    add_bos = False
    control_texts: tuple[str, ...] = ()

    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]:
        return list(map(ord, text))


def answer(*calls: str, arguments: object = "{}", **fields: Any) -> Message:
    made = [
        {"id": f"id_{name}", "type": "function", "function": {"name": name, "arguments": arguments}} for name in calls
    ]
    return {"role": "assistant", "content": "", "tool_calls": made} | fields


def result(name: str, content: str) -> Message:
    return {"role": "tool", "tool_call_id": f"id_{name}", "content": content}


# Variables


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ $ is defined }}", "False"),
        ("{% for each in $ %}{{ each }}{% endfor %}", ""),
        ("{% if $ is defined and $ is not none %}listed{% endif %}", ""),
        ("{% if not $ is defined %}{% set $ = none %}{% endif %}{{ $ is none }}", "True"),
        ("{% if $ is not none %}{{ $ | tojson }}{% endif %}", ""),
        ("{{ 'none' if $ is none else 'some' }}", "none"),
        ("{% if $ != none %}{{ $ | tojson }}{% endif %}", ""),
        ("{% if not ($ == none) %}Known: {% for each in $ %}{{ each }}{% endfor %}{% endif %}", ""),
        ("{% if none != $ %}Known: {% for each in $ %}{{ each }}{% endfor %}{% endif %}", ""),
        ("{% if $ is defined %}{% endif %}{% if $ is not none %}{{ $ | tojson }}{% endif %}", ""),
        ("{% set given = $ %}{% if given is not none %}{{ given | tojson }}{% endif %}", ""),
        ("{% if $ is none %}{% endif %}{% for each in $ %}{{ each }}{% endfor %}", ""),
        ("{% if tools != none %}{{ tools | tojson }}{% endif %}{% for each in documents %}{{ each }}{% endfor %}", ""),
    ],
)
def test_what_a_request_does_not_have_is_undefined_or_null_as_the_template_asks(
    name: str, source: str, expected: str
) -> None:
    assert Served(source.replace("$", name)).prompt() == expected


def test_a_client_cannot_set_what_the_conversation_has() -> None:
    template = Served("{{ tools is defined }} {{ messages | length }} {{ add_generation_prompt }} {{ bos_token }}")
    given: dict[str, Any] = {"tools": TOOLS, "messages": [], "add_generation_prompt": False, "bos_token": "x"}
    assert template.text([QUESTION], None, given) == "False 1 True "


@pytest.mark.parametrize(
    ("source", "without", "with_tools"),
    [
        ("{{ '# ' + functions }}", "# []", "# " + json.dumps([TOOLS[0]["function"]], indent=4)),
        ("{% for f in functions %}{{ f.name }}.{% endfor %}", "", "get_time."),
        ("{{ functions is defined }}", "False", "True"),
        ("{{ tools is defined }}{{ functions is defined }}", "FalseFalse", "TrueFalse"),
    ],
)
def test_tools_are_functions_for_a_template_that_knows_no_tools(source: str, without: str, with_tools: str) -> None:
    template = Served(source)
    assert template.prompt() == without
    assert template.prompt(tools=TOOLS) == with_tools


def test_the_date_is_given_to_a_template_that_reads_it() -> None:
    assert (
        Served("{{ 'Today is ' + datetime + '.' }}").prompt()
        == Served("Today is {{ strftime_now('%b %d %Y') }}.").prompt()
    )
    assert Served("{{ datetime }}").prompt(datetime="once") == "once"


# Roles


EACH = "{% for m in messages %}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'Help the developer.' }}" + EACH + "<{{ m.role }}>{{ m.content }}{% endfor %}", "system"),
        ("{# developer #}" + EACH + "<{{ m.role }}>{{ m.content }}{% endfor %}", "system"),
        ("{% for m in messages if m.role != 'developer' %}<{{ m.role }}>{{ m.content }}{% endfor %}", "system"),
        (
            EACH + "{{ raise_exception('No!') if m.role == 'developer' }}<{{ m.role }}>{{ m.content }}{% endfor %}",
            "system",
        ),
        (
            EACH + "{{ '' if m.role in 'user developer system' else 1 / 0 }}<{{ m.role }}>{{ m.content }}{% endfor %}",
            "developer",
        ),
        (EACH + "{{ '<dev' if m.role == 'developer' else '<' ~ m.role }}>{{ m.content }}{% endfor %}", "dev"),
    ],
)
def test_the_developer_role_is_kept_for_templates_that_render_it_as_their_own(source: str, expected: str) -> None:
    prompt = Served(source).prompt([{"role": "developer", "content": "Be kind."}, QUESTION])
    assert prompt.endswith(f"<{expected}>Be kind.<user>Why?")


# Changes


COUNTS = "{% set queue = namespace(ids=[]) %}{% for m in messages %}{% set _ = queue.ids.append(m.role) %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (COUNTS + "{{ queue.ids.pop(0) }} {{ queue.ids | length }}", "user 1"),
        ("{% set l = ['b'] %}{% set _ = [l.insert(0, 'a'), l.extend(['d', 'c']), l.sort()] %}{{ l | join }}", "abcd"),
        ("{% set d = {'a': 1} %}{% set _ = [d.update({'b': 2}), d.pop('a')] %}{{ d | tojson }}", '{"b": 2}'),
        ("{% set d = {} %}{{ d.setdefault('a', 1) }}{{ d.setdefault('a', 2) }}", "11"),
        ("{% macro m(l=[]) %}{% set _ = l.append(1) %}{{ l | length }}{% endmacro %}{{ m() }}{{ m() }}", "11"),
        ("{% set _ = messages[0].update({'content': 'changed'}) %}{{ messages[0].content }}", "changed"),
        ("{% set _ = messages[1].tool_calls.pop() %}{{ messages[1].tool_calls | length }}", "0"),
        ("{% set _ = tools[0].function.pop('parameters') %}{{ tools | tojson | length < 70 }}", "True"),
        ("{% set _ = tools.append('x') %}{{ tools | length }}", "2"),
        ("{% set _ = extra.words.append('x') %}{{ extra.words | length }}", "1"),
        ("{% set rest = messages[1:] %}{% set _ = rest.pop() %}{{ rest | length }} {{ messages | length }}", "0 2"),
    ],
)
def test_what_a_template_changes_reaches_no_other_rendering(source: str, expected: str) -> None:
    template = Served(source)
    messages, tools = [QUESTION, answer("get_time")], TOOLS
    extra: dict[str, list[str]] = {"words": []}
    before = copy.deepcopy((messages, tools, extra))
    for _ in range(2):
        assert template.prompt(messages, tools, extra=extra) == expected
    assert (messages, tools, extra) == before


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% set _ = messages.append(m) %}{% endfor %}",
        "{% set _ = messages.pop() %}",
        "{{ [].append.__self__.x }}",
        "{{ {}.__class__.__base__ }}",
        "{{ messages[0].__init__.x }}",
        "{{ messages[0].update.__call__() }}",
        "{% set l = [1] %}{% for x in l %}{% set _ = [1].sort(key=l.append) %}{% endfor %}",
    ],
)
def test_the_sandbox_forbids_the_rest(source: str) -> None:
    with pytest.raises(TemplateRefusal, match="unsafe"):
        Served(source).prompt()


ENDLESS = [
    "{% set l = [1] %}{% for x in l %}{% set _ = l.append(1) %}{% endfor %}",
    "{% set l = [1] %}{% for x in l %}{{ loop.index }}{% set _ = l.append(1) %}{% endfor %}",
    "{% set l = [1] %}{% set add = l.append %}{% for x in l %}{% set _ = add(1) %}{% endfor %}",
    "{% set l = [1] %}{% for x in l %}{% set _ = l.insert(0, 1) %}{% endfor %}",
    "{% set l = [1] %}{% for x in l | map('string') %}{% set _ = l.append(1) %}{% endfor %}",
    "{% set l = [1] %}{% for x in l if x %}{% set _ = l.append(1) %}{% endfor %}",
    "{% set l = [1] %}{% for x in l recursive %}{% set _ = l.append(1) %}{% endfor %}",
    "{% set l = [1] %}{% for x in l %}{% set _ = l.extend([1, 1]) %}{% endfor %}",
    "{% set l = [1] %}{% for i in range(99) %}{% set _ = l.extend(l | map('string')) %}{% endfor %}",
    "{% set l = messages[1:] %}{% for m in l %}{% set _ = l.append(m) %}{% endfor %}",
    "{% for t in tools %}{% set _ = tools.append(t) %}{% endfor %}",
    "{% set c = messages[1].tool_calls %}{% for t in c %}{% set _ = c.append(t) %}{% endfor %}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_loop_over_a_list_ends_although_its_body_makes_the_list_longer(source: str) -> None:
    with pytest.raises(TemplateRefusal, match="the model's chat template failed: it makes a list longer than 10000"):
        Served(source).prompt([QUESTION, answer("get_time")], TOOLS)


def test_long_lists_can_be_read_and_shortened() -> None:
    rest = "{% set rest = messages[1:] %}{% set _ = rest.pop() %}{{ rest | length }}"
    assert Served(rest).prompt([QUESTION] * 10_003) == "10001"
    collected = "{% set l = [] %}{% for m in messages %}{% set _ = l.append(m.role) %}{% endfor %}{{ l | length }}"
    assert Served(collected).prompt([QUESTION] * 10_000) == "10000"


# Filters


def test_arguments_can_be_read_from_json() -> None:
    source = "{% for k, v in (m.arguments | from_json).items() %}{{ k }}={{ v }}{% endfor %}"
    source = "{% set m = messages[0].tool_calls[0].function %}" + source
    assert Served(source).prompt([answer("get_time", arguments='{"zone": "UTC"}')]) == "zone=UTC"


def test_what_filters_return_can_be_written_as_json() -> None:
    template = Served("{{ tools | map(attribute='function') | map(attribute='name') | tojson }}")
    assert template.prompt(tools=TOOLS) == '["get_time"]'
    with pytest.raises(TemplateRefusal, match="not JSON serializable"):
        Served("{{ range | tojson }}").prompt()


# Thoughts


CALLS = "{% for c in m.tool_calls %}<{{ c.function.name }}>{% endfor %}"
ROLES = "{% for m in messages if m.role == 'assistant' %}"
PARTS = (
    ROLES + "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}{% if b.type == 'thinking' %}"
    "[{{ b['thinking'] }}]{% elif b.type == 'text' %}{{ b.text }}{% endif %}{% endfor %}{% endif %}|{% endfor %}"
)
BLOCKS = (
    ROLES + "{% if m.content is mapping %}{% for b in m.content.blocks %}{{ '[' + b.text + ']' if b.type == 'thoughts' "
    "else b.text }}{% endfor %}{% else %}{{ 'text: ' + m.content }}{% endif %}|{% endfor %}"
)


@pytest.mark.parametrize(
    "source",
    [
        ROLES + "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content }}|{% endfor %}",
        ROLES + "{% if 'thinking' in m %}[{{ m.thinking }}]{% endif %}{{ m.content }}|{% endfor %}",
        ROLES + "{{ '[' + m['reasoning'] + ']' if m['reasoning'] }}{{ m.content }}|{% endfor %}",
        ROLES + "{% set t = m.get('reasoning_text') %}{{ '[' + t + ']' if t }}{{ m.content }}|{% endfor %}",
        ROLES + "{% set t = m.reasoning or m.reasoning_content %}{{ '[' + t + ']' if t }}{{ m.content }}|{% endfor %}",
        PARTS,
        BLOCKS,
    ],
)
def test_thoughts_are_given_where_the_template_reads_them(source: str) -> None:
    template = Served(source)
    unthoughtful = {"role": "assistant", "content": "Yes."}
    rendered = template.prompt([QUESTION, unthoughtful, QUESTION, THOUGHTFUL])
    assert rendered == "Yes.|[Hm.]So.|"
    assert template.prompt([QUESTION, {**THOUGHTFUL, "content": ""}]) == "[Hm.]|"
    assert template.text([QUESTION, THOUGHTFUL]) == "[Hm.]So.|"


def test_thoughts_are_found_that_are_only_written_beside_calls() -> None:
    source = (
        "{% for m in messages %}{% if m.tool_calls %}{{ m.thinking }}:{{ m.tool_calls[0].function.name }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    conversation = [{"role": "user", "content": "?"}, answer("f", reasoning_content="Hm."), result("f", "!")]
    assert Served(source).prompt(conversation) == "?Hm.:f!"


def test_thoughts_are_found_behind_the_templates_switch() -> None:
    template = Served(
        ROLES + "{% if add_thoughts and m.thought %}[{{ m.thought }}]{% endif %}{{ m.content }}{% endfor %}"
    )
    assert template.prompt([QUESTION, THOUGHTFUL]) == "So."
    assert template.prompt([QUESTION, THOUGHTFUL], add_thoughts=True) == "[Hm.]So."


@pytest.mark.parametrize(
    "source",
    [
        ROLES + "{{ m.content }}{% endfor %}{{ 'thinking' }}",
        ROLES + "{{ m.content }}{% if thinking %}{{ x.thinking }}{% endif %}{% endfor %}",
        ROLES + "{{ m.content | tojson }}{{ 'thoughts' }}{% endfor %}",
    ],
)
def test_a_template_that_reads_no_thoughts_gets_the_text_alone(source: str) -> None:
    assert Served(source).prompt([QUESTION, THOUGHTFUL]).strip('"').startswith("So.")


def test_an_answer_with_thoughts_can_be_continued() -> None:
    for source in (PARTS, BLOCKS):
        assert Served(source).prompt([QUESTION, THOUGHTFUL], end=PromptEnd.OPEN_MESSAGE) == "[Hm.]So."


def test_text_joins_the_thoughts_if_a_message_with_calls_must_not_have_both() -> None:
    template = Served(
        ROLES + "{% if m.tool_calls and m.content and m.thinking %}{{ raise_exception('Both!') }}{% endif %}"
        "[{{ m.thinking }}]{{ m.content }}" + CALLS + "{% endfor %}"
    )
    assert template.prompt([QUESTION, answer("f", content="So.", reasoning_content="Hm.")]) == "[Hm.\n\nSo.]<f>"
    assert template.prompt([QUESTION, answer("f", reasoning_content="Hm.")]) == "[Hm.]<f>"
    assert template.prompt([QUESTION, answer("f", content="So.")]) == "[]So.<f>"
    assert template.prompt([QUESTION, THOUGHTFUL]) == "[Hm.]So."


# Calls


def test_the_content_of_a_call_is_null_if_the_template_otherwise_overlooks_the_call() -> None:
    strict = Served(ROLES + "{% if m.content is none %}" + CALLS + "{% else %}{{ m.content }}{% endif %}{% endfor %}")
    assert strict.prompt([QUESTION, answer("f")]) == "<f>"
    assert strict.prompt([QUESTION, {"role": "assistant", "content": ""}]) == ""
    usual = Served(ROLES + "{{ m.content + '' }}" + CALLS + "{% endfor %}")
    assert usual.prompt([QUESTION, answer("f")]) == "<f>"


REFUSES = "{% if m.tool_calls | length > 1 %}{{ raise_exception('One call!') }}{% endif %}"


@pytest.mark.parametrize(
    "written", [REFUSES + CALLS, "{% if m.tool_calls %}<{{ m.tool_calls[0].function.name }}>{% endif %}"]
)
def test_calls_are_divided_for_a_template_that_knows_one_in_a_message(written: str) -> None:
    template = Served("{% for m in messages %}{{ m.role[0] }}:{{ m.content }}" + written + "{% endfor %}")
    called = [
        QUESTION,
        answer("f", "g", "h", content="So."),
        result("h", "3"),
        result("f", "1"),
        result("x", "?"),
        QUESTION,
    ]
    assert template.prompt(called) == "u:Why?a:So.<f>t:1a:<g>a:<h>t:3t:?u:Why?"
    assert template.prompt([QUESTION, answer("f"), result("f", "1")]) == "u:Why?a:<f>t:1"
    assert template.prompt([QUESTION, answer("f", "g", content="So.")]) == "u:Why?a:So.<f>a:<g>"
    assert template.prompt([answer("f", "g"), QUESTION]) == "a:<f>a:<g>u:Why?"


def test_calls_stay_together_for_other_templates_and_in_a_templates_own_text() -> None:
    several = Served("{% for m in messages %}{{ m.content }}" + CALLS + "{% endfor %}")
    called = [QUESTION, answer("f", "g"), result("f", "1"), result("g", "2")]
    assert several.prompt(called) == "Why?<f><g>12"
    one = Served("{% for m in messages %}" + REFUSES + CALLS + "{% endfor %}")
    with pytest.raises(TemplateRefusal, match="One call!"):
        one.text(called)


# Ends


def turns(after: str, header: str = "[{{ m.role }}]", finish: str = "") -> str:
    return "{% for m in messages %}" + header + "{{ m.content }}" + after + "{% endfor %}" + finish


@pytest.mark.parametrize(
    ("source", "mark"),
    [
        (CHATML, "<|im_end|>"),
        (turns("<end_of_turn>\n"), "<end_of_turn>"),
        (turns("{% if m.role == 'assistant' %}</s>{% endif %}"), "</s>"),
        (turns("{% if m.role == 'assistant' %}</answer><|end|>{% endif %}"), "<|end|>"),
        (turns("<|end|>", "<|start|><|{{ m.role }}|>"), "<|end|>"),
        (turns("<|end|>", "<|start|>", "<|start|>assistant"), "<|end|>"),
        (turns("", "<|{{ m.role }}|>\n"), "<|user|>"),
        (turns("[e~[\n", "]~b]{{ m.role }}\n"), "[e~["),
        (turns("{{ '<|return|>' if loop.last and m.role != 'user' else '<|end|>' }}", "<|start|>"), "<|return|>"),
        (turns("\n\n", "{{ m.role }}: "), ""),
        (turns("\n\n", "### {{ m.role }}:\n"), ""),
        ("{{ raise_exception('No!') }}", ""),
        (turns("<|end|>") + "{{ raise_exception('Last!') if messages[-1].role == 'assistant' }}", "<|end|>"),
    ],
)
def test_the_end_of_a_turn_is_learned_from_the_template(source: str, mark: str) -> None:
    assert end_of_turn(ChatTemplate(source, NO_VOCABULARY)) == mark
    assert ChatTemplate(source, NO_VOCABULARY).end_marks == ((mark,) if mark else ())


def test_a_mark_of_the_vocabulary_is_no_text_that_ends_an_answer() -> None:
    vocabulary = _Letters()
    vocabulary.control_texts = ("<end_of_turn>", "<start_of_turn>")
    assert ChatTemplate(turns("<end_of_turn>"), vocabulary).end_marks == ()
    assert ChatTemplate(None, vocabulary).end_marks == ("<|im_end|>",)
