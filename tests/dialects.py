"""Dialects of the families that many tests use."""

from api.text.dialects import Dialect
from api.text.dialects.common import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, THINK
from api.text.dialects.syntax import AnswerSyntax, Calls, Learned


def native(calls: Calls, name: str, *, thinks: bool = False) -> Dialect:
    """A model whose template lists tools and writes calls itself."""
    syntax = AnswerSyntax(THINK if thinks else None, calls=calls)
    learned = Learned(syntax, lists_tools=True, renders_calls=True)
    return Dialect(learned, name=name)


def hermes(*, thinks: bool = False) -> Dialect:
    return native(HERMES, "hermes", thinks=thinks)


def llama(*, thinks: bool = False) -> Dialect:
    return native(LLAMA, "llama", thinks=thinks)


def mistral(*, thinks: bool = False) -> Dialect:
    return native(MISTRAL, "mistral", thinks=thinks)


def mistral_named(*, thinks: bool = False) -> Dialect:
    return native(MISTRAL_NAMED, "mistral", thinks=thinks)


def in_words(*, thinks: bool = False) -> Dialect:
    """A model whose template knows nothing of tools."""
    return Dialect(Learned(AnswerSyntax(THINK if thinks else None)))
