"""Chat templates of no known family: answers, prompts and grammars are as these templates write them."""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from llguidance import LLMatcher, LLTokenizer

from api.text.template import ChatTemplate, PromptEnd
from scheduler.llama.model import Model
from tests.api.text.dialects.made_up import IN_WORDS, KINDS, MadeUp
from tests.api.text.dialects.made_up_more import STRIPPED, VARIATIONS
from tests.api.text.dialects.served import Answer, Call, Served, StubVocabulary

SIZES: Final = (0, 1, 3)
"""Characters of an answer's tokens; 0 for words."""

TURN_ENDS: Final = (PromptEnd.MESSAGES, PromptEnd.NEW_TURN)


def function(name: str, description: str, properties: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS: Final = [
    function(
        "get_weather",
        "The weather of a city.",
        {"city": {"type": "string", "description": "Where."}, "days": {"type": "integer", "description": "How many."}},
        ["city"],
    ),
    function("clock", "The time.", {}),
    function(
        "save",
        "Saves a note.",
        {
            "text": {"type": "string"},
            "title": {"type": "string"},
            "count": {"type": "integer"},
            "ratio": {"type": "number"},
            "exact": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "options": {
                "type": "object",
                "properties": {
                    "depth": {"type": "integer"},
                    "name": {"type": "string"},
                    "inner": {"type": "object", "properties": {"on": {"type": "boolean"}}},
                },
            },
            "note": {"type": ["string", "null"]},
        },
    ),
]
QUESTION: Final = {"role": "user", "content": "QUESTION-1 please"}
RULE: Final = {"role": "system", "content": "RULE-2 holds"}
IDS: Final = ("callab12C", "callef34G")
LISBON: Final = Call("get_weather", {"city": "Lisbon", "days": 3})
OPORTO: Final = Call("get_weather", {"city": "Oporto", "days": 1})


def save(**arguments: Any) -> Answer:
    return Answer(calls=(Call("save", arguments),))


ANSWERS: Final[dict[str, Answer]] = {
    "text": Answer("Hello, world!\nWhat's up?"),
    "marks in text": Answer('Use <b>bold</b>, {"key": "value"}, [1, 2] and 2 < 3 | 4; so!\n- milk\n- name: eggs\n'),
    "thoughts and text": Answer("Sunny.", "Hm.\nLisbon, then [1]."),
    "thoughts and call": Answer("", "Hm.", (LISBON,)),
    "thoughts, text and call": Answer("Let me look.", "Hm.", (LISBON,)),
    "one call": Answer(calls=(LISBON,)),
    "two calls": Answer(calls=(LISBON, OPORTO)),
    "two functions": Answer(calls=(LISBON, Call("clock", {}))),
    "no arguments": Answer(calls=(Call("clock", {}),)),
    "no arguments, then some": Answer(calls=(Call("clock", {}), LISBON)),
    "text and call": Answer("Let me look.", calls=(LISBON,)),
    "another order": Answer(calls=(Call("get_weather", {"days": 3, "city": "Lisbon"}),)),
    "quotes": save(text='say "hi" in C:\\temp, it\'s a < b & c > d', title="Zürich 😀"),
    "lines": save(text="first\nsecond\n\n  third: 3", title="t"),
    "code": save(text='def f(a="x"):\n    return {"k": [a]}', title="</b> [/x]"),
    "numbers": save(count=-3, ratio=0.5, exact=True),
    "zero and false": save(count=0, ratio=12.25, exact=False),
    "list": save(tags=["a", "b c", 'd, "e"']),
    "object": save(options={"depth": 2, "name": "x y", "inner": {"on": False}}),
    "null": save(note=None),
    "nullable text": save(note="later"),
    "text of digits": save(text="42", title="true"),
    "empty text": save(text="", title="t"),
    "empty list and object": save(tags=[], options={}),
}
"""What a client must get. The model's answer is what the template writes of it."""
WITHOUT_TOOLS: Final = ("text", "marks in text", "thoughts and text")

STAND_INS: Final = (3, 5, 6, 7, 8, 9)
"""Control tokens of SmolLM2: <repo_name>, <file_sep> and so on."""
TEMPLATES: Final = {made_up.name: made_up for made_up in (*KINDS, *VARIATIONS, *IN_WORDS, STRIPPED)}
ALL: Final = [made_up for made_up in (*KINDS, *VARIATIONS) if not made_up.in_words]
"""Templates whose calls can be learned."""


def names(templates: Sequence[MadeUp]) -> list[str]:
    return [made_up.name for made_up in templates]


def cases(made_up: MadeUp) -> list[str]:
    """The answers that the template can write."""
    return [
        case
        for case, answer in ANSWERS.items()
        if case not in made_up.lacks and (made_up.thought or not answer.reasoning)
    ]


@functools.cache
def served(name: str) -> Served:
    """With the template's control tokens. SmolLM2's stand in for them, so that its vocabulary can check grammars."""
    controls = TEMPLATES[name].controls
    return Served(TEMPLATES[name].source, controls, dict(zip(controls, STAND_INS, strict=False)))


@functools.cache
def plain(name: str) -> Served:
    """With a vocabulary in which all marks are text."""
    return Served(TEMPLATES[name].source) if TEMPLATES[name].controls else served(name)


def message(made_up: MadeUp, answer: Answer) -> dict[str, Any]:
    """An assistant's message as the template takes it."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message[made_up.reasoning_key] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": IDS[i],
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False)
                    if made_up.takes_text
                    else call.arguments,
                },
            }
            for i, call in enumerate(answer.calls)
        ]
    return message


def results(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": IDS[i], "name": call.name, "content": f"RESULT-{i} sunny"}
        for i, call in enumerate(answer.calls)
    ]


@functools.cache
def compiled(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name].source, StubVocabulary(TEMPLATES[name].source))


def thinking(made_up: MadeUp, *, is_on: bool) -> dict[str, Any]:
    return {made_up.switch: is_on} if made_up.opens else {}


@functools.cache
def own_prompt(name: str) -> str:
    """The template's own prompt for the question."""
    return compiled(name).text([QUESTION], TOOLS, thinking(TEMPLATES[name], is_on=True))


def turn(made_up: MadeUp, answer: Answer) -> str:
    """What follows the prompt in the template's own writing of the conversation with this answer and its results."""
    template, on = compiled(made_up.name), thinking(made_up, is_on=True)
    messages = [QUESTION, message(made_up, answer), *results(answer)]
    prompt = own_prompt(made_up.name)
    text = template.text(messages, TOOLS, on, end=PromptEnd.MESSAGES)
    assert text.startswith(prompt), (prompt, text)
    return text[len(prompt) :]


def written(made_up: MadeUp, answer: Answer) -> str:
    """The turn up to its end mark: what a model answers."""
    if made_up.opens and not answer.reasoning:
        answer = Answer(answer.content, "Hm.", answer.calls)
    return turn(made_up, answer).partition(made_up.end)[0]


def expected(made_up: MadeUp, answer: Answer) -> Answer:
    return Answer(answer.content, "Hm.", answer.calls) if made_up.opens and not answer.reasoning else answer


def asked(made_up: MadeUp, *, tools: bool = True, thinks: bool = True, **more: Any) -> dict[str, Any]:
    body = {"messages": [QUESTION], "chat_template_kwargs": thinking(made_up, is_on=thinks)}
    return body | ({"tools": TOOLS} if tools else {}) | more


def check(model: Served, body: dict[str, Any], raw: str, answer: Answer, sizes: Sequence[int] = SIZES) -> None:
    """A client gets this answer, however the model's tokens cut it. White space at the ends of texts is free."""
    for size in sizes:
        got = model.answer(body, raw, size)
        assert Answer(got.content.strip(), got.reasoning.strip(), got.calls) == Answer(
            answer.content.strip(), answer.reasoning.strip(), answer.calls
        ), (size, raw)


def check_case(made_up: MadeUp, case: str) -> None:
    model, raw, answer = served(made_up.name), written(made_up, ANSWERS[case]), expected(made_up, ANSWERS[case])
    sizes = (0, 1) if any(call.name == "save" for call in answer.calls) else SIZES
    check(model, asked(made_up), raw, answer, sizes)
    if case in WITHOUT_TOOLS:
        check(model, asked(made_up, tools=False), raw, answer)


def problem(made_up: MadeUp, case: str) -> str:
    """Why a client does not get this answer; empty if it gets it."""
    try:
        check_case(made_up, case)
    except (AssertionError, ValueError) as error:
        return str(error) or repr(error)
    return ""


# The data itself


@pytest.mark.parametrize("name", names(ALL))
def test_the_answers_by_hand_are_what_the_template_writes(name: str) -> None:
    made_up = TEMPLATES[name]
    assert written(made_up, ANSWERS["one call"]) == made_up.one
    assert written(made_up, ANSWERS["two calls"]) == made_up.two
    if made_up.thought:
        assert written(made_up, Answer("Sunny.", "Hm.")) == made_up.thought


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) >= 24
    assert len(VARIATIONS) >= 8
    assert len(IN_WORDS) >= 3
    assert len(TEMPLATES) == len(KINDS) + len(VARIATIONS) + len(IN_WORDS) + 1


