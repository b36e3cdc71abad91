"""What the cache asks of a layout: to count pages and sequence ids, to place sequences, to choose what is evicted."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from kvcache.tree import Hit, KVHandle, Page


class Eviction(NamedTuple):
    """An idle handle gives up what it holds behind its first `num_tokens`. What a tier can keep is saved before."""

    handle: KVHandle
    num_tokens: int = 0
    keeps_id: bool = False
    """Whether it goes on with what is left, so that its sequence id must not become free."""


class Placement(NamedTuple):
    """Where a sequence is to run."""

    id: int
    hit: Hit
    """What it begins with, and the source to take that from."""
    adopts: bool = False
    """Whether the source itself goes on, with its id. Otherwise the sequence is a new handle that shares the source's
    cells or gets a copy of them."""
    eviction: Eviction | None = None
    """What must be done first."""


class Layout(Protocol):
    """Accounts of pages and of sequence ids, and the decisions that follow from them.

    A layout decides and counts, and changes nothing else: the cache moves cells, changes handles, and reports here what
    it does. Invariant: free + cached + held = all, for pages and for sequence ids.
    """

    @property
    def num_pages(self) -> int: ...

    @property
    def num_ids(self) -> int: ...

    @property
    def num_free(self) -> int:
        """Pages that no handle has."""

    @property
    def num_cached(self) -> int:
        """Pages that only idle handles have. All others are held."""

    @property
    def free_ids(self) -> Sequence[int]:
        """Sequence ids that no handle has, running or idle."""

    # -- decisions ---------------------------------------------------------------------------------------------------

    def place(self, hit: Hit, num_tokens: int, spare_pages: int) -> Placement | None:
        """Where a sequence of so many tokens runs, of which the hit need not be computed.

        None unless `spare_pages` more could be had besides, or if every sequence id runs.
        """

    def has_room(self, handle: KVHandle, num_pages: int) -> bool:
        """Whether the running handle can have so many pages more, perhaps after evictions."""

    def make_room(self, num_pages: int) -> Iterable[Eviction]:
        """What to evict so that so many pages are free, and no more are cached than are worth it.

        Each eviction must be carried out before the next one is asked for.
        """

    # -- accounts: what the cache does -------------------------------------------------------------------------------

    def start(self, handle: KVHandle, pages: Sequence[Page]) -> None:
        """A new handle or an idle one is about to run and to hold these pages."""

    def reserve(self, num_pages: int) -> None:
        """A running handle takes so many free pages."""

    def merge(self, page: Page) -> bool:
        """A running handle has computed this page of others', and will hold it. Whether it goes over to their cells."""

    def release(self, handle: KVHandle) -> None:
        """The running handle is about to become idle."""

    def free(self, num_pages: int) -> None:
        """An idle handle was cut, and nobody holds so many pages any more."""

    def drop(self, handle: KVHandle) -> None:
        """The idle handle, which holds nothing, is no more: its sequence id is free."""

    def check_integrity(self, handles: Collection[KVHandle], pages: Collection[Page]) -> None:
        """Recount from all handles and the full pages that they hold. Raises AssertionError if the accounts differ."""
