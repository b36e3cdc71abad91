"""Log probabilities in the formats of chat completions and text completions."""

import codecs
from collections.abc import Callable, Sequence
from typing import Any

from scheduler.messages import TokenLogprob

Piece = Callable[[int], bytes]


def chat_logprobs(tokens: Sequence[int], logprobs: Sequence[TokenLogprob], piece: Piece) -> dict[str, Any]:
    content = []
    for token, (logprob, top) in zip(tokens, logprobs, strict=True):
        best = [_entry(other, value, piece) for other, value in top]
        content.append(_entry(token, logprob, piece) | {"top_logprobs": best})
    return {"content": content, "refusal": None}


def _entry(token: int, logprob: float, piece: Piece) -> dict[str, Any]:
    data = piece(token)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


class CompletionLogprobs:
    """The older format: parallel lists, with the offset of each token in the text. Each `push` continues the last."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._offset = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The lists for the next tokens. The first token of a prompt has no log probability: None."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decode(self._piece(token)))
        return {
            "tokens": [self._text(token) for token in tokens],
            "token_logprobs": [None if entry is None else entry[0] for entry in logprobs],
            "top_logprobs": [None if entry is None else self._top(entry[1]) for entry in logprobs],
            "text_offset": offsets,
        }

    def _top(self, best: list[tuple[int, float]]) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, logprob in best:
            top.setdefault(self._text(token), logprob)  # of tokens with the same text, the most probable
        return top

    def _text(self, token: int) -> str:
        """The token's text. A part of a character is written as bytes, in OpenAI's notation."""
        data = self._piece(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
