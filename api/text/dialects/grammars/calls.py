"""Rules for tool calls and their arguments, in llguidance's Lark."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from api.text.dialects.grammars.rules import Ref, Rules
from api.text.dialects.grammars.values import ANY_KEY, ValueRules
from api.text.dialects.syntax import Calls, Form, JsonArguments, Slot, TaggedArguments
from api.text.dialects.tools import Tool
from api.text.schemas import json_rule, laid_out

_INDEX: Final = "/[0-9]{1,4}/"


def call_rule(rules: Rules, calls: Calls, tools: Sequence[Tool], *, before: str = "", without: str = "") -> str:
    """The name of a rule for one call.

    `before`: text in front of it. It becomes part of the call's first terminal, because llguidance's lexer does not go
    back. `without`: a beginning of the form that is left out; forms without it are left out.
    """
    forms = [each for form in calls.forms if (each := _without(form, without)) is not None]
    ways = [_form(rules, calls, tool, (before, *form)) for tool in tools for form in forms]
    return rules.add(" | ".join(ways), "call")


def _without(form: Form, beginning: str) -> Form | None:
    if not beginning:
        return form
    if not isinstance(form[0], str) or not form[0].startswith(beginning):
        return None
    return (form[0].removeprefix(beginning), *form[1:])


def _form(rules: Rules, calls: Calls, tool: Tool, form: Form) -> str:
    at = form.index(Slot.ARGUMENTS)
    before, after = _filled(calls, tool, form[:at]), _filled(calls, tool, form[at + 1 :])
    if isinstance(calls.arguments, JsonArguments):
        quoted = calls.arguments.quoted  # no grammar describes JSON inside of a string
        rule = json_rule({"type": "string"}) if quoted else laid_out(tool.rule(), calls.arguments.layout)
        return rules.sequence([*before, Ref(rules.add(rule, "arguments")), *after])
    space = ""
    if before and isinstance(last := before[-1], str):
        space = last[len(last.rstrip()) :]
        before[-1] = last.rstrip()
    some, may_be_none = arguments_rule(rules, calls.arguments, tool, space)
    ways = [rules.sequence([Ref(some), *after])] if some else []
    if may_be_none:
        ends = [after, [space, *after]]  # templates differ in the white space around no arguments
        is_spaced = bool(after) and isinstance(after[0], str) and after[0][:1].isspace()
        ways += dict.fromkeys(rules.sequence(end) for end in ends[: 1 if is_spaced else 2])
    return f"{rules.sequence(before)} ({' | '.join(ways)})"


def _filled(calls: Calls, tool: Tool, parts: Form) -> list[str | Ref]:
    written: dict[Slot, str | Ref] = {
        Slot.NAME: tool.name,
        Slot.ID: Ref(f"/{calls.id_pattern}/"),
        Slot.INDEX: Ref(_INDEX),
    }
    return [part if isinstance(part, str) else written[part] for part in parts]


def arguments_rule(rules: Rules, syntax: TaggedArguments, tool: Tool, space: str) -> tuple[str, bool]:
    """The name of a rule for one or more arguments, empty if the tool has none; and whether there may be none.

    `space`: white space before the first argument.

    Arguments come in the order of the schema. If the schema lists none, any may come.
    """
    schema, properties = tool.hints, tool.properties
    if not properties and schema.get("additionalProperties") is not False and schema.keys() - {"type", "properties"}:
        others = schema.get("additionalProperties", {})
        first, later = (_argument(rules, syntax, others, tool, None, before) for before in (space, syntax.separator))
        return rules.add(f"{first} {later}*", "arguments"), True
    required = set(schema.get("required", ()))
    firsts = {key: _argument(rules, syntax, value, tool, key, space) for key, value in properties.items()}
    laters = {key: _argument(rules, syntax, value, tool, key, syntax.separator) for key, value in properties.items()}
    return rules.ordered(firsts, laters, required), not required & firsts.keys()


def _argument(rules: Rules, syntax: TaggedArguments, schema: Any, tool: Tool, key: str | None, before: str = "") -> str:
    """The name of a rule for one argument. `key` None: of any name. `before`: text in front of it."""
    at = syntax.argument.index(Slot.VALUE)
    name = Ref(ANY_KEY) if key is None else key
    after = [part if isinstance(part, str) else name for part in syntax.argument[at + 1 :]]
    num_literal = next((i for i, part in enumerate(after) if isinstance(part, Ref)), len(after))
    tail, rest = "".join(map(str, after[:num_literal])), after[num_literal:]  # no grammar repeats a free name
    values = ValueRules(rules, syntax, tool.hints, strict=tool.strict)
    ways = []
    for word, kinds, narrowed in _by_type(syntax, schema, values.kinds(schema)):
        filled: dict[Slot, str | Ref] = {Slot.KEY: name, Slot.TYPE: word}
        head = [before, *(part if isinstance(part, str) else filled[part] for part in syntax.argument[:at])]
        ways.append(rules.sequence([*head, Ref(values.value(narrowed, kinds, tail)), *rest]))
    return rules.add(" | ".join(ways), "argument")


def _by_type(syntax: TaggedArguments, schema: Any, kinds: Sequence[str]) -> list[tuple[str, list[str], Any]]:
    """The texts of TYPE with the JSON types that they stand for, and the schema for values of these types."""
    words = dict(syntax.types)
    if not words:
        return [("", list(kinds), schema)]
    word_of = {kind: words.get(kind, words.get("object", "")) for kind in kinds}
    groups = {word: [kind for kind in kinds if word_of[kind] == word] for word in word_of.values()}
    ways = [(word, group, _narrowed(schema, group)) for word, group in groups.items()]
    if "number" not in kinds or "integer" not in words:
        return ways
    only = schema.get("type") == "integer" if isinstance(schema, Mapping) else False
    kept = [way for way in ways if not (only and way[1] == ["number"])]
    return [*kept, (words["integer"], ["number"], _whole(schema))]


def _whole(schema: Any) -> Any:
    """The schema, for whole numbers only."""
    if not isinstance(schema, Mapping):
        return {"type": "integer"}
    values = [value for value in schema.get("enum", ()) if isinstance(value, int) and not isinstance(value, bool)]
    return {**schema, "type": "integer"} | ({"enum": values} if values else {})


def _narrowed(schema: Any, kinds: Sequence[str]) -> Any:
    """The schema, for values of these types only."""
    if not isinstance(schema, Mapping) or not isinstance(schema.get("type"), list):
        return schema
    types = [each for each in schema["type"] if ("number" if each == "integer" else each) in kinds]
    return {**schema, "type": types} if types else schema
