"""Search for common prefixes: a prefix tree, or no sharing at all for models whose state cannot be shared."""

from collections.abc import Callable, Collection, Iterable, Iterator
from operator import attrgetter
from typing import Protocol
from weakref import WeakValueDictionary

from kvcache.tree import PAGE_BYTES, PAGE_TOKENS, TOKEN_BYTES, Hit, KVHandle, Page, common_bytes


class Tree(Protocol):
    """Finds the pages that a new sequence has in common with earlier ones."""

    sharing: bool
    """Whether sequences can use the same cells. If not, a state cannot be cut either. It is then saved at the end of
    each prompt and of each answer, because another request may continue there."""

    def find(self, tokens: bytes, salt: bytes) -> Hit:
        """Returns the longest prefix of the tokens that some handle of this salt holds in memory."""

    def page(self, parent: Page, key: bytes) -> Page:
        """Returns the page with these tokens after `parent`: an existing one, or a new one without holders.

        After a private page, always returns a new private one.
        """

    def remove(self, page: Page) -> None:
        """No handle holds the page any more."""

    def num_kept(self, handle: KVHandle) -> int:
        """Returns how many tokens of a handle that has just stopped stay in memory. The others are useless there."""

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError if the tree does not contain exactly `pages`, all pages that handles hold."""


IntactFrom = Callable[[KVHandle], int]
"""Returns the smallest number of tokens of a handle that another one can share; see `Memory.intact_from`."""


class Roots:
    """The root for each salt. A root lives as long as a handle or a page refers to it."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._by_salt: WeakValueDictionary[bytes, Page] = WeakValueDictionary()

    def of(self, salt: bytes) -> Page:
        root = self._by_salt.get(salt)
        if root is None:
            root = self._by_salt[salt] = Page(salt, None, private=self._private)
        return root

    def all(self) -> list[Page]:
        return list(self._by_salt.values())


class PrefixTree:
    """Finds any handle, running or idle, by the tokens that it holds."""

    sharing = True

    def __init__(self, intact_from: IntactFrom = lambda _handle: 0) -> None:
        self._roots = Roots(private=False)
        self._intact_from = intact_from

    def find(self, tokens: bytes, salt: bytes) -> Hit:
        """See `Tree.find`. Of several sources takes the shortest, because lanes copy all of the source."""
        root = page = self._roots.of(salt)
        pages: list[Page] = []
        offset = 0
        while (child := page.children.get(tokens[offset : offset + PAGE_BYTES])) is not None:
            page = child
            pages.append(page)
            offset += PAGE_BYTES
        source, inside = _continuation(page, tokens[offset : offset + PAGE_BYTES], offset, self._intact_from)
        while source is None and pages:
            source = min(self._intact(page.holders, offset), key=attrgetter("num_tokens"), default=None)
            if source is None:
                pages.pop()
                page, offset = pages[-1] if pages else root, offset - PAGE_BYTES
        return Hit(root, (offset + inside) // TOKEN_BYTES, pages, source)

    def _intact(self, handles: Iterable[KVHandle], num_bytes: int) -> Iterator[KVHandle]:
        """Yields the handles of which others can share this many bytes of tokens."""
        return (handle for handle in handles if self._intact_from(handle) * TOKEN_BYTES <= num_bytes)

    def page(self, parent: Page, key: bytes) -> Page:
        if parent.private:
            return Page(key, parent, private=True)
        page = parent.children.get(key)
        if page is None:
            page = parent.children[key] = Page(key, parent)
        return page

    def remove(self, page: Page) -> None:
        if page.parent is not None and not page.private:
            del page.parent.children[page.key]

    def num_kept(self, handle: KVHandle) -> int:
        """See `Tree.num_kept`. Excludes the tail if a page or a tail of another handle contains it."""
        parent = handle.last_page
        if parent.private:
            return 0
        if handle.tail and (
            any(key.startswith(handle.tail) for key in parent.children)
            or any(end is not handle and end.tail.startswith(handle.tail) for end in parent.ends)
        ):
            return len(handle.pages) * PAGE_TOKENS
        return handle.num_tokens

    def check_integrity(self, pages: Collection[Page]) -> None:
        shared = {page for page in pages if not page.private}
        found = {page for root in self._roots.all() for page in _descendants(root)}
        assert found == shared, "the tree contains exactly the pages that handles hold"
        assert all(len(page.holders) == 1 for page in pages if page.private), "a private page has one holder"


class PrivatePaths:
    """Shares nothing. A sequence leaves no pages in memory when it ends; only a tier can find it later."""

    sharing = False

    def __init__(self) -> None:
        self._roots = Roots(private=True)

    def find(self, tokens: bytes, salt: bytes) -> Hit:  # noqa: ARG002
        return Hit(self._roots.of(salt))

    def page(self, parent: Page, key: bytes) -> Page:
        return Page(key, parent, private=True)

    def remove(self, page: Page) -> None:
        """Does nothing: the page is in no tree."""

    def num_kept(self, handle: KVHandle) -> int:  # noqa: ARG002
        return 0

    def check_integrity(self, pages: Collection[Page]) -> None:
        assert not any(root.children for root in self._roots.all()), "the tree is empty"
        assert all(len(page.holders) == 1 and not page.children for page in pages), "nothing is shared"


def _continuation(page: Page, rest: bytes, offset: int, intact_from: IntactFrom) -> tuple[KVHandle | None, int]:
    """Returns the handle that shares the longest prefix of `rest` after `page`, and the length of that prefix in bytes.

    `page` ends at `offset` bytes. If no handle shares anything, returns an idle handle that ends exactly at `page`, if
    any: it may be adopted. Most candidates fail the first comparison, so even a root with hundreds of children takes
    only microseconds.
    """
    best, length = None, 0
    for end in page.ends:
        if best is None and not end.running and not end.tail and page.parent is not None:
            best = end
        if rest and end.tail.startswith(rest[: length + TOKEN_BYTES]):
            common = common_bytes(end.tail, rest, length + TOKEN_BYTES)
            if intact_from(end) * TOKEN_BYTES <= offset + common:
                best, length = end, common
        if length == len(rest) > 0:
            return best, length
    if rest:
        for key, child in page.children.items():
            if key.startswith(rest[: length + TOKEN_BYTES]):
                common = common_bytes(key, rest, length + TOKEN_BYTES)
                source = next(
                    (each for each in child.holders if intact_from(each) * TOKEN_BYTES <= offset + common), None
                )
                if source is not None:
                    best, length = source, common
                if length == len(rest):
                    break
    return best, length


def _descendants(page: Page) -> Iterator[Page]:
    stack = list(page.children.values())
    while stack:
        page = stack.pop()
        yield page
        stack.extend(page.children.values())
