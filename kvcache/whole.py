"""The tier of whole sequences, in host memory and on the disk, for models whose state cannot be cut into pages.

These are recurrent and hybrid models, models with sliding windows, and models without flash attention. The next request
of a conversation begins with all tokens of the previous one, so the state at the end is worth keeping. A request that
shares only a part of a stored sequence gets no hit from this tier.
"""

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from kvcache.disk import Disk, NoDisk
from kvcache.memory import Blob, Memory
from kvcache.tier import TierStatistics
from kvcache.tree import NOTHING_STORED, TOKEN_BYTES, Hit, KVHandle, Stored

_LENGTH_BYTES: Final = 4
_HASH_BYTES: Final = 12


class WholeTier:
    """Sequences by the digest of all their tokens. Evicts the least recently used first, to the disk if any."""

    def __init__(self, max_bytes: int, disk: Disk | None = None) -> None:
        self._max_bytes = max_bytes
        self._disk = disk or NoDisk()
        self._blobs: OrderedDict[bytes, Blob] = OrderedDict()
        """By digest, least recently used first."""
        self._lengths = {_length_of(digest) for digest in self._disk.digests()}
        """Lengths in tokens of all stored sequences, and of some that are no longer stored."""
        self._awaited: set[bytes] = set()
        """Digests of the sequences that are being read from the disk."""
        self._num_bytes = 0

    def find(self, tokens: bytes, hit: Hit) -> Stored:
        """Returns the longest stored sequence that is a prefix of `tokens`, if it is longer than the hit."""
        self._take_arrivals()
        for digest in reversed(list(self._digests(tokens, hit.root.digest))):
            if _length_of(digest) <= hit.num_tokens:
                break
            blob = self._blobs.get(digest)
            if blob is not None:
                self._blobs.move_to_end(digest)
                return Stored(0, _length_of(digest), [blob])
            if self._read(digest):
                return Stored(arriving=True)
        return NOTHING_STORED

    def _digests(self, tokens: bytes, root: bytes) -> Iterator[bytes]:
        """Yields the digest of each prefix whose length is in `_lengths`, shortest first."""
        hashed, so_far = blake2b(root, digest_size=_HASH_BYTES), 0
        for length in sorted(self._lengths):
            stop = length * TOKEN_BYTES
            if stop > len(tokens):
                return
            hashed.update(tokens[so_far:stop])
            so_far = stop
            yield length.to_bytes(_LENGTH_BYTES, "little") + hashed.digest()

    def save(self, handle: KVHandle, num_kept: int, memory: Memory) -> None:  # noqa: ARG002
        """Save all of the handle. Ignores `num_kept`."""
        digest = whole_digest(handle.tokens, handle.root.digest)
        if handle.num_tokens and digest not in self._blobs:
            for blob in memory.save(handle.id, 0, handle.num_tokens):  # one, or none if it cannot be saved
                self._lengths.add(handle.num_tokens)
                self._put(digest, blob)
            self._make_room()

    def _put(self, digest: bytes, blob: Blob) -> None:
        if digest in self._blobs:
            self._blobs.move_to_end(digest)
            return
        self._blobs[digest] = blob
        self._num_bytes += blob.nbytes

    def _make_room(self) -> None:
        while self._num_bytes > self._max_bytes:
            digest, blob = self._blobs.popitem(last=False)
            self._num_bytes -= blob.nbytes
            self._disk.write(digest, blob)

    # -- the disk ----------------------------------------------------------------------------------------------------

    def _read(self, digest: bytes) -> bool:
        """Start to read the sequence. Returns whether the disk has it and it fits into host memory."""
        if not 0 < self._disk.size_of(digest) <= self._max_bytes:
            return False
        if digest not in self._awaited:
            self._awaited.add(digest)
            self._disk.read(digest)
        return True

    def _take_arrivals(self) -> None:
        if not self._awaited:
            return
        for digest, blob in self._disk.arrivals():
            self._awaited.discard(digest)
            if blob is not None:
                self._put(digest, blob)
        self._make_room()

    def wait(self) -> None:
        """Waits a short time for the sequences that are being read from the disk."""
        if self._awaited:
            self._disk.wait()

    def close(self, seconds: float) -> None:
        """Write all sequences to the disk, most recently used first, for at most about `seconds`."""
        for digest, blob in reversed(self._blobs.items()):
            self._disk.write(digest, blob)
        self._disk.close(seconds)

    # -- statistics and checks ---------------------------------------------------------------------------------------

    def statistics(self) -> TierStatistics:
        return TierStatistics(self._num_bytes, len(self._blobs), self._disk.num_bytes, self._disk.num_pages)

    def check_integrity(self) -> None:
        """Recount. Raises AssertionError if the accounting is wrong."""
        assert self._num_bytes == sum(blob.nbytes for blob in self._blobs.values()), "bytes"
        assert self._num_bytes <= self._max_bytes, "host memory is within its limit"
        assert {_length_of(digest) for digest in self._blobs} <= self._lengths, "every stored length is known"


def whole_digest(tokens: bytes, root: bytes = b"") -> bytes:
    """Returns the name of a sequence: its length, then a hash. Lengths from the disk show which prefixes to hash.

    `root`: the digest of the root for its salt.
    """
    length = len(tokens) // TOKEN_BYTES
    return length.to_bytes(_LENGTH_BYTES, "little") + blake2b(root + tokens, digest_size=_HASH_BYTES).digest()


def _length_of(digest: bytes) -> int:
    return int.from_bytes(digest[:_LENGTH_BYTES], "little")
