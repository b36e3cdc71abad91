"""The prefix tree: full pages as nodes, handles as the sequence ids that hold a path of them.

The idea is RadixAttention's (Zheng et al., SGLang, 2023), with vLLM's fixed pages as edges instead of free lengths.
"""

from dataclasses import dataclass, field
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

    __slots__ = ("id", "last_used", "num_pages", "pages", "running", "tail")

    def __init__(self, sequence_id: int) -> None:
        self.id = sequence_id
        self.pages: list[Page] = []
        self.tail = b""
        """Computed tokens that do not fill a page yet; always less than PAGE_BYTES."""
        self.num_pages = 0
        self.running = True
        self.last_used = 0

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV is in memory."""
        return len(self.pages) * PAGE_TOKENS + len(self.tail) // TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class Stored:
    """What a tier has of the tokens behind a resident prefix."""

    num_tokens: int = 0
    blobs: list[Blob] = field(default_factory=list)
    """A page each; of the last one perhaps only the first tokens are meant."""
    arriving: bool = False
    """Whether what comes next is being read from the disk: worth waiting for."""


@dataclass(frozen=True, slots=True)
class Hit:
    """The longest known prefix of some tokens: resident, and behind that stored."""

    num_tokens: int = 0
    """Resident ones."""
    pages: list[Page] = field(default_factory=list)
    """The full pages of it, first to last; the rest of the hit lies inside one more page of `source`."""
    source: KVHandle | None = None
    """A handle that holds all that is resident; None for no hit."""
    stored: Stored = field(default_factory=Stored)

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


def longest_prefix(root: Page, tokens: bytes, max_tokens: int) -> Hit:
    """Find the longest prefix of `tokens`, of `max_tokens` at most, that some handle holds in memory."""
    tokens = tokens[: max_tokens * TOKEN_BYTES]
    page, pages, offset = root, [], 0
    while (child := page.children.get(tokens[offset : offset + PAGE_BYTES])) is not None:
        page = child
        pages.append(page)
        offset += PAGE_BYTES
    source, inside = _continuation(page, tokens[offset : offset + PAGE_BYTES])
    if source is None and pages:
        source = next(iter(page.holders))
    return Hit((offset + inside) // TOKEN_BYTES, pages, source)


def _continuation(page: Page, rest: bytes) -> tuple[KVHandle | None, int]:
    """The handle that goes on longest from `page` as `rest` does, and for how many bytes.

    Most candidates fail the first comparison, so that even a root with hundreds of children takes microseconds.
    An end at the page itself is preferred to nothing: it may be adopted.
    """
    best, length = None, 0
    for end in page.ends:
        if best is None and not end.running and not end.tail and page.parent is not None:
            best = end
        if rest and end.tail.startswith(rest[: length + TOKEN_BYTES]):
            best, length = end, common_bytes(end.tail, rest, length + TOKEN_BYTES)
        if length == len(rest) > 0:
            return best, length
    if rest:
        for key, child in page.children.items():
            if key.startswith(rest[: length + TOKEN_BYTES]):
                best, length = next(iter(child.holders)), common_bytes(key, rest, length + TOKEN_BYTES)
                if length == len(rest):
                    break
    return best, length
