"""A regular expression for any of many texts."""

import re
from collections.abc import Iterable
from typing import Any


def literals(texts: Iterable[str]) -> str:
    """A regular expression for any of `texts`, the longest at each place; for none, one that never matches.

    Common beginnings are tried once, so that the cost at a place does not grow with the number of texts: a
    vocabulary may have thousands of control tokens that begin alike.
    """
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branches(trie) or "(?!)"


def _branches(trie: dict[str, Any]) -> str:
    branches = [re.escape(character) + _branches(node) for character, node in trie.items() if character]
    may_end = bool(branches) and "" in trie
    if len(branches) == 1 and not may_end:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if may_end else ''}" if branches else ""
