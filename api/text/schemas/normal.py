"""Rewrites a client's JSON schema to one that llguidance enforces completely."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from api.text.schemas.compiler import forbids_all_names, names_of, pattern_problem
from api.text.schemas.findings import Findings, Pointer, Schema, child
from api.text.schemas.keywords import (
    ENFORCED,
    FORMATS,
    MAX_ALTERNATIVES,
    NEEDED_BY,
    UNENFORCED,
    is_exact,
)
from api.text.schemas.references import Place, References, own_base

MAX_NESTING: Final = 110
"""Levels of objects and lists in the schema's JSON; llguidance reads 128."""
MAX_OPTIONAL: Final = 2000
"""Optional properties of an object, and options of an `anyOf`. llguidance considers all of them at each step."""
MAX_PARTS: Final = 4000
"""Properties of an object, and values in a constant. llguidance's recursion over them uses up its stack."""
MAX_COUNT: Final = 1_000_000
"""Minimum lengths above it are refused. Maximum lengths above it are ignored: no answer is so long."""
MAX_PATTERNS: Final = 500
"""Different patterns in a schema. A complicated one takes some milliseconds to check."""
MAX_FACTOR: Final = 2**32 - 1
"""The largest number of `multipleOf` without its decimal point."""

_APPLICATORS: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "$dynamicRef"})
_COUNTS: Final = frozenset({"minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"})
_BOUNDS: Final = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


