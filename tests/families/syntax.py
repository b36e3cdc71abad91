"""Finds its way through C++ tokens: brackets, ends of statements, lists, declarations. Executes nothing."""

from collections.abc import Iterator
from typing import Final

from tests.families.scanner import Token

_PAIRS: Final = {"(": ")", "[": "]", "{": "}"}


class Syntax:
    """Tokens, with the closing bracket of each opening one. Positions are indexes of tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.match: dict[int, int] = {}
        stack: list[int] = []
        for i, token in enumerate(tokens):
            if token.kind == "punct" and token.text in _PAIRS:
                stack.append(i)
            elif token.kind == "punct" and token.text in _PAIRS.values() and stack:
                self.match[stack.pop()] = i

    def is_at(self, i: int, *texts: str) -> bool:
        return i < len(self.tokens) and self.tokens[i].kind != "str" and self.tokens[i].text in texts

    def sites(self) -> list[int]:
        """The positions of `test` in every `.test(`: there a test case begins."""
        return [
            i
            for i, token in enumerate(self.tokens)
            if token.kind == "id" and token.text == "test" and self.is_at(i - 1, ".") and self.is_at(i + 1, "(")
        ]

    def end_of(self, i: int) -> int:
        """The position of the `;` that ends the statement at i."""
        while i < len(self.tokens):
            if i in self.match:
                i = self.match[i]
            elif self.is_at(i, ";"):
                return i
            elif self.is_at(i, "}"):
                return i - 1
            i += 1
        return i

    def behind(self, i: int) -> int:
        """The position behind the statement at i."""
        if self.is_at(i, "{"):
            return self.match[i] + 1
        if self.is_at(i, "if", "for", "while"):
            return self.behind(self.match[i + 1] + 1)
        return self.end_of(i) + 1

    def flat(self, first: int, last: int) -> Iterator[int]:
        """The positions between these that are in no bracket."""
        i = first
        while i < last:
            yield i
            i = self.match[i] + 1 if i in self.match else i + 1

    def skip_definition(self, i: int) -> int:
        while not self.is_at(i, "{", ";"):
            i = self.match[i] + 1 if self.is_at(i, "(") else i + 1
        return self.match[i] + 1 if self.is_at(i, "{") else i + 1

    def parts(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts between commas: first position, and the one behind the last. Commas in `<...>` do not count."""
        parts, start, angles = [], first, 0
        for i in self.flat(first, last):
            if self.is_at(i, "<") and self.tokens[i - 1].kind == "id":
                angles += 1
            elif self.is_at(i, ">") and angles:
                angles -= 1
            elif self.is_at(i, ",") and not angles:
                parts.append((start, i))
                start = i + 1
        if start < last:
            parts.append((start, last))
        return parts

    def declared(self, i: int, end: int) -> tuple[str, int] | None:
        """The name that the declaration at i declares, and its position; None if it is no declaration."""
        k, types = i, 0
        while k < end:
            if self.tokens[k].kind == "id":
                is_last = k + 1 >= end or self.is_at(k + 1, "=", "{", ";", "(", "[")
                if types and is_last and not self.is_at(k - 1, "::"):
                    return self.tokens[k].text, k
                types += 1
                k += 1
            elif self.is_at(k, "<"):
                depth = 0
                while k < end:
                    depth += self.is_at(k, "<") - self.is_at(k, ">")
                    k += 1
                    if not depth:
                        break
            elif self.is_at(k, "::", "&", "*"):
                k += 1
            else:
                return None
        return None
