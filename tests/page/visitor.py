"""A visitor of the page: it finds things as a screen reader does, and sees what a page must not do."""

from copy import copy
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Locator, Page, Request, expect

WATCH = """
addEventListener("securitypolicyviolation", (event) => {
    report(`the policy refused ${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""
"""Runs in each page, before its own scripts."""


class Visitor:
    """An open page and what was wrong with it: scripts that ran, requests to other hosts, errors on the console."""

    def __init__(self, context: BrowserContext, url: str, view: str) -> None:
        self.url = url
        self.context = context
        self.faults: list[str] = []
        context.expose_function("pwned", lambda *what: self.faults.append(f"a script of an answer ran: {what}"))
        context.expose_function("report", lambda fault: self.faults.append(fault))
        context.add_init_script(WATCH)
        context.on("request", self._see_request)
        context.on("console", self._see_console)
        context.on("dialog", self._see_dialog)
        context.on("weberror", lambda error: self.faults.append(f"an error was not caught: {error.error}"))
        self.page: Page = context.new_page()
        self.page.goto(f"{url}/#{view}")

    def another_tab(self) -> Self:
        """The same visitor in a second tab. Faults of both tabs are in one list."""
        other = copy(self)
        other.page = self.context.new_page()
        other.page.goto(self.page.url)
        return other

    def _see_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and f"{address.scheme}://{address.netloc}" != self.url:
            self.faults.append(f"a request to another host: {request.url}")

    def _see_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type} on the console: {message.text}")

    def _see_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def assert_no_faults(self, *, refusals: bool = False) -> None:
        """Chromium writes an error for each answer with a status of 400 or more; `refusals` allows those."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        faults = [fault for fault in self.faults if not (refusals and "Failed to load resource" in fault)]
        assert not faults, "\n".join(faults)

    # -- the shell -----------------------------------------------------------------------------------------------------

    def tab(self, name: str) -> Locator:
        return self.page.get_by_role("tab", name=name, exact=True)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def key_dialog(self) -> Locator:
        return self.page.get_by_role("dialog", name="API key")

    @property
    def key_field(self) -> Locator:
        return self.key_dialog.get_by_label("API key", exact=True)  # a field of a password has no role

    # -- the chat ------------------------------------------------------------------------------------------------------

    @property
    def message(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def log(self) -> Locator:
        return self.page.get_by_role("log", name="Conversation")

    @property
    def answers(self) -> Locator:
        return self.log.get_by_role("article", name="Answer", exact=True)

    @property
    def questions(self) -> Locator:
        return self.log.get_by_role("article", name="Question", exact=True)

    @property
    def alert(self) -> Locator:
        return self.page.get_by_role("alert")

    def send(self, text: str) -> None:
        """Sends a message, and does not wait for its answer."""
        self.message.fill(text)
        self.button("Send").click()

    def ask(self, text: str) -> Locator:
        """Sends a message and returns its complete answer."""
        self.send(text)
        self.wait_for_end()
        return self.answers.last

    def wait_for_end(self) -> None:
        """Waits until no answer is being written."""
        expect(self.button("Stop")).to_have_count(0)
        expect(self.button("Send")).to_be_visible()

    def open_settings(self) -> None:
        """Shows the settings of the chat, unless they are shown."""
        if not self.setting("Temperature").is_visible():
            self.button("Settings").click()

    def setting(self, name: str) -> Locator:
        return self.page.get_by_label(name, exact=True)

    # -- the live view -------------------------------------------------------------------------------------------------

    def region(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=name, exact=True)

    # -- what the page is ----------------------------------------------------------------------------------------------

    def overflow(self) -> int:
        """By how many CSS pixels the page, or the view that is shown, is wider than its window."""
        width: int = self.page.evaluate(
            """Math.max(
                ...[document.documentElement, ...document.querySelectorAll("[role=tabpanel]")].map(
                    (each) => each.scrollWidth - each.clientWidth,
                ),
            )"""
        )
        return width

    def store(self, name: str) -> dict[str, Any]:
        """The items of `localStorage` or `sessionStorage`."""
        items: dict[str, Any] = self.page.evaluate("(name) => ({...window[name]})", name)
        return items
