"""Fixtures of the browser check: Chromium, a server for all checks, and visitors of its page."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.api.servers import CortexServer
from tests.page.chromium import chromium
from tests.page.visitor import Visitor

Visit = Callable[..., Visitor]
"""Opens a page in a browser without a history. Arguments: those of `Browser.new_context`, and `url` of a server."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, metavar="FOLDER", help="write the images of the docs into FOLDER")
    parser.addoption("--patience", type=float, default=60.0, metavar="SECONDS", help="how long the page may take")


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    expect.set_options(timeout=1000 * request.config.getoption("--patience"))
    with sync_playwright() as playwright:
        # The two flags: fonts look the same on every machine, and no scroll bar takes width away.
        flags = ["--font-render-hinting=none", "--hide-scrollbars"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    """The embedded model, without keys."""
    flags = ("--ctx-len=2048", "--max-seqs=8", "--disk-cache=0")
    with CortexServer(tmp_path_factory.mktemp("server"), *flags) as server:
        yield server


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Browser, server: CortexServer) -> Iterator[Visit]:
    with ExitStack() as visits:

        def open_page(*, url: str = server.url, view: str = "chat", **settings: Any) -> Visitor:
            context = browser.new_context(service_workers="block", **settings)
            context.set_default_timeout(1000 * request.config.getoption("--patience"))
            visits.callback(context.close)
            return Visitor(context, url.removesuffix("/v1"), view)

        yield open_page


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    return visit()
