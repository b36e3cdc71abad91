"""Follows the rules of schemas byte by byte, without a model."""

from random import Random
from typing import Final

from llguidance import LLMatcher, LLTokenizer

from scheduler.grammar import LIMITS

TOKENIZER: Final = LLTokenizer("byte")
CLOSING: Final = frozenset(b'"}]')
LIKELY: Final = frozenset(b'"{}[],: -abc0125tfn')
CHOSEN: Final = 40
"""Bytes that a walk chooses freely. Then it prefers those that close something."""


class BrokenGrammarError(AssertionError):
    """A grammar has accepted the beginning of an answer, and now accepts nothing."""


def start(rule: str) -> LLMatcher:
    matcher = LLMatcher(TOKENIZER, f"start: {rule}", log_level=0, limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(rule: str, text: str) -> bool:
    """Whether the rule accepts this as a complete answer."""
    matcher, data = start(rule), list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def walk(rule: str, random: Random, limit: int = 250) -> bytes | None:
    """A random answer; None if it does not end within `limit` bytes. Raises BrokenGrammarError."""
    matcher, answer = start(rule), bytearray()
    for length in range(limit):
        if matcher.is_stopped() and not matcher.is_error():
            return bytes(answer)
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if matcher.is_error() or not (allowed or matcher.is_accepting()):
            raise BrokenGrammarError(f"after {bytes(answer)!r}: {matcher.get_error()}")
        if matcher.is_accepting() and (not allowed or random.random() < 0.5):
            return bytes(answer)
        wanted = CLOSING if length > CHOSEN else LIKELY
        likely = [byte for byte in allowed if byte in wanted or (length > CHOSEN and chr(byte).isdigit())]
        byte = random.choice(likely if likely and random.random() < 0.95 else allowed)
        answer.append(byte)
        if not matcher.consume_token(byte):
            raise BrokenGrammarError(f"after {bytes(answer)!r}: {matcher.get_error()}")
    return None
