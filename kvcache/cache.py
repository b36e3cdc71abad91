"""KV memory in pages: who holds them, what is still cached of earlier sequences, and what is found of new ones.

The layouts keep the accounts, `kvcache.pool` and `kvcache.lanes`; here is what they have in common: the prefix tree,
how a handle grows and ends, and the tier behind the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvcache.memory import Memory
from kvcache.tiers import HostTier, TierStatistics
from kvcache.tree import (
    PAGE_BYTES,
    PAGE_TOKENS,
    TOKEN_BYTES,
    Hit,
    KVHandle,
    Page,
    Stored,
    longest_prefix,
    num_pages_for,
)
from kvcache.whole import WholeTier


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Pages and sequence ids by use, and counters since the start."""

    page_tokens: int
    pages: int
    free_pages: int
    cached_pages: int
    held_pages: int
    sequence_ids: int
    free_ids: int
    cached_ids: int
    running_ids: int
    hit_tokens: int
    """Tokens that were found instead of computed."""
    loaded_tokens: int
    """Those of them that came back from host memory or the disk."""
    evicted_pages: int
    merged_pages: int
    """Pages that two sequences had computed alike, kept once."""
    host_bytes: int
    host_pages: int
    disk_bytes: int
    disk_pages: int


class KVCache(ABC):
    """The pages of one context. Invariant: free + cached + held = all, for pages and for sequence ids.

    A page is held while a running handle holds it or has it reserved, cached while only idle handles hold it. An idle
    handle keeps its sequence id only while it alone holds some page.
    """

    def __init__(
        self,
        memory: Memory,
        num_pages: int,
        num_ids: int,
        *,
        sharing: bool = True,
        tier: HostTier | WholeTier | None = None,
    ) -> None:
        """With a `tier`, pages go there when they are evicted, or the whole sequence that they are of.

        Without `sharing` (recurrent and hybrid models) nothing stays cached; sequences go to the tier as they end.
        """
        self._memory = memory
        self._tier = tier
        self.sharing = sharing
        self.num_pages = num_pages
        self._num_ids = num_ids
        self._idle: set[KVHandle] = set()
        self._running: set[KVHandle] = set()
        self._root = Page(b"", None)
        self._clock = 0
        self._hit_tokens = 0
        self._loaded_tokens = 0
        self._evicted_pages = 0
        self._merged_pages = 0

    # -- accounting, by layout ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def num_free(self) -> int: ...

    @property
    @abstractmethod
    def num_cached(self) -> int: ...

    @property
    def num_held(self) -> int:
        return self.num_pages - self.num_free - self.num_cached

    @property
    @abstractmethod
    def free_ids(self) -> list[int]:
        """Sequence ids that nobody has, running or idle."""

    @abstractmethod
    def acquire(self, tokens: bytes, hit: Hit | None = None, spare_pages: int = 0) -> KVHandle | None:
        """A running handle with pages for all `tokens`, those of the hit (the longest) already in memory.

        None unless `spare_pages` more could be had besides, or if every sequence id runs. Evicts what is needed.
        """

    @abstractmethod
    def reserve(self, handle: KVHandle, num_tokens: int) -> bool:
        """Make sure that the handle has pages for `num_tokens` in all. False, with nothing changed, if not."""

    @abstractmethod
    def _count_freed(self, num_pages: int) -> None:
        """So many pages that were cached are free now."""

    @abstractmethod
    def _return_id(self, sequence_id: int) -> None:
        """Nobody has this id any more."""

    @abstractmethod
    def _merge(self, handle: KVHandle, page: Page) -> None:
        """The running handle has computed the tokens of a page that others hold."""

    # -- a running handle: look up, commit, release ------------------------------------------------------------------

    def lookup(self, tokens: bytes, max_tokens: int | None = None) -> Hit:
        """The longest known prefix of the tokens but the last, which is left to compute so that it gives logits.

        At most `max_tokens` long. Changes nothing here, but has a tier begin to read what it must. The hit is valid
        until the cache changes.
        """
        limit = len(tokens) // TOKEN_BYTES - 1
        if max_tokens is not None:
            limit = min(limit, max_tokens)
        hit = longest_prefix(self._root, tokens, limit) if self.sharing else Hit()
        if self._tier is None:
            return hit
        if isinstance(self._tier, WholeTier):
            stored = self._tier.find(tokens[: limit * TOKEN_BYTES], hit.num_tokens)
            return Hit(stored=stored) if stored.num_tokens else replace(hit, stored=stored)
        num_shared = len(hit.pages) * PAGE_TOKENS
        last_page = hit.pages[-1] if hit.pages else self._root
        stored = self._tier.find(last_page.digest, tokens[num_shared * TOKEN_BYTES : limit * TOKEN_BYTES])
        if num_shared + stored.num_tokens <= hit.num_tokens:
            return replace(hit, stored=Stored(arriving=stored.arriving))
        return replace(longest_prefix(self._root, tokens, num_shared), stored=stored)

    def wait(self) -> None:
        """For a moment, until what lookups found arriving is there."""
        if self._tier is not None:
            self._tier.wait()

    def commit(self, handle: KVHandle, tokens: bytes) -> None:
        """Tell that these tokens were computed behind what the handle held; others can share them from now on."""
        tail = handle.tail + tokens
        while len(tail) >= PAGE_BYTES:
            self._seal(handle, tail[:PAGE_BYTES])
            tail = tail[PAGE_BYTES:]
        handle.tail = tail

    def prompt_done(self, handle: KVHandle) -> None:
        """Tell that all of a prompt was computed: others may go on from here, where a state cannot be cut later."""
        if not self.sharing:
            self._save(handle, 0)

    def rollback(self, handle: KVHandle) -> bool:
        """Remove cells that a failed step left behind what was committed.

        False if the model's memory cannot do so: the handle then holds nothing any more.
        """
        if self._memory.remove(handle.id, handle.num_tokens, -1):
            return True
        self._memory.remove(handle.id, 0, -1)
        self._last_page(handle).ends.discard(handle)
        handle.pages.clear()  # its own: what can be shared can be cut, too
        handle.tail = b""
        self._root.ends.add(handle)
        return False

    def release(self, handle: KVHandle) -> None:
        """The handle stops running. Its pages stay cached until others need the room."""
        self._running.remove(handle)
        handle.running = False
        self._clock += 1
        handle.last_used = self._clock
        handle.num_pages = num_pages_for(handle.num_tokens)
        for page in handle.pages:
            page.last_used = self._clock
            page.num_running -= 1
        self._idle.add(handle)
        if not self.sharing:
            self._save(handle, 0)
            self._drop(handle)
            return
        if handle.tail and self._is_known_elsewhere(handle):
            self._cut(handle, len(handle.pages) * PAGE_TOKENS)
        self._drop_if_superfluous(handle)

    def _adopt(self, handle: KVHandle) -> None:
        """The idle handle goes on."""
        self._idle.remove(handle)
        self._running.add(handle)
        handle.running = True
        self._hold(handle.pages)

    def _fork(self, sequence_id: int, hit: Hit) -> KVHandle:
        """A running handle that begins with what another one holds."""
        handle = KVHandle(sequence_id)
        self._running.add(handle)
        handle.pages = list(hit.pages)
        handle.num_pages = len(hit.pages)
        self._hold(handle.pages)
        for page in handle.pages:
            page.holders.add(handle)
        self._last_page(handle).ends.add(handle)
        if hit.source is not None and hit.num_tokens:
            self._memory.share(hit.source.id, handle.id, 0, hit.num_tokens)
            handle.tail = _tokens_of(hit.source, len(hit.pages), hit.num_tokens)
        return handle

    def _hold(self, pages: list[Page]) -> None:
        for page in pages:
            page.num_running += 1

    def _seal(self, handle: KVHandle, key: bytes) -> None:
        """Make the handle's next page a node of the tree, or one of the holders of an equal one that is there."""
        parent = self._last_page(handle)
        parent.ends.discard(handle)
        page = parent.children.get(key) if self.sharing else None
        if page is None:
            page = Page(key, parent)
            if self.sharing:
                parent.children[key] = page
            page.num_running = 1
        else:
            self._merge(handle, page)
            self._hold([page])
        page.holders.add(handle)
        page.ends.add(handle)
        handle.pages.append(page)
        for end in [end for end in page.ends if not end.running]:
            self._drop_if_superfluous(end)

    # -- a tier, and the end of an idle handle -----------------------------------------------------------------------

    def _save(self, handle: KVHandle, num_kept: int) -> None:
        """Give the tier what nobody else holds of the idle handle behind its first pages, unless it has that.

        Or all of the handle, where only that can be moved.
        """
        if self._tier is None:
            return
        if isinstance(self._tier, WholeTier):
            self._save_whole(handle, self._tier)
            return
        pages = handle.pages
        while num_kept < len(pages) and (len(pages[num_kept].holders) > 1 or pages[num_kept].digest in self._tier):
            num_kept += 1
        start = num_kept * PAGE_TOKENS
        if start == handle.num_tokens:
            return
        blobs = self._memory.save(handle.id, start, handle.num_tokens)
        keys = [page.key for page in pages[num_kept:]] + [handle.tail] * bool(handle.tail)
        parent = pages[num_kept - 1] if num_kept else self._root
        self._tier.add(parent.digest, zip(keys, blobs, strict=True))

    def _save_whole(self, handle: KVHandle, tier: WholeTier) -> None:
        tokens = b"".join(page.key for page in handle.pages) + handle.tail
        if tokens and tokens not in tier:
            (blob,) = self._memory.save(handle.id, 0, handle.num_tokens)
            tier.add(tokens, blob)

    def _load(self, handle: KVHandle, tokens: bytes, stored: Stored) -> None:
        """Put what a tier has behind what the handle holds. What cannot be taken is computed."""
        start, stop = handle.num_tokens, handle.num_tokens + stored.num_tokens
        if self._memory.load(handle.id, start, stop, stored.blobs):
            self._hit_tokens += stored.num_tokens
            self._loaded_tokens += stored.num_tokens
            self.commit(handle, tokens[start * TOKEN_BYTES : stop * TOKEN_BYTES])

    def close(self, seconds: float) -> None:
        """Bring what is cached to where it outlives this process, as far as the time allows."""
        if self._tier is not None:
            for handle in sorted(self._idle, key=leaf_last_used):
                self._save(handle, 0)
            self._tier.close(seconds)

    def _cut(self, handle: KVHandle, num_tokens: int) -> None:
        """Take the idle handle off all that it holds behind its first tokens."""
        if num_tokens == handle.num_tokens:
            return
        num_pages = num_tokens // PAGE_TOKENS
        tail = _tokens_of(handle, num_pages, num_tokens)
        num_freed = bool(handle.tail) - bool(tail)
        self._last_page(handle).ends.discard(handle)
        for page in handle.pages[num_pages:]:
            page.holders.discard(handle)
            if not page.holders:
                num_freed += 1
                if self.sharing and page.parent is not None:
                    del page.parent.children[page.key]
        del handle.pages[num_pages:]
        handle.tail = tail
        handle.num_pages = num_pages_for(num_tokens)
        self._last_page(handle).ends.add(handle)
        self._count_freed(num_freed)
        self._memory.remove(handle.id, num_tokens, -1)

    def _drop_if_superfluous(self, handle: KVHandle) -> None:
        """Give the id back unless the idle handle alone holds a page: its last one then, as fronts are shared."""
        if handle.running or handle.tail or (handle.pages and len(handle.pages[-1].holders) == 1):
            return
        self._drop(handle)

    def _drop(self, handle: KVHandle) -> None:
        self._cut(handle, 0)
        self._root.ends.discard(handle)
        self._idle.remove(handle)
        self._return_id(handle.id)

    def _is_known_elsewhere(self, handle: KVHandle) -> bool:
        """Whether others hold all of the handle's tail too, in a page or in a tail of theirs."""
        parent = self._last_page(handle)
        return any(key.startswith(handle.tail) for key in parent.children) or any(
            end is not handle and end.tail.startswith(handle.tail) for end in parent.ends
        )

    def _last_page(self, handle: KVHandle) -> Page:
        return handle.pages[-1] if handle.pages else self._root

    # -- what it looks like ------------------------------------------------------------------------------------------

    def statistics(self) -> CacheStatistics:
        tier = self._tier.statistics() if self._tier is not None else TierStatistics(0, 0, 0, 0)
        return CacheStatistics(
            page_tokens=PAGE_TOKENS,
            pages=self.num_pages,
            free_pages=self.num_free,
            cached_pages=self.num_cached,
            held_pages=self.num_held,
            sequence_ids=self._num_ids,
            free_ids=len(self.free_ids),
            cached_ids=len(self._idle),
            running_ids=len(self._running),
            hit_tokens=self._hit_tokens,
            loaded_tokens=self._loaded_tokens,
            evicted_pages=self._evicted_pages,
            merged_pages=self._merged_pages,
            host_bytes=tier.host_bytes,
            host_pages=tier.host_pages,
            disk_bytes=tier.disk_bytes,
            disk_pages=tier.disk_pages,
        )

    def check_integrity(self) -> None:
        """Recount everything from the tree and the handles. Raises AssertionError if the accounting is wrong."""
        handles = self._idle | self._running
        ids = [handle.id for handle in handles] + self.free_ids
        assert sorted(ids) == list(range(self._num_ids)), "every sequence id is running, cached or free"
        for page in self._all_pages():
            assert page.holders, "a page in the tree is held by someone"
            assert page.num_running == sum(handle.running for handle in page.holders), "running holders"
        for handle in handles:
            assert all(handle in page.holders for page in handle.pages), "a path is held"
            assert [page.parent for page in handle.pages] == [self._root, *handle.pages][:-1], "a path is a path"
            assert handle in self._last_page(handle).ends, "a handle can be found where it ends"
            assert num_pages_for(handle.num_tokens) <= handle.num_pages, "computed tokens have pages"
            if not handle.running:
                assert handle.num_pages == num_pages_for(handle.num_tokens), "an idle handle reserves nothing"
                assert handle.tail or len(handle.pages[-1].holders) == 1, "an idle handle alone holds some page"
        assert self.num_free >= 0, "free pages"
        if self._tier is not None:
            self._tier.check_integrity()

    def _all_pages(self) -> set[Page]:
        if self.sharing:
            return set(_descendants(self._root))
        return {page for handle in self._idle | self._running for page in handle.pages}


def leaf_last_used(handle: KVHandle) -> int:
    return handle.last_used if handle.tail else handle.pages[-1].last_used


def _tokens_of(handle: KVHandle, num_pages: int, num_tokens: int) -> bytes:
    """The tokens behind the handle's first `num_pages` pages up to `num_tokens`, all within one page."""
    inside = handle.pages[num_pages].key if num_pages < len(handle.pages) else handle.tail
    return inside[: (num_tokens - num_pages * PAGE_TOKENS) * TOKEN_BYTES]


def _descendants(page: Page) -> Iterator[Page]:
    stack = list(page.children.values())
    while stack:
        page = stack.pop()
        yield page
        stack.extend(page.children.values())
