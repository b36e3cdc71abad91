"""Texts that every machine has: documentation and code of Python's standard library."""

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import FunctionType
from typing import Final

MODULES: Final = """
    argparse ast calendar cmd configparser csv difflib fractions heapq html ipaddress logging mailbox optparse pathlib
    pprint random shlex shutil statistics string tempfile textwrap threading timeit tokenize traceback unittest.case
    urllib.parse zipfile
"""
MIN_CHARACTERS: Final = 350
MAX_CHARACTERS: Final = 900
MIN_LINES: Final = 12
MAX_LINES: Final = 40


@cache
def passages() -> tuple[tuple[str, str], ...]:
    """The name and the text of functions whose documentation has some sentences; always in the same order."""
    found: dict[str, str] = {}
    for name, function in _functions():
        text = inspect.getdoc(function) or ""
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            found.setdefault(text, name)
    return tuple(sorted((name, text) for text, name in found.items()))


@cache
def sources() -> tuple[str, ...]:
    """The code of functions of some lines, without indentation; always in the same order."""
    found = set()
    for _, function in _functions():
        lines, _ = inspect.getsourcelines(function)
        if MIN_LINES <= len(lines) <= MAX_LINES:
            found.add(textwrap.dedent("".join(lines)))
    return tuple(sorted(found))


def _functions() -> Iterator[tuple[str, FunctionType]]:
    for module in map(importlib.import_module, MODULES.split()):
        own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
        for holder in (module, *own):
            for function in vars(holder).values():
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    yield f"{module.__name__}.{function.__qualname__}", function
