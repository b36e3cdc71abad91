"""Rules for the values of arguments that are written one by one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from api.text.dialects.grammars.lark import ANY_TEXT, literal, one_of
from api.text.dialects.grammars.rules import Ref, Rules
from api.text.dialects.kinds import kinds_of
from api.text.dialects.schema import well_typed
from api.text.dialects.syntax import Slot, TaggedArguments
from api.text.dialects.writer import value_text
from api.text.schemas import problem, schema_rule
from api.text.schemas.references import References

ANY_KEY: Final = r"/[A-Za-z_][A-Za-z0-9_.\-]{0,63}/"
_PYTHON_ESCAPE: Final = (
    r"\\([^NUux\n]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U(000[0-9a-fA-F]|0010)[0-9a-fA-F]{4})"  # none that is too short
)
_PYTHON_STRING: Final = rf"/'([^'\\\n]|{_PYTHON_ESCAPE})*'/"
_GEMMA_QUOTE: Final = '<|"|>'
_MAX_ITEMS: Final = 1000
"""Sizes of lists above it are not enforced in a notation other than JSON."""
_MAX_DEPTH: Final = 8
"""Objects inside of objects that keep their schema in a notation other than JSON."""


class ValueRules:
    """Makes the rules for values of arguments."""

    def __init__(self, rules: Rules, syntax: TaggedArguments, root: Mapping[str, Any], *, strict: bool) -> None:
        """`root`: the whole schema, well typed, for references."""
        self._rules, self._syntax, self._strict = rules, syntax, strict
        self._definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
        self._references = References(root)
        self._inner_names: dict[tuple[str, int], str] = {}
        """Rules for values inside of others by schema and depth. A schema may refer to itself more than once."""
        self._tagged_names: dict[tuple[str, str, int, str], str] = {}

    def kinds(self, schema: Any) -> list[str]:
        """The JSON types of a value, in a fixed order."""
        return sorted(kinds_of(schema, self._references))

    def value(self, schema: Any, kinds: Sequence[str], tail: str, depth: int = 0) -> str:
        """What matches a value and the text after it. `kinds`: its JSON types."""
        match self._syntax.encoding:
            case "raw":
                return self._raw(schema, kinds, tail)
            case "nested":
                return self._nested(self._resolved(schema), kinds, tail, depth)
            case "python" | "gemma":
                value = self._notation(self._resolved(schema), kinds, depth)
            case _:
                value = self._json(schema)
        return f"{value} {self._rules.mark(tail)}"

    def _json(self, schema: Any) -> str:
        whole = {**self._definitions, **schema} if isinstance(schema, Mapping) else schema
        return self._rules.add(schema_rule(whole, strict=self._strict), "value")

    def _resolved(self, schema: Any) -> Any:
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            place = self._references.find(str(schema["$ref"]), "")
            schema = well_typed(place.node) if place is not None else {}
        return schema

    def _raw(self, schema: Any, kinds: Sequence[str], tail: str) -> str:
        if "string" not in kinds:
            value = " | ".join([self._json(schema), *self._words(kinds)])  # some templates write Python's words
            return f"({value}) {self._rules.mark(tail)}"
        mark, space = (tail.strip(), tail[len(tail.rstrip()) :]) if tail.strip() else (tail, "")
        after = self._rules.mark(space)
        resolved = self._resolved(schema)
        if texts := _texts(resolved):
            return f"{one_of(texts)} {self._rules.mark(tail)}"
        limit = _limit(resolved) if list(kinds) == ["string"] else ""
        if self._syntax.cdata and not limit:
            begin, end = literal("<![CDATA["), self._rules.until("]]>" + mark, "value")
            return f"({begin} {end} | {self._rules.until(mark, 'value')}) {after}"
        if limit:  # the white space before the mark is not part of the text that the limit counts
            return f"{self._rules.until(tail.removesuffix(space), 'value', limit)} {after}"
        return f"{self._rules.until(mark, 'value')} {after}"

    def _notation(self, schema: Any, kinds: Sequence[str], depth: int) -> str:
        """A value in Python's or in Gemma's notation. Python's values may also be JSON, which models mix with it."""
        is_python = self._syntax.encoding == "python"
        ways = [self._json(schema)] if is_python else []
        texts = _texts(schema)
        if is_python and not texts and (self._strict or _lists(schema)):  # only JSON's notation keeps all of the schema
            return f"({' | '.join([*ways, *([] if _lists(schema) else self._words(kinds))])})"
        if not is_python and not texts and _lists(schema):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return f"({' | '.join(self._rules.mark(value_text(self._syntax, value)) for value in values)})"
        if options := _options(schema):
            return f"({' | '.join([*ways, *(self._inner(option, depth) for option in options)])})"
        if "string" in kinds:
            ways += self._strings(texts, limit=_limit(schema))
        if not texts and not _lists(schema):
            ways += self._words(kinds) if is_python else []
        scalars = [kind for kind in kinds if kind in ("number", "boolean", "null")]
        if scalars and not is_python:
            ways.append(self._json(_only(schema, scalars)))
        if "array" in kinds:
            item = self._inner(schema.get("items") if isinstance(schema, Mapping) else None, depth)
            ways.append(f'"[" {_repeated(schema, item, self._comma)} "]"')
        if "object" in kinds:
            ways.append(self._object(schema, depth))
        return f"({' | '.join(ways)})"

    @property
    def _comma(self) -> str:
        return '", "' if self._syntax.encoding == "python" else '","'

    def _strings(self, texts: Sequence[str], *, limit: str) -> list[str]:
        """The ways to write a string, besides JSON. `texts`: the only ones that are allowed, if there are any."""
        if self._syntax.encoding == "python":
            return [literal(repr(text)) for text in texts] or ([] if limit else [_PYTHON_STRING])
        quote = self._rules.mark(_GEMMA_QUOTE)
        return [
            f"{quote} {one_of(texts)} {quote}"
            if texts
            else f"{quote} {self._rules.until(_GEMMA_QUOTE, 'text', limit or ANY_TEXT)}"
        ]

    @staticmethod
    def _words(kinds: Sequence[str]) -> list[str]:
        """Python's words."""
        return [*(['"True"', '"False"'] if "boolean" in kinds else []), *(['"None"'] if "null" in kinds else [])]

    def _inner(self, schema: Any, depth: int) -> str:
        """The name of a rule for a value inside of another one."""
        if not isinstance(schema, Mapping) or depth >= _MAX_DEPTH:
            schema, depth = {"type": ["string", "number", "boolean", "null"]}, _MAX_DEPTH
        key = (json.dumps(schema, sort_keys=True), depth)
        if key not in self._inner_names:
            right = self._notation(self._resolved(schema), self.kinds(schema), depth + 1)
            self._inner_names[key] = self._rules.add(right, "value")
        return self._inner_names[key]

    def _object(self, schema: Any, depth: int) -> str:
        is_python = self._syntax.encoding == "python"
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not properties or depth >= _MAX_DEPTH:
            key = f'"\'" {ANY_KEY} "\': "' if is_python else f'{ANY_KEY} ":"'
            member = f"{key} {self._inner(None, depth)}"
            return f'"{{" ({member} ({self._comma} {member})*)? "}}"'
        members = {}
        for separator in ("", ", " if is_python else ","):
            heads = {key: f"{separator}{key!r}: " if is_python else f"{separator}{key}:" for key in properties}
            members[separator] = {
                key: self._rules.add(f"{literal(heads[key])} {self._inner(value, depth)}", "member")
                for key, value in properties.items()
            }
        firsts, laters = members.values()
        required = set(schema.get("required", ()))
        inside = self._rules.ordered(firsts, laters, required)
        return f'"{{" {inside}{"" if required & firsts.keys() else "?"} "}}"'

    def _nested(self, schema: Any, kinds: Sequence[str], tail: str, depth: int) -> str:
        if depth > _MAX_DEPTH or not isinstance(schema, Mapping) or "string" in kinds:
            return self._raw(schema, kinds, tail)
        if "object" in kinds and schema.get("properties"):
            members, separator = schema["properties"].items(), self._syntax.separator
            firsts = {key: self._tagged(key, value, depth) for key, value in members}
            laters = {key: self._tagged(key, value, depth, separator) for key, value in members}
            inside = self._rules.ordered(firsts, laters, set(schema.get("required", ())))
            return self._rules.sequence([Ref(inside), tail])
        if "array" in kinds and isinstance(schema.get("items"), Mapping):
            return self._rules.sequence([Ref(self._tagged("item", schema["items"], depth) + _times(schema)), tail])
        return self._raw(schema, kinds, tail)

    def _tagged(self, key: str, schema: Any, depth: int, before: str = "") -> str:
        """The name of a rule for one member of a nested value."""
        place = (key, json.dumps(schema, sort_keys=True), depth, before)
        if place not in self._tagged_names:
            self._tagged_names[place] = self._new_tagged(key, schema, depth, before)
        return self._tagged_names[place]

    def _new_tagged(self, key: str, schema: Any, depth: int, before: str) -> str:
        form = self._syntax.argument
        at = form.index(Slot.VALUE)
        head = [before, *(part if isinstance(part, str) else key for part in form[:at])]
        tail = "".join(part if isinstance(part, str) else key for part in form[at + 1 :])
        value = self._nested(self._resolved(schema), self.kinds(schema), tail, depth + 1)
        return self._rules.add(self._rules.sequence([*head, Ref(value)]), "member")


