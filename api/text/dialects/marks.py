"""All literal texts of a syntax. Control tokens among them are text for the parser."""

from collections.abc import Iterator

from api.text.dialects.syntax import AnswerSyntax, Form, TaggedArguments


def marks_of(syntax: AnswerSyntax) -> frozenset[str]:
    return frozenset(mark for mark in _marks(syntax) if mark.strip())


def _marks(syntax: AnswerSyntax) -> Iterator[str]:
    for wrapper in (syntax.thoughts, syntax.content):
        if wrapper is not None:
            yield from wrapper.begins + wrapper.ends
    yield from syntax.noise + syntax.ends
    if (calls := syntax.calls) is not None:
        yield from (calls.begin, calls.separator, calls.end)
        for form in calls.forms:
            yield from _literals(form)
        if isinstance(calls.arguments, TaggedArguments):
            yield from _literals(calls.arguments.argument)
            yield calls.arguments.separator
            if calls.arguments.encoding == "gemma":
                yield '<|"|>'


def _literals(form: Form) -> Iterator[str]:
    return (part for part in form if isinstance(part, str))
