"""Layout *lanes*: each sequence id has cells of its own, so that attention costs a sequence only its own length.

Nothing is shared in place: what a new sequence has in common with another one is copied into its lane, or comes back
from the tier, either in a hundredth of the time that computing it takes. llama.cpp computes sequences together only
while their ids are consecutive, so a hole among those that run costs every step another pass over the weights: where a
sequence runs is chosen anew each time, and who must give way goes to the tier.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from kvcache.layout import Eviction, Placement
from kvcache.tree import PAGE_TOKENS, Hit, KVHandle, Page, num_pages_for


class LaneLayout:
    """A handle uses pages of its own lane only, all of which are its own: equal ones are counted as often as held."""

    def __init__(self, lane_pages: int, num_ids: int, *, keeps_evicted: bool = False) -> None:
        """`keeps_evicted` if there is a tier. Without one, what gives way is lost, which is worse than a hole."""
        self.num_pages = lane_pages * num_ids
        self.num_ids = num_ids
        self._lane_pages = lane_pages
        self._keeps_evicted = keeps_evicted
        self._lanes: dict[int, KVHandle | None] = dict.fromkeys(range(num_ids))
        """Who is in which lane, running or idle."""

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
        """Every lane has its own pages, so none need be spared for others."""
        if num_pages_for(num_tokens) > self._lane_pages or all(map(_is_running, self._lanes.values())):
            return None
        hit = _with_shortest_source(hit)
        lane = self._choose(hit)
        occupant = self._lanes[lane]
        if occupant is None:
            return Placement(lane, hit)
        if occupant is hit.source:
            return Placement(lane, hit, adopts=True, eviction=Eviction(occupant, hit.num_tokens, keeps_id=True))
        return Placement(lane, hit, eviction=Eviction(occupant))

    def _choose(self, hit: Hit) -> int:
        """The lane that leaves the fewest holes. Of several: the source's own, a free one, the one idle for longest."""
        running = {lane for lane, handle in self._lanes.items() if _is_running(handle)}

        def rank(lane: int) -> tuple[int, ...]:
            handle = self._lanes[lane]
            is_own = handle is not None and handle is hit.source and hit.adoptable
            loses = not self._keeps_evicted and handle is not None and not is_own
            num_neighbours = (lane - 1 in running) + (lane + 1 in running)
            return loses, -num_neighbours, not is_own, handle.last_used if handle is not None else 0, lane

        return min((lane for lane in self._lanes if lane not in running), key=rank)

    def has_room(self, handle: KVHandle, num_pages: int) -> bool:
        return handle.num_pages + num_pages <= self._lane_pages

    def make_room(self, num_pages: int) -> Sequence[Eviction]:  # noqa: ARG002
        """The pages of a lane are always there."""
        return ()

    # -- accounts: each handle knows its pages -----------------------------------------------------------------------

    def start(self, handle: KVHandle, pages: Sequence[Page]) -> None:  # noqa: ARG002
        self._lanes[handle.id] = handle

    def reserve(self, num_pages: int) -> None: ...

    def merge(self, page: Page) -> bool:  # noqa: ARG002
        """Both keep what they have."""
        return False

    def release(self, handle: KVHandle) -> None: ...

    def free(self, num_pages: int) -> None: ...

    def drop(self, handle: KVHandle) -> None:
        self._lanes[handle.id] = None

    def check_integrity(self, handles: Collection[KVHandle], pages: Collection[Page]) -> None:  # noqa: ARG002
        for handle in handles:
            assert self._lanes[handle.id] is handle, "a handle has its lane to itself"
            assert handle.num_pages <= self._lane_pages, "a lane is large enough"


def _is_running(handle: KVHandle | None) -> bool:
    return handle is not None and handle.running


def _with_shortest_source(hit: Hit) -> Hit:
    """Copying costs as much as the source holds. The same hit from who holds least, unless it is to go on in place."""
    if hit.adoptable or not hit.pages or hit.num_tokens > len(hit.pages) * PAGE_TOKENS:
        return hit
    return replace(hit, source=min(hit.pages[-1].holders, key=lambda handle: handle.num_tokens))