class Normalizer:
    """One schema on its way to its normal form.

    The normal form has no annotations, no keywords of older drafts, and only references to `$defs`. The keyword `oneOf`
    is still in it. All objects in it are new.
    """

    def __init__(self, schema: Schema, findings: Findings) -> None:
        self._findings = findings
        self._references = References(schema)
        self._pattern_problems: dict[str, str] = {}
        self._names: dict[int, str] = {}
        """Names in `definitions`, by the id of the client's object."""
        self._waiting: list[tuple[str, Place]] = []
        self.pointers: dict[int, Pointer] = {}
        """Where each object of the normal form comes from, by its id."""
        self.definitions: dict[str, Schema] = {}
        root = self._references.root
        self.root = self._schema(root.node, root.pointer, root.base, 0)
        while self._waiting:
            name, place = self._waiting.pop()
            self.definitions[name] = self._schema(place.node, place.pointer, place.base, 2)

    def _schema(self, node: Schema, pointer: Pointer, base: str, nesting: int) -> Schema:
        if isinstance(node, bool):
            return node
        normal: dict[str, Any] = {}
        self.pointers[id(normal)] = pointer
        if nesting > MAX_NESTING:
            self._findings.leave_out(f"it is nested more than {MAX_NESTING} levels deep", pointer)
            return normal
        base, node = own_base(node, base), _evaluated(node)
        left_out: set[str] = set()
        for keyword, value in node.items():
            if keyword in UNENFORCED:
                if not UNENFORCED[keyword](node):
                    self._findings.leave_out(f"{keyword!r} cannot be enforced", child(pointer, keyword))
            elif keyword in ENFORCED:
                is_valid, expected = ENFORCED[keyword]
                inside = child(pointer, keyword)
                if not is_valid(value):
                    reason = f"{keyword!r} must be {expected}"
                elif keyword in _SUBSCHEMAS:
                    reason = self._subschemas(normal, keyword, node, inside, base, nesting)
                else:
                    reason = self._assertion(normal, keyword, node, base)
                if reason:
                    self._findings.leave_out(reason, inside)
                    left_out |= {keyword}
        for keyword in left_out:
            for dependent in NEEDED_BY.get(keyword, ()):
                normal.pop(dependent, None)
        self._finish_object(normal, pointer)
        return normal

    def _assertion(self, normal: dict[str, Any], keyword: str, node: Mapping[str, Any], base: str) -> str:
        """Add a keyword without subschemas. Returns why it cannot be enforced; empty if it can."""
        value = node[keyword]
        if keyword == "$ref":
            return self._refer(normal, value, base)
        if keyword == "format":
            if value in FORMATS:
                normal[keyword] = value
            return ""
        if keyword in ("const", "enum"):
            values = value if keyword == "enum" else [value]
            if reason := _why_not_constants(values):
                return reason
        elif keyword == "pattern":
            if reason := self._pattern_problem(value):
                return f"'pattern' cannot be enforced: {reason}"
        elif keyword in _COUNTS:
            value = int(value)
            if value > MAX_COUNT:
                return f"{keyword!r} is above {MAX_COUNT}" if keyword.startswith("min") else ""
        elif keyword in _BOUNDS and isinstance(value, bool):  # draft 4
            bound = node.get(_BOUNDS[keyword])
            if value and isinstance(bound, int | float) and is_exact(bound):
                normal[keyword] = bound
            return ""
        elif keyword in ("minimum", "maximum", *_BOUNDS) and not is_exact(value):
            return f"{keyword!r} cannot be enforced: the number is too large or too small"
        elif keyword == "multipleOf" and not _is_factor(value):
            return "'multipleOf' cannot be enforced: the number has too many digits"
        elif keyword == "required":
            value = list(dict.fromkeys(value))
        normal[keyword] = value
        return ""

    def _refer(self, normal: dict[str, Any], reference: str, base: str) -> str:
        place = self._references.find(reference, base)
        if place is None or not isinstance(place.node, dict | bool):
            return f"'$ref' refers to {reference[:100]!r}, which is not in the schema"
        name = self._names.get(id(place.node))
        if name is None:
            name = self._names[id(place.node)] = f"d{len(self._names)}"
            self._waiting.append((name, place))
        normal["$ref"] = f"#/$defs/{name}"
        return ""

    def _subschemas(
        self, normal: dict[str, Any], keyword: str, node: Mapping[str, Any], pointer: Pointer, base: str, nesting: int
    ) -> str:
        """Add a keyword with subschemas. Returns why it cannot be enforced; empty if it can."""
        value = node[keyword]
        if keyword == "additionalItems":
            if isinstance(node.get("items"), list):
                normal["items"] = self._schema(value, pointer, base, nesting + 1)
        elif isinstance(value, list):
            if keyword in ("anyOf", "oneOf") and len(value) > MAX_OPTIONAL:
                return f"{keyword!r} has more than {MAX_OPTIONAL} options"
            if len(value) > MAX_PARTS:
                return f"{keyword!r} has more than {MAX_PARTS} schemas"
            parts = [self._schema(part, child(pointer, i), base, nesting + 2) for i, part in enumerate(value)]
            normal["prefixItems" if keyword == "items" else keyword] = parts
        elif isinstance(value, bool) or keyword in ("items", "additionalProperties"):
            normal[keyword] = self._schema(value, pointer, base, nesting + 1)
        elif keyword == "properties":
            if len(value) > MAX_PARTS:
                return f"'properties' has more than {MAX_PARTS} properties"
            normal[keyword] = {
                name: self._schema(part, child(pointer, name), base, nesting + 2) for name, part in value.items()
            }
        else:
            normal[keyword] = self._patterns(value, pointer, base, nesting + 2)
            if len(normal[keyword]) < len(value):
                return "not all of its patterns can be enforced"
        return ""

    def _patterns(self, value: Mapping[str, Schema], pointer: Pointer, base: str, nesting: int) -> dict[str, Schema]:
        kept = {}
        for pattern, part in value.items():
            inside = child(pointer, pattern)
            if reason := self._pattern_problem(pattern):
                self._findings.leave_out(f"the pattern cannot be enforced: {reason}", inside)
            else:
                kept[pattern] = self._schema(part, inside, base, nesting)
        return kept

    def _pattern_problem(self, pattern: str) -> str:
        if pattern not in self._pattern_problems:
            if len(self._pattern_problems) == MAX_PATTERNS:
                return f"the schema has more than {MAX_PATTERNS} patterns"
            self._pattern_problems[pattern] = pattern_problem(pattern)
        return self._pattern_problems[pattern]

    def _finish_object(self, normal: dict[str, Any], pointer: Pointer) -> None:
        """Make what an object's keywords say together enforceable."""
        if "patternProperties" in normal:
            self._name_patterns(normal, pointer)
        properties, required = normal.get("properties", {}), normal.get("required", [])
        optional = properties.keys() - set(required)
        if len(optional) > MAX_OPTIONAL:
            self._leave_out_properties(normal, f"more than {MAX_OPTIONAL} optional properties", pointer)
        elif len(properties) + len(required) > MAX_PARTS:
            self._leave_out_properties(normal, f"more than {MAX_PARTS} properties", pointer)
        is_closed = normal.get("additionalProperties") is False and not normal.get("patternProperties")
        fewest = max(normal.get("minProperties", 0) - len(required), 0)
        if fewest == 0:
            normal.pop("minProperties", None)
        if fewest > 1 and self._findings.strict:
            reason = "'minProperties' cannot be enforced: an answer may repeat a name"
            self._findings.leave_out(reason, child(pointer, "minProperties"))
        if is_closed and normal.get("maxProperties", 0) >= len(properties):
            normal.pop("maxProperties", None)
        most = normal["maxProperties"] - len(required) if "maxProperties" in normal else None
        if optional and (fewest or most is not None) and not (is_closed and fewest <= 1 and most in (None, 1)):
            for keyword in ("minProperties", "maxProperties"):
                if normal.pop(keyword, None) is not None:
                    reason = f"{keyword!r} cannot be enforced beside optional properties"
                    self._findings.leave_out(reason, child(pointer, keyword))

    def _name_patterns(self, normal: dict[str, Any], pointer: Pointer) -> None:
        """Replace patterns of few names by properties: no name may be left for a pattern, and then a grammar breaks."""
        patterns: dict[str, Schema] = {}
        named: dict[str, list[Schema]] = {}
        for pattern, schema in normal["patternProperties"].items():
            names = names_of(pattern)
            if names is None:
                patterns[pattern] = schema
            elif len(names) > 1 and isinstance(schema, dict):  # as a definition, because copies of copies grow fast
                name = f"p{len(self.definitions)}"
                self.definitions[name] = schema
                schema = {"$ref": f"#/$defs/{name}"}
                self.pointers[id(schema)] = child(pointer, "patternProperties", pattern)
            for name in names or ():
                named.setdefault(name, []).append(schema)
        properties = normal.setdefault("properties", {}) if named else {}
        for name, schemas in named.items():
            both = [properties[name], *schemas] if name in properties else schemas
            properties[name] = both[0] if len(both) == 1 else {"allOf": both}
            self.pointers.setdefault(id(properties[name]), child(pointer, "properties", name))
        del normal["patternProperties"]
        if patterns:
            normal["patternProperties"] = patterns
            forbidden = tuple(pattern for pattern, schema in patterns.items() if schema is False)
            if forbidden and forbids_all_names(forbidden):
                normal["additionalProperties"] = False

    def _leave_out_properties(self, normal: dict[str, Any], what: str, pointer: Pointer) -> None:
        self._findings.leave_out(f"it has {what}", pointer)
        for keyword in ("properties", "required", *NEEDED_BY["properties"]):
            normal.pop(keyword, None)


