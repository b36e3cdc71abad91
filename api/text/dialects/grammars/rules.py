"""Collects the rules of one grammar."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from api.text.dialects.grammars.lark import ANY_TEXT, TokenId, marker, text_until


@dataclass(frozen=True, slots=True)
class Ref:
    """A part of a rule that is not literal text: a rule's name, or a terminal."""

    text: str


@dataclass(slots=True)
class Rules:
    """The rules of one grammar, by name."""

    token_id: TokenId
    lines: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    """Names of rules by their right-hand side."""

    def add(self, right: str, kind: str) -> str:
        """The name of a rule with this right-hand side."""
        if right not in self._names:
            self._names[right] = f"{kind}_{len(self._names)}"
            self.lines.append(f"{self._names[right]}: {right}")
        return self._names[right]

    def until(self, mark: str, kind: str, limit: str = ANY_TEXT) -> str:
        """The name of a rule for any text up to and including this mark."""
        key = f"{kind} {limit} {mark}"
        if key not in self._names:
            self._names[key] = f"{kind}_{len(self._names)}"
            self.lines.append(text_until(self._names[key], mark, self.token_id, limit=limit).rstrip("\n"))
        return self._names[key]

    def mark(self, text: str) -> str:
        return marker(text, self.token_id) if text else ""

    def sequence(self, parts: Iterable[str | Ref]) -> str:
        """The right-hand side for these parts. Texts next to each other become one terminal where they can."""
        written: list[str] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            written += [self.mark(text), part.text]
            text = ""
        return " ".join(filter(None, [*written, self.mark(text)]))

    def ordered(self, firsts: Mapping[str, str], laters: Mapping[str, str], required: set[str]) -> str:
        """The name of a rule for members in this order, of which at least one comes; empty if there are none.

        `firsts` and `laters`: rules for each member without and with the text that separates it from an earlier one.
        """
        first, later = "", ""
        for key in reversed(list(firsts)):
            following = f"{firsts[key]} {later}" if later else firsts[key]
            if key in required:
                first, later = self.add(following, "first"), self.add(f"{laters[key]} {later}", "later")
            else:
                first = self.add(f"{following} | {first}" if first else following, "first")
                later = self.add(f"{laters[key]}? {later}", "later")
        return first