# Answers


@pytest.mark.parametrize("name", names(ALL))
def test_answers_are_read_as_the_template_writes_them(name: str) -> None:
    made_up = TEMPLATES[name]
    problems = {case: why for case in cases(made_up) if (why := problem(made_up, case))}
    assert problems == {}


@pytest.mark.parametrize("name", [made_up.name for made_up in ALL if made_up.opens])
def test_with_thoughts_switched_off_an_answer_is_text(name: str) -> None:
    made_up = TEMPLATES[name]
    body = asked(made_up, thinks=False)
    check(served(name), body, "Sunny.", Answer("Sunny."))
    call = written(made_up, Answer("Sunny.", "Hm.", (LISBON,))).partition("Sunny.")[2]
    check(served(name), body, f"Sunny.{call}", Answer("Sunny.", calls=(LISBON,)))
    check(served(name), body, call, Answer(calls=(LISBON,)))


@pytest.mark.parametrize("name", [made_up.name for made_up in ALL if made_up.has_end])
def test_the_end_of_a_turn_is_no_part_of_an_answer(name: str) -> None:
    """Without a token for it, a model writes the end mark as text, and goes on with other turns."""
    made_up = TEMPLATES[name]
    for case in ("text", "one call", "two calls"):
        answer = expected(made_up, ANSWERS[case])
        check(plain(name), asked(made_up, tools=bool(answer.calls)), turn(made_up, answer), answer, (0, 1))


