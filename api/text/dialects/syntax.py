"""The syntax of a model's answers: one declarative value per family, from which parser, grammar and writer are made."""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal


class Slot(Enum):
    """A place in a form whose text differs from call to call."""

    NAME = "name"
    """The function's name."""
    ARGUMENTS = "arguments"
    """All arguments of a call."""
    ID = "id"
    """The id of a call. Its text has no meaning here."""
    INDEX = "index"
    """The number of a call, in digits."""
    KEY = "key"
    """The name of an argument."""
    TYPE = "type"
    """The word that a family writes for the type of an argument."""
    VALUE = "value"
    """The value of an argument."""


SHORT_ID: Final = "[a-zA-Z0-9]{9}"
"""The pattern of Mistral's ids. Its templates accept no others."""
Form = tuple[str | Slot, ...]
"""Text with slots. Models differ in white space, so a parser accepts any where the form has some."""

_SLOT: Final = re.compile(rf"\$({'|'.join(slot.value for slot in Slot)})")


def form(text: str) -> Form:
    """The form that a text with `$name`, `$arguments` and so on denotes."""
    parts = _SLOT.split(text)
    return tuple(Slot(part) if i % 2 else part for i, part in enumerate(parts) if part)


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How a model marks its reasoning."""

    begins: tuple[str, ...]
    """Marks that begin it, the usual one first. The prompt may end with one. None if each answer begins inside it."""
    ends: tuple[str, ...]
    """Marks that end it, the usual one first."""
    anywhere: bool = False
    """Whether it may begin after text or calls, too."""
    unopened: bool = False
    """Whether an answer without reasoning begins with the end mark alone."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """The marks around the text of an answer. They are not part of the text."""

    begins: tuple[str, ...]
    """The usual mark first."""
    ends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JsonArguments:
    """All arguments are one JSON object."""

    quoted: bool = False
    """Whether the object's text is written as a JSON string."""
    layout: Literal["spaced", "compact", "indented"] = "spaced"
    """Its white space: `{"a": 1, "b": 2}`, `{"a":1,"b":2}`, or lines that are indented."""


Encoding = Literal["raw", "json", "python", "gemma", "nested"]
"""How the value of one argument is written.

- raw: a string as it is, up to the mark after it; anything else as JSON. The tool's schema decides which it is.
- json: as JSON, strings in quotes.
- python: as a Python literal; words and quotes of JSON are accepted, too.
- gemma: like JSON, with bare keys and with strings between `<|"|>`.
- nested: like raw, but objects and lists repeat the argument's form inside; an item of a list has the key `item`.
"""


@dataclass(frozen=True, slots=True)
class TaggedArguments:
    """Each argument is written for itself."""

    argument: Form
    """KEY, VALUE and perhaps TYPE. KEY may occur twice. A mark must follow a raw VALUE."""
    separator: str = ""
    """Between two arguments."""
    encoding: Encoding = "raw"
    types: tuple[tuple[str, str], ...] = ()
    """Pairs of a JSON type (string, number, boolean, object, array, null) and the text of TYPE for it.

    `integer` is among them if its text differs from that of other numbers.
    """
    cdata: bool = False
    """Whether strings with markup are written as `<![CDATA[...]]>`."""


@dataclass(frozen=True, slots=True)
class Calls:
    """How a model writes tool calls."""

    forms: tuple[Form, ...]
    """The whole text of one call in each way that occurs, the usual way first. NAME may occur twice."""
    arguments: JsonArguments | TaggedArguments = field(default_factory=JsonArguments)
    begin: str = ""
    """Mark before the first call, if calls share a section."""
    separator: str = ""
    """Between two calls."""
    end: str = ""
    """Mark after the last call, if calls share a section."""
    bare: bool = False
    """Whether a call may start an answer without a mark. `begin` is then optional, unless the section has an `end`."""
    loose: bool = True
    """Whether a call is recognized if its first mark is missing and another mark follows."""
    id_pattern: str = "[a-zA-Z0-9_-]{1,64}"
    """The regular expression of an ID."""


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """Everything that is not plain text in an answer."""

    thoughts: Thoughts | None = None
    content: Wrapper | None = None
    calls: Calls | None = None
    noise: tuple[str, ...] = ()
    """Marks without meaning, which are dropped."""
    ends: tuple[str, ...] = ()
    """Marks that end the answer: the end of a turn, where the vocabulary has no token that ends it."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What rendering a chat template shows about a model's answers and about its prompts."""

    syntax: AnswerSyntax
    lists_tools: bool = False
    """Whether the template writes the tools of a request into the prompt."""
    lists_tools_in_system: bool = False
    """Whether it does so only in a system message."""
    renders_calls: bool = False
    """Whether it writes earlier calls and their results into the prompt."""
    renders_results: bool = False
    """Whether it writes the results, if it does not write the calls."""
    arguments_as_text: bool = False
    """Whether it needs the arguments of earlier calls as JSON text instead of an object."""
    names_in_ids: bool = False
    """Whether it takes the names of earlier calls from ids such as `functions.NAME:0`."""
    switches: tuple[str, ...] = ()
    """Its boolean variables that turn reasoning on and off, such as `enable_thinking`."""
