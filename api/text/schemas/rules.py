"""Rules for the schemas of clients. They are cached, because a client sends the same tools with each request."""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from sys import getsizeof
from threading import Lock
from typing import Any, Final

import orjson

from api.text.schemas.compiler import json_rule, schema_problem
from api.text.schemas.findings import ROOT, Findings, Schema, SchemaError, child
from api.text.schemas.graph import Graph, types_of
from api.text.schemas.locate import UNSATISFIABLE, Locator, OverBudget, without
from api.text.schemas.normal import Normalizer

CACHE_BYTES: Final = 16 << 20
"""The rules that are kept have at most this size together."""
OVERHEAD: Final = 256
"""Bytes of the objects around a text."""
MAX_REPAIRS: Final = 16
"""Parts that are left out of a schema one after the other, because llguidance rejects it. Then all of it is."""

_log = logging.getLogger("cortex.api")


@dataclass(frozen=True, slots=True)
class Rule:
    """The right-hand side of a rule in llguidance's Lark."""

    text: str
    left_out: tuple[SchemaError, ...] = ()
    """The parts of the schema that it does not enforce."""


class RuleCache:
    """Keeps the rules that were used last, by digests of their schemas. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._rules: OrderedDict[bytes, Rule | SchemaError] = OrderedDict()
        self.num_bytes = 0
        """The size of the rules that are kept."""

    def get(self, digest: bytes) -> Rule | SchemaError | None:
        with self._lock:
            rule = self._rules.get(digest)
            if rule is not None:
                self._rules.move_to_end(digest)
            return rule

    def put(self, digest: bytes, rule: Rule | SchemaError) -> None:
        with self._lock:
            if digest in self._rules:
                return
            self._rules[digest] = rule
            self.num_bytes += _size(rule)
            while self.num_bytes > self._max_bytes:
                _, oldest = self._rules.popitem(last=False)
                self.num_bytes -= _size(oldest)


def _size(rule: Rule | SchemaError) -> int:
    errors = rule.left_out if isinstance(rule, Rule) else (rule,)
    text = rule.text if isinstance(rule, Rule) else ""
    texts = [text, *(part for error in errors for part in (error.reason, error.pointer, str(error)))]
    return sum(OVERHEAD + getsizeof(each) for each in texts)


_cache: Final = RuleCache(CACHE_BYTES)


def schema_rule(schema: Schema, *, strict: bool = False, is_object: bool = False, cache: RuleCache = _cache) -> str:
    """A rule for a client's JSON schema. It may take seconds to make, so call it in a thread.

    Without `strict`, the parts of the schema that cannot be enforced are left out. With `is_object` only objects match.
    Raises SchemaError if a strict schema cannot be enforced.
    """
    digest = _digest(schema, strict, is_object)
    rule = cache.get(digest) if digest else None
    if rule is None:
        try:
            rule = _make(schema, strict=strict, is_object=is_object)
        except SchemaError as error:
            rule = error
        if digest:
            cache.put(digest, rule)
    if isinstance(rule, SchemaError):
        raise SchemaError(rule.reason, rule.pointer)
    if rule.left_out:
        _log.debug("not enforced in a schema: %s", "; ".join(map(str, rule.left_out[:10])))
    return rule.text


def _digest(schema: Schema, *flags: bool) -> bytes:
    """Empty if the schema is nested too deeply."""
    try:
        return blake2b(orjson.dumps([flags, schema])).digest()
    except TypeError:
        return b""


def _make(schema: Schema, *, strict: bool, is_object: bool) -> Rule:
    findings = Findings(strict)
    normal = Normalizer(schema, findings)
    graph = Graph(normal.root, normal.definitions, normal.pointers, findings)
    graph.replace_one_of()
    graph.shorten_chains()
    graph.cut_endless()
    if is_object:
        _restrict_to_objects(graph, findings)
    whole = _repaired(graph, findings)
    if is_object and not {"type", "$ref"} & whole.keys():
        whole = {"type": "object"}
    return Rule(json_rule(whole), tuple(findings.left_out))


def _restrict_to_objects(graph: Graph, findings: Findings) -> None:
    root = graph.root
    if not isinstance(root, dict):
        return
    if "type" in root and "object" not in types_of(root):
        findings.leave_out("the arguments of a function must be an object", child(ROOT, "type"))
        root.clear()
    elif "$ref" not in root:
        others = root | {"type": "object"}
        root.clear()
        root["type"] = "object"  # first, because of two keywords that contradict each other the later one is left out
        root |= others


def _repaired(graph: Graph, findings: Findings) -> dict[str, Any]:
    """The schema with its definitions, without what llguidance rejects."""
    fallback = {"type": "object"} if isinstance(graph.root, dict) and graph.root.get("type") == "object" else {}
    locator = Locator(graph)
    for _ in range(MAX_REPAIRS):
        whole = _whole(graph)
        problem = schema_problem(whole)
        if not problem:
            return whole if isinstance(whole, dict) else {}
        try:
            found = locator.find(problem)
        except OverBudget:
            found = None
        if found is None:
            findings.leave_out(_reason(problem, None), ROOT)
            return fallback
        pointer = graph.pointer(found.node)
        inside = child(pointer, found.keyword) if found.keyword else pointer
        findings.leave_out(_reason(found.problem, found.keyword), inside)
        kept = without(found.node, found.keyword) if found.keyword else {}
        found.node.clear()
        found.node.update(kept)
    findings.leave_out("too many parts cannot be enforced", ROOT)
    return fallback


def _whole(graph: Graph) -> Schema:
    if isinstance(graph.root, bool) or not graph.definitions:
        return graph.root
    return graph.root | {"$defs": graph.definitions}


def _reason(problem: str, keyword: str | None) -> str:
    """The reason of llguidance in the words of JSON Schema."""
    if UNSATISFIABLE in problem:
        why = problem.partition(UNSATISFIABLE)[2].lstrip(": ").partition(" while processing")[0]
        return f"no value can match {repr(keyword) if keyword else 'this'}: {why[:200]}"
    what = f"{keyword!r} cannot be enforced" if keyword else "it cannot be enforced"
    return f"{what}: {problem.partition(' while processing')[0][:200]}"
