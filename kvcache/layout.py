"""The interface of a layout, which counts pages and sequence ids, places sequences and decides what to evict."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from kvcache.tree import Hit, KVHandle, Page


class Eviction(NamedTuple):
    """An idle handle keeps its first `num_tokens` tokens only. The tier, if there is one, saves the others first."""

    handle: KVHandle
    num_tokens: int = 0
    keeps_id: bool = False
    """Whether the handle is about to run again, so that its sequence id must not become free."""


class Placement(NamedTuple):
    """The sequence id that a sequence gets, and how it takes over its hit."""

    id: int
    hit: Hit
    """The hit, perhaps with another source than the one that was found."""
    adopts: bool = False
    """Whether the sequence continues the source's handle with its id. Otherwise it gets a new handle, which shares or
    copies the source's cells."""
    eviction: Eviction | None = None
    """The eviction to carry out first."""


class Layout(Protocol):
    """Counts pages and sequence ids, and makes the decisions that depend on the counts.

    A layout changes nothing but its own counts. The cache moves cells, changes handles, and reports each change to the
    layout. Invariant: free + cached + held = all, for pages and for sequence ids.
    """

    merges: bool
    """Whether all holders of a page must use the same cells, because the page is counted once."""

    @property
    def num_pages(self) -> int: ...

    @property
    def num_ids(self) -> int: ...

    @property
    def max_pages(self) -> int:
        """Pages that one sequence can have at most."""

    @property
    def num_free(self) -> int:
        """Pages that no handle has."""

    @property
    def num_cached(self) -> int:
        """Pages that only idle handles have. All others are held."""

    @property
    def free_ids(self) -> Sequence[int]:
        """Sequence ids that no handle has, neither a running one nor an idle one."""

    # -- decisions ---------------------------------------------------------------------------------------------------

    def place(self, hit: Hit, num_tokens: int, spare_pages: int) -> Placement | None:
        """Returns where a sequence of `num_tokens` tokens runs. The tokens of the hit are not computed again.

        Returns None if its pages and `spare_pages` more are not available, or if every sequence id runs.
        """

    def has_room(self, handle: KVHandle, num_pages: int) -> bool:
        """Whether the running handle can get `num_pages` more pages, perhaps after evictions."""

    def make_room(self, num_pages: int) -> Iterable[Eviction]:
        """Returns the evictions after which `num_pages` pages are free and the limit of cached pages is kept.

        The caller must carry out each eviction before it takes the next one from the iterator.
        """

    # -- accounting: the cache reports what it does ------------------------------------------------------------------

    def adopt(self, handles: Collection[KVHandle]) -> None:
        """Count handles that were moved into this layout's memory. Their ids are new. Nothing was counted before."""

    def start(self, handle: KVHandle, pages: Sequence[Page]) -> None:
        """A new or idle handle is about to run and to hold these pages."""

    def reserve(self, num_pages: int) -> None:
        """A running handle takes `num_pages` free pages. A negative number gives pages back."""

    def merge(self, page: Page) -> None:
        """A running handle has computed a page that others hold, and uses their cells from now on.

        Called only if the layout `merges`.
        """

    def release(self, handle: KVHandle) -> None:
        """The running handle is about to become idle."""

    def free(self, num_pages: int) -> None:
        """An idle handle was cut, and no handle holds these `num_pages` pages any more."""

    def drop(self, handle: KVHandle) -> None:
        """The idle handle, which is empty, is deleted: its sequence id is free."""

    def check_integrity(self, handles: Collection[KVHandle], pages: Collection[Page]) -> None:
        """Recount all handles and the full pages that they hold. Raises AssertionError if the counts differ."""
