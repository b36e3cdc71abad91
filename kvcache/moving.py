"""Copies the KV of a cache's handles into another memory, while nothing is computed.

In a pool, cells that handles share stay shared: a handle gets the longest prefix that is there already from the handle
that brought it, and loads the rest. A memory that moves whole sequences only cannot load a rest. There, a handle gets
pages of its own instead.
"""

from collections.abc import Iterable
from operator import attrgetter

from kvcache.layout import Layout
from kvcache.memory import Memory
from kvcache.tree import PAGE_TOKENS, KVHandle, Page


def in_order(handles: Iterable[KVHandle]) -> list[KVHandle]:
    """Returns the handles in the order in which they move: running ones by id, then idle ones, the latest used first.

    So the running ones get consecutive ids.
    """
    running = sorted((handle for handle in handles if handle.running), key=attrgetter("id"))
    idle = (handle for handle in handles if not handle.running)
    return running + sorted(idle, key=attrgetter("leaf_last_used"), reverse=True)


class Mover:
    """Copies handles from one memory to another, whose layout is still empty. Changes neither handles nor layouts."""

    def __init__(self, source: Memory, target: Memory, layout: Layout) -> None:
        """`layout`: the layout of the target."""
        self._source = source
        self._target = target
        self._layout = layout
        self.ids: dict[KVHandle, int] = {}
        """The new sequence ids of the handles that were copied. They are consecutive from 0."""
        self.detached: set[KVHandle] = set()
        """Handles that were copied without the cells that they shared."""
        self._pages: set[Page] = set()
        self._num_other = 0
        """Counted pages of the target: full pages, and pages with tails or reserved ones."""

    def copy(self, handle: KVHandle) -> bool:
        """Copy the handle's KV and give it the next id.

        Returns False, with nothing left of it in the target, if there is no room for it or a memory refuses.
        """
        sequence_id, twin, num_shared = len(self.ids), None, 0
        if self._layout.merges:
            twin, num_shared = self._longest_shared(handle)
        detaches = num_shared > 0 and not self._source.moves_pages
        if not self._has_room(handle, detaches=detaches) or (detaches and not handle.running):
            return False
        if detaches:
            twin, num_shared = None, 0
        if not self._copy_cells(handle, sequence_id, twin, num_shared * PAGE_TOKENS):
            self._target.remove(sequence_id, 0, -1)
            return False
        self.enter(handle, detaches=detaches)
        return True

    def enter(self, handle: KVHandle, *, detaches: bool = False) -> None:
        """Give the handle the next id and count its pages, without copying anything."""
        self.ids[handle] = len(self.ids)
        self._num_other += handle.num_pages - len(handle.pages) * (not detaches)
        if detaches:
            self.detached.add(handle)
        else:
            self._pages.update(handle.pages)

    def _has_room(self, handle: KVHandle, *, detaches: bool) -> bool:
        if len(self.ids) >= self._layout.num_ids or handle.num_pages > self._layout.max_pages:
            return False
        if not self._layout.merges:  # each handle has its own lane
            return True
        new = handle.num_pages
        if not detaches:
            new -= sum(page in self._pages for page in handle.pages)
        return len(self._pages) + self._num_other + new <= self._layout.num_pages

    def _longest_shared(self, handle: KVHandle) -> tuple[KVHandle | None, int]:
        """Returns a copied handle that has the longest prefix of this one, and its number of full pages."""
        for index in range(len(handle.pages) - 1, -1, -1):
            for holder in handle.pages[index].holders:
                if holder in self.ids and holder not in self.detached:
                    return holder, index + 1
        return None, 0

    def _copy_cells(self, handle: KVHandle, sequence_id: int, twin: KVHandle | None, start: int) -> bool:
        stop = handle.num_tokens
        if twin is not None and not self._target.share(self.ids[twin], sequence_id, 0, start):
            return False
        if start == stop:
            return True
        blobs = self._source.save(handle.id, start, stop)
        return bool(blobs) and self._target.load(sequence_id, start, stop, blobs)


def private_path(handle: KVHandle) -> list[Page]:
    """Returns private pages with the tokens of the handle's pages, which it can hold instead of them."""
    pages: list[Page] = []
    parent = handle.root
    for page in handle.pages:
        parent = Page(page.key, parent, private=True)
        pages.append(parent)
    return pages
