"""Texts whose likely continuation repeats them: an edited file, quoted documents, and questions to ask again.

A small model does not reliably do what it is asked, and a long answer drifts away from its text. So a prompt ends
inside of the wanted answer, which the model then continues for some lines. The next prompt goes on from the wanted
answer, not from the model's. Without a chat template, the prompts are the same text in every server.
"""

import io
import keyword
import re
import tokenize
from collections import Counter
from random import Random
from typing import Final

from bench.prose import passages, sources
from bench.words import WORDS

NEW_NAME: Final = "record"
"""Replaces the most frequent name of the file."""
MIN_NAME: Final = 4
"""Characters of a name that is replaced."""

# Approximate numbers of SmolLM2's tokens.
EDIT_FRAME_TOKENS: Final = 50
BEGUN_SHARE: Final = 4
"""One line of this many is in the new file already."""
TURN_CHARACTERS: Final = 220
"""About the characters of an answer. The next prompt has so much more of the new file."""
CODE_CHARACTERS_PER_TOKEN: Final = 3.2
LINE_END: Final = "\n"
CHARACTERS_PER_TOKEN: Final = 3.5
RAG_FRAME_TOKENS: Final = 80
BEGUN_WORDS: Final = 12
"""The words of a quote that the prompt has already."""


def edit_turns(n_tokens: int, turns: int, rng: Random) -> list[str]:
    """A file, then the beginning of the same file with a name replaced: about `n_tokens` tokens in all.

    The code is real, because a small model copies it far better than random words. Each further prompt has more of the
    new file.
    """
    room = (n_tokens - EDIT_FRAME_TOKENS) * CODE_CHARACTERS_PER_TOKEN * BEGUN_SHARE / (BEGUN_SHARE + 1)
    code, title = sources(), " ".join(rng.sample(WORDS, 3))
    chosen: list[str] = []
    for text in rng.sample(code, len(code)):
        if len(text) <= room:
            chosen.append(text)
            room -= len(text)
    file = "\n\n".join(chosen)
    old = _most_frequent_name(file)
    new = re.sub(rf"\b{old}\b", NEW_NAME, file)
    ends = [len(new) // BEGUN_SHARE + turn * TURN_CHARACTERS for turn in range(turns)]
    return [
        f"# {title}\nThe file `tools.py`:\n```python\n{file}```\n\n"
        f"The same file, with `{old}` renamed to `{NEW_NAME}`:\n```python\n{new[: new.find(LINE_END, end)]}"
        for end in ends
    ]


def _most_frequent_name(code: str) -> str:
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    names = [token.string for token in tokens if token.type == tokenize.NAME and len(token.string) >= MIN_NAME]
    counts = Counter(name for name in names if not keyword.iskeyword(name) and name != "self")
    return max(counts, key=lambda name: (counts[name], name))


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
