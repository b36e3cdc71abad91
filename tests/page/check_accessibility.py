"""axe-core finds nothing, and no width from a phone's up scrolls sideways."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.api.servers import CortexServer
from tests.page import recorded
from tests.page.load import load
from tests.page.plugin import Visit
from tests.page.scenes import LOAD, show_live, show_talk
from tests.page.visitor import Visitor

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = {1440: 900, 390: 844}
THEMES = ("light", "dark")


def violations(visitor: Visitor) -> list[str]:
    """What axe-core finds. The browser's debugger runs it, so the policy of the page does not matter."""
    visitor.page.evaluate(AXE.read_text())
    found = visitor.page.evaluate("axe.run(document, { preload: false })")["violations"]
    return [f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes']]}" for each in found]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("view", ["chat", "live"])
def test_axe_finds_nothing(visit: Visit, server: CortexServer, view: str, width: int, theme: str) -> None:
    visitor = visit(view=view, viewport={"width": width, "height": WIDTHS[width]}, color_scheme=theme)
    expect(visitor.tab("Chat")).to_be_visible()
    assert violations(visitor) == []
    if view == "chat":
        show_talk(visitor)
        assert violations(visitor) == []
        visitor.open_settings()
        assert violations(visitor) == []
    else:
        with load(server.url, *LOAD):
            show_live(visitor)
            assert violations(visitor) == []


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_in_the_key_dialog_and_in_an_error(visit: Visit, theme: str) -> None:
    visitor = visit(color_scheme=theme)
    recorded.refuse_chats(visitor.context, "This cannot be answered.")
    visitor.send("Hi.")
    expect(visitor.alert).to_be_visible()
    assert violations(visitor) == []
    recorded.refuse_chats(visitor.context, "Incorrect API key provided.", status=401)
    visitor.send("Hi again.")
    expect(visitor.key_dialog).to_be_visible()
    assert violations(visitor) == []


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1024, 1440])
def test_no_width_scrolls_sideways(visit: Visit, server: CortexServer, width: int) -> None:
    visitor = visit(viewport={"width": width, "height": 740})
    show_talk(visitor)
    assert visitor.overflow() <= 0
    visitor.tab("Live").click()
    with load(server.url, *LOAD):
        show_live(visitor)
        assert visitor.overflow() <= 0


@pytest.mark.parametrize("setting", [{"reduced_motion": "reduce"}, {"forced_colors": "active"}])
def test_the_page_works_with_settings_of_the_system(visit: Visit, setting: dict[str, str]) -> None:
    visitor = visit(**setting)
    recorded.answer_chats(visitor.context, recorded.stream("Fine."))
    expect(visitor.ask("Hi.")).to_contain_text("Fine.")
    visitor.assert_no_faults()