@pytest.mark.parametrize("name", names(ALL))
def test_text_that_only_begins_like_a_call_stays_text(name: str) -> None:
    """Control tokens in it may be dropped."""
    made_up = TEMPLATES[name]
    call = written(made_up, ANSWERS["one call"]).removeprefix(
        written(made_up, Answer("", "Hm.")) if made_up.opens else ""
    )
    text = f"Write {re.split('get_weather|arguments', call)[0].strip()} for a call."
    raw = written(made_up, Answer("TEXT", "Hm." if made_up.opens else "")).replace("TEXT", text)
    control = re.compile("|".join(map(re.escape, made_up.controls)) or "(?!)")
    for size in SIZES:
        got = served(made_up.name).answer(asked(made_up), raw, size)
        assert got.calls == ()
        assert control.sub("", got.content).split() == control.sub("", text).split()


LAST_MARK: Final = re.compile(r"(<[^<>]*>|\[/[^\[\]]*\])\s*$")


@pytest.mark.parametrize("name", [made_up.name for made_up in ALL if LAST_MARK.search(made_up.one)])
def test_a_call_without_its_last_mark_is_a_call(name: str) -> None:
    """Models end their turn early, and an end mark may be a stop string."""
    made_up = TEMPLATES[name]
    raw = LAST_MARK.sub("", made_up.one)
    check(served(name), asked(made_up), raw, expected(made_up, ANSWERS["one call"]))


@pytest.mark.parametrize("name", [made_up.name for made_up in ALL if not made_up.opens])
def test_white_space_around_calls_is_free(name: str) -> None:
    made_up = TEMPLATES[name]
    for answer, raw in ((ANSWERS["one call"], made_up.one), (ANSWERS["two calls"], made_up.two)):
        check(served(name), asked(made_up), f"\n{raw.strip()}\n", answer)


def test_thoughts_are_seen_in_answers_if_the_template_only_cuts_them() -> None:
    check(served(STRIPPED.name), asked(STRIPPED, tools=False), STRIPPED.thought, Answer("Sunny.", "Hm."))


# Prompts


