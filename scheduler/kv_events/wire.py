"""KV events as vLLM sends them: msgpack maps with a field `type`, in batches `[time, events, rank]`."""

from collections.abc import Iterable
from typing import Final

import msgspec

from kvcache.events import Block, Medium
from kvcache.tree import TOKEN_BYTES

HASH_BYTES: Final = 8
"""Routers take a hash as an unsigned integer of 64 bits."""


class BlockStored(msgspec.Struct, tag=True, frozen=True):
    """Blocks that follow each other, each with `block_size` of the tokens."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str
    lora_name: str | None


class BlockRemoved(msgspec.Struct, tag=True, frozen=True):
    block_hashes: list[int]
    medium: str


class AllBlocksCleared(msgspec.Struct, tag=True, frozen=True):
    """Nothing is stored any more on any medium."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(msgspec.Struct, array_like=True, frozen=True):
    ts: float
    """Unix time in seconds."""
    events: list[Event]
    data_parallel_rank: int = 0


class Stored(msgspec.Struct, frozen=True):
    """A change of the cache: a page was stored."""

    medium: Medium
    block: Block


class Removed(msgspec.Struct, frozen=True):
    """A change of the cache: a page was removed."""

    medium: Medium
    digest: bytes


class Cleared(msgspec.Struct, frozen=True):
    """A change of the cache: it is empty."""


Change = Stored | Removed | Cleared


def as_events(changes: Iterable[Change]) -> list[Event]:
    """Returns the changes as events, in order. Pages that follow each other share an event, and so do removed ones."""
    events: list[Event] = []
    for change in changes:
        last = events[-1] if events else None
        match change:
            case Stored(medium, block):
                parent = None if block.parent is None else block_hash(block.parent)
                tokens = memoryview(block.tokens).cast("i").tolist()
                if isinstance(last, BlockStored) and last.medium == medium and last.block_hashes[-1] == parent:
                    last.block_hashes.append(block_hash(block.digest))
                    last.token_ids.extend(tokens)
                else:
                    events.append(
                        BlockStored(
                            [block_hash(block.digest)],
                            parent,
                            tokens,
                            len(block.tokens) // TOKEN_BYTES,
                            None,
                            medium,
                            None,
                        )
                    )
            case Removed(medium, digest):
                if isinstance(last, BlockRemoved) and last.medium == medium:
                    last.block_hashes.append(block_hash(digest))
                else:
                    events.append(BlockRemoved([block_hash(digest)], medium))
            case Cleared():
                events.append(AllBlocksCleared())
    return events


def block_hash(digest: bytes) -> int:
    """Returns the hash that stands for a page. It covers all tokens up to the page's end, and the salt."""
    return int.from_bytes(digest[:HASH_BYTES], "big")
