"""Finds the part of a schema that llguidance rejects. Its messages do not name it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from api.text.schemas.compiler import schema_problem
from api.text.schemas.findings import JSON, Schema
from api.text.schemas.graph import Graph, parts_of
from api.text.schemas.keywords import NEEDED_BY

BUDGET: Final = 8 << 20
"""Characters of schemas that are compiled to find a part."""
COST: Final = 20_000
"""What a compilation takes besides, in the time for so many characters."""
UNSATISFIABLE: Final = "Unsatisfiable schema"


class OverBudget(Exception):  # noqa: N818 - it ends a search, it is no error
    """Finding the part would take too long."""


@dataclass(frozen=True, slots=True)
class Found:
    """A part that llguidance rejects."""

    node: dict[str, Any]
    keyword: str | None
    """The keyword without which llguidance accepts it, if there is one."""
    problem: str
    """Why llguidance rejects it."""


class Locator:
    """Finds the parts of one schema, with one budget."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._left = BUDGET
        self._size = COST + len(orjson.dumps([graph.root, graph.definitions]))

    def find(self, problem: str) -> Found | None:
        """The deepest object that has this problem; None if the schema is false. Raises OverBudget."""
        node, seen = self._graph.root, set[int]()
        if not isinstance(node, dict):
            return None
        is_unsatisfiable = UNSATISFIABLE in problem
        while True:
            parts = self._needed(node) if is_unsatisfiable else list(parts_of(node))
            if "$ref" in node:
                parts.append(self._graph.target(node))
            parts = [part for part in parts if isinstance(part, dict) and id(part) not in seen]
            bad = self._first_bad(parts)
            if bad is None:
                return Found(node, self._keyword(node), self._problem(node) or problem)
            seen.add(id(bad))
            node = bad

    @staticmethod
    def _needed(node: Mapping[str, Any]) -> list[Schema]:
        """The subschemas without which no value matches."""
        properties = node.get("properties", {})
        parts = [properties[name] for name in node.get("required", ()) if name in properties]
        parts += [part for keyword in ("allOf", "anyOf") for part in node.get(keyword, ())]
        fewest = node.get("minItems", 0)
        parts += node.get("prefixItems", [])[:fewest]
        if fewest > len(node.get("prefixItems", ())):
            parts.append(node.get("items", True))
        return parts

    def _first_bad(self, parts: list[Schema]) -> dict[str, Any] | None:
        """The first of these that llguidance rejects."""
        if not parts or not self._problem({"type": "array", "prefixItems": parts, "minItems": len(parts)}):
            return None
        while len(parts) > 1:
            half = parts[: len(parts) // 2]
            is_first = bool(self._problem({"type": "array", "prefixItems": half, "minItems": len(half)}))
            parts = half if is_first else parts[len(half) :]
        return parts[0] if isinstance(parts[0], dict) else None

    def _keyword(self, node: dict[str, Any]) -> str | None:
        return next((keyword for keyword in reversed(node) if not self._problem(without(node, keyword))), None)

    def _problem(self, schema: dict[str, Any]) -> str:
        self._left -= self._size
        if self._left < 0:
            raise OverBudget
        return schema_problem(schema | {"$defs": self._graph.definitions})


def without(node: Mapping[str, Any], keyword: str) -> dict[str, JSON]:
    """The object without a keyword, and without those that depend on it."""
    left_out = {keyword, *NEEDED_BY.get(keyword, ())}
    return {key: value for key, value in node.items() if key not in left_out}
