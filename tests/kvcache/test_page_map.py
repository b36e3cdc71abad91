"""The map of pages in both layouts: what each page is used for, and by whom."""

import pytest

from kvcache.cache import KVCache
from kvcache.page_map import MAX_CELLS
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS
from tests.kvcache.fakes import FakeMemory
from tests.kvcache.test_cache import Bench, LaneBench, text


def run(bench: Bench, owner: str, tokens: list[int]) -> None:
    bench.run(tokens).owner = owner


def finish(bench: Bench, owner: str, tokens: list[int]) -> None:
    handle = bench.run(tokens)
    handle.owner = owner
    bench.cache.release(handle)


def test_a_pool_shows_running_sequences_first_and_each_shared_page_once() -> None:
    bench = Bench(num_pages=12)
    finish(bench, "old", text(9000, 64))
    run(bench, "ann", text(0, 64) + text(100, 10))
    run(bench, "bob", text(0, 64) + text(200, 40))
    run(bench, "ann", text(0, 32) + text(300, 5))
    shown = bench.cache.page_map()
    assert shown.cells == [
        *[("shared", ""), ("shared", ""), ("held", "ann")],
        *[("held", "bob"), ("held", "bob"), ("held", "ann")],
        *[("cached", "old"), ("cached", "old")],
        *[("free", "")] * 4,
    ]
    assert shown.counts == {"free": 4, "cached": 2, "held": 4, "shared": 2}
    assert shown.owners == {"ann": (2, 2), "bob": (2, 2)}


def test_a_shared_page_of_one_tenant_has_an_owner() -> None:
    bench = Bench()
    run(bench, "ann", text(0, 32) + text(100, 5))
    run(bench, "ann", text(0, 32) + text(200, 5))
    shown = bench.cache.page_map()
    assert shown.cells[0] == ("shared", "ann")
    assert shown.owners == {"ann": (2, 1)}


def test_lanes_are_shown_in_their_order_and_each_has_its_copy() -> None:
    bench = LaneBench(lane_pages=4)
    run(bench, "ann", text(0, 32) + text(100, 10))
    run(bench, "bob", text(0, 32) + text(200, 40))
    finish(bench, "old", text(9000, 33))
    shown = bench.cache.page_map()
    lanes = {tuple(shown.cells[start : start + 4]) for start in range(0, 16, 4)}
    free = ("free", "")
    assert lanes == {
        (("shared", ""), ("held", "ann"), free, free),
        (("shared", ""), ("held", "bob"), ("held", "bob"), free),
        (("cached", "old"), ("cached", "old"), free, free),
        (free, free, free, free),
    }
    assert shown.counts == {"free": 9, "cached": 2, "held": 3, "shared": 2}
    assert shown.owners == {"ann": (1, 1), "bob": (2, 1)}


def test_reserved_pages_are_held() -> None:
    bench = Bench()
    handle = bench.run(text(0, 10))
    assert bench.cache.reserve(handle, 100)
    assert bench.cache.page_map().counts == {"free": 4, "cached": 0, "held": 4, "shared": 0}


@pytest.mark.parametrize("num_pages", [MAX_CELLS - 1, MAX_CELLS, MAX_CELLS + 1, 10 * MAX_CELLS + 3])
def test_there_are_at_most_256_cells(num_pages: int) -> None:
    cache = KVCache(FakeMemory(num_pages), PoolLayout(num_pages, 4))
    handle = cache.acquire(b"\0" * 4 * PAGE_TOKENS * (num_pages // 2))
    assert handle is not None
    handle.owner = "ann"
    shown = cache.page_map()
    assert len(shown.cells) == min(num_pages, MAX_CELLS)
    assert sum(shown.counts.values()) == num_pages
    held = shown.cells.count(("held", "ann"))
    assert held + shown.cells.count(("free", "")) == len(shown.cells)
    assert abs(held - len(shown.cells) / 2) <= 1
