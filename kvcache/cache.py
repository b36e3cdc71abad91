"""KV memory in pages: who holds them, what is still cached of earlier sequences, what goes first, and where to.

Layout *pool*: all sequences share one set of cells, and sharing a prefix means putting one more sequence id on its
cells. Pages are accounting, not addresses: llama.cpp may put a token into any free cell. Every cell belongs to a page
of each branch that uses it, and a page covers at most PAGE_TOKENS cells; so while the pages suffice, so do the cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from kvcache.memory import Memory
from kvcache.tiers import HostTier, TierStatistics
from kvcache.tree import (
    PAGE_BYTES,
    PAGE_TOKENS,
    TOKEN_BYTES,
    Branch,
    Hit,
    Page,
    Stored,
    longest_prefix,
    num_pages_for,
)

EVICTION_SHARE: Final = 8
"""Of the pool, one part of so many is evicted at a time.

Cells that fall free one page here and one there would scatter what is computed next over the whole pool, more with each
turn, and attention skips the cells of others only in whole stretches. In a simulation of a full pool turned over five
times, page by page left each sequence in 14 times as many stretches of 64 cells as its length needs, an eighth at a
time in 6 times as many (5 is what decoding eight sequences side by side makes anyway).
"""


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


class KVCache:
    """The pages of one context. Invariant: free + cached + held = all, for pages and for sequence ids.

    A page is held while a running branch holds it or has it reserved, cached while only idle branches hold it. An idle
    branch keeps its sequence id only while it alone holds some page.
    """

    def __init__(
        self,
        memory: Memory,
        num_pages: int,
        num_ids: int,
        *,
        sharing: bool = True,
        tier: HostTier | None = None,
        max_cached: int | None = None,
    ) -> None:
        """Without `sharing` (recurrent and hybrid models) nothing is found again and nothing stays cached.

        With a `tier`, pages go there when they are evicted; then at most `max_cached` need stay, if given.
        """
        self._memory = memory
        self._tier = tier
        self._max_cached = num_pages if max_cached is None else max_cached
        self.sharing = sharing
        self.num_pages = num_pages
        self.num_free = num_pages
        self.num_cached = 0
        self._num_ids = num_ids
        self._free_ids = list(range(num_ids - 1, -1, -1))
        """A stack, lowest id on top: the ids in use stay dense."""
        self._idle: set[Branch] = set()
        self._running: set[Branch] = set()
        self._root = Page(b"", None)
        self._clock = 0
        self._hit_tokens = 0
        self._loaded_tokens = 0
        self._evicted_pages = 0
        self._merged_pages = 0

    @property
    def num_held(self) -> int:
        return self.num_pages - self.num_free - self.num_cached

    # -- a running branch: acquire, reserve, commit, release ---------------------------------------------------------

    def lookup(self, tokens: bytes, max_tokens: int | None = None) -> Hit:
        """The longest known prefix of the tokens but the last, which is left to compute so that it gives logits.

        At most `max_tokens` long. Changes nothing here, but has a tier begin to read what it must. The hit is valid
        until the cache changes.
        """
        if not self.sharing:
            return Hit()
        limit = len(tokens) // TOKEN_BYTES - 1
        if max_tokens is not None:
            limit = min(limit, max_tokens)
        hit = longest_prefix(self._root, tokens, limit)
        if self._tier is None:
            return hit
        num_shared = len(hit.pages) * PAGE_TOKENS
        last_page = hit.pages[-1] if hit.pages else self._root
        stored = self._tier.find(last_page.digest, tokens[num_shared * TOKEN_BYTES : limit * TOKEN_BYTES])
        if num_shared + stored.num_tokens <= hit.num_tokens:
            return replace(hit, stored=Stored(arriving=stored.arriving))
        return replace(longest_prefix(self._root, tokens, num_shared), stored=stored)

    def wait(self) -> None:
        """Until more of what a lookup found arriving is there."""
        if self._tier is not None:
            self._tier.wait()

    def acquire(self, tokens: bytes, hit: Hit | None = None, spare_pages: int = 0) -> Branch | None:
        """A running branch with pages for all `tokens`, those of the hit (the longest) already in memory.

        None unless `spare_pages` more could be had besides, or if every sequence id runs. Evicts what is needed.
        """
        hit = self.lookup(tokens) if hit is None else hit
        new_pages = num_pages_for(len(tokens) // TOKEN_BYTES) - hit.num_pages
        revived = sum(page.num_running == 0 for page in hit.pages) + hit.num_pages - len(hit.pages)
        if new_pages + spare_pages > self.num_free + self.num_cached - revived:
            return None
        if not hit.adoptable and not self._free_ids:
            if not self._idle:
                return None
            oldest = min(self._idle, key=_leaf_last_used)
            self._save(oldest, 0)
            self._drop(oldest)
            if oldest is hit.source:  # the very prefix went, what others hold of it may remain
                return self.acquire(tokens, self.lookup(tokens, hit.num_known), spare_pages)
        branch = self._adopt(hit) if hit.adoptable else self._fork(hit)
        self._hit_tokens += hit.num_tokens
        reserved = self.reserve(branch, len(tokens) // TOKEN_BYTES)
        assert reserved, "the pages were counted before"
        if hit.stored.num_tokens:
            self._load(branch, tokens, hit.stored)
        return branch

    def reserve(self, branch: Branch, num_tokens: int) -> bool:
        """Make sure that the branch has pages for `num_tokens` in all. False, with nothing changed, if not."""
        missing = num_pages_for(num_tokens) - branch.num_pages
        if missing <= 0:
            return True
        if missing > self.num_free + self.num_cached:
            return False
        if self.num_free < missing:
            self._evict_at_least(missing)
        self.num_free -= missing
        branch.num_pages += missing
        return True

    def commit(self, branch: Branch, tokens: bytes) -> None:
        """Tell that these tokens were computed behind what the branch held; others can share them from now on."""
        tail = branch.tail + tokens
        while len(tail) >= PAGE_BYTES:
            self._seal(branch, tail[:PAGE_BYTES])
            tail = tail[PAGE_BYTES:]
        branch.tail = tail

    def rollback(self, branch: Branch) -> bool:
        """Remove cells that a failed step left behind what was committed. False if the model's memory cannot do so."""
        return self._memory.remove(branch.id, branch.num_tokens, -1)

    def release(self, branch: Branch) -> None:
        """The branch stops running. Its pages stay cached until others need the room."""
        self._running.remove(branch)
        branch.running = False
        self._clock += 1
        branch.last_used = self._clock
        used_pages = num_pages_for(branch.num_tokens)
        self.num_free += branch.num_pages - used_pages
        branch.num_pages = used_pages
        for page in branch.pages:
            page.last_used = self._clock
            page.num_running -= 1
            self.num_cached += page.num_running == 0
        self.num_cached += bool(branch.tail)
        self._idle.add(branch)
        if not self.sharing:
            self._drop(branch)
            return
        if branch.tail and self._is_known_elsewhere(branch):
            self._pop_tail(branch)
        self._drop_if_superfluous(branch)
        if self._tier is not None and self.num_cached > self._max_cached:
            goal = self._max_cached - self._max_cached // EVICTION_SHARE
            while self.num_cached > goal and self._idle:
                self._evict(self.num_cached - goal)

    def _adopt(self, hit: Hit) -> Branch:
        branch = hit.source
        assert branch is not None
        self._idle.remove(branch)
        self._running.add(branch)
        branch.running = True
        self.num_cached -= bool(branch.tail)
        self._hold(branch.pages)
        return branch

    def _fork(self, hit: Hit) -> Branch:
        branch = Branch(self._free_ids.pop())
        self._running.add(branch)
        branch.pages = list(hit.pages)
        branch.num_pages = len(hit.pages)
        self._hold(branch.pages)
        for page in branch.pages:
            page.holders.add(branch)
        self._last_page(branch).ends.add(branch)
        if hit.source is not None and hit.num_tokens:
            self._memory.share(hit.source.id, branch.id, 0, hit.num_tokens)
            branch.tail = _tokens_of(hit.source, len(hit.pages), hit.num_tokens)
            self._drop_if_superfluous(hit.source)
        if branch.tail:  # the page that the hit ends in becomes one of the branch's own
            reserved = self.reserve(branch, hit.num_tokens)
            assert reserved, "the pages were counted before"
        return branch

    def _hold(self, pages: list[Page]) -> None:
        for page in pages:
            self.num_cached -= page.num_running == 0
            page.num_running += 1

    def _seal(self, branch: Branch, key: bytes) -> None:
        """Make the branch's next page a node of the tree; if an equal one is there, go over to its cells."""
        parent = self._last_page(branch)
        parent.ends.discard(branch)
        page = parent.children.get(key) if self.sharing else None
        if page is None:
            page = Page(key, parent)
            if self.sharing:
                parent.children[key] = page
            page.num_running = 1
        else:
            start = len(branch.pages) * PAGE_TOKENS
            twin = next(iter(page.holders))
            self._memory.remove(branch.id, start, start + PAGE_TOKENS)
            self._memory.share(twin.id, branch.id, start, start + PAGE_TOKENS)
            self._hold([page])
            self.num_free += 1
            self._merged_pages += 1
        page.holders.add(branch)
        page.ends.add(branch)
        branch.pages.append(page)
        for end in [end for end in page.ends if not end.running]:
            self._drop_if_superfluous(end)

    # -- eviction ----------------------------------------------------------------------------------------------------

    def _evict_at_least(self, num_pages: int) -> None:
        """Have so many pages free, and some to spare where that takes no more than idle ones."""
        goal = max(num_pages, self.num_pages // EVICTION_SHARE)
        while self.num_free < goal and self._idle:
            self._evict(goal - self.num_free)

    def _evict(self, num_pages: int) -> None:
        """Free pages from the least recently used leaf up, at most `num_pages` and those last used together."""
        branch = min(self._idle, key=_leaf_last_used)
        last_used = _leaf_last_used(branch)
        num_kept = len(branch.pages)
        num_pages -= bool(branch.tail)
        while num_pages > 0 and num_kept and self._is_last_alone(branch, num_kept, last_used):
            num_kept -= 1
            num_pages -= 1
        self._save(branch, num_kept)
        self._evicted_pages += len(branch.pages) - num_kept + bool(branch.tail)
        if branch.tail:
            self._pop_tail(branch)
        self._truncate(branch, num_kept)
        self._drop_if_superfluous(branch)

    def _save(self, branch: Branch, num_kept: int) -> None:
        """Give the tier what nobody else holds of the idle branch behind its first pages, unless it has that."""
        if self._tier is None:
            return
        pages = branch.pages
        while num_kept < len(pages) and (len(pages[num_kept].holders) > 1 or pages[num_kept].digest in self._tier):
            num_kept += 1
        start = num_kept * PAGE_TOKENS
        if start == branch.num_tokens:
            return
        blobs = self._memory.save(branch.id, start, branch.num_tokens)
        keys = [page.key for page in pages[num_kept:]] + [branch.tail] * bool(branch.tail)
        parent = pages[num_kept - 1] if num_kept else self._root
        self._tier.add(parent.digest, zip(keys, blobs, strict=True))

    def _load(self, branch: Branch, tokens: bytes, stored: Stored) -> None:
        """Put what a tier has behind what the branch holds. What cannot be taken is computed."""
        start, stop = branch.num_tokens, branch.num_tokens + stored.num_tokens
        if self._memory.load(branch.id, start, stop, stored.blobs):
            self._hit_tokens += stored.num_tokens
            self._loaded_tokens += stored.num_tokens
            self.commit(branch, tokens[start * TOKEN_BYTES : stop * TOKEN_BYTES])

    def close(self, seconds: float) -> None:
        """Bring what is cached to where it outlives this process, as far as the time allows."""
        if self._tier is not None:
            for branch in sorted(self._idle, key=_leaf_last_used):
                self._save(branch, 0)
            self._tier.close(seconds)

    @staticmethod
    def _is_last_alone(branch: Branch, num_kept: int, last_used: int) -> bool:
        page = branch.pages[num_kept - 1]
        return len(page.holders) == 1 and page.last_used <= last_used

    def _truncate(self, branch: Branch, num_kept: int) -> None:
        """Take the idle branch, which has no tail, off its pages behind the first `num_kept`."""
        if num_kept == len(branch.pages):
            return
        self._last_page(branch).ends.discard(branch)
        for page in branch.pages[num_kept:]:
            page.holders.discard(branch)
            if not page.holders and page.parent is not None:
                del page.parent.children[page.key]
                self.num_cached -= 1
                self.num_free += 1
        del branch.pages[num_kept:]
        branch.num_pages = num_kept
        self._last_page(branch).ends.add(branch)
        self._memory.remove(branch.id, num_kept * PAGE_TOKENS, -1)

    def _pop_tail(self, branch: Branch) -> None:
        branch.tail = b""
        branch.num_pages -= 1
        self.num_cached -= 1
        self.num_free += 1
        self._memory.remove(branch.id, branch.num_tokens, -1)

    def _drop_if_superfluous(self, branch: Branch) -> None:
        """Give the id back unless the idle branch alone holds a page: its last one then, as fronts are shared."""
        if branch.running or branch.tail or (branch.pages and len(branch.pages[-1].holders) == 1):
            return
        self._drop(branch)

    def _drop(self, branch: Branch) -> None:
        if branch.tail:
            self._pop_tail(branch)
        if self.sharing:
            self._truncate(branch, 0)
        else:
            self.num_cached -= branch.num_pages
            self.num_free += branch.num_pages
            self._memory.remove(branch.id, 0, -1)
        self._root.ends.discard(branch)
        self._idle.remove(branch)
        self._free_ids.append(branch.id)

    def _is_known_elsewhere(self, branch: Branch) -> bool:
        """Whether others hold all of the branch's tail too, in a page or in a tail of theirs."""
        parent = self._last_page(branch)
        return any(key.startswith(branch.tail) for key in parent.children) or any(
            end is not branch and end.tail.startswith(branch.tail) for end in parent.ends
        )

    def _last_page(self, branch: Branch) -> Page:
        return branch.pages[-1] if branch.pages else self._root

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
            free_ids=len(self._free_ids),
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
        """Recount everything from the tree and the branches. Raises AssertionError if the accounting is wrong."""
        branches = self._idle | self._running
        ids = [branch.id for branch in branches] + self._free_ids
        assert sorted(ids) == list(range(self._num_ids)), "every sequence id is running, cached or free"
        pages = set(_descendants(self._root)) if self.sharing else {p for b in branches for p in b.pages}
        for page in pages:
            assert page.holders, "a page in the tree is held by someone"
            assert page.num_running == sum(branch.running for branch in page.holders), "running holders"
        held, cached = sum(page.num_running > 0 for page in pages), sum(page.num_running == 0 for page in pages)
        for branch in branches:
            assert all(branch in page.holders for page in branch.pages), "a path is held"
            assert [page.parent for page in branch.pages] == [self._root, *branch.pages][:-1], "a path is a path"
            assert branch in self._last_page(branch).ends, "a branch can be found where it ends"
            assert num_pages_for(branch.num_tokens) <= branch.num_pages, "computed tokens have pages"
            behind = branch.num_pages - len(branch.pages)
            if branch.running:
                held += behind
            else:
                assert behind == bool(branch.tail), "an idle branch reserves nothing"
                assert branch.tail or len(branch.pages[-1].holders) == 1, "an idle branch alone holds some page"
                cached += behind
        assert held == self.num_held, "held pages"
        assert cached == self.num_cached, "cached pages"
        assert self.num_free >= 0, "free pages"
        if self._tier is not None:
            self._tier.check_integrity()


def _leaf_last_used(branch: Branch) -> int:
    return branch.last_used if branch.tail else branch.pages[-1].last_used


def _tokens_of(branch: Branch, num_pages: int, num_tokens: int) -> bytes:
    """The tokens behind the branch's first `num_pages` pages up to `num_tokens`, all within one page."""
    inside = branch.pages[num_pages].key if num_pages < len(branch.pages) else branch.tail
    return inside[: (num_tokens - num_pages * PAGE_TOKENS) * TOKEN_BYTES]


def _descendants(page: Page) -> Iterator[Page]:
    stack = list(page.children.values())
    while stack:
        page = stack.pop()
        yield page
        stack.extend(page.children.values())
