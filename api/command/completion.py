"""Shell completion of the cortex command: subcommands, options, their choices, and names of models."""

import contextlib
import io
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn

import typer

from api.models import library
from api.record import ask_health, read_record

_VARIABLE: Final = "_CORTEX_COMPLETE"
"""The script that typer generates sets it, for example to `complete_bash`."""
_OPTIONS: Final = ("--install-completion", "--show-completion")
_WORD_BREAKS: Final = (":", "=")
"""Bash splits words at these characters and makes each a word of its own."""
_HEALTH_TIMEOUT: Final = 0.5


def is_requested() -> bool:
    """Whether a shell runs the command for completions."""
    return _VARIABLE in os.environ


def complete(app: typer.Typer) -> NoReturn:
    """Print the completions that a shell asks for and exit. Prints nothing if they cannot be computed."""
    output = io.StringIO()
    prefix, code = "", 1
    with (
        contextlib.suppress(Exception),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        if os.environ[_VARIABLE] == "complete_bash":
            prefix = _join_bash_words()
        try:
            app(prog_name="cortex", standalone_mode=False)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    for line in output.getvalue().splitlines():
        typer.echo(line.removeprefix(prefix))
    sys.exit(code)


def accept_shell_name() -> None:
    """Let `--show-completion` and `--install-completion` take the name of a shell. Without a name typer detects it."""
    arguments = sys.argv[1:]
    option, equals, _ = arguments[0].partition("=") if arguments else ("", "", "")
    if option in _OPTIONS and (equals or len(arguments) > 1):
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # typer's only switch for it


def choices(values: Iterable[str]) -> Callable[[str], list[str]]:
    """A completion callback for an option with these values."""

    def matching(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return matching


def models_on_disk(incomplete: str) -> list[str]:
    """The names of models on disk that begin with `incomplete`."""
    return [model.name for model in library.kept_models() if model.name.startswith(incomplete)]


def served_models(incomplete: str) -> list[str]:
    """The names of models that the running server serves."""
    record = read_record()
    health = None if record is None else ask_health(record, _HEALTH_TIMEOUT)
    return [] if health is None else [each.model for each in health.models if each.model.startswith(incomplete)]


def _join_bash_words() -> str:
    """Join again the words that bash split at colons and equals signs, in COMP_WORDS and COMP_CWORD.

    Returns the beginning of the last word that bash keeps on the line. Completions must not repeat it.
    """
    text = os.environ["COMP_WORDS"]
    words = text.split("\n") if "\n" in text else text.split()  # the script joins them with newlines
    end = int(os.environ["COMP_CWORD"]) + 1
    joined = list(_joined([*words, ""][:end]))
    os.environ["COMP_WORDS"] = " ".join(map(shlex.quote, joined))
    os.environ["COMP_CWORD"] = str(len(joined) - 1)
    if ":" not in words[:end]:
        return ""
    value = joined[-1].partition("=")[2] or joined[-1]
    return value[: value.rfind(":") + 1]


def _joined(words: list[str]) -> Iterator[str]:
    """The words that the user typed: bash's words, joined at each word break."""
    current = words[0]
    for previous, word in itertools.pairwise(words):
        if word in _WORD_BREAKS or previous in _WORD_BREAKS:
            current += word
        else:
            yield current
            current = word
    yield current
