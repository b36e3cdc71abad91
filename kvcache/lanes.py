"""Layout *lanes*: each sequence id has its own cells, so the cost of attention depends on the sequence's length only.

Cells are not shared between lanes. A common prefix is copied into the new sequence's lane or loaded from the tier.
Either takes a hundredth of the time of computing it.

llama.cpp computes sequences together only while their ids are consecutive. A gap between running ids costs every step
another pass over the weights. So each sequence is placed next to running ones, and an idle handle in that lane is
evicted to the tier.
"""

from collections.abc import Collection, Sequence
from typing import Final

from kvcache.layout import Eviction, Placement
from kvcache.tree import Hit, KVHandle, Page, num_pages_for

MAX_CUT: Final = 0.25
"""If no lane is free, a sequence takes the lane of its hit's source if at most this share of the hit follows it there.
The other way, the hit is copied to the lane that was idle longest, and what that lane has goes to the tier."""

MAX_COPIES: Final = 256
"""A hit is not copied from a source that has more than so many times its tokens. llama.cpp copies all of the source, so
for a first token that all texts have in common, this would take longer than to compute it."""


class LaneLayout:
    """Counts pages by lane. A handle uses the pages of its own lane only, so a page held n times is counted n times."""

    merges = False
    """Each handle keeps its own cells."""

    def __init__(self, lane_pages: int, num_ids: int, *, keeps_evicted: bool = False) -> None:
        """`keeps_evicted`: whether there is a tier. Without one, an eviction loses pages, which is worse than a gap."""
        self.num_pages = lane_pages * num_ids
        self.num_ids = num_ids
        self.max_pages = lane_pages
        self._keeps_evicted = keeps_evicted
        self._lanes: dict[int, KVHandle | None] = dict.fromkeys(range(num_ids))
        """The handle in each lane, running or idle."""

    @property
    def num_free(self) -> int:
        return self.num_pages - sum(handle.num_pages for handle in self._lanes.values() if handle is not None)

    @property
    def num_cached(self) -> int:
        handles = self._lanes.values()
        return sum(handle.num_pages for handle in handles if handle is not None and not handle.running)

    @property
    def free_ids(self) -> Sequence[int]:
        return [lane for lane, handle in self._lanes.items() if handle is None]

    # -- decisions ---------------------------------------------------------------------------------------------------

    def place(self, hit: Hit, num_tokens: int, spare_pages: int) -> Placement | None:  # noqa: ARG002
        """See `Layout.place`. Ignores `spare_pages`: each lane has its own pages."""
        if num_pages_for(num_tokens) > self.max_pages or all(map(_is_running, self._lanes.values())):
            return None
        lane = self._best_lane(hit)
        occupant = self._lanes[lane]
        if occupant is not hit.source and _is_hardly_shared(hit):
            hit = Hit(hit.root)
        if occupant is None:
            return Placement(lane, hit)
        if occupant is hit.source:
            return Placement(lane, hit, adopts=True, eviction=Eviction(occupant, hit.num_tokens, keeps_id=True))
        return Placement(lane, hit, eviction=Eviction(occupant))

    def _best_lane(self, hit: Hit) -> int:
        """Returns the lane with the most running neighbours.

        Among equals it prefers the lane of an adoptable source, then a free lane, then that of a source which loses
        little to the tier, then the lane that was idle longest.
        """
        running = {lane for lane, handle in self._lanes.items() if _is_running(handle)}

        def rank(lane: int) -> tuple[int, ...]:
            handle = self._lanes[lane]
            is_source = handle is not None and handle is hit.source
            is_own = is_source and hit.adoptable
            loses = not self._keeps_evicted and handle is not None and not is_own
            num_neighbours = (lane - 1 in running) + (lane + 1 in running)
            is_cut = is_source and self._keeps_evicted and _is_cheap_to_cut(hit)
            preference = 0 if is_own else 1 if handle is None else 2 if is_cut else 3
            return loses, -num_neighbours, preference, handle.last_used if handle is not None else 0, lane

        return min((lane for lane in self._lanes if lane not in running), key=rank)

    def has_room(self, handle: KVHandle, num_pages: int) -> bool:
        return handle.num_pages + num_pages <= self.max_pages

    def make_room(self, num_pages: int) -> Sequence[Eviction]:  # noqa: ARG002
        """Returns nothing: a lane always has all of its pages."""
        return ()

    # -- accounting: `num_pages` of each handle is the only counter --------------------------------------------------

    def adopt(self, handles: Collection[KVHandle]) -> None:
        for handle in handles:
            self._lanes[handle.id] = handle

    def start(self, handle: KVHandle, pages: Sequence[Page]) -> None:  # noqa: ARG002
        self._lanes[handle.id] = handle

    def reserve(self, num_pages: int) -> None: ...

    def merge(self, page: Page) -> None: ...

    def release(self, handle: KVHandle) -> None: ...

    def free(self, num_pages: int) -> None: ...

    def drop(self, handle: KVHandle) -> None:
        self._lanes[handle.id] = None

    def check_integrity(self, handles: Collection[KVHandle], pages: Collection[Page]) -> None:  # noqa: ARG002
        for handle in handles:
            assert self._lanes[handle.id] is handle, "one handle per lane"
            assert handle.num_pages <= self.max_pages, "a handle fits into its lane"


def _is_cheap_to_cut(hit: Hit) -> bool:
    """Whether few tokens follow the hit in its source, so that it takes less to save them than to copy the hit."""
    return hit.source is not None and hit.source.num_tokens - hit.num_tokens <= MAX_CUT * hit.num_tokens


def _is_hardly_shared(hit: Hit) -> bool:
    """Whether it takes longer to copy the hit than to compute it."""
    if hit.source is None or hit.stored.num_tokens:
        return False
    return hit.source.num_tokens > MAX_COPIES * hit.num_tokens


def _is_running(handle: KVHandle | None) -> bool:
    return handle is not None and handle.running
