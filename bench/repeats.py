"""Texts whose likely continuation repeats them: an edited file, quoted documents, and questions to ask again.

A small model does not reliably do what it is asked, and a long answer drifts away from its text. So a prompt ends
inside of the wanted answer, which the model then continues for some lines. The next prompt goes on from the wanted
answer, not from the model's. Without a chat template, the prompts are the same text in every server.
"""

from random import Random
from typing import Final

from bench.prose import passages
from bench.words import WORDS

NAMES: Final = ("store", "archive", "depot")
"""The name in the first version of the file, and in the further ones. It occurs twice in each function."""

# Approximate numbers of SmolLM2's tokens.
FUNCTION_TOKENS: Final = 60
EDIT_FRAME_TOKENS: Final = 60
BEGUN_SHARE: Final = 5
"""One function of this many is in the new file already."""
FUNCTIONS_PER_TURN: Final = 2
CHARACTERS_PER_TOKEN: Final = 3.5
RAG_FRAME_TOKENS: Final = 80
BEGUN_WORDS: Final = 12
"""The words of a quote that the prompt has already."""


def edit_turns(n_tokens: int, turns: int, rng: Random) -> list[str]:
    """Two versions of a file, with another name in each, then the beginning of a third: about `n_tokens` tokens in all.

    The second version shows how to repeat the file. Each further prompt has two more functions of the third.
    """
    count = max(2, int((n_tokens - EDIT_FRAME_TOKENS) / FUNCTION_TOKENS / (2 + 1 / BEGUN_SHARE)))
    begun = max(1, count // BEGUN_SHARE)
    functions = [f"# {number}\n{_function(rng)}" for number in range(1, count + 1)]
    first, second, third = ([function.replace("NAME.", f"{name}.") for function in functions] for name in NAMES)
    return [
        f"The file `tools.py`:\n```python\n{_joined(first)}```\n\n"
        f"{_renamed(NAMES[0], NAMES[1])}{_joined(second)}```\n\n"
        f"{_renamed(NAMES[1], NAMES[2])}{_joined(third[: begun + turn * FUNCTIONS_PER_TURN])}\n"
        for turn in range(turns)
    ]


def _renamed(old: str, new: str) -> str:
    return f"The same file, with `{old}` renamed to `{new}`:\n```python\n"


def _joined(functions: list[str]) -> str:
    return "\n".join(functions)


def _function(rng: Random) -> str:
    first, last = rng.sample(WORDS, 2)
    one, two, found, query, event = rng.sample(WORDS, 5)
    number = rng.randint(2, 99)
    return (
        f"def {first}_{last}({one}, {two}):\n"
        f"    {found} = NAME.find_{query}({one})\n"
        f"    if {found} is None or {two} > {number}:\n"
        f'        NAME.report("{event} {query}", {two})\n'
        f"        return {number}\n"
        f"    return {found}.{event} + {two}\n"
    )


def rag_turns(n_tokens: int, turns: int, rng: Random) -> list[str]:
    """Documents, and the beginning of an answer that quotes one of them: about `n_tokens` tokens in all.

    Each prompt asks for another document, as long as there are some. The first line is new to all caches.
    """
    texts, subject = passages(), " ".join(rng.sample(WORDS, 3))
    chosen: list[tuple[str, str]] = []
    room = (n_tokens - RAG_FRAME_TOKENS) * CHARACTERS_PER_TOKEN
    for name, text in rng.sample(texts, len(texts)):
        room -= len(text)
        if chosen and room < 0:
            break
        chosen.append((name, text))
    titles = [f"# {number} {name}" for number, (name, _) in enumerate(chosen, 1)]
    documents = "\n\n".join(f"{title}\n{text}" for title, (_, text) in zip(titles, chosen, strict=True))
    order = rng.sample(range(len(chosen)), len(chosen))
    prompts = []
    for turn in range(turns):
        asked = order[turn % len(order)]
        name, text = chosen[asked]
        begun = " ".join(text.split(" ")[:BEGUN_WORDS])
        prompts.append(
            f"Documents about {subject}:\n\n{documents}\n\n"
            f"Question: What does document {asked + 1} say about {name}?\n"
            f"Answer: Document {asked + 1} says:\n\n{titles[asked]}\n{begun}"
        )
    return prompts


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
