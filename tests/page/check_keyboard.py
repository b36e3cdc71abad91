"""The page without a mouse."""

import re

from playwright.sync_api import Locator, expect

from tests.page import recorded
from tests.page.visitor import Visitor

FOCUS_IS_SEEN = """
(element) => {
    const places = [element, element.parentElement, element.parentElement.parentElement];
    const look = () => places.map((place) => {
        const { outline, boxShadow, borderColor, backgroundColor } = getComputedStyle(place);
        return [outline, boxShadow, borderColor, backgroundColor].join();
    }).join();
    const focused = look();
    element.blur();
    const other = look();
    element.focus();
    return focused !== other;
}
"""
"""Whether an element, or a box around it, looks different without the focus."""


def tab_to(visitor: Visitor, target: Locator, *, key: str = "Tab", most: int = 80) -> None:
    """Presses Tab until the target has the focus. Everything on the way shows that it has it."""
    for _ in range(most):
        if target.count() and target.evaluate("(element) => element === document.activeElement"):
            return
        visitor.page.keyboard.press(key)
        focused = visitor.page.locator(":focus")
        if focused.count():
            assert focused.evaluate(FOCUS_IS_SEEN), (
                f"no focus is seen on {focused.evaluate('(e) => e.outerHTML')[:200]}"
            )
    raise AssertionError(f"{most} times {key} do not lead to {target}")


def test_a_chat_needs_no_mouse(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream("First."), recorded.stream("Second."))
    tab_to(visitor, visitor.message)
    visitor.page.keyboard.type("Hello")
    visitor.page.keyboard.press("Enter")
    expect(visitor.answers).to_contain_text("First.")
    visitor.wait_for_end()
    expect(visitor.message).to_be_focused()
    tab_to(visitor, visitor.button("Regenerate").last, key="Shift+Tab")
    visitor.page.keyboard.press("Enter")
    expect(visitor.answers).to_contain_text("Second.")
    tab_to(visitor, visitor.button("New conversation"), key="Shift+Tab")
    visitor.page.keyboard.press("Enter")
    expect(visitor.answers).to_have_count(0)
    visitor.assert_no_faults()


def test_a_line_break_needs_no_mouse(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream("First."))
    visitor.message.focus()
    visitor.page.keyboard.type("one")
    visitor.page.keyboard.press("Shift+Enter")
    visitor.page.keyboard.type("two")
    expect(visitor.message).to_have_value("one\ntwo")
    expect(visitor.questions).to_have_count(0)


def test_stop_needs_no_mouse(visitor: Visitor) -> None:
    visitor.message.fill("Tell me a long story about a friendly robot.")
    visitor.message.press("Enter")
    tab_to(visitor, visitor.button("Stop"))
    visitor.page.keyboard.press("Enter")
    visitor.wait_for_end()
    visitor.assert_no_faults()


def test_the_arrow_keys_change_the_view(visitor: Visitor) -> None:
    tab_to(visitor, visitor.tab("Chat"))
    visitor.page.keyboard.press("ArrowRight")
    expect(visitor.tab("Live")).to_be_focused()
    if visitor.tab("Live").get_attribute("aria-selected") != "true":
        visitor.page.keyboard.press("Enter")
    expect(visitor.region("Models")).to_be_visible()
    visitor.page.keyboard.press("ArrowLeft")
    expect(visitor.tab("Chat")).to_be_focused()
    visitor.assert_no_faults()


def test_the_theme_needs_no_mouse_and_is_kept(visitor: Visitor) -> None:
    switch = visitor.page.get_by_role("button", name=re.compile("^(Dark|Light) theme$"))
    before = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    tab_to(visitor, switch)
    visitor.page.keyboard.press("Enter")
    after = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    visitor.page.reload()
    expect(visitor.message).to_be_visible()
    assert visitor.page.evaluate("getComputedStyle(document.body).backgroundColor") == after
    visitor.assert_no_faults()


def test_the_key_dialog_keeps_the_focus_and_closes_with_escape(visitor: Visitor) -> None:
    tab_to(visitor, visitor.button("API key"))
    visitor.page.keyboard.press("Enter")
    expect(visitor.key_field).to_be_focused()
    for _ in range(8):
        visitor.page.keyboard.press("Tab")
        focused = visitor.page.locator(":focus")
        assert not focused.count() or focused.evaluate("(element) => element.closest('dialog') !== null")
    visitor.page.keyboard.press("Escape")
    expect(visitor.key_dialog).to_have_count(0)
    expect(visitor.button("API key")).to_be_focused()
    visitor.assert_no_faults()


def test_a_question_is_edited_without_a_mouse(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream("First."), recorded.stream("Second."))
    visitor.ask("Hello")
    tab_to(visitor, visitor.questions.get_by_role("button", name="Edit"), key="Shift+Tab")
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.get_by_role("textbox", name="Edited question")).to_be_focused()
    visitor.page.keyboard.press("Escape")
    expect(visitor.questions.get_by_role("button", name="Edit")).to_be_focused()
    visitor.page.keyboard.press("Enter")
    visitor.page.keyboard.press("End")
    visitor.page.keyboard.type(" again")
    visitor.page.keyboard.press("Enter")
    expect(visitor.answers).to_contain_text("Second.")
    expect(visitor.questions).to_contain_text("Hello again")
    visitor.assert_no_faults()
