"""The KV cache: manages KV memory in pages, keeps the pages of earlier sequences, and finds prefix hits for new ones.

It is composed of three parts, which it uses only through their protocols. The layout (`kvcache.layout`) counts pages
and sequence ids, places sequences and decides what to evict. The tier (`kvcache.tier`) keeps evicted pages. The tree
(`kvcache.sharing`) finds common prefixes. The cache itself moves cells and changes handles.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

from kvcache.events import NO_LISTENER, Listener, Medium
from kvcache.integrity import check
from kvcache.layout import Eviction, Layout
from kvcache.memory import Memory
from kvcache.moving import Mover, in_order, private_path
from kvcache.page_map import PageMap, page_map
from kvcache.sharing import PrefixTree, PrivatePaths, Tree
from kvcache.statistics import CacheStatistics
from kvcache.tier import NO_TIER, Tier
from kvcache.tree import PAGE_BYTES, PAGE_TOKENS, TOKEN_BYTES, Hit, KVHandle, Page, Stored, num_pages_for


class KVCache:
    """The pages of one context. Invariant: free + cached + held = all, for pages and for sequence ids.

    A page is held if a running handle holds or reserves it. It is cached if only idle handles hold it. An idle handle
    keeps its sequence id only while it is the sole holder of some page.
    """

    def __init__(
        self,
        memory: Memory,
        layout: Layout,
        tier: Tier = NO_TIER,
        *,
        sharing: bool = True,
        listener: Listener = NO_LISTENER,
    ) -> None:
        """`sharing` is False for recurrent and hybrid models: only the tier then keeps anything of ended sequences.

        `listener` gets the pages of the KV memory. Those of the tier are reported by the tier.
        """
        self._memory = memory
        self._layout = layout
        self._tier = tier
        self._listener = listener
        self._tree: Tree = PrefixTree(lambda handle: self._memory.intact_from(handle.id)) if sharing else PrivatePaths()
        self._handles: set[KVHandle] = set()
        """All handles, running and idle."""
        self._clock = 0
        self._hit_tokens = 0
        self._loaded_tokens = 0
        self._evicted_pages = 0
        self._merged_pages = 0

    @property
    def sharing(self) -> bool:
        """Whether a sequence can reuse the pages of another one, even of one that runs."""
        return self._tree.sharing

    @property
    def num_pages(self) -> int:
        return self._layout.num_pages

    @property
    def num_free(self) -> int:
        return self._layout.num_free

    @property
    def num_cached(self) -> int:
        return self._layout.num_cached

    @property
    def num_held(self) -> int:
        return self.num_pages - self.num_free - self.num_cached

    @property
    def free_ids(self) -> Sequence[int]:
        """Sequence ids that no handle has, neither a running one nor an idle one."""
        return self._layout.free_ids

    @property
    def num_ids(self) -> int:
        return self._layout.num_ids

    @property
    def max_tokens(self) -> int:
        """Tokens that one sequence can have at most, at the present size of the memory."""
        return self._layout.max_pages * PAGE_TOKENS

    # -- a sequence, from lookup to release --------------------------------------------------------------------------

    def lookup(self, tokens: bytes, max_tokens: int | None = None, salt: bytes = b"") -> Hit:
        """Returns the longest known prefix of the tokens, at most `max_tokens` long.

        Only sequences of the same `salt` have prefixes in common.

        The last token is never part of the hit: it must be computed to get logits. The hit is valid until the cache
        changes. A lookup changes no handle, but a tier may start to read pages from the disk.
        """
        limit = len(tokens) // TOKEN_BYTES - 1
        if max_tokens is not None:
            limit = min(limit, max_tokens)
        tokens = tokens[: limit * TOKEN_BYTES]
        hit = self._tree.find(tokens, salt)
        stored = self._tier.find(tokens, hit)
        if stored.stop <= hit.num_tokens:
            return replace(hit, stored=Stored(arriving=True)) if stored.arriving else hit
        resident = self._tree.find(tokens[: stored.start * TOKEN_BYTES], salt)
        return replace(resident, stored=stored) if resident.num_tokens == stored.start else hit

    def wait(self) -> None:
        """Waits a short time for the pages that the tier is reading from the disk."""
        self._tier.wait()

    def acquire(self, tokens: bytes, hit: Hit | None = None, spare_pages: int = 0) -> KVHandle | None:
        """Returns a running handle with pages for all `tokens`. It already holds the hit, by default `lookup(tokens)`.

        Evicts other pages if necessary. Returns None if the pages and `spare_pages` more are not available, or if every
        sequence id runs. If the memory refuses to share or to load some of the hit, the handle holds less.
        """
        hit = self.lookup(tokens) if hit is None else hit
        num_tokens = len(tokens) // TOKEN_BYTES
        placement = self._layout.place(hit, num_tokens, spare_pages)
        if placement is None:
            return None
        if placement.eviction is not None:
            self._evict(placement.eviction)
        hit = placement.hit
        if placement.adopts and hit.source is not None:
            handle = hit.source
            if handle.num_tokens != hit.num_tokens:  # the memory could not cut it to the hit
                self._drop_if_superfluous(handle)
                return self.acquire(tokens, self.lookup(tokens, hit.num_known, hit.salt), spare_pages)
            self._resume(handle)
        elif placement.eviction is not None and placement.eviction.handle is hit.source:
            # The source itself was evicted. Other handles may hold a shorter part of the hit.
            return self.acquire(tokens, self.lookup(tokens, hit.num_known, hit.salt), spare_pages)
        else:
            forked = self._fork(placement.id, hit)
            if forked is None:
                return self.acquire(tokens, Hit(hit.root), spare_pages)
            handle = forked
        reserved = self.reserve(handle, num_tokens)
        assert reserved, "place() checked that there are enough pages"
        if hit.stored.num_tokens and not self._load(handle, tokens, hit.stored):
            self._abandon(handle)
            resident = self._tree.find(tokens[: hit.num_tokens * TOKEN_BYTES], hit.salt)
            return self.acquire(tokens, resident, spare_pages)
        self._hit_tokens += hit.num_known
        return handle

    def reserve(self, handle: KVHandle, num_tokens: int) -> bool:
        """Give the handle pages for `num_tokens` tokens in total. Returns False, and changes nothing, if it cannot."""
        missing = num_pages_for(num_tokens) - handle.num_pages
        if missing <= 0:
            return True
        if not self._layout.has_room(handle, missing):
            return False
        for eviction in self._layout.make_room(missing):
            self._evict(eviction)
        self._layout.reserve(missing)
        handle.num_pages += missing
        return True

    def reserve_free(self, handle: KVHandle, num_tokens: int, spare_pages: int) -> bool:
        """Does the same as `reserve`, but evicts nothing, and leaves `spare_pages` pages free."""
        missing = num_pages_for(num_tokens) - handle.num_pages
        if missing > 0 and missing + spare_pages > self._layout.num_free:
            return False
        return self.reserve(handle, num_tokens)

    def commit(self, handle: KVHandle, tokens: bytes) -> None:
        """Append computed tokens to the handle. Other sequences can share them from now on."""
        tail = handle.tail + tokens
        while len(tail) >= PAGE_BYTES:
            self._seal(handle, tail[:PAGE_BYTES])
            tail = tail[PAGE_BYTES:]
        handle.tail = tail

    def prompt_done(self, handle: KVHandle) -> None:
        """Report that the whole prompt is computed. Saves the state for later sequences if states cannot be cut."""
        self._save_state(handle)

    def rollback(self, handle: KVHandle) -> bool:
        """Remove the cells after the committed tokens: those of a failed step, or of rejected drafts.

        Returns False if the model's memory cannot remove them: the handle is then empty, and has no pages.
        """
        if self._memory.remove(handle.id, handle.num_tokens, -1):
            return True
        self._stop(handle)
        self._clear(handle)
        self._resume(handle)
        return False

    def release(self, handle: KVHandle) -> None:
        """Make the handle idle. Its pages stay cached until another sequence needs them."""
        self._stop(handle)
        self._save_state(handle)
        self._cut(handle, self._tree.num_kept(handle))
        self._drop_if_superfluous(handle)
        for eviction in self._layout.make_room(0):
            self._evict(eviction)

    def discard(self, handle: KVHandle) -> None:
        """Release the handle and keep nothing of it, because its KV may be wrong."""
        self._memory.remove(handle.id, 0, -1)  # also cells that are not committed
        self._layout.release(handle)
        self._clock += 1
        handle.stop(self._clock)
        self._drop(handle)

    # -- another memory ----------------------------------------------------------------------------------------------

    def move(self, memory: Memory, layout: Layout) -> list[KVHandle]:
        """Go on in another memory of any size, with an empty layout. Changes the ids of handles.

        The running handles must fit into it. Idle ones for which there is no room go to the tier. Returns the running
        handles that a memory refused to move: they are empty now, and have no pages.
        """
        mover, lost = Mover(self._memory, memory, layout), []
        for handle in in_order(self._handles):
            if mover.copy(handle):
                continue
            if handle.running:
                self._stop(handle)
                self._clear(handle)
                self._resume(handle)
                mover.enter(handle)
                lost.append(handle)
            else:
                self._evict(Eviction(handle))
        for handle in mover.detached:
            pages, tail = private_path(handle), handle.tail
            for page in handle.cut(0):
                if not page.holders:
                    self._forget(page)
            handle.extend(pages)
            handle.tail = tail
        for handle, sequence_id in mover.ids.items():
            handle.id = sequence_id
        self._memory, self._layout = memory, layout
        layout.adopt(self._handles)
        return lost

    def trim(self) -> None:
        """Give back the pages that running handles have reserved for tokens that are not computed."""
        for handle in self._handles:
            spare = handle.num_pages - num_pages_for(handle.num_tokens)
            handle.num_pages -= spare
            self._layout.reserve(-spare)

    def evict_oldest(self) -> int:
        """Evict the idle handle that was used least recently. Returns its number of tokens; 0 if there is none."""
        idle = (handle for handle in self._handles if not handle.running)
        oldest = min(idle, key=attrgetter("leaf_last_used"), default=None)
        if oldest is None:
            return 0
        num_tokens = oldest.num_tokens
        self._evict(Eviction(oldest))
        return num_tokens

    def count_tokens(self) -> tuple[int, int]:
        """Returns how many tokens running handles have, and idle ones. Shared ones count more than once."""
        running = sum(handle.num_tokens for handle in self._handles if handle.running)
        return running, sum(handle.num_tokens for handle in self._handles) - running

    def close(self, seconds: float) -> None:
        """Save all idle sequences to the tier and close it. Writing to the disk takes at most about `seconds`."""
        idle = [handle for handle in self._handles if not handle.running]
        for handle in sorted(idle, key=attrgetter("leaf_last_used")):
            self._tier.save(handle, 0, self._memory)
        self._tier.close(seconds)

    # -- start and growth of a handle --------------------------------------------------------------------------------

    def _resume(self, handle: KVHandle) -> None:
        self._layout.start(handle, handle.pages)
        handle.resume()

    def _fork(self, sequence_id: int, hit: Hit) -> KVHandle | None:
        """Returns a new running handle that holds the resident part of the hit. None if the memory cannot share it."""
        if hit.source is not None and not self._memory.share(hit.source.id, sequence_id, 0, hit.num_tokens):
            self._memory.remove(sequence_id, 0, -1)
            return None
        handle = KVHandle(sequence_id, hit.root)
        self._handles.add(handle)
        self._layout.start(handle, hit.pages)
        handle.extend(hit.pages)
        handle.num_pages = len(hit.pages)
        if hit.source is not None:
            handle.tail = hit.source.tokens_inside(len(hit.pages), hit.num_tokens)
            if hit.adoptable:  # the new handle holds all that the source holds
                self._drop(hit.source)
        return handle

    def _seal(self, handle: KVHandle, key: bytes) -> None:
        """Add the handle's next page to the tree, or make the handle a holder of an equal page in the tree."""
        page = self._tree.page(handle.last_page, key)
        if page.holders and self._layout.merges:
            page = self._merge(handle, page)
        handle.extend((page,))
        if len(page.holders) == 1 and not page.private:
            self._listener.stored(Medium.GPU, page.block)
        for end in [end for end in page.ends if not end.running]:
            self._drop_if_superfluous(end)

    def _merge(self, handle: KVHandle, page: Page) -> Page:
        """Replace the handle's own cells by those of the page's holders. Returns the handle's next page.

        If no holder has all KV of the page any more, returns a new page: instead of the holders' page if they are idle,
        otherwise a private one.
        """
        start = len(handle.pages) * PAGE_TOKENS
        twin = next((each for each in page.holders if self._memory.intact_from(each.id) <= start), None)
        if twin is not None:
            self._layout.merge(page)
            self._memory.merge(twin.id, handle.id, start, start + PAGE_TOKENS)
            self._merged_pages += 1
            return page
        if page.num_running:
            return Page(page.key, page.parent, private=True)
        for idle in tuple(page.holders):
            self._evict(Eviction(idle, start))
        return self._tree.page(handle.last_page, page.key)

    def _load(self, handle: KVHandle, tokens: bytes, stored: Stored) -> bool:
        """Append the tokens that a tier has. Returns False if the memory rejects them."""
        if not self._memory.load(handle.id, stored.start, stored.stop, stored.blobs):
            return False
        self._loaded_tokens += stored.num_tokens
        self.commit(handle, tokens[stored.start * TOKEN_BYTES : stored.stop * TOKEN_BYTES])
        return True

    # -- end of a handle ---------------------------------------------------------------------------------------------

    def _stop(self, handle: KVHandle) -> None:
        self._layout.release(handle)
        self._clock += 1
        handle.stop(self._clock)

    def _abandon(self, handle: KVHandle) -> None:
        """Drop a running handle whose KV may be damaged."""
        self._stop(handle)
        self._clear(handle)
        self._drop(handle)

    def _save_state(self, handle: KVHandle) -> None:
        """Save the state to the tier if no other sequence can share it in memory."""
        if handle.last_page.private:
            self._tier.save(handle, 0, self._memory)

    def _evict(self, eviction: Eviction) -> None:
        handle, num_free = eviction.handle, self._layout.num_free
        self._tier.save(handle, eviction.num_tokens, self._memory)
        self._cut(handle, eviction.num_tokens)
        self._evicted_pages += self._layout.num_free - num_free
        if not eviction.keeps_id:
            self._drop_if_superfluous(handle)

    def _cut(self, handle: KVHandle, num_tokens: int) -> None:
        """Keep only the first `num_tokens` tokens of the idle handle."""
        if num_tokens == handle.num_tokens:
            return
        num_freed = int(bool(handle.tail))
        for page in handle.cut(num_tokens):
            if not page.holders:
                num_freed += 1
                self._forget(page)
        handle.num_pages = num_pages_for(num_tokens)
        self._layout.free(num_freed - bool(handle.tail))
        if not self._memory.remove(handle.id, num_tokens, -1):
            self._clear(handle)

    def _forget(self, page: Page) -> None:
        """No handle holds the page any more."""
        self._tree.remove(page)
        if not page.private:
            self._listener.removed(Medium.GPU, page.digest)

    def _clear(self, handle: KVHandle) -> None:
        """Empty an idle handle, including cells that were never committed."""
        self._memory.remove(handle.id, 0, -1)
        self._cut(handle, 0)

    def _drop_if_superfluous(self, handle: KVHandle) -> None:
        """Drop the handle, and free its id, if it is idle and not the sole holder of a page."""
        if not handle.running and not handle.is_sole_holder:
            self._drop(handle)

    def _drop(self, handle: KVHandle) -> None:
        self._cut(handle, 0)
        handle.root.ends.discard(handle)
        self._handles.remove(handle)
        self._layout.drop(handle)

    # -- statistics and checks ---------------------------------------------------------------------------------------

    def statistics(self) -> CacheStatistics:
        tier = self._tier.statistics()
        num_running = sum(handle.running for handle in self._handles)
        return CacheStatistics(
            page_tokens=PAGE_TOKENS,
            pages=self.num_pages,
            free_pages=self.num_free,
            cached_pages=self.num_cached,
            held_pages=self.num_held,
            sequence_ids=self._layout.num_ids,
            free_ids=len(self.free_ids),
            cached_ids=len(self._handles) - num_running,
            running_ids=num_running,
            hit_tokens=self._hit_tokens,
            loaded_tokens=self._loaded_tokens,
            evicted_pages=self._evicted_pages,
            merged_pages=self._merged_pages,
            host_bytes=tier.host_bytes,
            host_pages=tier.host_pages,
            disk_bytes=tier.disk_bytes,
            disk_pages=tier.disk_pages,
        )

    def page_map(self) -> PageMap:
        """A map of the memory, for people."""
        return page_map(self._layout, self._handles)

    def check_integrity(self) -> None:
        """Recount everything from the tree and the handles. Raises AssertionError if the accounting is wrong."""
        check(self._handles, self._tree, self._layout)
        self._tier.check_integrity()
