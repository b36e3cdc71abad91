"""Tokens as bytes, in the format of kvcache.tree: comparing them takes less than a microsecond."""

import struct
from collections.abc import Sequence as Items

from kvcache.tree import TOKEN_BYTES, common_bytes


def token_bytes(tokens: Items[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


def tokens_of(data: bytes | bytearray) -> list[int]:
    return list(struct.unpack(f"<{len(data) // TOKEN_BYTES}i", data))


def common_tokens(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """Returns the number of tokens at the beginning of both that are equal."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit // TOKEN_BYTES
    return common_bytes(one, other) // TOKEN_BYTES
