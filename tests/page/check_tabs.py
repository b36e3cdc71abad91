"""Two tabs of one browser have the same conversations, and neither loses what the other stored."""

from playwright.sync_api import Locator, expect

from tests.page import recorded
from tests.page.visitor import Visitor


def conversations(visitor: Visitor) -> Locator:
    return visitor.page.get_by_role("list", name="Conversations").get_by_role("listitem")


def test_conversations_of_both_tabs_are_kept(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream("First answer."), recorded.stream("Second answer."))
    other = visitor.another_tab()
    visitor.ask("First question")
    expect(conversations(other)).to_have_text(["First question"])
    expect(other.answers).to_have_count(0)
    other.ask("Second question")
    expect(conversations(visitor)).to_have_text(["Second question", "First question"])
    expect(visitor.answers).to_have_count(1)
    expect(visitor.answers).to_contain_text("First answer.")
    for each in (visitor, other):
        each.page.reload()
        expect(conversations(each)).to_have_text(["Second question", "First question"])
    visitor.assert_no_faults()


def test_a_conversation_goes_on_in_the_other_tab(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, *(recorded.stream(text) for text in ("One.", "Two.", "Three.")))
    visitor.ask("Count")
    other = visitor.another_tab()
    expect(other.answers).to_have_count(1)
    other.ask("Go on")
    expect(visitor.answers.last).to_contain_text("Two.")
    visitor.ask("And on")
    expect(other.answers.last).to_contain_text("Three.")
    for each in (visitor, other):
        each.page.reload()
        expect(each.questions).to_have_count(3)
        expect(each.answers).to_have_count(3)
    visitor.assert_no_faults()


def test_a_deleted_conversation_stays_deleted(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, recorded.stream("First answer."), recorded.stream("Second answer."))
    visitor.ask("First question")
    other = visitor.another_tab()
    expect(other.answers).to_have_count(1)
    visitor.page.get_by_role("button", name="Delete First question").click()
    expect(conversations(other)).to_have_count(0)
    expect(other.answers).to_have_count(0)
    other.ask("Second question")
    expect(conversations(visitor)).to_have_text(["Second question"])
    visitor.button("Undo").click()
    expect(conversations(other)).to_have_text(["Second question", "First question"])
    for each in (visitor, other):
        each.page.reload()
        expect(conversations(each)).to_have_text(["Second question", "First question"])
    visitor.assert_no_faults()


def test_a_conversation_deleted_while_its_answer_runs_elsewhere_stays_deleted(visitor: Visitor) -> None:
    visitor.send("Tell me a long story about a friendly robot.")
    expect(visitor.button("Stop")).to_be_visible()
    other = visitor.another_tab()
    other.page.get_by_role("button", name="Delete Tell me").click()
    visitor.wait_for_end()
    for each in (visitor, other):
        expect(conversations(each)).to_have_count(0)
        each.page.reload()
        expect(each.message).to_be_visible()
        expect(conversations(each)).to_have_count(0)
    visitor.assert_no_faults()
