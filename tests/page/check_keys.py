"""A server that demands keys: the page asks for one, and shows what the key may see."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect

from tests.api.servers import SECONDS, CortexServer, wait_until
from tests.page.keys import add_key, change_keys, enter
from tests.page.load import load
from tests.page.plugin import Visit

LOAD = ("--workload", "uniform", "--users", "3", "--requests", "12", "--output-tokens", "32")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    flags = ("--auth", "--ctx-len=1024", "--max-seqs=8", "--disk-cache=0")
    with CortexServer(tmp_path_factory.mktemp("locked"), *flags) as server:
        yield server


@pytest.fixture(scope="module")
def keys(locked: CortexServer) -> dict[str, str]:
    """The keys of two tenants and of an admin, by their names."""
    return {name: add_key(locked, name, *flags) for name, *flags in (("ada",), ("grace",), ("root", "--admin"))}


@pytest.mark.parametrize("view", ["chat", "live"])
def test_the_page_asks_for_a_key_and_refuses_a_wrong_one(
    visit: Visit, locked: CortexServer, keys: dict[str, str], view: str
) -> None:
    visitor = visit(url=locked.url, view=view)
    if view == "chat":
        visitor.send("Hi.")
    expect(visitor.key_dialog).to_be_visible()
    enter(visitor, "sk-cortex-wrong")
    expect(visitor.key_dialog.get_by_role("alert")).to_contain_text("Incorrect API key")
    enter(visitor, keys["ada"])
    expect(visitor.key_dialog).to_have_count(0)
    if view == "chat":  # the question did not get lost
        visitor.wait_for_end()
        expect(visitor.answers).to_have_count(1)
        expect(visitor.answers).to_contain_text("tokens/s")
    else:
        expect(visitor.region("Models")).to_contain_text(locked.model)
    visitor.assert_no_faults(refusals=True)


@pytest.mark.parametrize("remember", [False, True])
def test_a_key_is_forgotten_with_the_tab_unless_it_shall_be_remembered(
    visit: Visit, locked: CortexServer, keys: dict[str, str], remember: bool
) -> None:
    visitor = visit(url=locked.url, view="live")
    enter(visitor, keys["ada"], remember=remember)
    expect(visitor.region("Models")).to_contain_text(locked.model)
    visitor.page.reload()
    expect(visitor.region("Models")).to_contain_text(locked.model)
    expect(visitor.key_dialog).to_have_count(0)
    assert (keys["ada"] in str(visitor.store("localStorage"))) == remember
    assert (keys["ada"] in str(visitor.store("sessionStorage"))) != remember
    page = visitor.context.new_page()
    visitor.page.close()
    visitor.page = page
    page.goto(f"{visitor.url}/#live")
    if remember:
        expect(visitor.region("Models")).to_contain_text(locked.model)
    else:
        expect(visitor.key_dialog).to_be_visible()
    visitor.assert_no_faults(refusals=True)


def is_refused(server: CortexServer, key: str) -> bool:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/chat/completions", headers=headers, json={}, timeout=SECONDS).status_code == 401


def test_a_revoked_key_is_asked_for_again(visit: Visit, locked: CortexServer) -> None:
    key = add_key(locked, "linus")
    visitor = visit(url=locked.url, view="live")
    enter(visitor, key)
    expect(visitor.region("Models")).to_contain_text(locked.model)
    change_keys(locked, "revoke", "linus")
    visitor.tab("Chat").click()
    wait_until(lambda: is_refused(locked, key), "the server follows the change of the keys")
    visitor.send("Hi.")
    expect(visitor.key_dialog.get_by_role("alert")).to_contain_text("revoked")
    visitor.assert_no_faults(refusals=True)


def test_a_tenant_sees_itself_and_an_admin_sees_all(visit: Visit, locked: CortexServer, keys: dict[str, str]) -> None:
    visitors = {}
    for name in ("ada", "root"):
        visitors[name] = visit(url=locked.url, view="live")
        enter(visitors[name], keys[name])
        expect(visitors[name].key_dialog).to_have_count(0)
    with load(locked.url, *LOAD, key=keys["ada"]), load(locked.url, *LOAD, key=keys["grace"]):
        queue = visitors["root"].region("Queue")
        expect(queue).to_contain_text("ada")
        expect(queue).to_contain_text("grace")
        own = visitors["ada"].region("Queue")
        expect(own).to_contain_text("ada")
        expect(own).to_contain_text("others")
        assert "grace" not in visitors["ada"].page.content()
    for visitor in visitors.values():
        visitor.assert_no_faults(refusals=True)
