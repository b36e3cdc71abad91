"""llguidance's view of schemas: their rules, and what it says about them."""

import re
from functools import cache
from typing import Any, Final

import orjson
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from api.text.schemas.findings import Schema

COMPACT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The JSON layout that models know best. With free white space a small model might generate it without end."""
_LAYOUTS: Final = {
    "compact": COMPACT | {"item_separator": ",", "key_separator": ":"},
    "indented": {"whitespace_flexible": True},
}
LIMITS: Final = LLParserLimits(verbose_errors=False)
MAX_NAMES: Final = 32
"""Patterns that match more names than this count as endless."""
MAX_STATES: Final = 512
"""Steps of the search for a pattern's names."""
_SHOWN: Final = re.compile(r"^ +\d+ \| ", re.MULTILINE)
"""The start of the grammar's lines in an error message of llguidance."""


def json_rule(schema: dict[str, Any]) -> str:
    """A rule that matches a JSON schema, which llguidance must support."""
    return f"%json {orjson.dumps(schema | {'x-guidance': COMPACT}).decode()}"


def laid_out(rule: str, layout: str) -> str:
    """A rule of `json_rule` for JSON with the white space of a layout: spaced (as is), compact or indented."""
    if layout not in _LAYOUTS:
        return rule
    head, _, tail = rule.rpartition(orjson.dumps(COMPACT).decode())
    return head + orjson.dumps(_LAYOUTS[layout]).decode() + tail


def problem(rule: str) -> str:
    """Why llguidance rejects a self-contained rule, without the position; empty if it accepts the rule."""
    report = LLMatcher.validate_grammar(f"start: {rule}", limits=LIMITS)
    message = " ".join(_SHOWN.split(report, maxsplit=1)[0].split()[2:])
    return message.removeprefix("failed to compile JSON schema: ")


def schema_problem(schema: Schema) -> str:
    """Why llguidance rejects a schema; empty if it accepts it."""
    if isinstance(schema, bool):
        return "" if schema else "Unsatisfiable schema: schema is false"
    return problem(json_rule(schema))


def pattern_problem(pattern: str) -> str:
    """Why a pattern cannot be enforced; empty if it can."""
    report = schema_problem({"type": "string", "pattern": pattern})
    if not report or report.startswith("Unsatisfiable"):
        return ""
    reason = report.rpartition("error: ")[2]
    if reason.startswith(("look-around", "lookaround")):
        return "it looks ahead or behind (\\b and \\B do so too)"
    return reason[:200]


def names_of(pattern: str) -> tuple[str, ...] | None:
    """All strings that a pattern matches; None if there are more than MAX_NAMES, or endlessly many."""
    if not _may_be_finite(pattern):
        return None
    tokenizer = _byte_tokenizer()
    start = LLMatcher(tokenizer, f"start: {json_rule({'type': 'string', 'pattern': pattern})}", log_level=0)
    if start.is_error() or not start.consume_token(ord('"')):
        return ()
    found: set[str] = set()
    waiting = [(start, b"")]
    for _ in range(MAX_STATES):
        if not waiting:
            return tuple(sorted(found))
        matcher, read = waiting.pop()
        mask = matcher.compute_bitmask()
        for byte in range(256):
            if not mask[byte >> 3] >> (byte & 7) & 1:
                continue
            following = matcher.deep_copy()
            following.consume_token(byte)
            if following.is_accepting():
                found.add(orjson.loads(b'"' + read + bytes([byte])))
            else:
                waiting.append((following, read + bytes([byte])))
        if len(found) > MAX_NAMES or len(waiting) > MAX_STATES:
            return None
    return None


def _may_be_finite(pattern: str) -> bool:
    """A pattern that is not anchored at both ends matches endlessly many strings."""
    return pattern.startswith(("^", "(")) and pattern.endswith(("$", ")"))


def forbids_all_names(patterns: tuple[str, ...]) -> bool:
    """Whether each string matches one of these patterns."""
    schema = {"type": "object", "patternProperties": dict.fromkeys(patterns, False), "minProperties": 1}
    matcher = LLMatcher(_byte_tokenizer(), f"start: {json_rule(schema)}", log_level=0)
    matcher.consume_token(ord("{"))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.is_error()


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")
