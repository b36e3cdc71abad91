"""A regular expression for any of many texts."""

import re
from collections.abc import Iterable
from typing import Any


def literals(texts: Iterable[str]) -> str:
    """A regular expression for any of `texts`, the longest at each position. Without texts it never matches.

    Common prefixes are tried once, so the cost at a position does not grow with the number of texts. A vocabulary may
    have thousands of control tokens with a common prefix.
    """
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return _alternatives(trie) or "(?!)"


def _alternatives(trie: dict[str, Any]) -> str:
    alternatives = [re.escape(character) + _alternatives(node) for character, node in trie.items() if character]
    may_end = bool(alternatives) and "" in trie
    if len(alternatives) == 1 and not may_end:
        return alternatives[0]
    return f"(?:{'|'.join(alternatives)}){'?' if may_end else ''}" if alternatives else ""
