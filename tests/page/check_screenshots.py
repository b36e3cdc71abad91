"""The images of the docs: `python -m tests.page --screenshots docs/images -k screenshots`."""

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.api.servers import CortexServer
from tests.page.keys import add_key, enter
from tests.page.load import load
from tests.page.plugin import Visit
from tests.page.scenes import show_live
from tests.page.visitor import Visitor

HEIGHTS: Final = {1440: 900, 390: 844}
LIVE_HEIGHTS: Final = {1440: 1360, 390: 844}
MOST_BYTES: Final = 150 * 1024
QUESTION: Final = "Write a Python function that returns the sum of the squares of a list."
TENANTS: Final = {"ada": ("uniform", "4"), "grace": ("shared", "3"), "linus": ("uniform", "1")}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the images go. Without the option they are only made, so that the check of it never rusts."""
    folder: Path = request.config.getoption("--screenshots") or tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(visitor: Visitor, path: Path) -> None:
    """Writes what the window shows, with few colours."""
    visitor.page.mouse.move(0, 0)
    image = Image.open(io.BytesIO(visitor.page.screenshot(animations="disabled", caret="hide"))).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size <= MOST_BYTES, path


def test_screenshots_of_a_chat(visit: Visit, server: CortexServer, folder: Path) -> None:
    visitor = visit(viewport={"width": 1440, "height": 900}, color_scheme="light")
    visitor.open_settings()
    visitor.setting("Temperature").fill("0")
    visitor.setting("Max tokens").fill("160")
    visitor.ask(QUESTION)
    for theme in ("light", "dark"):
        visitor.page.emulate_media(color_scheme=theme)
        for width, height in HEIGHTS.items():
            visitor.page.set_viewport_size({"width": width, "height": height})
            visitor.page.reload()
            expect(visitor.answers).to_have_count(1)
            save(visitor, folder / f"page-chat-{theme}-{width}.png")


def test_screenshots_of_the_live_view(visit: Visit, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("shots")
    with ExitStack() as loads, CortexServer(home, "--auth", "--max-seqs=8", "--disk-cache=0") as server:
        visitor = visit(url=server.url, view="live", viewport={"width": 1440, "height": 900})
        enter(visitor, add_key(server, "root", "--admin"))
        for name, (workload, users) in TENANTS.items():
            options = ("--workload", workload, "--users", users, "--requests", "1000")
            loads.enter_context(load(server.url, *options, key=add_key(server, name)))
        for name in TENANTS:
            expect(visitor.region("Queue")).to_contain_text(name)
        show_live(visitor)
        visitor.page.wait_for_timeout(40_000)  # the plots fill
        for theme in ("light", "dark"):
            visitor.page.emulate_media(color_scheme=theme)
            for width, height in LIVE_HEIGHTS.items():
                visitor.page.set_viewport_size({"width": width, "height": height})
                visitor.page.wait_for_timeout(2_000)
                save(visitor, folder / f"page-live-{theme}-{width}.png")
