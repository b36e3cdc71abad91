"""Executes the functions of a C++ source that run test cases, and collects the cases.

What it does not understand it leaves out, with a note. Nothing is compiled, so the peer's sources alone are enough.
"""

import copy
from types import SimpleNamespace
from typing import Any

from tests.families.expressions import Expressions, Scopes
from tests.families.objects import Function, NotUnderstoodError, Opaque, as_text, make_message
from tests.families.scanner import Token


class _ReturnError(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class Interpreter(Expressions):
    """Runs all functions with test cases. The results are in `cases` and `problems`."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.functions: dict[str, Function] = {}
        self.globals: dict[str, Any] = {}
        self._depth = 0

    def run(self) -> None:
        i = 0
        while i < len(self.tokens):
            i = self.statement(i, [self.globals], top=True)
        for name in self._entries():
            self.call(name, [])

    def _entries(self) -> list[str]:
        """Functions with test cases that `main` calls, or that no function calls."""
        sites = self.sites()
        holders = [
            name for name, f in self.functions.items() if any(f.body < site < self.match[f.body] for site in sites)
        ]
        called = {
            self.tokens[i].text
            for f in self.functions.values()
            for i in range(f.body, self.match[f.body])
            if self.tokens[i].kind == "id" and self.is_at(i + 1, "(")
        }
        main = self.functions.get("main")
        top = {
            self.tokens[i].text
            for i in (range(main.body, self.match[main.body]) if main else ())
            if self.tokens[i].kind == "id"
        }
        return [name for name in holders if name in top or name not in called]

    def statement(self, i: int, scopes: Scopes, top: bool = False) -> int:
        """Execute the statement at i. Returns the position behind it."""
        token = self.tokens[i]
        if self.is_at(i, ";", "}"):
            return i + 1
        if self.is_at(i, "{"):
            self.block(i, scopes)
            return self.match[i] + 1
        if token.kind == "id":
            if token.text in ("using", "typedef"):
                return self.end_of(i) + 1
            if token.text in ("struct", "class", "enum", "namespace", "union"):
                while not self.is_at(i, "{", ";"):
                    i += 1
                return self.end_of(self.match[i]) + 1 if self.is_at(i, "{") else i + 1
            if token.text == "template":
                return self.skip_definition(i)
            if token.text == "if":
                return self._if(i, scopes)
            if token.text == "for":
                return self._for(i, scopes)
            if token.text in ("while", "switch"):
                return self.behind(self.match[i + 1] + 1)
            if token.text in ("try", "do"):
                i = self.match[i + 1] + 1
                while self.is_at(i, "catch", "while"):
                    i = self.match[i + 1] + 1
                    i = self.match[i] + 1 if self.is_at(i, "{") else i
                return i
            if token.text == "return":
                end = self.end_of(i)
                raise _ReturnError(self.value(i + 1, end, scopes) if end > i + 1 else None)
            if top and (definition := self._definition(i)):
                return definition
        end = self.end_of(i)
        try:
            self._simple(i, end, scopes)
        except NotUnderstoodError as problem:
            for site in self.sites():
                if i <= site < end:
                    self.problems[site] = str(problem)
            self._declare_opaque(i, end, scopes)
        return end + 1

    def block(self, i: int, scopes: Scopes) -> None:
        inner = [*scopes, {}]
        at, end = i + 1, self.match[i]
        while at < end:
            at = self.statement(at, inner)

    def _if(self, i: int, scopes: Scopes) -> int:
        then = self.match[i + 1] + 1
        behind = self.behind(then)
        try:
            holds = bool(self.value(i + 2, self.match[i + 1], scopes))
        except NotUnderstoodError:
            holds = False
        if holds:
            self.statement(then, scopes)
        if self.is_at(behind, "else"):
            other = behind + 1
            behind = self._if_or_behind(other, scopes, execute=not holds)
        return behind

    def _if_or_behind(self, i: int, scopes: Scopes, *, execute: bool) -> int:
        if execute:
            return self.statement(i, scopes)
        if self.is_at(i, "if"):
            behind = self.behind(self.match[i + 1] + 1)
            return self._if_or_behind(behind + 1, scopes, execute=False) if self.is_at(behind, "else") else behind
        return self.behind(i)

    def _for(self, i: int, scopes: Scopes) -> int:
        """Executes a loop over a list. Other loops are left out."""
        first, last = i + 2, self.match[i + 1]
        colon = next((k for k in self.flat(first, last) if self.is_at(k, ":")), None)
        body = last + 1
        if colon is not None:
            try:
                names = [t.text for t in self.tokens[first:colon] if t.kind == "id"]
                bound = any(self.is_at(k, "[") for k in range(first, colon))
                names = names[names.index("auto") + 1 :] if bound else names[-1:]
                for item in self._items(colon + 1, last, scopes):
                    scope = dict(zip(names, item if bound else [item], strict=False))
                    self.statement(body, [*scopes, scope])
            except NotUnderstoodError as problem:
                for site in self.sites():
                    if i <= site < self.behind(body):
                        self.problems.setdefault(site, str(problem))
        return self.behind(body)

    def _items(self, first: int, last: int, scopes: Scopes) -> list[Any]:
        items = self.value(first, last, scopes)
        if not isinstance(items, list):
            raise NotUnderstoodError("a loop over no list")
        return items

    def _definition(self, i: int) -> int | None:
        """Record the function at i: `type name(parameters) [qualifiers] { body }`. Returns the position behind it."""
        k = i
        while k < len(self.tokens) and not self.is_at(k, "(", "{", ";", "="):
            k += 1
        if not self.is_at(k, "(") or self.tokens[k - 1].kind != "id":
            return None
        brace = self.match[k] + 1
        while self.is_at(brace, "const", "noexcept", "override", ":", ","):
            brace += 1
        if not self.is_at(brace, "{"):
            return None
        parameters: list[tuple[str, tuple[int, int] | None]] = []
        for first, last in self.parts(k + 1, self.match[k]):
            equals = next((n for n in self.flat(first, last) if self.is_at(n, "=")), last)
            names = [t.text for t in self.tokens[first:equals] if t.kind == "id"]
            parameters.append((names[-1] if names else "", (equals + 1, last) if equals < last else None))
        if not self.is_at(k - 2, "::"):
            self.functions[self.tokens[k - 1].text] = Function(parameters, brace)
        return self.match[brace] + 1

    def _declare_opaque(self, i: int, end: int, scopes: Scopes) -> None:
        if declared := self.declared(i, end):
            scopes[-1][declared[0]] = Opaque()

    def _simple(self, i: int, end: int, scopes: Scopes) -> None:
        """Execute a declaration, an assignment or an expression."""
        equals = next((k for k in self.flat(i, end) if self.is_at(k, "=")), None)
        if declared := self.declared(i, end):
            self._declare(i, end, *declared, scopes)
        elif equals is None:
            self.value(i, end, scopes)
        else:
            self._assign(i, equals, copy.deepcopy(self.value(equals + 1, end, scopes)), scopes)

    def _declare(self, i: int, end: int, name: str, at: int, scopes: Scopes) -> None:
        type_name = next((t.text for t in self.tokens[i:at] if t.text.startswith("common_chat_")), "")
        is_list = any(t.text == "vector" for t in self.tokens[i:at])
        if at + 1 >= end:
            value: Any = [] if is_list else make_message() if type_name == "common_chat_msg" else ""
        elif self.is_at(at + 1, "="):
            value = self.value(at + 2, end, scopes)
        elif self.is_at(at + 1, "{", "("):
            inside = [self.value(a, b, scopes) for a, b in self.parts(at + 2, self.match[at + 1])]
            value = inside if is_list or type_name else inside[0] if inside else ""
        else:
            raise NotUnderstoodError("a declaration")
        if type_name == "common_chat_msg" and isinstance(value, list) and not is_list:
            value = make_message(value)
        scopes[-1][name] = copy.deepcopy(value)

    def _assign(self, i: int, equals: int, value: Any, scopes: Scopes) -> None:
        if self.is_at(equals - 2, "."):
            target = self.value(i, equals - 2, scopes)
            if isinstance(target, SimpleNamespace):
                setattr(target, self.tokens[equals - 1].text, value)
            return
        if equals == i + 1:
            for scope in reversed(scopes):
                if self.tokens[i].text in scope:
                    scope[self.tokens[i].text] = value
                    return
        raise NotUnderstoodError("an assignment")

    def call(self, name: str, args: list[Any]) -> Any:
        if name == "peg_tester":
            return SimpleNamespace(template=as_text(args[0]))
        if name == "std::string":
            return args[0] if args else ""
        if name not in self.functions:
            raise NotUnderstoodError(f"{name}()")
        if self._depth > 50:
            raise NotUnderstoodError("recursion")
        function = self.functions[name]
        scope: dict[str, Any] = {}
        for k, (parameter, default) in enumerate(function.parameters):
            if k < len(args):
                scope[parameter] = copy.deepcopy(args[k])
            else:
                scope[parameter] = self.value(*default, [self.globals]) if default else False
        self._depth += 1
        try:
            self.block(function.body, [self.globals, scope])
        except _ReturnError as returned:
            return returned.value
        finally:
            self._depth -= 1
        return None
