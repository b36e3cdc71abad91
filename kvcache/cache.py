"""KV memory in pages: who holds them, what is still cached of earlier sequences, and what is found of new ones.

The layouts keep the accounts, `kvcache.pool` and `kvcache.lanes`; here is what they have in common: the prefix tree,
how a branch grows and ends, and the tier behind the device.
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
    Branch,
    Hit,
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
        self._idle: set[Branch] = set()
        self._running: set[Branch] = set()
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
    def acquire(self, tokens: bytes, hit: Hit | None = None, spare_pages: int = 0) -> Branch | None:
        """A running branch with pages for all `tokens`, those of the hit (the longest) already in memory.

        None unless `spare_pages` more could be had besides, or if every sequence id runs. Evicts what is needed.
        """

    @abstractmethod
    def reserve(self, branch: Branch, num_tokens: int) -> bool:
        """Make sure that the branch has pages for `num_tokens` in all. False, with nothing changed, if not."""

    @abstractmethod
    def _count_freed(self, num_pages: int) -> None:
        """So many pages that were cached are free now."""

    @abstractmethod
    def _return_id(self, sequence_id: int) -> None:
        """Nobody has this id any more."""

    @abstractmethod
    def _merge(self, branch: Branch, page: Page) -> None:
        """The running branch has computed the tokens of a page that others hold."""

    # -- a running branch: look up, commit, release ------------------------------------------------------------------

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

    def commit(self, branch: Branch, tokens: bytes) -> None:
        """Tell that these tokens were computed behind what the branch held; others can share them from now on."""
        tail = branch.tail + tokens
        while len(tail) >= PAGE_BYTES:
            self._seal(branch, tail[:PAGE_BYTES])
            tail = tail[PAGE_BYTES:]
        branch.tail = tail

    def prompt_done(self, branch: Branch) -> None:
        """Tell that all of a prompt was computed: others may go on from here, where a state cannot be cut later."""
        if not self.sharing:
            self._save(branch, 0)

    def rollback(self, branch: Branch) -> bool:
        """Remove cells that a failed step left behind what was committed.

        False if the model's memory cannot do so: the branch then holds nothing any more.
        """
        if self._memory.remove(branch.id, branch.num_tokens, -1):
            return True
        self._memory.remove(branch.id, 0, -1)
        self._last_page(branch).ends.discard(branch)
        branch.pages.clear()  # its own: what can be shared can be cut, too
        branch.tail = b""
        self._root.ends.add(branch)
        return False

    def release(self, branch: Branch) -> None:
        """The branch stops running. Its pages stay cached until others need the room."""
        self._running.remove(branch)
        branch.running = False
        self._clock += 1
        branch.last_used = self._clock
        branch.num_pages = num_pages_for(branch.num_tokens)
        for page in branch.pages:
            page.last_used = self._clock
            page.num_running -= 1
        self._idle.add(branch)
        if not self.sharing:
            self._save(branch, 0)
            self._drop(branch)
            return
        if branch.tail and self._is_known_elsewhere(branch):
            self._cut(branch, len(branch.pages) * PAGE_TOKENS)
        self._drop_if_superfluous(branch)

    def _adopt(self, branch: Branch) -> None:
        """The idle branch goes on."""
        self._idle.remove(branch)
        self._running.add(branch)
        branch.running = True
        self._hold(branch.pages)

    def _fork(self, sequence_id: int, hit: Hit) -> Branch:
        """A running branch that begins with what another one holds."""
        branch = Branch(sequence_id)
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
        return branch

    def _hold(self, pages: list[Page]) -> None:
        for page in pages:
            page.num_running += 1

    def _seal(self, branch: Branch, key: bytes) -> None:
        """Make the branch's next page a node of the tree, or one of the holders of an equal one that is there."""
        parent = self._last_page(branch)
        parent.ends.discard(branch)
        page = parent.children.get(key) if self.sharing else None
        if page is None:
            page = Page(key, parent)
            if self.sharing:
                parent.children[key] = page
            page.num_running = 1
        else:
            self._merge(branch, page)
            self._hold([page])
        page.holders.add(branch)
        page.ends.add(branch)
        branch.pages.append(page)
        for end in [end for end in page.ends if not end.running]:
            self._drop_if_superfluous(end)

    # -- a tier, and the end of an idle branch -----------------------------------------------------------------------

    def _save(self, branch: Branch, num_kept: int) -> None:
        """Give the tier what nobody else holds of the idle branch behind its first pages, unless it has that.

        Or all of the branch, where only that can be moved.
        """
        if self._tier is None:
            return
        if isinstance(self._tier, WholeTier):
            self._save_whole(branch, self._tier)
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

    def _save_whole(self, branch: Branch, tier: WholeTier) -> None:
        tokens = b"".join(page.key for page in branch.pages) + branch.tail
        if tokens and tokens not in tier:
            (blob,) = self._memory.save(branch.id, 0, branch.num_tokens)
            tier.add(tokens, blob)

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
            for branch in sorted(self._idle, key=leaf_last_used):
                self._save(branch, 0)
            self._tier.close(seconds)

    def _cut(self, branch: Branch, num_tokens: int) -> None:
        """Take the idle branch off all that it holds behind its first tokens."""
        if num_tokens == branch.num_tokens:
            return
        num_pages = num_tokens // PAGE_TOKENS
        tail = _tokens_of(branch, num_pages, num_tokens)
        num_freed = bool(branch.tail) - bool(tail)
        self._last_page(branch).ends.discard(branch)
        for page in branch.pages[num_pages:]:
            page.holders.discard(branch)
            if not page.holders:
                num_freed += 1
                if self.sharing and page.parent is not None:
                    del page.parent.children[page.key]
        del branch.pages[num_pages:]
        branch.tail = tail
        branch.num_pages = num_pages_for(num_tokens)
        self._last_page(branch).ends.add(branch)
        self._count_freed(num_freed)
        self._memory.remove(branch.id, num_tokens, -1)

    def _drop_if_superfluous(self, branch: Branch) -> None:
        """Give the id back unless the idle branch alone holds a page: its last one then, as fronts are shared."""
        if branch.running or branch.tail or (branch.pages and len(branch.pages[-1].holders) == 1):
            return
        self._drop(branch)

    def _drop(self, branch: Branch) -> None:
        self._cut(branch, 0)
        self._root.ends.discard(branch)
        self._idle.remove(branch)
        self._return_id(branch.id)

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
        """Recount everything from the tree and the branches. Raises AssertionError if the accounting is wrong."""
        branches = self._idle | self._running
        ids = [branch.id for branch in branches] + self.free_ids
        assert sorted(ids) == list(range(self._num_ids)), "every sequence id is running, cached or free"
        for page in self._all_pages():
            assert page.holders, "a page in the tree is held by someone"
            assert page.num_running == sum(branch.running for branch in page.holders), "running holders"
        for branch in branches:
            assert all(branch in page.holders for page in branch.pages), "a path is held"
            assert [page.parent for page in branch.pages] == [self._root, *branch.pages][:-1], "a path is a path"
            assert branch in self._last_page(branch).ends, "a branch can be found where it ends"
            assert num_pages_for(branch.num_tokens) <= branch.num_pages, "computed tokens have pages"
            if not branch.running:
                assert branch.num_pages == num_pages_for(branch.num_tokens), "an idle branch reserves nothing"
                assert branch.tail or len(branch.pages[-1].holders) == 1, "an idle branch alone holds some page"
        assert self.num_free >= 0, "free pages"
        if self._tier is not None:
            self._tier.check_integrity()

    def _all_pages(self) -> set[Page]:
        if self.sharing:
            return set(_descendants(self._root))
        return {page for branch in self._idle | self._running for page in branch.pages}


def leaf_last_used(branch: Branch) -> int:
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