def _texts(schema: Any) -> list[str]:
    """The strings that a schema allows if it lists them and nothing else."""
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return list(values) if values and all(isinstance(value, str) for value in values) else []


def _options(schema: Any) -> list[Any]:
    """The schemas one of which a value must match, if its schema says nothing else of it."""
    if not isinstance(schema, Mapping) or {"properties", "items", "enum", "const"} & schema.keys():
        return []
    return list(schema.get("anyOf", schema.get("oneOf", ())))


def _lists(schema: Any) -> bool:
    """Whether a schema lists the values that it allows."""
    return isinstance(schema, Mapping) and not {"enum", "const"}.isdisjoint(schema)


def _sizes(schema: Any) -> tuple[int | None, int | None]:
    """The least and the greatest number of items; None for no limit. A greatest below the least is none."""
    sizes = [schema.get(key) if isinstance(schema, Mapping) else None for key in ("minItems", "maxItems")]
    fewest, most = (size if type(size) is int and 0 <= size <= _MAX_ITEMS else None for size in sizes)
    return fewest, most if most is None or most >= (fewest or 0) else None


def _times(schema: Any) -> str:
    """How often an item may come."""
    fewest, most = _sizes(schema)
    return "*" if not fewest and most is None else f"{{{fewest or 0},{'' if most is None else most}}}"


