"""Which replica gets a request: the one that got the same beginning of a prompt lately, unless it is clearly busier."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from deploy.ray.headers import Headers, first

BLOCK_CHARS: Final = 256
"""A prefix is compared in blocks of this many characters. Shorter prompts gain too little to be kept together."""
MAX_BLOCKS: Final = 65_536
"""Of the least recently used table: 16 million characters of prompts, about 10 MB."""
MAX_LEAD: Final = 4
"""By how many requests the preferred replica may be ahead of the least busy one."""
ROUTING_KEY: Final = b"x-smg-routing-key"
"""SMG's header. Requests with the same key go to the same replica."""
SEPARATOR: Final = "\x1e"
# In the order in which templates write them.
FIELDS: Final = ("model", "tools", "system", "instructions", "messages", "input", "prompt")
PROMPTS: Final = ("/chat/completions", "/completions", "/responses", "/messages")


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a request is routed by. Each block's hash covers the blocks before it."""

    blocks: tuple[bytes, ...] = ()
    pinned: bool = False
    """The replica of the last block is taken however busy it is."""


def prefix_of(path: str, headers: Headers, body: bytes) -> Prefix:
    """The prefix of any request. It is empty if the request has no prompt, or one that is short or not valid."""
    if (key := first(headers, ROUTING_KEY)) is not None:
        return Prefix((_digest(b"key:" + key),), pinned=True)
    if not body or not path.endswith(PROMPTS):
        return Prefix()
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:  # the node refuses it
        return Prefix()
    return Prefix(blocks_of(prompt_text(fields))) if isinstance(fields, dict) else Prefix()


def prompt_text(fields: Mapping[str, object]) -> str:
    """Everything that the prompt is made of, so that a longer conversation has a shorter one as its prefix."""
    parts: list[object] = []
    for name in FIELDS:
        value = fields.get(name)
        parts.extend(value if isinstance(value, list) else () if value is None else (value,))
    return SEPARATOR.join(part if isinstance(part, str) else orjson.dumps(part).decode() for part in parts)


def blocks_of(text: str) -> tuple[bytes, ...]:
    """The hashes of the whole blocks of a text."""
    blocks: list[bytes] = []
    last = b""
    for start in range(0, len(text) - BLOCK_CHARS + 1, BLOCK_CHARS):
        last = _digest(last + text[start : start + BLOCK_CHARS].encode(errors="surrogatepass"))
        blocks.append(last)
    return tuple(blocks)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=12).digest()


class PrefixTable:
    """Remembers which replicas got which prefixes. Bounded: the least recently used blocks are forgotten."""

    def __init__(self, *, max_blocks: int = MAX_BLOCKS, max_lead: int = MAX_LEAD) -> None:
        self._replicas: OrderedDict[bytes, set[str]] = OrderedDict()
        self._max_blocks = max_blocks
        self._max_lead = max_lead

    def __len__(self) -> int:
        return len(self._replicas)

    def rank(self, prefix: Prefix, loads: Mapping[str, int]) -> list[str]:
        """All replicas, the best one first. `loads` has the number of requests at each.

        Without a match the least busy replica is the best one. Among equals, the prefix decides: then several
        routers that know nothing of each other choose the same replica.
        """
        matched = self._matched(prefix, loads)
        seed = prefix.blocks[0] if prefix.blocks else b""

        def by_load(replica: str) -> tuple[int, int, bytes]:
            return loads[replica], -matched[replica], _digest(seed + replica.encode())

        def by_match(replica: str) -> tuple[int, int, bytes]:
            return -matched[replica], loads[replica], _digest(seed + replica.encode())

        if prefix.pinned:
            return sorted(loads, key=lambda replica: (-matched[replica], _digest(seed + replica.encode())))
        ranked = sorted(loads, key=by_load)
        if not ranked:
            return []
        best = min(loads, key=by_match)
        if matched[best] and loads[best] - loads[ranked[0]] < self._max_lead:
            ranked.remove(best)
            ranked.insert(0, best)
        return ranked

    def record(self, prefix: Prefix, replica: str) -> None:
        """`replica` has got a request with this prefix."""
        for block in prefix.blocks:
            self._replicas.setdefault(block, set()).add(replica)
        for block in reversed(prefix.blocks):  # a block is forgotten before the blocks that it needs
            self._replicas.move_to_end(block)
        while len(self._replicas) > self._max_blocks:
            self._replicas.popitem(last=False)

    def keep_only(self, replicas: Sequence[str]) -> None:
        """Forget replicas that have ended: their caches have gone with them."""
        remaining = set(replicas)
        for block in list(self._replicas):
            self._replicas[block] &= remaining
            if not self._replicas[block]:
                del self._replicas[block]

    def _matched(self, prefix: Prefix, replicas: Mapping[str, int]) -> dict[str, int]:
        """How many blocks from the beginning each replica has got."""
        matched = dict.fromkeys(replicas, 0)
        having = set(replicas)
        for block in prefix.blocks:
            having &= self._replicas.get(block, set())
            if not having:
                break
            for replica in having:
                matched[replica] += 1
        return matched
