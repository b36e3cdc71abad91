"""The prefix tree: full pages as nodes, handles as the sequence ids that hold a path of them.

How the tree is searched is in `kvcache.sharing`. The idea is RadixAttention's (Zheng et al., SGLang, 2023), with vLLM's
fixed pages as edges instead of free lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from kvcache.memory import Blob

PAGE_TOKENS: Final = 32
TOKEN_BYTES: Final = 4
PAGE_BYTES: Final = PAGE_TOKENS * TOKEN_BYTES
"""Tokens travel here as bytes of little-endian int32: a slice of them is hashed and compared at C speed."""


class Page:
    """A full page: the KV of PAGE_TOKENS tokens behind those of its parent. The root is a page of none."""

    __slots__ = ("children", "digest", "ends", "holders", "key", "last_used", "num_running", "parent")

    def __init__(self, key: bytes, parent: "Page | None") -> None:
        self.key = key
        self.parent = parent
        self.digest: bytes = digest_of(parent.digest, key) if parent is not None else b""
        """Names the page and all before it, also where this tree is not known: in other tiers, after a restart."""
        self.children: dict[bytes, Page] = {}
        self.holders: set[KVHandle] = set()
        """KV handles whose path goes through this page, all of them on the same cells."""
        self.ends: set[KVHandle] = set()
        """KV handles whose last full page this is; their tails continue it."""
        self.num_running = 0
        """How many of the holders run; a page with none is cached."""
        self.last_used = 0


class KVHandle:
    """What one sequence id holds: a path of full pages and the tail behind them.

    While it runs it also owns pages reserved for tokens still to be computed: `num_pages` counts all of them, and
    `len(pages) <= num_pages`.
    """

    __slots__ = ("id", "last_used", "leaf_last_used", "num_pages", "pages", "root", "running", "tail")

    def __init__(self, sequence_id: int, root: Page) -> None:
        """A running handle that holds nothing, at the root of a tree."""
        self.id = sequence_id
        self.root = root
        self.pages: list[Page] = []
        self.tail = b""
        """Computed tokens that do not fill a page yet; always less than PAGE_BYTES."""
        self.num_pages = 0
        self.running = True
        self.last_used = 0
        self.leaf_last_used = 0
        """Of an idle handle: when its end, the tail or the last page, was used last. Nobody else holds that."""
        root.ends.add(self)

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV is in memory."""
        return len(self.pages) * PAGE_TOKENS + len(self.tail) // TOKEN_BYTES

    @property
    def tokens(self) -> bytes:
        """The tokens whose KV is in memory."""
        return b"".join(page.key for page in self.pages) + self.tail

    @property
    def last_page(self) -> Page:
        """Where the tail begins: the last full page, or the root."""
        return self.pages[-1] if self.pages else self.root

    @property
    def is_sole_holder(self) -> bool:
        """Whether the handle alone holds its end. If not, others hold all of it, as they share paths from the front."""
        return bool(self.tail) or (bool(self.pages) and len(self.pages[-1].holders) == 1)

    def tokens_inside(self, num_pages: int, num_tokens: int) -> bytes:
        """The tokens behind its first `num_pages` pages up to `num_tokens`, all within one page."""
        inside = self.pages[num_pages].key if num_pages < len(self.pages) else self.tail
        return inside[: (num_tokens - num_pages * PAGE_TOKENS) * TOKEN_BYTES]

    def extend(self, pages: Sequence[Page]) -> None:
        """The running handle holds these pages, too, behind its others."""
        self.last_page.ends.discard(self)
        for page in pages:
            page.num_running += 1
            page.holders.add(self)
        self.pages += pages
        self.last_page.ends.add(self)

    def cut(self, num_tokens: int) -> list[Page]:
        """Keep the first tokens only. Returns the full pages that the handle no longer holds."""
        num_pages = num_tokens // PAGE_TOKENS
        tail = self.tokens_inside(num_pages, num_tokens)
        removed = self.pages[num_pages:]
        self.last_page.ends.discard(self)
        for page in removed:
            page.num_running -= self.running
            page.holders.discard(self)
        del self.pages[num_pages:]
        self.tail = tail
        self.last_page.ends.add(self)
        self.leaf_last_used = self.last_used if tail else self.last_page.last_used
        return removed

    def resume(self) -> None:
        """The idle handle runs again."""
        self.running = True
        for page in self.pages:
            page.num_running += 1

    def stop(self, now: int) -> None:
        """The running handle becomes idle, and gives back what it had reserved."""
        self.running = False
        self.last_used = self.leaf_last_used = now
        self.num_pages = num_pages_for(self.num_tokens)
        for page in self.pages:
            page.last_used = now
            page.num_running -= 1


@dataclass(frozen=True, slots=True)
class Stored:
    """What a tier has: the KV of some tokens behind a resident prefix, or of a whole sequence from its start."""

    start: int = 0
    stop: int = 0
    """The first token and the one behind the last."""
    blobs: Sequence[Blob] = ()
    """A page each, or the whole; of the last page perhaps only the first tokens are meant."""
    arriving: bool = False
    """Whether what comes next is being read from the disk: worth waiting for."""

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


NOTHING_STORED: Final = Stored()


@dataclass(frozen=True, slots=True)
class Hit:
    """The longest known prefix of some tokens: resident, and behind that stored."""

    root: Page
    """Where the path begins."""
    num_tokens: int = 0
    """Resident ones."""
    pages: Sequence[Page] = ()
    """The full pages of it, first to last; the rest of the hit lies inside one more page of `source`."""
    source: KVHandle | None = None
    """A handle that holds all that is resident; None for no hit."""
    stored: Stored = NOTHING_STORED

    @property
    def last_page(self) -> Page:
        """The last full page, or the root."""
        return self.pages[-1] if self.pages else self.root

    @property
    def num_known(self) -> int:
        """Tokens that need not be computed."""
        return self.num_tokens + self.stored.num_tokens

    @property
    def adoptable(self) -> bool:
        """Whether the hit is all that an idle handle holds, so that its id can simply go on."""
        return self.source is not None and not self.source.running and self.source.num_tokens == self.num_tokens

    @property
    def num_pages(self) -> int:
        """Pages that come with the hit; one that it only ends in does not, unless the handle is adopted."""
        return len(self.pages) + (self.adoptable and self.source is not None and self.source.tail != b"")


def num_pages_for(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)


def digest_of(parent: bytes, key: bytes) -> bytes:
    """Of a page, from its parent's: equal chains of tokens have equal names, whoever computed them."""
    return blake2b(parent + key, digest_size=16).digest()


def common_bytes(one: bytes, other: bytes, known: int = 0) -> int:
    """Bytes of the common prefix in whole tokens, of which `known` are known to agree."""
    limit = min(len(one), len(other))
    while known < limit and one[known : known + TOKEN_BYTES] == other[known : known + TOKEN_BYTES]:
        known += TOKEN_BYTES
    return known
