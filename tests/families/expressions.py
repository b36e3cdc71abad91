"""Computes C++ expressions, as far as test cases use them."""

import copy
from abc import abstractmethod
from types import SimpleNamespace
from typing import Any

from tests.families.objects import Builder, NotUnderstoodError, Opaque, as_text, make_message
from tests.families.scanner import Token
from tests.families.syntax import Syntax

Scopes = list[dict[str, Any]]
"""Variables by name. The innermost scope is the last one."""


class Expressions(Syntax):
    """Computes expressions, and collects the test cases that they run. Each raises NotUnderstoodError."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.cases: list[Builder] = []
        self.problems: dict[int, str] = {}
        """By call site of a test case: why it was not extracted."""

    @abstractmethod
    def call(self, name: str, args: list[Any]) -> Any:
        """The value that the function returns."""

    def value(self, first: int, last: int, scopes: Scopes) -> Any:
        """The value of the expression from `first` up to `last`, which is not part of it."""
        value, i = self._either(first, last, scopes)
        if i != last:
            raise NotUnderstoodError(f"{self.tokens[i].text!r} in line {self.tokens[i].line}")
        return value

    def _either(self, i: int, last: int, scopes: Scopes) -> tuple[Any, int]:
        value, i = self._both(i, last, scopes)
        while i < last and self.is_at(i, "||"):
            other, i = self._both(i + 1, last, scopes)
            value = value or other
        return value, i

    def _both(self, i: int, last: int, scopes: Scopes) -> tuple[Any, int]:
        value, i = self._equal(i, last, scopes)
        while i < last and self.is_at(i, "&&"):
            other, i = self._equal(i + 1, last, scopes)
            value = value and other
        return value, i

    def _equal(self, i: int, last: int, scopes: Scopes) -> tuple[Any, int]:
        value, i = self._sum(i, last, scopes)
        while i < last and self.is_at(i, "==", "!="):
            negates = self.is_at(i, "!=")
            other, i = self._sum(i + 1, last, scopes)
            value = (value == other) != negates
        return value, i

    def _sum(self, i: int, last: int, scopes: Scopes) -> tuple[Any, int]:
        value, i = self._unary(i, last, scopes)
        while i < last and self.is_at(i, "+"):
            other, i = self._unary(i + 1, last, scopes)
            try:
                value = value + other
            except TypeError as error:
                raise NotUnderstoodError(str(error)) from error
        return value, i

    def _unary(self, i: int, last: int, scopes: Scopes) -> tuple[Any, int]:
        if self.is_at(i, "!"):
            value, i = self._unary(i + 1, last, scopes)
            return not value, i
        if self.is_at(i, "-"):
            value, i = self._unary(i + 1, last, scopes)
            return -value, i
        return self._postfix(i, last, scopes)

    def _postfix(self, i: int, last: int, scopes: Scopes) -> tuple[Any, int]:
        value, i = self._primary(i, last, scopes)
        while i < last and self.is_at(i, ".", "->", "["):
            if self.is_at(i, "["):
                try:
                    value = value[self.value(i + 1, self.match[i], scopes)]
                except (TypeError, LookupError) as error:
                    raise NotUnderstoodError(str(error)) from error
                i = self.match[i] + 1
                continue
            name = self.tokens[i + 1].text
            if self.is_at(i + 2, "("):
                args = [self.value(a, b, scopes) for a, b in self.parts(i + 3, self.match[i + 2])]
                value = self._method(value, name, args, i + 1)
                i = self.match[i + 2] + 1
            elif isinstance(value, SimpleNamespace) and hasattr(value, name):
                value, i = getattr(value, name), i + 2
            else:
                raise NotUnderstoodError(f".{name}")
        return value, i

    def _primary(self, i: int, last: int, scopes: Scopes) -> tuple[Any, int]:
        if i >= last:
            raise NotUnderstoodError("nothing")
        token = self.tokens[i]
        if token.kind == "str":
            text = ""
            while i < last and self.tokens[i].kind == "str":
                text += self.tokens[i].text
                i += 1
            return text, i
        if token.kind == "num":
            return (float if "." in token.text else int)(token.text.rstrip("uUlLfF")), i + 1
        if self.is_at(i, "("):
            return self.value(i + 1, self.match[i], scopes), self.match[i] + 1
        if self.is_at(i, "{"):
            return [self.value(a, b, scopes) for a, b in self.parts(i + 1, self.match[i])], self.match[i] + 1
        if token.kind != "id":
            raise NotUnderstoodError(f"{token.text!r} in line {token.line}")
        name = token.text
        i += 1
        while self.is_at(i, "::"):
            name, i = f"{name}::{self.tokens[i + 1].text}", i + 2
        if i < last and self.is_at(i, "("):
            args = [self.value(a, b, scopes) for a, b in self.parts(i + 1, self.match[i])]
            return self.call(name, args), self.match[i] + 1
        if i < last and self.is_at(i, "{"):
            inside = [self.value(a, b, scopes) for a, b in self.parts(i + 1, self.match[i])]
            return make_message(inside) if name == "common_chat_msg" else inside, self.match[i] + 1
        if name in ("true", "false"):
            return name == "true", i
        for scope in reversed(scopes):
            if name in scope:
                if isinstance(scope[name], Opaque):
                    raise NotUnderstoodError(name)
                return scope[name], i
        if name.isupper():
            return name, i  # an enumerator
        raise NotUnderstoodError(name)

    def _method(self, value: Any, name: str, args: list[Any], at: int) -> Any:
        if isinstance(value, Builder):
            if name == "run":
                self.cases.append(value)
                self.problems.pop(value.site, None)
                return None
            value.apply(name, args)
            return value
        if name == "test" and isinstance(value, SimpleNamespace) and hasattr(value, "template"):
            self.problems.setdefault(at, "never run")
            return Builder(value.template, as_text(args[0]), at)
        match name, args:
            case "empty", []:
                return not value
            case "size" | "length", []:
                return len(value)
            case "c_str" | "str", []:
                return value
            case "push_back", [item] if isinstance(value, list):
                value.append(copy.deepcopy(item))
                return None
        raise NotUnderstoodError(f".{name}()")
