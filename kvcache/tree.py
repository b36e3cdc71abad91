"""The data structures of the prefix tree: pages are its nodes, and each KV handle holds a path of pages.

`kvcache.sharing` searches the tree. It follows RadixAttention (Zheng et al., SGLang, 2023), but its edges are pages of
fixed size, as in vLLM, instead of token strings of any length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from kvcache.events import Block
from kvcache.memory import Blob

PAGE_TOKENS: Final = 32
TOKEN_BYTES: Final = 4
PAGE_BYTES: Final = PAGE_TOKENS * TOKEN_BYTES
"""Bytes of a page's tokens. This package handles tokens as little-endian int32 bytes: fast to hash and to compare."""


class Page:
    """A full page: the KV of the PAGE_TOKENS tokens that follow its parent's.

    A root is a page without tokens. Its key is the salt of its sequences: there is one root for each salt, so sequences
    of different salts share nothing.
    """

    __slots__ = (
        "__weakref__",
        "children",
        "digest",
        "ends",
        "holders",
        "key",
        "last_used",
        "num_running",
        "parent",
        "private",
    )

    def __init__(self, key: bytes, parent: "Page | None", *, private: bool = False) -> None:
        self.key = key
        self.parent = parent
        self.private = private
        """Whether the page belongs to one handle, and no search finds it."""
        self.digest: bytes = digest_of(parent.digest if parent is not None else b"", key) if key else b""
        """Identifies the page, all pages before it and the salt, also in other tiers and after a restart."""
        self.children: dict[bytes, Page] = {}
        self.holders: set[KVHandle] = set()
        """Handles whose path contains this page. In a pool they share its cells; in lanes each has a copy."""
        self.ends: set[KVHandle] = set()
        """Handles whose last full page is this one. Their tails follow it."""
        self.num_running = 0
        """Number of running holders. A page without any is cached."""
        self.last_used = 0

    @property
    def block(self) -> Block:
        """The page as it is reported. It must not be a root."""
        assert self.parent is not None
        return Block(self.digest, None if self.parent.parent is None else self.parent.digest, self.key)


class KVHandle:
    """The KV that one sequence id holds: a path of full pages, and a tail after them.

    A running handle also reserves pages for tokens that are not computed yet. `num_pages` counts all of its pages, so
    `len(pages) <= num_pages`.
    """

    __slots__ = ("id", "last_used", "leaf_last_used", "num_pages", "owner", "pages", "root", "running", "tail")

    def __init__(self, sequence_id: int, root: Page) -> None:
        """Creates a running, empty handle at the root of a tree."""
        self.id = sequence_id
        self.root = root
        self.pages: list[Page] = []
        self.tail = b""
        """Computed tokens after the last full page; always shorter than PAGE_BYTES."""
        self.num_pages = 0
        self.running = True
        self.owner = ""
        """For whom it runs, or ran last: any name, for maps of the memory only."""
        self.last_used = 0
        self.leaf_last_used = 0
        """Last use of an idle handle's leaf: its tail, or else its last page. No other handle holds the leaf."""
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
        """The last full page, or the root. The tail follows it."""
        return self.pages[-1] if self.pages else self.root

    @property
    def is_sole_holder(self) -> bool:
        """Whether no other handle holds this handle's leaf. Otherwise other handles hold all of its pages."""
        return bool(self.tail) or (bool(self.pages) and len(self.pages[-1].holders) == 1)

    def tokens_inside(self, num_pages: int, num_tokens: int) -> bytes:
        """Returns the tokens after the first `num_pages` pages up to `num_tokens`. They must lie within one page."""
        inside = self.pages[num_pages].key if num_pages < len(self.pages) else self.tail
        return inside[: (num_tokens - num_pages * PAGE_TOKENS) * TOKEN_BYTES]

    def extend(self, pages: Sequence[Page]) -> None:
        """Append pages to the running handle."""
        self.last_page.ends.discard(self)
        for page in pages:
            page.num_running += 1
            page.holders.add(self)
        self.pages += pages
        self.last_page.ends.add(self)

    def cut(self, num_tokens: int) -> list[Page]:
        """Keep the first `num_tokens` tokens only. Returns the full pages that the handle no longer holds."""
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
        """Make the idle handle run again."""
        self.running = True
        for page in self.pages:
            page.num_running += 1

    def stop(self, now: int) -> None:
        """Make the running handle idle, and return its reserved pages."""
        self.running = False
        self.last_used = self.leaf_last_used = now
        self.num_pages = num_pages_for(self.num_tokens)
        for page in self.pages:
            page.last_used = now
            page.num_running -= 1


@dataclass(frozen=True, slots=True)
class Stored:
    """KV in a tier: of the tokens after a resident prefix, or of a whole sequence from its start."""

    start: int = 0
    stop: int = 0
    """The tokens are [start, stop)."""
    blobs: Sequence[Blob] = ()
    """One blob per page, or one for a whole sequence. Of the last page perhaps only the first tokens are used."""
    arriving: bool = False
    """Whether the tokens after `stop` are being read from the disk, so that it is worth waiting for them."""

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


NOTHING_STORED: Final = Stored()


@dataclass(frozen=True, slots=True)
class Hit:
    """The longest known prefix of some tokens: a resident part, and after it a part stored in a tier."""

    root: Page
    """The root of the pages' path."""
    num_tokens: int = 0
    """Number of resident tokens."""
    pages: Sequence[Page] = ()
    """The full pages of the resident part, in order. The rest of it lies inside the next page of `source`."""
    source: KVHandle | None = None
    """A handle that holds the whole resident part. None if nothing is resident."""
    stored: Stored = NOTHING_STORED

    @property
    def last_page(self) -> Page:
        """The last full page, or the root."""
        return self.pages[-1] if self.pages else self.root

    @property
    def num_known(self) -> int:
        """Number of tokens that need not be computed."""
        return self.num_tokens + self.stored.num_tokens

    @property
    def salt(self) -> bytes:
        return self.root.key

    @property
    def adoptable(self) -> bool:
        """Whether `source` is idle and holds exactly the hit, so that the new sequence can continue it with its id."""
        return self.source is not None and not self.source.running and self.source.num_tokens == self.num_tokens

    @property
    def num_pages(self) -> int:
        """Number of pages that a new sequence gets from the hit. A tail counts only if the source is adopted."""
        return len(self.pages) + (self.adoptable and self.source is not None and self.source.tail != b"")


def num_pages_for(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)


def digest_of(parent: bytes, key: bytes) -> bytes:
    """Returns the digest of a page from its parent's digest. Equal sequences of tokens have equal digests."""
    return blake2b(parent + key, digest_size=16).digest()


def common_bytes(one: bytes | bytearray, other: bytes | bytearray, known: int = 0) -> int:
    """Returns the length in bytes of the common prefix, in whole tokens. The first `known` bytes must be equal."""
    limit = min(len(one), len(other))
    while known < limit and one[known : known + TOKEN_BYTES] == other[known : known + TOKEN_BYTES]:
        known += TOKEN_BYTES
    return known
