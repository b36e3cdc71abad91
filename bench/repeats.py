"""Texts whose likely continuation repeats them: an edited file, quoted documents, and questions to ask again.

A small model does not reliably do what it is asked. So a prompt ends inside of the wanted answer, which the model then
continues. Without a chat template, the prompt is the same text in every server.
"""

from random import Random
from typing import Final

from bench.words import WORDS

OLD_NAME, NEW_NAME = "store", "archive"
"""The name in the file, and its new name. It occurs twice in each function."""

# Approximate numbers of SmolLM2's tokens.
FUNCTION_TOKENS: Final = 56  # with the line between two functions
EDIT_FRAME_TOKENS: Final = 35
BEGUN_SHARE: Final = 5
"""One function of this many is in the new file already."""
DOCUMENTS: Final = 4
FACT_TOKENS: Final = 11
QUOTED_SHARE: Final = 3
"""One fact of this many is quoted already."""
RAG_FRAME_TOKENS: Final = 60


def edited_file(n_tokens: int, rng: Random) -> str:
    """A file of Python, then the beginning of the same file with a new name: about `n_tokens` tokens in all."""
    count = max(2, (n_tokens - EDIT_FRAME_TOKENS) // FUNCTION_TOKENS)
    begun = max(1, count // BEGUN_SHARE)
    functions = [_function(rng) for _ in range(count - begun)]
    renamed = [function.replace(f"{OLD_NAME}.", f"{NEW_NAME}.") for function in functions[:begun]]
    return (
        f"The file `tools.py`:\n```python\n{_joined(functions)}```\n\n"
        f"The same file, with `{OLD_NAME}` renamed to `{NEW_NAME}`:\n```python\n{_joined(renamed)}\n"
    )


def _joined(functions: list[str]) -> str:
    return "\n".join(functions)


def _function(rng: Random) -> str:
    first, last = rng.sample(WORDS, 2)
    one, two, found, query, event = rng.sample(WORDS, 5)
    number = rng.randint(2, 99)
    return (
        f"def {first}_{last}({one}, {two}):\n"
        f"    {found} = {OLD_NAME}.find_{query}({one})\n"
        f"    if {found} is None or {two} > {number}:\n"
        f'        {OLD_NAME}.report("{event} {query}", {two})\n'
        f"        return {number}\n"
        f"    return {found}.{event} + {two}\n"
    )


def quoted_document(n_tokens: int, rng: Random) -> str:
    """Documents with facts, and the beginning of an answer that quotes one of them: about `n_tokens` tokens in all."""
    facts = max(3, int((n_tokens - RAG_FRAME_TOKENS) / FACT_TOKENS / (DOCUMENTS + 1 / QUOTED_SHARE)))
    lists = [[_fact(rng) for _ in range(facts)] for _ in range(DOCUMENTS)]
    names = [" ".join(rng.sample(WORDS, 2)).title() for _ in range(DOCUMENTS)]
    asked = rng.randrange(DOCUMENTS)
    titles = [f"# {number} {name}" for number, name in enumerate(names, 1)]
    documents = "\n\n".join("\n".join((title, *each)) for title, each in zip(titles, lists, strict=True))
    quoted = "\n".join((titles[asked], *lists[asked][: facts // QUOTED_SHARE]))
    return (
        f"{documents}\n\nQuestion: What is known about {names[asked]}?\n"
        f"Answer: Document {asked + 1} says:\n\n{quoted}\n"
    )


def _fact(rng: Random) -> str:
    one, two, three, four = rng.sample(WORDS, 4)
    return f"- {one} {two}: {rng.randint(2, 999)} {three} {four}"


def question(n_tokens: int, rng: Random) -> str:
    """A question of about `n_tokens` tokens."""
    things = rng.choices(WORDS, k=max(2, n_tokens - 16))
    return f"Write a story about the {things[0]} and the {things[1]}. These words are in it: {' '.join(things[2:])}."


def repeated_share(prompt: str, answer: str, length: int = 4) -> float | None:
    """The part of the answer's words that end a run of `length` words which the prompt has too; None if too short."""
    known = set(_runs(prompt, length))
    runs = _runs(answer, length)
    return sum(run in known for run in runs) / len(runs) if runs else None


def _runs(text: str, length: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