def _repeated(schema: Any, item: str, comma: str) -> str:
    """The items of a list, as many as the schema allows."""
    fewest, most = _sizes(schema)
    if most == 0:
        return ""
    rest = f"({comma} {item}){{{max((fewest or 0) - 1, 0)},{'' if most is None else most - 1}}}"
    return f"({item} {rest})" + ("" if fewest else "?")


def _only(schema: Any, kinds: Sequence[str]) -> Any:
    """The schema for values of these types."""
    if not isinstance(schema, Mapping):
        return {"type": list(kinds)}
    types = schema.get("type", list(kinds))
    named = [
        each
        for each in ([types] if isinstance(types, str) else types)
        if ("number" if each == "integer" else each) in kinds
    ]
    return {**schema, "type": named or list(kinds)}


def _limit(schema: Any) -> str:
    """The regular expression of a string's text; empty if the schema bounds it in no way that can be enforced."""
    if not isinstance(schema, Mapping):
        return ""
    expression = ""
    if isinstance(pattern := schema.get("pattern"), str):
        begin, end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
        inner = pattern[begin : len(pattern) - end]
        around = r"(.|\n)*"
        expression = f"/{'' if begin else around}({inner}){'' if end else around}/".replace("\n", r"\n")
    elif "minLength" in schema or "maxLength" in schema:
        expression = f"/(.|\\n){{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}/"
    return expression if expression and not problem(f"TEXT\nTEXT: {expression}") else ""
