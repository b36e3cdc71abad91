"""Rules for tool calls and their arguments, in llguidance's Lark."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from api.text.dialects.lark import ANY_TEXT, TokenId, literal, marker, one_of, text_until
from api.text.dialects.syntax import Calls, Form, JsonArguments, Slot, TaggedArguments
from api.text.dialects.tools import Tool
from api.text.schemas import problem, schema_rule
from api.text.schemas.references import References

_NAMED_KEY: Final = r"/[A-Za-z_][A-Za-z0-9_.\-]{0,63}/"
_INDEX: Final = "/[0-9]{1,4}/"
_PYTHON_STRING: Final = r"/'([^'\\\n]|\\.)*'/"
_GEMMA_QUOTE: Final = '<|"|>'
_MAX_DEPTH: Final = 8
"""Objects inside of objects that keep their schema in a notation other than JSON."""


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


def call_rule(rules: Rules, calls: Calls, tools: Sequence[Tool], *, without: str = "") -> str:
    """The name of a rule for one call. `without`: a beginning of the first form that is left out."""
    return rules.add(" | ".join(_calls_of(rules, calls, tool, without) for tool in tools), "call")


def _calls_of(rules: Rules, calls: Calls, tool: Tool, without: str) -> str:
    """The ways to call one tool."""
    forms = [_without(each, without) for each in calls.forms]
    return " | ".join(_form(rules, calls, tool, each) for each in forms if each is not None)


def _without(form: Form, beginning: str) -> Form | None:
    if not beginning:
        return form
    if not isinstance(form[0], str) or not form[0].startswith(beginning):
        return None
    return (form[0].removeprefix(beginning), *form[1:])


def _form(rules: Rules, calls: Calls, tool: Tool, form: Form) -> str:
    at = form.index(Slot.ARGUMENTS)
    before, after = _parts(rules, calls, tool, form[:at]), _parts(rules, calls, tool, form[at + 1 :])
    if isinstance(calls.arguments, JsonArguments):
        return f"{before} {rules.add(tool.rule(), 'arguments')} {after}"
    some, may_be_none = arguments_rule(rules, calls.arguments, tool)
    ways = [f"{before} {some} {after}"] if some else []
    if may_be_none:
        ways.append(f"{before} {_parts(rules, calls, tool, _joined(form[:at], form[at + 1 :]))}")
    return " | ".join(ways)


def _joined(before: Form, after: Form) -> Form:
    """The parts after the arguments if there are none: white space is not written twice."""
    if before and after and isinstance(before[-1], str) and isinstance(after[0], str) and before[-1][-1:].isspace():
        return (after[0].lstrip(), *after[1:])
    return after


def _parts(rules: Rules, calls: Calls, tool: Tool, parts: Form) -> str:
    written = {Slot.NAME: literal(tool.name), Slot.ID: f"/{calls.id_pattern}/", Slot.INDEX: _INDEX}
    return " ".join(rules.mark(part) if isinstance(part, str) else written[part] for part in parts)


def arguments_rule(rules: Rules, syntax: TaggedArguments, tool: Tool) -> tuple[str, bool]:
    """The name of a rule for one or more arguments, empty if the tool has none; and whether there may be none.

    Arguments come in the order of the schema. Without a list of arguments, any may come.
    """
    schema = tool.schema()
    properties = tool.properties
    if not properties and schema.get("additionalProperties") is not False and schema.keys() - {"type", "properties"}:
        any_key = _argument(rules, syntax, {}, schema, None, strict=False)
        return rules.add(f"{any_key} ({rules.mark(syntax.separator)} {any_key})*", "arguments"), True
    required = set(map(str, schema.get("required", ()) if isinstance(schema.get("required", ()), list) else ()))
    rule_of = {
        key: _argument(rules, syntax, value, schema, key, strict=tool.strict) for key, value in properties.items()
    }
    return ordered(rules, rule_of, required, rules.mark(syntax.separator)), not required & rule_of.keys()


def ordered(rules: Rules, rule_of: Mapping[str, str], required: set[str], separator: str) -> str:
    """The name of a rule for members in this order, of which at least one comes; empty if there are none."""
    first, later = "", ""
    for key, rule in reversed(rule_of.items()):
        following = f"{rule} {later}" if later else rule
        if key in required:
            first, later = rules.add(following, "first"), rules.add(f"{separator} {following}", "later")
        else:
            first = rules.add(f"{following} | {first}" if first else following, "first")
            later = rules.add(f"({separator} {rule})? {later}", "later")
    return first


def _argument(
    rules: Rules, syntax: TaggedArguments, schema: Any, root: Mapping[str, Any], key: str | None, *, strict: bool
) -> str:
    """The name of a rule for one argument. `key` None: of any name."""
    at = syntax.argument.index(Slot.VALUE)
    name = _NAMED_KEY if key is None else literal(key)
    tail = "".join(part if isinstance(part, str) else (key or "") for part in syntax.argument[at + 1 :])
    kinds = sorted(Tool("", None, {**root, "properties": {"x": schema}}).kinds("x"))
    ways = []
    for types, group in _by_type(syntax, kinds):
        head = " ".join(
            rules.mark(part) if isinstance(part, str) else name if part is Slot.KEY else types
            for part in syntax.argument[:at]
        )
        value = ValueRules(rules, syntax, root, strict=strict).value(_narrowed(schema, group), group, tail)
        ways.append(f"{head} {value}")
    return rules.add(" | ".join(ways), "argument")


def _by_type(syntax: TaggedArguments, kinds: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The texts of TYPE with the JSON types that they stand for."""
    words = dict(syntax.types)
    if not words:
        return [("", list(kinds))]
    texts = dict.fromkeys(words.get(kind, words.get("object", "")) for kind in kinds)
    return [
        (literal(text), [kind for kind in kinds if words.get(kind, words.get("object", "")) == text]) for text in texts
    ]


