"""API keys: how they are made, hashed and compared."""

import hashlib
import hmac
import secrets
from typing import Final

PREFIX: Final = "sk-cortex-"
NUM_RANDOM_BYTES: Final = 32


def new_key() -> str:
    """A new key, with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(NUM_RANDOM_BYTES)


def hash_of(key: str) -> bytes:
    """The hash that is stored instead of a key.

    A fast hash is enough. Slow hashes protect passwords, which people choose and others guess. Nobody can guess 256
    random bits, however fast the hash is, and each request computes it.
    """
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def matches(hashed: bytes, other: bytes) -> bool:
    """Whether two hashes are equal. Takes the same time wherever they differ."""
    return hmac.compare_digest(hashed, other)
