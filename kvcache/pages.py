"""The tier of evicted pages: in host memory first, then on the disk. A hit is loaded instead of computed."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from kvcache.disk import Disk, NoDisk
from kvcache.events import NO_LISTENER, Block, Listener, Medium
from kvcache.memory import Blob, Memory
from kvcache.tier import TierStatistics
from kvcache.tree import PAGE_BYTES, PAGE_TOKENS, TOKEN_BYTES, Hit, KVHandle, Stored, common_bytes, digest_of


@dataclass(frozen=True, slots=True)
class _Entry:
    parent: bytes
    key: bytes
    """The page's tokens. Shorter than PAGE_BYTES for a tail."""
    digest: bytes
    is_first: bool
    """Whether no page is before it. `parent` is then the digest of a root."""
    blob: Blob

    @property
    def is_full(self) -> bool:
        return len(self.key) == PAGE_BYTES

    @property
    def block(self) -> Block:
        """The page as it is reported, if it is full."""
        return Block(self.digest, None if self.is_first else self.parent, self.key)


class PageTier:
    """Pages and tails in host memory, by the digest of their tokens, so that equal ones are kept once.

    The least recently used page is evicted first, to the disk if there is one. A page is useless without the pages
    before it, so a page always counts as used more recently than the pages after it.
    """

    def __init__(self, max_bytes: int, disk: Disk | None = None, listener: Listener = NO_LISTENER) -> None:
        self._max_bytes = max_bytes
        self._disk = disk or NoDisk()
        self._listener = listener
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        """By digest, least recently used first."""
        self._children: dict[bytes, dict[bytes, _Entry]] = {}
        """By the parent's digest, then by key."""
        self._awaited: dict[bytes, tuple[bytes, bytes, bool]] = {}
        """Parent, key and `is_first` of each page that is being read from the disk, by its name there. A tail's key is
        empty."""
        self._num_bytes = 0

    def find(self, tokens: bytes, hit: Hit) -> Stored:
        """Returns the stored pages that follow the full pages of the hit."""
        self._take_arrivals()
        found: list[_Entry] = []
        parent, start = hit.last_page.digest, len(hit.pages) * PAGE_BYTES
        offset = start
        while len(key := tokens[offset : offset + PAGE_BYTES]) == PAGE_BYTES:
            entry = self._children.get(parent, {}).get(key)
            if entry is None:
                break
            found.append(entry)
            parent, offset = entry.digest, offset + PAGE_BYTES
        arriving = self._read(parent, tokens[offset:], sum(entry.blob.nbytes for entry in found), is_first=not offset)
        if not arriving:
            inside, length = self._longest_part(parent, key)
            if inside is not None:
                found.append(inside)
                offset += length
        for entry in reversed(found):
            self._entries.move_to_end(entry.digest)
        return Stored(start // TOKEN_BYTES, offset // TOKEN_BYTES, [entry.blob for entry in found], arriving)

    def _longest_part(self, parent: bytes, tokens: bytes) -> tuple[_Entry | None, int]:
        best, length = None, 0
        if tokens:
            for key, entry in self._children.get(parent, {}).items():
                if key.startswith(tokens[: length + TOKEN_BYTES]):
                    best, length = entry, common_bytes(key, tokens, length)
        return best, length

    def save(self, handle: KVHandle, num_kept: int, memory: Memory) -> None:
        """Save the handle's pages after `num_kept` and its tail, beginning with the first page to be saved.

        That is the first page that no other handle holds and that the tier does not have.
        """
        pages, first = handle.pages, num_kept // PAGE_TOKENS
        while first < len(pages) and (len(pages[first].holders) > 1 or pages[first].digest in self._entries):
            first += 1
        start = first * PAGE_TOKENS
        if start == handle.num_tokens:
            return
        blobs = memory.save(handle.id, start, handle.num_tokens)
        if not blobs:
            return
        keys = [page.key for page in pages[first:]] + [handle.tail] * bool(handle.tail)
        parent = (pages[first - 1] if first else handle.root).digest
        entries: list[_Entry] = []
        for key, blob in zip(keys, blobs, strict=True):
            entries.append(_Entry(parent, key, digest_of(parent, key), not first and not entries, blob))
            parent = entries[-1].digest
        for entry in reversed(entries):
            self._put(entry)
        self._make_room()

    def _put(self, entry: _Entry) -> None:
        if entry.digest in self._entries:
            self._entries.move_to_end(entry.digest)
            return
        siblings = self._children.setdefault(entry.parent, {})
        for key in [key for key in siblings if len(key) < PAGE_BYTES and entry.key.startswith(key)]:
            self._remove(siblings[key])  # the new entry contains this shorter tail
        self._children.setdefault(entry.parent, {})[entry.key] = entry
        self._entries[entry.digest] = entry
        self._num_bytes += entry.blob.nbytes
        if entry.is_full:
            self._listener.stored(Medium.CPU, entry.block)

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry.digest]
        siblings = self._children[entry.parent]
        del siblings[entry.key]
        if not siblings:
            del self._children[entry.parent]
        self._num_bytes -= entry.blob.nbytes
        if entry.is_full:
            self._listener.removed(Medium.CPU, entry.digest)

    def _make_room(self) -> None:
        while self._num_bytes > self._max_bytes:
            entry = next(iter(self._entries.values()))
            self._remove(entry)
            self._store(entry)

    # -- the disk ----------------------------------------------------------------------------------------------------

    def _store(self, entry: _Entry) -> None:
        """Write an entry to the disk.

        The length of a tail is unknown when it is looked up, so its name depends on its parent only. If a parent has
        several tails, the disk keeps the first one.
        """
        if entry.is_full:
            self._disk.write(entry.digest, entry.blob, entry.block)
        else:
            self._disk.write(_end_of(entry.parent), _packed(entry.key, entry.blob))

    def _read(self, parent: bytes, tokens: bytes, num_bytes: int, *, is_first: bool) -> bool:
        """Start to read the pages of `tokens` that the disk has after `parent`, and the tail after them.

        `num_bytes` is the size of the stored pages up to `parent`. `is_first`: whether `parent` is a root.
        Returns False if the disk has none of these pages.
        """
        for offset in range(0, len(tokens) - PAGE_BYTES + 1, PAGE_BYTES):
            key = tokens[offset : offset + PAGE_BYTES]
            digest = digest_of(parent, key)
            size = self._disk.size_of(digest)
            num_bytes += size
            if not size or num_bytes > self._max_bytes // 2:  # arriving pages must not evict the pages before them
                return self._read_end(parent, tokens[offset:], num_bytes, is_first=is_first) or offset > 0
            if digest not in self._awaited and digest not in self._entries:
                self._awaited[digest] = (parent, key, is_first)
                self._disk.read(digest, Block(digest, None if is_first else parent, key))
            parent, is_first = digest, False
        num_full = len(tokens) // PAGE_BYTES
        return self._read_end(parent, tokens[num_full * PAGE_BYTES :], num_bytes, is_first=is_first) or num_full > 0

    def _read_end(self, parent: bytes, tokens: bytes, num_bytes: int, *, is_first: bool) -> bool:
        """Start to read the tail that the disk has after `parent`. Returns False if there is none to read."""
        if not tokens or any(len(key) < PAGE_BYTES for key in self._children.get(parent, ())):
            return False
        name = _end_of(parent)
        size = self._disk.size_of(name)
        if not size or num_bytes + size > self._max_bytes // 2:
            return False
        if name not in self._awaited:
            self._awaited[name] = (parent, b"", is_first)
            self._disk.read(name)
        return True

    def _take_arrivals(self) -> None:
        if not self._awaited:
            return
        for digest, blob in self._disk.arrivals():
            parent, key, is_first = self._awaited.pop(digest)
            if blob is not None and not key:
                key, blob = _unpacked(blob)
                digest = digest_of(parent, key)
            if blob is not None:
                self._put(_Entry(parent, key, digest, is_first, blob))
        self._make_room()

    def wait(self) -> None:
        """Waits a short time for the pages that are being read from the disk."""
        if self._awaited:
            self._disk.wait()

    def close(self, seconds: float) -> None:
        """Write all entries to the disk, most recently used first, for at most about `seconds`."""
        for entry in reversed(self._entries.values()):
            self._store(entry)
        self._disk.close(seconds)

    # -- statistics and checks ---------------------------------------------------------------------------------------

    def statistics(self) -> TierStatistics:
        return TierStatistics(self._num_bytes, len(self._entries), self._disk.num_bytes, self._disk.num_pages)

    def check_integrity(self) -> None:
        """Recount. Raises AssertionError if the accounting is wrong."""
        assert self._num_bytes == sum(entry.blob.nbytes for entry in self._entries.values()), "bytes"
        assert self._num_bytes <= self._max_bytes, "host memory is within its limit"
        children = {id(entry) for siblings in self._children.values() for entry in siblings.values()}
        assert children == {id(entry) for entry in self._entries.values()}, "every page can be found, and only once"


def _end_of(parent: bytes) -> bytes:
    """Returns the name on the disk of the tail after this page."""
    return digest_of(parent, b"")


def _packed(key: bytes, blob: Blob) -> Blob:
    """Returns the blob of a tail with its tokens in front, because its name does not contain them."""
    head = len(key).to_bytes(2, "little") + key
    return np.concatenate((np.frombuffer(head, np.uint8), blob))


def _unpacked(content: Blob) -> tuple[bytes, Blob]:
    stop = 2 + int.from_bytes(content[:2].tobytes(), "little")
    return content[2:stop].tobytes(), content[stop:]