def _narrowed(schema: Any, kinds: Sequence[str]) -> Any:
    """The schema, for values of these types only."""
    if not isinstance(schema, Mapping) or "type" not in schema or not isinstance(schema["type"], list):
        return schema
    types = [each for each in schema["type"] if ("number" if each == "integer" else each) in kinds]
    return {**schema, "type": types} if types else schema


class ValueRules:
    """Makes the rules for values of arguments."""

    def __init__(self, rules: Rules, syntax: TaggedArguments, root: Mapping[str, Any], *, strict: bool) -> None:
        """`root`: the whole schema, for references."""
        self._rules, self._syntax, self._strict = rules, syntax, strict
        self._definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
        self._references = References(root)

    def value(self, schema: Any, kinds: Sequence[str], tail: str, depth: int = 0) -> str:
        """What matches a value and the text after it. `kinds`: its JSON types."""
        match self._syntax.encoding:
            case "raw":
                return self._raw(schema, kinds, tail)
            case "nested":
                return self._nested(self._resolved(schema), kinds, tail, depth)
            case "python":
                value = self._python(schema, kinds)
            case "gemma":
                value = self._gemma(self._resolved(schema), kinds, depth)
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
            schema = place.node if place is not None else {}
        return schema

    def _raw(self, schema: Any, kinds: Sequence[str], tail: str) -> str:
        if "string" not in kinds:
            return f"{self._json(schema)} {self._rules.mark(tail)}"
        mark, space = (tail.strip(), tail[len(tail.rstrip()) :]) if tail.strip() else (tail, "")
        after = self._rules.mark(space)
        resolved = self._resolved(schema)
        if texts := _texts(resolved):
            return f"{one_of(texts)} {self._rules.mark(tail)}"
        limit = _limit(resolved) if list(kinds) == ["string"] else ""
        if self._syntax.cdata and not limit:
            begin, end = literal("<![CDATA["), self._rules.until("]]>" + mark, "value")
            return f"({begin} {end} | {self._rules.until(mark, 'value')}) {after}"
        return f"{self._rules.until(mark, 'value', limit or ANY_TEXT)} {after}"

    def _python(self, schema: Any, kinds: Sequence[str]) -> str:
        resolved = self._resolved(schema)
        ways = [self._json(schema)]
        if texts := _texts(resolved):
            ways += [literal(repr(text)) for text in texts]
        elif "string" in kinds and not _limit(resolved):
            ways.append(_PYTHON_STRING)
        if isinstance(resolved, Mapping) and not {"enum", "const"} & resolved.keys():
            ways += ['"True"', '"False"'] if "boolean" in kinds else []
            ways += ['"None"'] if "null" in kinds else []
        return f"({' | '.join(ways)})"

    def _gemma(self, schema: Any, kinds: Sequence[str], depth: int) -> str:
        ways: list[str] = []
        quote = self._rules.mark(_GEMMA_QUOTE)
        texts = _texts(schema)
        if texts:
            ways.append(f"{quote} {one_of(texts)} {quote}")
        elif "string" in kinds:
            ways.append(f"{quote} {self._rules.until(_GEMMA_QUOTE, 'text')}")
        scalars = [kind for kind in kinds if kind in ("number", "boolean", "null")]
        if scalars and not texts:
            ways.append(self._json(_only(schema, scalars)))
        if "array" in kinds:
            item = self._inner(schema, "items", depth)
            ways.append(f'"[" ({item} ("," {item})*)? "]"')
        if "object" in kinds:
            ways.append(self._members(schema, depth, lambda key, value: f'{key} ":" {value}', '"{"', '"}"', '","'))
        return f"({' | '.join(ways)})"

    def _nested(self, schema: Any, kinds: Sequence[str], tail: str, depth: int) -> str:
        if depth > _MAX_DEPTH or not isinstance(schema, Mapping):
            return self._raw(schema, kinds, tail)
        end = self._rules.mark(tail)
        if "object" in kinds and schema.get("properties"):
            ways = {key: self._tagged(key, value, depth) for key, value in schema["properties"].items()}
            names = schema.get("required", ())
            return f"{ordered(self._rules, ways, set(names), self._rules.mark(self._syntax.separator))} {end}"
        if "array" in kinds and isinstance(schema.get("items"), Mapping):
            return f"{self._tagged('item', schema['items'], depth)}* {end}"
        return self._raw(schema, kinds, tail)

    def _tagged(self, key: str, schema: Any, depth: int) -> str:
        """One member of a nested value."""
        form = self._syntax.argument
        at = form.index(Slot.VALUE)
        head = " ".join(self._rules.mark(part) if isinstance(part, str) else literal(key) for part in form[:at])
        tail = "".join(part if isinstance(part, str) else key for part in form[at + 1 :])
        kinds = sorted(Tool("", None, {**self._definitions, "properties": {"x": schema}}).kinds("x"))
        value = self._nested(self._resolved(schema), kinds, tail, depth + 1)
        return self._rules.add(f"{head} {value}", "member")

    def _inner(self, schema: Any, keyword: str, depth: int) -> str:
        inner = schema.get(keyword) if isinstance(schema, Mapping) else None
        return self._gemma_value(inner, depth)

    def _gemma_value(self, schema: Any, depth: int) -> str:
        if not isinstance(schema, Mapping) or depth >= _MAX_DEPTH:
            return self._any_gemma()
        kinds = sorted(Tool("", None, {**self._definitions, "properties": {"x": schema}}).kinds("x"))
        return self._rules.add(self._gemma(self._resolved(schema), kinds, depth + 1), "value")

    def _any_gemma(self) -> str:
        rules = self._rules
        if "any" not in rules._names:
            rules._names["any"] = "any_value"
            quote = rules.mark(_GEMMA_QUOTE)
            text = f"{quote} {rules.until(_GEMMA_QUOTE, 'text')}"
            scalar = rules.add(schema_rule({"type": ["number", "boolean", "null"]}), "value")
            items, members = '"[" (any_value ("," any_value)*)? "]"', f'{_NAMED_KEY} ":" any_value'
            rules.lines.append(f'any_value: {text} | {scalar} | {items} | "{{" ({members} ("," {members})*)? "}}"')
        return "any_value"

    def _members(
        self, schema: Any, depth: int, member: Callable[[str, str], str], begin: str, end: str, separator: str
    ) -> str:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not properties or depth >= _MAX_DEPTH:
            any_member = member(_NAMED_KEY, self._any_gemma())
            return f"{begin} ({any_member} ({separator} {any_member})*)? {end}"
        rule_of = {
            key: self._rules.add(member(literal(key), self._gemma_value(value, depth)), "member")
            for key, value in properties.items()
        }
        required = set(schema.get("required", ()))
        inside = ordered(self._rules, rule_of, required, separator)
        return f"{begin} {inside}{'' if required & rule_of.keys() else '?'} {end}"


def _texts(schema: Any) -> list[str]:
    """The strings that a schema allows if it lists them and nothing else."""
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return list(values) if values and all(isinstance(value, str) for value in values) else []


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
