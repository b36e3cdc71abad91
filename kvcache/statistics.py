"""What the KV cache holds now, and what it did since the start."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Current numbers of pages and sequence ids, and counters since the start."""

    page_tokens: int
    pages: int
    free_pages: int
    cached_pages: int
    held_pages: int
    sequence_ids: int
    free_ids: int
    cached_ids: int
    running_ids: int
    hit_tokens: int
    """Tokens found in the cache, which were therefore not computed."""
    loaded_tokens: int
    """The part of `hit_tokens` that was loaded from host memory or from the disk."""
    evicted_pages: int
    merged_pages: int
    """Pages that a sequence computed although an equal page existed. Only one copy was kept."""
    host_bytes: int
    host_pages: int
    disk_bytes: int
    disk_pages: int
