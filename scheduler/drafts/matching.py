"""Tokens as bytes, in the format of kvcache.tree: comparing and finding them takes less than a microsecond."""

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


def common_tail(one: bytearray, one_end: int, other: bytearray, other_end: int, limit: int) -> int:
    """Returns how many tokens before `one_end` and `other_end` are equal, at most `limit`."""
    limit = min(limit, one_end, other_end) * TOKEN_BYTES
    one_end, other_end = one_end * TOKEN_BYTES, other_end * TOKEN_BYTES
    equal, step = 0, TOKEN_BYTES
    while step:
        wider = min(equal + step, limit)
        if wider > equal and (one[one_end - wider : one_end - equal] == other[other_end - wider : other_end - equal]):
            equal, step = wider, 2 * step
        else:
            step = 0 if step == TOKEN_BYTES or equal == limit else TOKEN_BYTES
    return equal // TOKEN_BYTES


def find_tokens(wanted: bytes, tokens: bytes, start: int, stop: int) -> int:
    """Returns the first place of the `wanted` tokens that begins in [start, stop); -1 if there is none."""
    place, last = start * TOKEN_BYTES - 1, stop * TOKEN_BYTES + len(wanted) - TOKEN_BYTES
    while (place := tokens.find(wanted, place + 1, last)) % TOKEN_BYTES and place >= 0:
        pass
    return place // TOKEN_BYTES
