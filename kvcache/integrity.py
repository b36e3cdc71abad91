"""Recounts pages, ids and handles, to find errors in the accounting."""

from collections.abc import Collection

from kvcache.layout import Layout
from kvcache.sharing import Tree
from kvcache.tree import KVHandle, num_pages_for


def check(handles: Collection[KVHandle], tree: Tree, layout: Layout) -> None:
    """Raises AssertionError if the handles, their pages, the tree and the counts of the layout do not agree."""
    ids = [handle.id for handle in handles] + list(layout.free_ids)
    assert sorted(ids) == list(range(layout.num_ids)), "every sequence id is running, cached or free"
    pages = {page for handle in handles for page in handle.pages}
    for page in pages:
        assert page.holders.issubset(handles), "all holders of a page are registered"
        assert page.num_running == sum(handle.running for handle in page.holders), "running holders"
    for handle in handles:
        assert all(handle in page.holders for page in handle.pages), "a handle holds its pages"
        assert [page.parent for page in handle.pages] == [handle.root, *handle.pages][:-1], "the pages form a path"
        assert handle in handle.last_page.ends, "a handle is found at its last page"
        assert num_pages_for(handle.num_tokens) <= handle.num_pages, "computed tokens have pages"
        if not handle.running:
            assert handle.num_pages == num_pages_for(handle.num_tokens), "an idle handle reserves nothing"
            assert handle.is_sole_holder, "an idle handle is the sole holder of some page"
            leaf_last_used = handle.last_used if handle.tail else handle.last_page.last_used
            assert handle.leaf_last_used == leaf_last_used, "last use of the leaf"
    assert layout.num_free >= 0, "free pages"
    tree.check_integrity(pages)
    layout.check_integrity(handles, pages)
