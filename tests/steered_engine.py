"""`python steered_engine.py FOLDER FD CONFIG RECORD`: the real engine, in which a script chooses each answer's tokens.

A prompt that contains `script-7.` follows the script FOLDER/7.json, a list of texts. Its answer follows the first text
that begins like it, in the longest tokens that its grammar allows, and then ends. After it has left all texts, for
example because something else was forced, the model chooses again. Grammars and limits hold as always.
"""

import functools
import json
import re
import sys
from pathlib import Path
from typing import Final

import numpy as np

from scheduler import sampling, sequence
from scheduler.messages import SamplingParams
from scheduler.sampling import Mask, SamplerState
from scheduler.softmax import Logits, Tokens

NAME: Final = re.compile(rb"script-(\d+)\.")
SURE: Final = 1e6
"""Added to a logit, it makes the token certain."""


class Vocabulary:
    """The tokens by their text."""

    def __init__(self, model_path: str) -> None:
        from api.text.tokenizer import Tokenizer  # slow to import

        tokenizer = Tokenizer(model_path)
        self.pieces = [tokenizer.spelled(token) for token in range(tokenizer.vocab_size)]
        tokenizer.close()
        self.token_of = {piece: token for token, piece in enumerate(self.pieces) if piece}
        self._longest = max(map(len, self.pieces))

    def beginnings(self, text: bytes) -> list[int]:
        """The tokens that a text may begin with, the longest one first."""
        pieces = (text[:size] for size in range(min(len(text), self._longest), 0, -1))
        return [self.token_of[piece] for piece in pieces if piece in self.token_of]


def steer(folder: Path, model_path: str) -> None:
    """Patch the modules of the engine."""
    vocabulary = functools.cache(lambda: Vocabulary(model_path))

    def texts(prompt: list[int]) -> list[bytes]:
        """The texts of the script that a prompt names last; empty if it names none."""
        found = NAME.findall(b"".join(vocabulary().pieces[token] for token in prompt))
        script = json.loads((folder / f"{int(found[-1])}.json").read_text()) if found else []
        return [text.encode() for text in script]

    class Steered(SamplerState):
        __slots__ = ("_answer", "_texts")

        def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
            super().__init__(params, prompt)
            self._answer = b""
            self._texts = texts(prompt)

        @property
        def takes_best(self) -> bool:
            return False

        def accept(self, token: int) -> None:
            super().accept(token)
            self._answer += vocabulary().pieces[token]

        def adjusted(self, logits: Logits, eog_tokens: Tokens, mask: Mask | None = None) -> Logits:
            row = super().adjusted(logits, eog_tokens, mask).copy()
            text = next((text for text in self._texts if text.startswith(self._answer)), None)
            if text is not None:
                wished = vocabulary().beginnings(text[len(self._answer) :]) or eog_tokens.tolist()
                allowed = [token for token in wished if np.isfinite(row[token])]
                row[allowed[:1]] += SURE
            return row

    for module in (sampling, sequence):
        setattr(module, "SamplerState", Steered)  # noqa: B010


if __name__ == "__main__":
    from scheduler.__main__ import main

    steer(Path(sys.argv.pop(1)), json.loads(sys.argv[2])["model_path"])
    sys.exit(main())
