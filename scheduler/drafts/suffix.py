"""Drafts what followed the same tokens before: in the sequence itself, or in others of the same cache salt.

SuffixDecoding (Oliaro et al., 2024) and prompt lookup (Saxena, 2023), with the hash chains of LZ77 in place of a suffix
tree: a dictionary has the latest place of each three tokens, and each place has the one before it.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from struct import unpack_from
from typing import Final

import numpy as np

from kvcache.tree import TOKEN_BYTES
from scheduler.drafts.drafter import NO_DRAFT, Draft
from scheduler.drafts.matching import common_tail, common_tokens, tokens_of
from scheduler.sequence import Sequence

KEY_TOKENS: Final = 3
MAX_TOKENS: Final = 1 << 17
"""Tokens in the index, about 150 bytes each."""
MAX_INDEXED: Final = 1024
"""Tokens of a sequence that one call indexes or forgets. A long prompt is indexed in several steps."""
MAX_CANDIDATES: Final = 6
FIRST_CANDIDATES: Final = 32
"""Places that are compared, and at the beginning of an answer: all chats have the same tokens before it."""
MAX_MATCH: Final = 64
"""Tokens that are compared to find the longest match."""
NEARBY: Final = 256
"""Among equally long matches, one at most so many tokens after the place of the last match goes first."""
DIFFERENCES: Final = 0.75
"""Probability of a difference after a match of one token. It falls with the inverse of the length, and with that of its
square root where texts have gone on differently. Fitted to 216 recorded answers of a small model, which repeat code and
documents."""
TOKEN_BITS: Final = 20
PLACE_BITS: Final = 32
_POSITIONS: Final = (1 << PLACE_BITS) - 1


@dataclass(slots=True, eq=False)
class _Document:
    """The tokens of a sequence, which may still grow."""

    number: int
    salt: bytes
    mark: int
    """Differs from salt to salt. It is part of the keys, so that a search finds few places of other salts."""
    tokens: bytearray
    """Those of `Sequence.known`, not a copy."""
    start: int
    """Its first token that is indexed. Those before it are in another document."""
    previous: list[int] = field(default_factory=list)
    """For each position from `start` + KEY_TOKENS on: the latest place before it with the same key; -1 for none."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    @property
    def end(self) -> int:
        """The next position to index."""
        return self.start + KEY_TOKENS + len(self.previous)


@dataclass(slots=True)
class _Match:
    """The place that a sequence follows."""

    document: _Document
    position: int
    """The document's token that comes next."""
    length: int
    """Tokens before it that are equal. They count as evidence that the next ones will be."""
    num_known: int
    is_lost: bool = False
    """Whether the sequence has differed."""


