"""The measures see what is right and what is wrong, on a template and on outputs written for the test."""

import dataclasses
from pathlib import Path

import pytest

from tests.families.cases import Answer, Call, Case
from tests.families.grammars import Check, check_with_controls
from tests.families.measure import measure
from tests.families.page import markdown
from tests.families.reasons import HEADING, failures_of, needless, reasons_of, unexplained
from tests.families.records import Record, as_record
from tests.families.report import details, others, table
from tests.families.results import Report, Run
from tests.stub_vocabulary import StubTokenizer

TEMPLATES = Path(__file__).parents[1] / "api" / "text" / "dialects" / "templates"
QWEN = (TEMPLATES / "qwen-3.jinja").read_text()
OUTPUT = '<think>Hm.</think>Let me see.<tool_call>{"name": "clock", "arguments": {"zone": 1}}</tool_call>'
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object"}}}
RIGHT = Case(
    template="qwen.jinja",
    line=7,
    raw=OUTPUT,
    expected=Answer("Let me see. ", "Hm.", (Call("clock", '{ "zone": 1 }'),)),
    messages=[{"role": "user", "content": "Hey"}],
    tools=[CLOCK],
    tool_choice="auto",
    parallel=False,
    thinking=True,
    format="auto",
    schema=None,
    continues="none",
)


@pytest.fixture(scope="module")
def check() -> Check:
    """On a vocabulary of bytes, which is made faster than a model's is loaded."""
    return check_with_controls(StubTokenizer(""))


def expecting(content: str, reasoning: str, *calls: Call) -> Case:
    return dataclasses.replace(RIGHT, expected=Answer(content, reasoning, calls))


def test_a_template_can_be_fully_right(check: Check) -> None:
    report = measure("qwen.jinja", QWEN, [RIGHT], check)
    assert report.is_right
    (result,) = report.results
    assert (result.verdict, result.trimmed, result.under_controls) == ("passed", True, "")
    assert report.renders == dict.fromkeys(("plain", "system", "tools", "call"), "")
    assert report.grammar.call.endswith(
        '<tool_call>\n{"name": "get_weather_at", "arguments": {"city": "Lisbon", "days": 3}}\n</tool_call>'
    )
    assert (report.grammar.one, report.grammar.two, report.grammar.under_controls) == ("", "", "")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (expecting("Let me see.", "Hm.", Call("clock", '{"zone": 2}')), "arguments differ"),
        (expecting("Let me see.", "Hm.", Call("date", '{"zone": 1}')), "other function called"),
        (expecting("Let me see.", "Hm."), "call where there is none"),
        (expecting("Let me", "Hm.", *RIGHT.expected.calls), "markup left in content"),
        (expecting("Let me see.", "", *RIGHT.expected.calls), "answer taken for thoughts"),
        (dataclasses.replace(RIGHT, raw=OUTPUT.replace("<tool_call>", "<call>")), "call not seen"),
        (dataclasses.replace(RIGHT, messages=[]), "request refused"),
    ],
)
def test_a_wrong_answer_is_not_right(case: Case, why: str) -> None:
    report = measure("qwen.jinja", QWEN, [case], None)
    assert not report.is_right
    assert [(result.verdict, result.why) for result in report.results] == [("failed", why)]


def test_a_template_that_does_not_compile_fails_in_all_cases() -> None:
    report = measure("broken.jinja", "{% if %}", [RIGHT], None)
    assert not report.is_right
    assert report.count("failed") == 1


def test_what_a_template_leaves_out_is_named() -> None:
    report = measure("a.jinja", "{% for m in messages %}{{ m.role }}{{ m.content[:8] }}{% endfor %}", [], None)
    assert report.renders["plain"] == "lost: QUESTION-1"


@pytest.mark.parametrize(
    ("kind", "grammar", "is_right"),
    [
        ("controls", "start: <[0]> /a+/", True),
        ("controls", 'start: "[[call]]" /a+/', False),
        ("user_defined", "start: <[0]> /a+/", True),
        ("user_defined", 'start: "[[call]]" /a+/', False),
        ("", 'start: "[[call]]" /a+/', True),
    ],
)
def test_a_grammar_must_name_special_tokens_by_their_ids(kind: str, grammar: str, is_right: bool) -> None:
    tokenizer = StubTokenizer("", **({kind: ["[[call]]"]} if kind else {}))
    why = check_with_controls(tokenizer)(f"%llguidance {{}}\n{grammar}", "[[call]]aa")
    assert (why == "") == is_right


# -- what is reported --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(check: Check) -> list[Report]:
    return [
        measure("qwen.jinja", QWEN, [RIGHT, expecting("", "")], check),
        measure("broken.jinja", "{% if %}", [RIGHT], check),
    ]


@pytest.fixture(scope="module")
def record(reports: list[Report]) -> Record:
    return as_record(Run(reports), "python")


def test_the_table_has_a_line_for_each_template(reports: list[Report], record: Record) -> None:
    assert [line.split()[:2] for line in list(table(reports))[1:]] == [["qwen", "native"], ["broken", "does"]]
    rows = markdown(record["templates"]).splitlines()[2:]
    assert "| all | 1 of 2 | one and two | 1 of 2, own call |" in rows[0]
    assert rows[1].startswith("| broken | does not compile")
    assert [line.split()[:2] for line in details(reports)] == [
        ["failed", "qwen.jinja:7"],
        ["failed", "broken.jinja:7"],
    ]
    assert "writes" in "\n".join(others(reports[:1]))


def test_texts_of_others_are_left_out_of_the_record(reports: list[Report], record: Record) -> None:
    assert "Let me see" not in str(record)
    assert "Let me see" in str(as_record(Run(reports), "python", with_texts=True))


def test_failures_need_a_reason(record: Record) -> None:
    failures = [("qwen", "7"), ("broken", "compile"), ("broken", "7")]
    assert list(failures_of(record)) == failures
    page = f"{HEADING}\n\n| template | what | reason |\n|---|---|---|\n| `bro*` | `compile`, 7 | a |\n| x | `*` | b |\n"
    reasons = reasons_of(f"# Title\n{page}\n## Next\n| qwen | 7 | c |\n")
    assert unexplained(record, reasons) == failures[:1]
    assert [reason.template for reason in needless(record, reasons)] == ["x"]