_SUBSCHEMAS: Final = frozenset(
    {
        "allOf",
        "anyOf",
        "oneOf",
        "items",
        "additionalItems",
        "prefixItems",
        "properties",
        "patternProperties",
        "additionalProperties",
    }
)


def _evaluated(node: dict[str, Any]) -> dict[str, Any]:
    """The schema with `unevaluated...` as `additionalProperties` and `items`, where these mean the same."""
    twins = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}
    if not twins.keys() & node.keys() or _APPLICATORS & node.keys() or "contains" in node:
        return node
    return {twins[key] if key in twins and twins[key] not in node else key: value for key, value in node.items()}


def _is_factor(value: float) -> bool:
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    return int("".join(map(str, digits))) * 10 ** max(exponent, 0) <= MAX_FACTOR and exponent >= -9


def _why_not_constants(values: list[Any]) -> str:
    """Why these values cannot be enforced; empty if they can."""
    if len(values) > MAX_ALTERNATIVES:
        return f"'enum' has more than {MAX_ALTERNATIVES} values"
    nested = [value for value in values if isinstance(value, dict | list)]
    if len(nested) > MAX_OPTIONAL:
        return f"'enum' has more than {MAX_OPTIONAL} objects and lists"
    waiting: list[tuple[Any, int]] = [(value, 0) for value in values]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth > 8 or len(value) > MAX_PARTS:
                return "a constant is too large to be enforced"
            waiting += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, int | float) and not is_exact(value):
            return f"the number {value} is too large or too small to be enforced exactly"
    return ""