class SuffixDrafter:
    """Implements Drafter. A sequence follows the place of its longest match as long as it agrees with it.

    A place is a document's number and the position of a token. Its key is made of the three tokens before it.
    """

    source = "suffix"

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._places: dict[int, int] = {}
        """The latest place by key."""
        self._forks: set[int] = set()
        """Keys that different tokens have followed."""
        self._documents: OrderedDict[int, _Document] = OrderedDict()
        """By number, the one that was useful last at the end."""
        self._running: dict[int, _Document] = {}
        """By request id."""
        self._matches: dict[int, _Match] = {}
        """By request id. A match that no longer holds stays, so that later ones near it go first."""
        self.num_tokens = 0
        """Indexed tokens."""
        self._num_documents = 0
        self._dropped: deque[_Document] = deque()
        """Their places are still to be forgotten."""

    @property
    def num_keys(self) -> int:
        return len(self._places)

    def seconds(self, num_sequences: int, num_tokens: int) -> float:  # noqa: ARG002
        return 0.0

    def draft(self, sequences: Items[Sequence], max_tokens: Items[int]) -> list[Draft]:
        drafts = [self._draft(sequence, most) for sequence, most in zip(sequences, max_tokens, strict=True)]
        if self.num_tokens > self._max_tokens or self._dropped:
            self._forget()
        return drafts

    def ended(self, sequence: Sequence) -> None:
        """The sequence's tokens stay in the index for others."""
        document = self._running.pop(sequence.request_id, None)
        if document is not None:
            self._index(document)
        self._matches.pop(sequence.request_id, None)

    def _draft(self, sequence: Sequence, most: int) -> Draft:
        document = self._running.get(sequence.request_id) or self._begin(sequence)
        match = self._matches.get(sequence.request_id)
        if match is None or not self._follows(match, sequence):
            match = self._find(document, match, MAX_CANDIDATES if match is not None else FIRST_CANDIDATES)
            if match is None:
                self._index(document)
                return NO_DRAFT
            self._matches[sequence.request_id] = match
        self._index(document)
        found = match.document
        start = match.position * TOKEN_BYTES
        tokens = tokens_of(found.tokens[start : start + most * TOKEN_BYTES])
        if found is document and tokens:  # a repetition goes on as often as there is room
            tokens = (tokens * -(-most // len(tokens)))[:most]
        return Draft(tokens, self._estimates(match, len(tokens))) if tokens else NO_DRAFT

    def _estimates(self, match: _Match, count: int) -> list[float]:
        """Returns for each of the next `count` tokens of a match the probability that it is equal."""
        estimates = [1 - DIFFERENCES / length for length in range(match.length, match.length + count)]
        stop = min(match.position + count, match.document.num_tokens)  # behind it, the tokens repeat
        for number, key in enumerate(self._keys(match.document, match.position, stop)):
            if key in self._forks:
                estimates[number] = 1 - (match.length + number) ** -0.5
        return estimates

    def _begin(self, sequence: Sequence) -> _Document:
        """Returns a new document for the sequence. A prefix that another document has is not indexed again."""
        self._num_documents += 1
        salt = sequence.cache_salt
        mark = hash(salt) & ((1 << 3 * TOKEN_BITS) - 1)
        document = _Document(self._num_documents, salt, mark, sequence.known, 0)
        num_cached = sequence.cached_tokens or 0
        if num_cached >= KEY_TOKENS:
            place = self._places.get(self._key(document, num_cached), -1)
            other = self._documents.get(place >> PLACE_BITS)
            size = num_cached * TOKEN_BYTES
            if other is not None and other.salt == salt and other.tokens[:size] == document.tokens[:size]:
                document.start = num_cached - KEY_TOKENS
        self._documents[document.number] = self._running[sequence.request_id] = document
        return document

    def _follows(self, match: _Match, sequence: Sequence) -> bool:
        """Advance the match by the sequence's new tokens. Returns whether all agree and there is a next one."""
        if match.is_lost:
            return False
        new = sequence.known[match.num_known * TOKEN_BYTES :]
        start = match.position * TOKEN_BYTES
        num_equal = common_tokens(new, match.document.tokens[start : start + len(new)])
        match.position += num_equal
        match.length += num_equal
        match.num_known = sequence.num_known
        match.is_lost = num_equal * TOKEN_BYTES < len(new)
        return not match.is_lost and match.position < match.document.num_tokens

    def _find(self, document: _Document, last: _Match | None, max_candidates: int) -> _Match | None:
        """Returns the place before which the most tokens equal the document's last ones; the latest one of equals."""
        end = document.num_tokens
        if end < KEY_TOKENS:
            return None
        place = self._places.get(self._key(document, end), -1)
        best, best_rank = None, (KEY_TOKENS - 1, True)
        for _ in range(max_candidates):
            candidate = self._documents.get(place >> PLACE_BITS)
            if candidate is None:
                break
            position = place & _POSITIONS
            if candidate.salt == document.salt:
                length = common_tail(document.tokens, end, candidate.tokens, position, MAX_MATCH)
                is_near = last is not None and candidate is last.document and 0 <= position - last.position <= NEARBY
                if (length, is_near) > best_rank:
                    best, best_rank = _Match(candidate, position, length, end), (length, is_near)
            place = candidate.previous[position - candidate.start - KEY_TOKENS]
        if best is not None:
            self._documents.move_to_end(best.document.number)
        return best

    def _token(self, place: int) -> bytearray | None:
        """Returns the token at a place; None if its document was dropped."""
        document = self._documents.get(place >> PLACE_BITS)
        start = (place & _POSITIONS) * TOKEN_BYTES
        return document.tokens[start : start + TOKEN_BYTES] if document is not None else None

    def _key(self, document: _Document, position: int) -> int:
        one, two, three = unpack_from("<3i", document.tokens, (position - KEY_TOKENS) * TOKEN_BYTES)
        key: int = ((one << TOKEN_BITS | two) << TOKEN_BITS | three) ^ document.mark
        return key

    def _keys(self, document: _Document, start: int, stop: int) -> list[int]:
        """Returns the keys of these positions."""
        if stop - start == 1:
            return [self._key(document, start)]
        data = bytes(document.tokens[(start - KEY_TOKENS) * TOKEN_BYTES : (stop - 1) * TOKEN_BYTES])
        tokens = np.frombuffer(data, "<i4").astype(np.int64)
        keys = (tokens[:-2] << 2 * TOKEN_BITS | tokens[1:-1] << TOKEN_BITS | tokens[2:]) ^ document.mark
        found: list[int] = keys.tolist()
        return found

    def _index(self, document: _Document) -> None:
        """Index positions that have a token and are not indexed yet, some of them if there are many."""
        start = document.end
        stop = min(document.num_tokens, start + MAX_INDEXED)
        if start >= stop or self.num_tokens > 2 * self._max_tokens:
            return
        places, previous, first = self._places, document.previous, document.number << PLACE_BITS
        for place, key in enumerate(self._keys(document, start, stop), first + start):
            before = places.get(key, -1)
            previous.append(before)
            places[key] = place
            if before >= 0 and key not in self._forks and self._token(before) not in (None, self._token(place)):
                self._forks.add(key)
        self.num_tokens += stop - start

    def _forget(self) -> None:
        """Drop documents that were useful longest ago, and forget some of their places."""
        running = {document.number for document in self._running.values()}
        while self.num_tokens > self._max_tokens:
            oldest = next((number for number in self._documents if number not in running), None)
            if oldest is None:
                break
            document = self._documents.pop(oldest)
            self.num_tokens -= len(document.previous)
            self._dropped.append(document)
        if self._dropped:
            document = self._dropped[0]
            stop = document.end
            start = max(document.start + KEY_TOKENS, stop - MAX_INDEXED)
            if start < stop:
                first = document.number << PLACE_BITS
                for place, key in enumerate(self._keys(document, start, stop), first + start):
                    if self._places.get(key) == place:
                        del self._places[key]
                        self._forks.discard(key)
                del document.previous[start - stop :]
            if not document.previous:
                self._dropped.popleft()
