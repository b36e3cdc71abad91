"""Layout *pool*: all sequences share one set of cells, and sharing a prefix puts one more sequence id on its cells.

Pages are accounting, not addresses: llama.cpp may put a token into any free cell. Every cell belongs to a page of each
handle that uses it, and a page covers at most PAGE_TOKENS cells; so while the pages suffice, so do the cells.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final

from kvcache.layout import Eviction, Placement
from kvcache.tree import PAGE_TOKENS, Hit, KVHandle, Page, num_pages_for

EVICTION_SHARE: Final = 8
"""Of the pool, one part of so many is evicted at a time.

Cells that fall free one page here and one there would scatter what is computed next over the whole pool, more with each
turn, and attention skips the cells of others only in whole stretches. In a simulation of a full pool turned over five
times, page by page left each sequence in 14 times as many stretches of 64 cells as its length needs, an eighth at a
time in 6 times as many (5 is what decoding eight sequences side by side makes anyway).
"""


class PoolLayout:
    """A page is counted once however many hold it, and any sequence may use all of them."""

    def __init__(self, num_pages: int, num_ids: int, *, max_cached: int | None = None) -> None:
        """With a tier, at most `max_cached` pages need stay idle on the device; all of them by default."""
        self.num_pages = num_pages
        self.num_ids = num_ids
        self.num_free = num_pages
        self.num_cached = 0
        self._max_cached = num_pages if max_cached is None else max_cached
        self._idle: set[KVHandle] = set()
        self._free_ids = list(range(num_ids - 1, -1, -1))
        """A stack, lowest id on top: the ids in use stay dense."""

    @property
    def free_ids(self) -> Sequence[int]:
        return self._free_ids

    # -- decisions ---------------------------------------------------------------------------------------------------

    def place(self, hit: Hit, num_tokens: int, spare_pages: int) -> Placement | None:
        num_pages = hit.num_pages
        new_pages = num_pages_for(num_tokens) - num_pages
        revived = sum(page.num_running == 0 for page in hit.pages) + num_pages - len(hit.pages)
        if new_pages + spare_pages > self.num_free + self.num_cached - revived:
            return None
        if hit.source is not None and hit.adoptable:
            return Placement(hit.source.id, hit, adopts=True)
        if self._free_ids:
            return Placement(self._free_ids[-1], hit)
        if not self._idle:
            return None
        oldest = self._least_recently_used()
        return Placement(oldest.id, hit, eviction=Eviction(oldest))

    def has_room(self, handle: KVHandle, num_pages: int) -> bool:  # noqa: ARG002
        return num_pages <= self.num_free + self.num_cached

    def make_room(self, num_pages: int) -> Iterable[Eviction]:
        """An eighth at a time: of the pool, as far as idle handles have so much, or of what may stay cached."""
        if self.num_free < num_pages:
            return self._evict_until_free(max(num_pages, self.num_pages // EVICTION_SHARE))
        if self.num_cached > self._max_cached:
            max_left = self._max_cached - self._max_cached // EVICTION_SHARE
            return self._evict_until_free(self.num_free + self.num_cached - max_left)
        return ()

    def _evict_until_free(self, num_pages: int) -> Iterator[Eviction]:
        while self.num_free < num_pages and self._idle:
            yield self._cut_leaf(num_pages - self.num_free)

    def _cut_leaf(self, num_pages: int) -> Eviction:
        """Free pages from the least recently used leaf up, at most `num_pages` and those last used together."""
        handle = self._least_recently_used()
        last_used = handle.leaf_last_used
        num_kept = len(handle.pages)
        num_pages -= bool(handle.tail)
        while num_pages > 0 and num_kept and _is_last_alone(handle, num_kept, last_used):
            num_kept -= 1
            num_pages -= 1
        return Eviction(handle, num_kept * PAGE_TOKENS)

    def _least_recently_used(self) -> KVHandle:
        return min(self._idle, key=attrgetter("leaf_last_used"))

    # -- accounts ----------------------------------------------------------------------------------------------------

    def start(self, handle: KVHandle, pages: Sequence[Page]) -> None:
        if handle in self._idle:
            self._idle.remove(handle)
            self.num_cached -= bool(handle.tail)
        else:
            top = self._free_ids.pop()
            assert top == handle.id, "the id that was placed"
        self.num_cached -= sum(page.num_running == 0 for page in pages)

    def reserve(self, num_pages: int) -> None:
        self.num_free -= num_pages

    def merge(self, page: Page) -> bool:
        self.num_free += 1
        self.num_cached -= page.num_running == 0
        return True

    def release(self, handle: KVHandle) -> None:
        self.num_free += handle.num_pages - num_pages_for(handle.num_tokens)
        self.num_cached += sum(page.num_running == 1 for page in handle.pages) + bool(handle.tail)
        self._idle.add(handle)

    def free(self, num_pages: int) -> None:
        self.num_cached -= num_pages
        self.num_free += num_pages

    def drop(self, handle: KVHandle) -> None:
        self._idle.remove(handle)
        self._free_ids.append(handle.id)

    def check_integrity(self, handles: Collection[KVHandle], pages: Collection[Page]) -> None:
        assert self._idle == {handle for handle in handles if not handle.running}, "idle handles"
        held = sum(page.num_running > 0 for page in pages)
        cached = len(pages) - held
        for handle in handles:
            beyond = handle.num_pages - len(handle.pages)
            held += beyond * handle.running
            cached += beyond * (not handle.running)
        assert held == self.num_pages - self.num_free - self.num_cached, "held pages"
        assert cached == self.num_cached, "cached pages"


def _is_last_alone(handle: KVHandle, num_kept: int, last_used: int) -> bool:
    page = handle.pages[num_kept - 1]
    return len(page.holders) == 1 and page.last_used <= last_used
