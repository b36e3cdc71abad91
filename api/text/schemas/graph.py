"""What depends on the references of a schema in normal form: options that exclude each other, endless values, depth."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Final

from api.text.schemas.findings import ROOT, Findings, Pointer, Schema, child
from api.text.schemas.keywords import TYPES

MAX_CHAIN: Final = 300
"""Schemas on a path through references. llguidance follows them recursively: a thousand use up its stack."""
MAX_COMPARED: Final = 200
"""Options of a `oneOf` that are compared with each other."""
MAX_COMPARISONS: Final = 200_000
"""Comparisons of schemas and of constants. Without an end, options in options would take for ever."""
MAX_ROUNDS: Final = 50
"""Passes over the definitions that look for endless ones."""
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties")
_SINGLE: Final = ("items", "additionalProperties")
_NOTHING: Final = {"allOf": [False]}
"""A schema that no value matches, as an object."""


def parts_of(node: Mapping[str, Any]) -> Iterator[Schema]:
    """The direct subschemas, without the targets of references."""
    for keyword in node:
        if keyword in _LISTS:
            yield from node[keyword]
        elif keyword in _MAPS:
            yield from node[keyword].values()
        elif keyword in _SINGLE:
            yield node[keyword]


class Graph:
    """A schema in normal form with its definitions. Its methods change the schema in place."""

    def __init__(
        self, root: Schema, definitions: dict[str, Schema], pointers: dict[int, Pointer], findings: Findings
    ) -> None:
        self.root = root
        self.definitions = definitions
        self._pointers = pointers
        self._findings = findings
        self._comparisons_left = MAX_COMPARISONS

    def target(self, node: Mapping[str, Any]) -> Schema:
        """The schema that a reference refers to."""
        return self.definitions[node["$ref"].removeprefix("#/$defs/")]

    def nodes(self) -> Iterator[dict[str, Any]]:
        """All objects of the schema and of its definitions."""
        waiting = [self.root, *self.definitions.values()]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                yield node
                waiting += parts_of(node)

    def pointer(self, node: Mapping[str, Any]) -> Pointer:
        return self._pointers.get(id(node), ROOT)

    # -- oneOf

    def replace_one_of(self) -> None:
        """Make each `oneOf` an `anyOf`. That is the same if no value matches two of its options."""
        for node in list(self.nodes()):
            options = node.get("oneOf")
            if options is None:
                continue
            if not self._exclude_each_other(options):
                reason = "'oneOf' cannot be enforced: its options may overlap (use 'anyOf')"
                self._findings.leave_out(reason, child(self.pointer(node), "oneOf"))
            replaced: dict[str, Any] = {}
            for keyword, value in node.items():
                if keyword != "oneOf":
                    replaced[keyword] = replaced.get("allOf", []) + value if keyword == "allOf" else value
                elif "anyOf" in node:
                    replaced["allOf"] = [*replaced.get("allOf", ()), {"anyOf": options}]
                else:
                    replaced["anyOf"] = options
            node.clear()
            node.update(replaced)

    def _exclude_each_other(self, options: list[Schema]) -> bool:
        return len(options) <= MAX_COMPARED and all(self._disjoint(a, b, 8) for a, b in combinations(options, 2))

    def _disjoint(self, one: Schema, other: Schema, depth: int) -> bool:
        """Whether it is certain that no value matches both."""
        if one is False or other is False:
            return True
        self._comparisons_left -= 1
        if one is True or other is True or not depth or self._comparisons_left < 0:
            return False
        for node, against in ((one, other), (other, one)):
            if "$ref" in node and self._disjoint(self.target(node), against, depth - 1):
                return True
            for keyword in ("anyOf", "oneOf"):
                if keyword in node and all(self._disjoint(part, against, depth - 1) for part in node[keyword]):
                    return True
            if any(self._disjoint(part, against, depth - 1) for part in node.get("allOf", ())):
                return True
        values, others = _constants(one), _constants(other)
        if values is not None and others is not None:
            self._comparisons_left -= len(values) + len(others)
            return not set(map(_key, values)) & set(map(_key, others))
        common = types_of(one) & types_of(other)
        if not common:
            return True
        if values is not None or others is not None:
            given, types = (values, types_of(other)) if values is not None else (others, types_of(one))
            return not any(_type_of(value) in types for value in given or ())
        return common == {"object"} and any(
            self._disjoint(_property(one, name), _property(other, name), depth - 1)
            for name in {*one.get("required", ()), *other.get("required", ())}
        )

    # -- references

    def shorten_chains(self) -> None:
        """Leave out references that llguidance would follow too deep."""
        seen: set[int] = set()
        waiting: list[tuple[Schema, int]] = [(self.root, 0)]
        while waiting:
            node, depth = waiting.pop()
            if not isinstance(node, dict):
                continue
            if "$ref" in node and id(target := self.target(node)) not in seen:
                if depth >= MAX_CHAIN:
                    reason = f"it is the end of a chain of more than {MAX_CHAIN} schemas"
                    self._findings.leave_out(reason, child(self.pointer(node), "$ref"))
                    del node["$ref"]
                else:
                    seen.add(id(target))
                    waiting.append((target, depth + 1))
            waiting += [(part, depth + 1) for part in parts_of(node)]

    def cut_endless(self) -> None:
        """Forbid what contains itself without end. No answer to such a schema ends, and its grammar breaks."""
        finite: set[str] = set()
        waiting = [*reversed(self.definitions)]
        for _ in range(MAX_ROUNDS):
            known = len(finite)
            for name in waiting:
                if self._is_finite(self.definitions[name], finite):
                    finite.add(name)
            waiting = [name for name in waiting if name not in finite]
            if len(finite) == known or not waiting:
                break
        else:
            return  # a longer search would only find more that is finite
        if not waiting:
            return
        endless = not self._is_finite(self.root, finite)
        for node in self.nodes():
            if "$ref" in node and node["$ref"].removeprefix("#/$defs/") in waiting:
                if endless:
                    reason = "it contains itself without end, so that no value matches it"
                    self._findings.leave_out(reason, child(self.pointer(node), "$ref"))
                    del node["$ref"]
                else:
                    node.clear()
                    node.update(_NOTHING)

    def _is_finite(self, schema: Schema, finite: set[str]) -> bool:
        """Whether values may end, if all definitions besides `finite` are endless."""
        if isinstance(schema, bool) or "const" in schema or "enum" in schema:
            return True
        if "$ref" in schema and schema["$ref"].removeprefix("#/$defs/") not in finite:
            return False
        if not all(self._is_finite(part, finite) for part in schema.get("allOf", ())):
            return False
        if "anyOf" in schema and not any(self._is_finite(part, finite) for part in schema["anyOf"]):
            return False
        types = types_of(schema)
        if types - {"object", "array"}:
            return True
        if "object" in types and all(
            self._is_finite(_property(schema, name), finite) for name in schema.get("required", ())
        ):
            return True
        fewest = schema.get("minItems", 0)
        needed = schema.get("prefixItems", [])[:fewest]
        if fewest > len(needed):
            needed = [*needed, schema.get("items", True)]
        return "array" in types and all(self._is_finite(part, finite) for part in needed)


def types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that the keyword `type` allows. A number may also be an integer."""
    given = schema.get("type", TYPES)
    types = frozenset([given] if isinstance(given, str) else given)
    return types | {"integer"} if "number" in types else types


def _property(schema: Schema, name: str) -> Schema:
    """What a schema demands of a property, if patterns do not matter."""
    if isinstance(schema, bool):
        return schema
    if name in schema.get("properties", {}):
        found: Schema = schema["properties"][name]
        return found
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)


def _constants(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values: list[Any] | None = schema.get("enum")
    return values


def _key(value: Any) -> tuple[str, object]:
    """Different for values that are not equal, besides objects and lists."""
    kind = _type_of(value)
    if kind in ("integer", "number"):
        return "number", float(value)
    return kind, None if kind in ("array", "object") else value


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return {float: "number", str: "string", list: "array", dict: "object"}[type(value)]
