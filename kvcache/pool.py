"""Layout *pool*: all sequences share one set of cells. Sharing a prefix adds another sequence id to its cells.

A page is a unit of accounting, not an address: llama.cpp may put a token into any free cell. Each used cell belongs to
a page of every handle that uses it, and a page covers at most PAGE_TOKENS cells. So there are enough cells as long as
there are enough pages.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final

from kvcache.layout import Eviction, Placement
from kvcache.tree import PAGE_TOKENS, Hit, KVHandle, Page, num_pages_for

EVICTION_SHARE: Final = 8
"""Each eviction frees 1/EVICTION_SHARE of the pool at once.

Freeing single pages scatters the cells of later sequences over the pool, and more so each time the pool turns over.
Attention can skip the cells of other sequences only in blocks of 64. In a simulation, a full pool turned over five
times. With page-by-page eviction each sequence then touched 14 times as many blocks as its length needs; with an eighth
at a time, 6 times as many. Decoding eight sequences side by side alone causes a factor of 5.
"""


class PoolLayout:
    """Counts each page once, independent of the number of holders. Any sequence may use all pages."""

    merges = True

    def __init__(self, num_pages: int, num_ids: int, *, max_cached: int | None = None) -> None:
        """`max_cached` limits the cached pages if there is a tier for the others. The default is no limit."""
        self.num_pages = self.max_pages = num_pages
        self.num_ids = num_ids
        self.num_free = num_pages
        self.num_cached = 0
        self._max_cached = num_pages if max_cached is None else max_cached
        self._idle: set[KVHandle] = set()
        self._free_ids = list(range(num_ids - 1, -1, -1))
        """A stack. It starts with the lowest id on top, so the ids in use stay dense."""

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
        """See `Layout.make_room`. Frees an eighth at once: of the pool for new pages, of `max_cached` for its limit."""
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
        """Returns an eviction of at most `num_pages` pages from the end of the least recently used leaf's path.

        It includes only pages that no other handle holds and that were last used no later than the leaf.
        """
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

    # -- accounting --------------------------------------------------------------------------------------------------

    def adopt(self, handles: Collection[KVHandle]) -> None:
        held, self.num_cached = _count(handles, {page for handle in handles for page in handle.pages})
        self.num_free = self.num_pages - held - self.num_cached
        self._idle = {handle for handle in handles if not handle.running}
        used = {handle.id for handle in handles}
        self._free_ids = [each for each in range(self.num_ids - 1, -1, -1) if each not in used]

    def start(self, handle: KVHandle, pages: Sequence[Page]) -> None:
        if handle in self._idle:
            self._idle.remove(handle)
            self.num_cached -= bool(handle.tail)
        else:
            top = self._free_ids.pop()
            assert top == handle.id, "the handle has the id that place() returned"
        self.num_cached -= sum(page.num_running == 0 for page in pages)

    def reserve(self, num_pages: int) -> None:
        self.num_free -= num_pages

    def merge(self, page: Page) -> None:
        self.num_free += 1
        self.num_cached -= page.num_running == 0

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
        held, cached = _count(handles, pages)
        assert held == self.num_pages - self.num_free - self.num_cached, "held pages"
        assert cached == self.num_cached, "cached pages"


def _count(handles: Collection[KVHandle], pages: Collection[Page]) -> tuple[int, int]:
    """Returns the numbers of held and of cached pages. `pages`: the full pages that the handles hold."""
    held = sum(page.num_running > 0 for page in pages)
    cached = len(pages) - held
    for handle in handles:
        beyond = handle.num_pages - len(handle.pages)
        held += beyond * handle.running
        cached += beyond * (not handle.running)
    return held, cached


def _is_last_alone(handle: KVHandle, num_kept: int, last_used: int) -> bool:
    page = handle.pages[num_kept - 1]
    return len(page.holders) == 1 and page.last_used <= last_used