def history(answer: Answer, ids: Sequence[str] = IDS) -> list[dict[str, Any]]:
    """The question, this answer and its results, as a client sends them."""
    calls = [
        {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
        for call_id, call in zip(ids, answer.calls, strict=False)
    ]
    sent: dict[str, Any] = {"role": "assistant", "content": answer.content or None, "tool_calls": calls}
    if answer.reasoning:
        sent["reasoning_content"] = answer.reasoning
    returned = [
        {"role": "tool", "tool_call_id": call_id, "content": f"RESULT-{i} sunny"}
        for i, call_id in enumerate(ids[: len(calls)])
    ]
    return [QUESTION, sent, *returned]


@pytest.mark.parametrize("name", names(ALL))
def test_an_answer_can_be_sent_back(name: str) -> None:
    """With the ids that the client got."""
    made_up = TEMPLATES[name]
    got = served(name).answer(asked(made_up), made_up.two)
    assert got.calls == (LISBON, OPORTO)
    assert len(set(got.ids)) == 2
    prompt = served(name).prompt({"messages": history(got, got.ids), "tools": TOOLS})
    assert prompt.index("Lisbon") < prompt.index("Oporto") < prompt.index("RESULT-1")


@pytest.mark.parametrize("name", names(ALL))
def test_the_prompt_has_all_that_was_said_in_the_templates_own_form(name: str) -> None:
    made_up = TEMPLATES[name]
    for case in ("one call", "two calls", "text and call"):
        if case in made_up.lacks:
            continue
        answer = expected(made_up, ANSWERS[case])
        prompt = served(name).prompt({"messages": [RULE, *history(answer)], "tools": TOOLS})
        assert written(made_up, answer) in prompt
        for part in ("RULE-2 holds", "QUESTION-1 please", "get_weather", "city", "days", "clock", "RESULT-0 sunny"):
            assert part in prompt
        assert "{'" not in prompt
        before, begun = (compiled(name).text([RULE, QUESTION], TOOLS, end=end) for end in TURN_ENDS)
        assert prompt.endswith(begun.removeprefix(before))


@pytest.mark.parametrize("name", [made_up.name for made_up in ALL if made_up.thought])
def test_the_prompt_has_thoughts_where_the_template_writes_them(name: str) -> None:
    """Clients send them back as `reasoning_content`, whatever field the template reads."""
    answer = ANSWERS["thoughts and call"]
    prompt = served(name).prompt({"messages": history(answer), "tools": TOOLS})
    assert written(TEMPLATES[name], answer) in prompt


@pytest.mark.parametrize("name", names(ALL))
def test_the_prompt_explains_nothing_that_the_template_shows(name: str) -> None:
    """The tools are listed once, as the template lists them."""
    prompt = served(name).prompt({"messages": [RULE, QUESTION], "tools": TOOLS})
    assert prompt == compiled(name).text([RULE, QUESTION], TOOLS)


@pytest.mark.parametrize("name", names(ALL))
def test_a_prompt_without_tools_lists_none(name: str) -> None:
    """For the template, `tools` is undefined then."""
    with_tools = compiled(name).text([RULE, QUESTION], TOOLS)
    prompt = served(name).prompt({"messages": [RULE, QUESTION]})
    assert len(prompt) < len(with_tools)
    for part in ("get_weather", "null", "None", "tools", "TOOLS"):
        assert part not in prompt


# Grammars


@pytest.fixture(scope="module")
def vocabulary(model_path: str) -> Iterator[LLTokenizer]:
    model = Model(model_path, 0)
    yield model.grammar_tokenizer()
    model.close()


@functools.lru_cache(maxsize=2)
def compiled_grammar(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    assert not matcher.is_error(), (matcher.get_error(), grammar)
    return matcher


def accepts(vocabulary: LLTokenizer, grammar: str, tokens: Sequence[int]) -> bool:
    """Whether the grammar accepts this as a complete answer."""
    matcher = compiled_grammar(vocabulary, grammar).deep_copy()
    return matcher.try_consume_tokens(list(tokens)) == len(tokens) and matcher.is_accepting()


def accepts_text(vocabulary: LLTokenizer, grammar: str, text: str) -> bool:
    """White space at the ends is free."""
    variants = dict.fromkeys([text, text.strip(), text.lstrip()])
    return any(accepts(vocabulary, grammar, vocabulary.tokenize_str(variant)) for variant in variants)


@pytest.mark.parametrize("name", names(ALL))
def test_a_required_call_is_written_as_the_template_writes_it(vocabulary: LLTokenizer, name: str) -> None:
    made_up = TEMPLATES[name]
    grammar = plain(name).grammar(asked(made_up, tool_choice="required"))
    begun = re.search("get_weather", made_up.one)
    assert begun
    ended = re.match(r".*?(\n\n|</\w+>)", made_up.one, re.DOTALL) if made_up.opens else None
    thought = ended[0] if ended else ""
    for text in (made_up.one, made_up.two):
        assert accepts_text(vocabulary, grammar, text), text
    for text in (
        f"{thought}Just words.",
        made_up.one.replace("get_weather", "get_whether"),
        made_up.one.replace("get_weather", "get_weather_at"),
        made_up.one[: begun.end()],
    ):
        assert not accepts_text(vocabulary, grammar, text), text


@pytest.mark.parametrize("name", names(ALL))
def test_a_required_call_has_values_of_each_type(vocabulary: LLTokenizer, name: str) -> None:
    made_up = TEMPLATES[name]
    grammar = plain(name).grammar(asked(made_up, tool_choice="required"))
    refused = [
        (case, text)
        for case in cases(made_up)
        if ANSWERS[case].calls and not ANSWERS[case].content and not ANSWERS[case].reasoning
        if case != "another order"
        for text in [written(made_up, ANSWERS[case])]
        if not accepts_text(vocabulary, grammar, text)
    ]
    assert refused == []


@pytest.mark.parametrize("name", names(ALL))
def test_one_call_means_one_and_a_named_function_means_this_one(vocabulary: LLTokenizer, name: str) -> None:
    made_up = TEMPLATES[name]
    single = plain(name).grammar(asked(made_up, tool_choice="required", parallel_tool_calls=False))
    assert accepts_text(vocabulary, single, made_up.one)
    assert not accepts_text(vocabulary, single, made_up.two)
    named = plain(name).grammar(asked(made_up, tool_choice={"type": "function", "function": {"name": "clock"}}))
    clock = written(made_up, ANSWERS["no arguments"])
    assert accepts_text(vocabulary, named, clock)
    assert not accepts_text(vocabulary, named, made_up.one)


@pytest.mark.parametrize("name", names(ALL))
def test_with_a_free_choice_text_and_calls_are_accepted(vocabulary: LLTokenizer, name: str) -> None:
    made_up = TEMPLATES[name]
    grammar = plain(name).grammar(asked(made_up))
    refused = [
        (case, text)
        for case in cases(made_up)
        if not any(call.name == "save" for call in ANSWERS[case].calls) and case != "another order"
        for text in [written(made_up, ANSWERS[case])]
        if grammar and not accepts_text(vocabulary, grammar, text)
    ]
    assert refused == []


@pytest.mark.parametrize("name", [made_up.name for made_up in ALL if made_up.controls])
def test_control_tokens_are_written_as_such(vocabulary: LLTokenizer, name: str) -> None:
    """Other control tokens stand in for the template's, which this vocabulary lacks."""
    made_up = TEMPLATES[name]
    ids = served(name).vocabulary.special_ids
    grammar = served(name).grammar(asked(made_up, tool_choice="required"))
    for text in (made_up.one, made_up.two):
        parts = re.split(f"({'|'.join(map(re.escape, made_up.controls))})", text.strip())
        tokens = [token for part in parts for token in ([ids[part]] if part in ids else vocabulary.tokenize_str(part))]
        assert accepts(vocabulary, grammar, tokens), grammar


# Templates of which nothing can be learned

CALL_IN_WORDS: Final = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}\n</tool_call>'


@pytest.mark.parametrize("name", [name for name, made_up in TEMPLATES.items() if made_up.in_words])
def test_calls_are_explained_in_words(vocabulary: LLTokenizer, name: str) -> None:
    made_up = TEMPLATES[name]
    prompt = served(name).prompt({"messages": [RULE, *history(ANSWERS["one call"])], "tools": TOOLS})
    for part in ("RULE-2 holds", "QUESTION-1 please", "get_weather", '"city"', "clock", '"Lisbon"', "RESULT-0 sunny"):
        assert part in prompt
    assert "<tool_call>" in prompt
    assert "{'" not in prompt
    thought = made_up.thought.partition("Sunny.")[0] if made_up.opens else ""
    reasoning = "Hm." if thought else ""
    raw = f"{thought}Let me look.\n{CALL_IN_WORDS}"
    check(served(name), asked(made_up), raw, Answer("Let me look.", reasoning, (LISBON,)))
    check(served(name), asked(made_up), f"{thought}Sunny.", Answer("Sunny.", reasoning))
    grammar = plain(name).grammar(asked(made_up, tool_choice="required"))
    assert accepts(vocabulary, grammar, vocabulary.tokenize_str(thought + CALL_IN_WORDS))
    assert not accepts(vocabulary, grammar, vocabulary.tokenize_str(f"{thought}Just words."))
