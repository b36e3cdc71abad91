"""Pieces of grammars in llguidance's variant of Lark."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Final

TokenId = Callable[[str], int | None]
"""The id of a special token by its text; None if the vocabulary has none."""

ANY_TEXT: Final = r"/(.|\n)*/"
"""Any text without special tokens."""
_SYNTAX: Final = frozenset("\\.+*?()|[]{}^$#&-~/")
"""The ASCII characters that a regular expression may read as syntax."""


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def one_of(texts: Iterable[str]) -> str:
    """One regular expression for a choice of texts. Among thousands of separate literals llguidance gives up.

    An empty text is no part of it: two slashes begin a comment.
    """
    listed = list(texts)
    options = "|".join("".join(map(_escaped, text)) for text in listed if text)
    if not options:
        return '""'
    return f"(/{options}/)?" if "" in listed else f"/{options}/"


def _escaped(char: str) -> str:
    if char.isalnum():
        return char
    return f"\\{char}" if char in _SYNTAX else f"\\x{{{ord(char):x}}}" if char.isspace() or ord(char) < 32 else char


def pieces(text: str, token_id: TokenId) -> list[str | int]:
    """A text as special tokens, by id, and the texts between them."""
    found: list[str | int] = []
    plain, at = "", 0
    while at < len(text):
        end = next((end for end in _special_ends(text, at) if token_id(text[at:end]) is not None), 0)
        if not end:
            plain, at = plain + text[at], at + 1
            continue
        token = token_id(text[at:end])
        found += [*([plain] if plain else []), *([token] if token is not None else [])]
        plain, at = "", end
    return [*found, plain] if plain else found


def _special_ends(text: str, start: int) -> Iterator[int]:
    """Where a special token that begins here may end, the longest first. They begin and end with a symbol."""
    if text[start].isalnum() or text[start].isspace():
        return
    yield from (end for end in range(len(text), start + 1, -1) if not text[end - 1].isalnum())


def marker(text: str, token_id: TokenId) -> str:
    """A mark: special tokens where the vocabulary has them, else their text."""
    written = (f"<[{piece}]>" if isinstance(piece, int) else literal(piece) for piece in pieces(text, token_id))
    return " ".join(written) or '""'


def text_until(rule: str, text: str, token_id: TokenId, *, limit: str = ANY_TEXT) -> str:
    """The lines of a rule for any text up to and including this mark. `limit`: the regular expression of the text."""
    parts = pieces(text, token_id)
    first = next((i for i, piece in enumerate(parts) if isinstance(piece, int)), None)
    if first is None:
        return f"{rule}[lazy]: {limit} {literal(text)}\n"
    name = rule.upper() + "_TEXT"
    before = "".join(map(str, parts[:first]))
    end = f"{limit[:-1]}{''.join(map(_escaped, before))}/"  # the text in front of the token is part of the terminal
    rest = " ".join(f"<[{piece}]>" if isinstance(piece, int) else literal(str(piece)) for piece in parts[first:])
    return f"{rule}: {name} {rest}\n{name}: {end}\n"
