"""The test cases of a C++ file are read as a compiler would run them."""

from tests.families.cases import Answer, Call, Case
from tests.families.extraction import extract

HELPERS = r"""
#include "chat.h"
using json = nlohmann::ordered_json;
struct unused { int test(int x) { return x; } };
template <typename T> static T never(const T & value) { return value; }

static common_chat_tool clock {
    /* .name = */ "clock",
    /* .description = */ "The " "time",
    /* .parameters = */ R"({"type": "object"})",
};

static common_chat_msg simple_msg(const std::string & content, const std::string & reasoning = "") {
    common_chat_msg msg;
    msg.role = "assistant";
    msg.content = content;
    msg.reasoning_content = reasoning;
    return msg;
}

static common_chat_msg hey {"user", "Hey", {}, {}, "", "", ""};
"""
"""What the file has before its test cases."""


def cases(body: str) -> list[Case]:
    extracted = extract(f"{HELPERS}\nstatic void test_all() {{\n{body}\n}}\nint main() {{ test_all(); return 0; }}\n")
    assert extracted.problems == []
    assert extracted.share == 1
    return extracted.cases


def case(body: str) -> Case:
    (only,) = cases(body)
    return only


def test_a_case_has_the_template_the_output_and_the_answer() -> None:
    found = case(r"""
        auto tst = peg_tester("models/templates/some.jinja", true);
        tst.test("<t>a\n\u00e9\"</t>" R"(\n)")  // a raw string has no escapes
            .reasoning_format(COMMON_REASONING_FORMAT_AUTO)
            .enable_thinking(false)
            .expect(simple_msg("b", "a"))
            .run();
    """)
    assert (found.template, found.raw) == ("some.jinja", '<t>a\né"</t>\\n')
    assert found.expected == Answer("b", "a", ())
    assert (found.thinking, found.format, found.skip) == (False, "auto", "")
    assert found.messages == [{"role": "user", "content": "Hey there!"}]


def test_a_case_has_tools_calls_and_messages() -> None:
    found = case(r"""
        auto tst = peg_tester("some.jinja");
        std::vector<common_chat_msg> history = { hey };
        tst.test("x").messages(history).tools({ clock }).parallel_tool_calls(true)
            .tool_choice(COMMON_CHAT_TOOL_CHOICE_REQUIRED)
            .expect_content("said")
            .expect_tool_calls({ { "clock", R"({"zone": 1})", {} } })
            .run();
    """)
    assert found.expected == Answer("said", "", (Call("clock", '{"zone": 1}'),))
    assert found.messages == [{"role": "user", "content": "Hey"}]
    assert (found.tool_choice, found.parallel) == ("required", True)
    function = {"name": "clock", "description": "The time", "parameters": {"type": "object"}}
    assert found.tools == [{"type": "function", "function": function}]


def test_loops_conditions_and_functions_run() -> None:
    found = cases(r"""
        auto add = peg_tester("some.jinja");
        std::vector<std::pair<std::string, std::string>> pairs = { {"1", "a"}, {"2", "b"} };
        for (const auto & [raw, expected] : pairs) {
            if (raw == "2" && !expected.empty()) {
                add.test(raw + "!").expect_content(expected).run();
            } else {
                add.test(raw).expect_content(expected).run();
            }
        }
        for (bool thinking : { true, false }) { add.test("x").enable_thinking(thinking).run(); }
    """)
    assert [(each.raw, each.expected.content) for each in found[:2]] == [("1", "a"), ("2!", "b")]
    assert [each.thinking for each in found[2:]] == [True, False]


def test_a_case_that_a_client_cannot_ask_for_is_skipped() -> None:
    found = cases(r"""
        auto tst = peg_tester("some.jinja");
        tst.test("x").is_partial(true).run();
        tst.test("x").expect_content("<think>a</think>b").run();
        tst.test("x").expect_content("b").run();
    """)
    assert [bool(each.skip) for each in found] == [True, True, False]


def test_a_begun_answer_becomes_a_prefill() -> None:
    found = case(r"""
        auto tst = peg_tester("some.jinja");
        tst.test(" there").messages({ hey, simple_msg("Hello") })
            .continue_final_message(COMMON_CHAT_CONTINUATION_CONTENT)
            .expect_content("Hello there")
            .run();
    """)
    assert (found.prefill, found.expected.content) == ("Hello", " there")
    assert [message["role"] for message in found.messages] == ["user"]


def test_cpp_that_is_not_understood_is_reported_by_line() -> None:
    source = 'int main() {\n  auto t = peg_tester("a.jinja");\n  // t.test("x").run();\n  t.test(f(1)).run();\n}\n'
    extracted = extract(source)
    assert extracted.cases == []
    assert (extracted.written, extracted.sites, extracted.reached) == (2, 1, 0)
    assert extracted.problems == [(4, "f()")]
