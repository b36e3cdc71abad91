"""Layout *lanes*: each sequence id has cells of its own, so that attention costs a sequence only its own length.

Nothing is shared in place: what a new sequence has in common with another one is copied into its lane, or comes back
from the tier, either in a hundredth of the time that computing it takes. llama.cpp computes sequences together only
while their ids are consecutive, so a hole among those that run costs every step another pass over the weights: where a
sequence runs is chosen anew each time, and who must give way goes to the tier.
"""

from dataclasses import replace

from kvcache.cache import KVCache
from kvcache.memory import Memory
from kvcache.tiers import HostTier
from kvcache.tree import PAGE_TOKENS, TOKEN_BYTES, Hit, KVHandle, Page, num_pages_for
from kvcache.whole import WholeTier


class LaneCache(KVCache):
    """A handle uses pages of its own lane only, all of which are its own: equal ones are counted as often as held."""

    def __init__(
        self,
        memory: Memory,
        lane_pages: int,
        num_ids: int,
        *,
        sharing: bool = True,
        tier: HostTier | WholeTier | None = None,
    ) -> None:
        super().__init__(memory, lane_pages * num_ids, num_ids, sharing=sharing, tier=tier)
        self._lane_pages = lane_pages
        self._lanes: dict[int, KVHandle | None] = dict.fromkeys(range(num_ids))
        """Who is in which lane, running or idle."""

    @property
    def num_free(self) -> int:
        return self.num_pages - sum(handle.num_pages for handle in self._idle | self._running)

    @property
    def num_cached(self) -> int:
        return sum(handle.num_pages for handle in self._idle)

    @property
    def free_ids(self) -> list[int]:
        return [lane for lane, handle in self._lanes.items() if handle is None]

    def acquire(self, tokens: bytes, hit: Hit | None = None, spare_pages: int = 0) -> KVHandle | None:  # noqa: ARG002
        """Every lane has its own pages, so none need be spared for others."""
        num_tokens = len(tokens) // TOKEN_BYTES
        if num_pages_for(num_tokens) > self._lane_pages or len(self._running) == self._num_ids:
            return None
        hit = _with_shortest_source(self.lookup(tokens) if hit is None else hit)
        lane = self._choose(hit)
        occupant = self._lanes[lane]
        if occupant is not None and occupant is hit.source:
            self._save(occupant, len(hit.pages))
            self._evicted_pages += occupant.num_pages - num_pages_for(hit.num_tokens)
            self._cut(occupant, hit.num_tokens)
            self._adopt(occupant)
            handle = occupant
        else:
            if occupant is not None:
                self._evict(occupant)
            handle = self._fork(lane, hit)
            self._lanes[lane] = handle
            if hit.source is not None and hit.adoptable:  # it has moved
                self._drop(hit.source)
        self._hit_tokens += hit.num_tokens
        self.reserve(handle, num_tokens)
        if hit.stored.num_tokens:
            self._load(handle, tokens, hit.stored)
        return handle

    def _choose(self, hit: Hit) -> int:
        """The lane that leaves the fewest holes; of several its own, a free one, or that of who was idle for longest.

        Without a tier, what has to give way would be lost, which is worse than a hole.
        """
        running = {handle.id for handle in self._running}

        def rank(lane: int) -> tuple[int, ...]:
            handle = self._lanes[lane]
            is_own = handle is not None and handle is hit.source and hit.adoptable
            loses = self._tier is None and handle is not None and not is_own
            num_neighbours = (lane - 1 in running) + (lane + 1 in running)
            return loses, -num_neighbours, not is_own, handle.last_used if handle is not None else 0, lane

        return min((lane for lane in self._lanes if lane not in running), key=rank)

    def _evict(self, handle: KVHandle) -> None:
        self._save(handle, 0)
        self._evicted_pages += handle.num_pages
        self._drop(handle)

    def reserve(self, handle: KVHandle, num_tokens: int) -> bool:
        num_pages = num_pages_for(num_tokens)
        if num_pages > self._lane_pages:
            return False
        handle.num_pages = max(handle.num_pages, num_pages)
        return True

    def _merge(self, handle: KVHandle, page: Page) -> None:
        """Both keep what they have."""

    def _count_freed(self, num_pages: int) -> None:
        """Counted when asked for."""

    def _return_id(self, sequence_id: int) -> None:
        self._lanes[sequence_id] = None

    def check_integrity(self) -> None:
        super().check_integrity()
        for handle in self._idle | self._running:
            assert self._lanes[handle.id] is handle, "a handle has its lane to itself"
            assert handle.num_pages <= self._lane_pages, "a lane is large enough"


def _with_shortest_source(hit: Hit) -> Hit:
    """Copying costs as much as the source holds. The same hit from who holds least, unless it is to go on in place."""
    if hit.adoptable or not hit.pages or hit.num_tokens > len(hit.pages) * PAGE_TOKENS:
        return hit
    return replace(hit, source=min(hit.pages[-1].holders, key=lambda handle: handle.num_tokens))
