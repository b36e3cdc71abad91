"""Layout *pool*: all sequences share one set of cells, and sharing a prefix puts one more sequence id on its cells.

Pages are accounting, not addresses: llama.cpp may put a token into any free cell. Every cell belongs to a page of each
handle that uses it, and a page covers at most PAGE_TOKENS cells; so while the pages suffice, so do the cells.
"""

from typing import Final

from kvcache.cache import KVCache, leaf_last_used
from kvcache.memory import Memory
from kvcache.tiers import HostTier
from kvcache.tree import PAGE_TOKENS, TOKEN_BYTES, Hit, KVHandle, Page, num_pages_for
from kvcache.whole import WholeTier

EVICTION_SHARE: Final = 8
"""Of the pool, one part of so many is evicted at a time.

Cells that fall free one page here and one there would scatter what is computed next over the whole pool, more with each
turn, and attention skips the cells of others only in whole stretches. In a simulation of a full pool turned over five
times, page by page left each sequence in 14 times as many stretches of 64 cells as its length needs, an eighth at a
time in 6 times as many (5 is what decoding eight sequences side by side makes anyway).
"""


class PoolCache(KVCache):
    """A page is counted once however many hold it, and any sequence may use all of them."""

    num_free: int = 0
    num_cached: int = 0

    def __init__(
        self,
        memory: Memory,
        num_pages: int,
        num_ids: int,
        *,
        sharing: bool = True,
        tier: HostTier | WholeTier | None = None,
        max_cached: int | None = None,
    ) -> None:
        """With a `tier`, at most `max_cached` pages need stay idle on the device, if given."""
        super().__init__(memory, num_pages, num_ids, sharing=sharing, tier=tier)
        self._max_cached = num_pages if max_cached is None else max_cached
        self.num_free = num_pages
        self._free_ids = list(range(num_ids - 1, -1, -1))
        """A stack, lowest id on top: the ids in use stay dense."""

    @property
    def free_ids(self) -> list[int]:
        return self._free_ids

    def acquire(self, tokens: bytes, hit: Hit | None = None, spare_pages: int = 0) -> KVHandle | None:
        hit = self.lookup(tokens) if hit is None else hit
        new_pages = num_pages_for(len(tokens) // TOKEN_BYTES) - hit.num_pages
        revived = sum(page.num_running == 0 for page in hit.pages) + hit.num_pages - len(hit.pages)
        if new_pages + spare_pages > self.num_free + self.num_cached - revived:
            return None
        if not hit.adoptable and not self._free_ids:
            if not self._idle:
                return None
            oldest = min(self._idle, key=leaf_last_used)
            num_free = self.num_free
            self._save(oldest, 0)
            self._drop(oldest)
            self._evicted_pages += self.num_free - num_free
            if oldest is hit.source:  # the very prefix went, what others hold of it may remain
                return self.acquire(tokens, self.lookup(tokens, hit.num_known), spare_pages)
        handle = self._begin(hit)
        self._hit_tokens += hit.num_tokens
        reserved = self.reserve(handle, len(tokens) // TOKEN_BYTES)
        assert reserved, "the pages were counted before"
        if hit.stored.num_tokens:
            self._load(handle, tokens, hit.stored)
        return handle

    def _begin(self, hit: Hit) -> KVHandle:
        source = hit.source
        if source is not None and hit.adoptable:
            self.num_cached -= bool(source.tail)
            self._adopt(source)
            return source
        handle = self._fork(self._free_ids.pop(), hit)
        if source is not None:
            self._drop_if_superfluous(source)
        return handle

    def reserve(self, handle: KVHandle, num_tokens: int) -> bool:
        missing = num_pages_for(num_tokens) - handle.num_pages
        if missing <= 0:
            return True
        if missing > self.num_free + self.num_cached:
            return False
        if self.num_free < missing:
            self._evict_at_least(missing)
        self.num_free -= missing
        handle.num_pages += missing
        return True

    def release(self, handle: KVHandle) -> None:
        self.num_free += handle.num_pages - num_pages_for(handle.num_tokens)
        self.num_cached += sum(page.num_running == 1 for page in handle.pages) + bool(handle.tail)
        super().release(handle)
        if self._tier is not None and self.num_cached > self._max_cached:
            goal = self._max_cached - self._max_cached // EVICTION_SHARE
            while self.num_cached > goal and self._idle:
                self._evict(self.num_cached - goal)

    def _hold(self, pages: list[Page]) -> None:
        self.num_cached -= sum(page.num_running == 0 for page in pages)
        super()._hold(pages)

    def _merge(self, handle: KVHandle, page: Page) -> None:
        """The handle goes over to the cells of the others, and its own fall free."""
        start = len(handle.pages) * PAGE_TOKENS
        twin = next(iter(page.holders))
        self._memory.remove(handle.id, start, start + PAGE_TOKENS)
        self._memory.share(twin.id, handle.id, start, start + PAGE_TOKENS)
        self.num_free += 1
        self._merged_pages += 1

    def _count_freed(self, num_pages: int) -> None:
        self.num_cached -= num_pages
        self.num_free += num_pages

    def _return_id(self, sequence_id: int) -> None:
        self._free_ids.append(sequence_id)

    # -- eviction ----------------------------------------------------------------------------------------------------

    def _evict_at_least(self, num_pages: int) -> None:
        """Have so many pages free, and some to spare where that takes no more than idle ones."""
        goal = max(num_pages, self.num_pages // EVICTION_SHARE)
        while self.num_free < goal and self._idle:
            self._evict(goal - self.num_free)

    def _evict(self, num_pages: int) -> None:
        """Free pages from the least recently used leaf up, at most `num_pages` and those last used together."""
        handle = min(self._idle, key=leaf_last_used)
        last_used = leaf_last_used(handle)
        num_kept = len(handle.pages)
        num_pages -= bool(handle.tail)
        while num_pages > 0 and num_kept and self._is_last_alone(handle, num_kept, last_used):
            num_kept -= 1
            num_pages -= 1
        self._save(handle, num_kept)
        self._evicted_pages += len(handle.pages) - num_kept + bool(handle.tail)
        self._cut(handle, num_kept * PAGE_TOKENS)
        self._drop_if_superfluous(handle)

    @staticmethod
    def _is_last_alone(handle: KVHandle, num_kept: int, last_used: int) -> bool:
        page = handle.pages[num_kept - 1]
        return len(page.holders) == 1 and page.last_used <= last_used

    def check_integrity(self) -> None:
        super().check_integrity()
        held = sum(page.num_running > 0 for page in self._all_pages())
        cached = sum(page.num_running == 0 for page in self._all_pages())
        held += sum(handle.num_pages - len(handle.pages) for handle in self._running)
        cached += sum(handle.num_pages - len(handle.pages) for handle in self._idle)
        assert held == self.num_held, "held pages"
        assert cached == self.num_cached, "cached pages"
