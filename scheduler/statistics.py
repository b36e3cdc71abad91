"""The counters of a scheduler."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """Counters since the start. `running` and `waiting` are current numbers."""

    running: int
    waiting: int
    steps: int
    step_seconds: float
    prefill_tokens: int
    decode_tokens: int
    finished: int
    cancelled: int
    failed: int
    preemptions: int
    failed_steps: int
    tenants: list[dict[str, Any]]
    """What each tenant has and was served; see Policy.statistics."""
    num_drafts: int = 0
    """Drafts that were verified. A draft has one or more tokens."""
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    """Drafted tokens that became part of an answer."""
    accepted_per_position: list[int] = field(default_factory=list)
    """How often the first, the second, ... token of a draft was accepted."""
    draft_sources: dict[str, dict[str, int]] = field(default_factory=dict)
    """num_drafts, draft_tokens and accepted_draft_tokens by drafter."""
