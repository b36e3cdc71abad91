"""What sequences share with those before them: prefixes, found in a tree, or nothing where a state cannot be shared."""

from collections.abc import Collection, Iterator
from typing import Protocol

from kvcache.tree import PAGE_BYTES, PAGE_TOKENS, TOKEN_BYTES, Hit, KVHandle, Page, common_bytes


class Tree(Protocol):
    """What sequences can have in common with those before them."""

    sharing: bool
    """Whether sequences can use the same cells. If not, a state cannot be cut either and is saved where it may be
    continued: at the end of each prompt and of each answer."""

    def find(self, tokens: bytes) -> Hit:
        """The longest prefix of the tokens that some handle holds in memory."""

    def page(self, parent: Page, key: bytes) -> Page:
        """The page of these tokens behind `parent`: the one that others hold, or a new one without holders."""

    def remove(self, page: Page) -> None:
        """Nobody holds the page any more."""

    def num_kept(self, handle: KVHandle) -> int:
        """How many tokens of a handle that has just stopped stay in memory; the others are of no use there."""

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError if what can be found differs from `pages`, all that are held."""


class PrefixTree:
    """Any handle, running or idle, can be found by the tokens that it holds, and shared."""

    sharing = True

    def __init__(self) -> None:
        self._root = Page(b"", None)

    def find(self, tokens: bytes) -> Hit:
        page, pages, offset = self._root, [], 0
        while (child := page.children.get(tokens[offset : offset + PAGE_BYTES])) is not None:
            page = child
            pages.append(page)
            offset += PAGE_BYTES
        source, inside = _continuation(page, tokens[offset : offset + PAGE_BYTES])
        if source is None and pages:
            source = next(iter(page.holders))
        return Hit(self._root, (offset + inside) // TOKEN_BYTES, pages, source)

    def page(self, parent: Page, key: bytes) -> Page:
        page = parent.children.get(key)
        if page is None:
            page = parent.children[key] = Page(key, parent)
        return page

    def remove(self, page: Page) -> None:
        if page.parent is not None:
            del page.parent.children[page.key]

    def num_kept(self, handle: KVHandle) -> int:
        """All but a tail that others hold, too, in a page or in a tail of theirs."""
        parent = handle.last_page
        if handle.tail and (
            any(key.startswith(handle.tail) for key in parent.children)
            or any(end is not handle and end.tail.startswith(handle.tail) for end in parent.ends)
        ):
            return len(handle.pages) * PAGE_TOKENS
        return handle.num_tokens

    def check_integrity(self, pages: Collection[Page]) -> None:
        assert set(_descendants(self._root)) == set(pages), "the tree has the pages that are held, and no others"


class PrivatePaths:
    """Nothing is shared: a sequence can be found in no memory but a tier's, and leaves nothing behind when it ends."""

    sharing = False

    def __init__(self) -> None:
        self._root = Page(b"", None)

    def find(self, tokens: bytes) -> Hit:  # noqa: ARG002
        return Hit(self._root)

    def page(self, parent: Page, key: bytes) -> Page:
        return Page(key, parent)

    def remove(self, page: Page) -> None:
        """Nobody can find it anyway."""

    def num_kept(self, handle: KVHandle) -> int:  # noqa: ARG002
        return 0

    def check_integrity(self, pages: Collection[Page]) -> None:
        assert not self._root.children, "nothing can be found"
        assert all(len(page.holders) == 1 and not page.children for page in pages), "nothing is shared"


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


def _descendants(page: Page) -> Iterator[Page]:
    stack = list(page.children.values())
    while stack:
        page = stack.pop()
        yield page
        stack.extend(page.children.values())
