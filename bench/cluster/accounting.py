"""What a run of a workload on several nodes cost: pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.records import Record
from bench.stats import Measures, ratio, summarize, ttft, wall_seconds

ALONE: Final = "one node"
"""The policy of a node without a router."""
MAX_WORK: Final = 1.05
"""The work of a good policy, as a multiple of the least work."""
MAX_SHARE: Final = 0.6
"""The busiest of two nodes has at most this share of the requests; of more nodes, as many times the mean."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a node has done."""

    requests: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    """Prompt tokens that were computed. The others were in the node's cache."""

    def since(self, before: "Counts") -> "Counts":
        """What it has done since then. A counter that a new process began again counts from 0."""
        return Counts(
            *(
                now - then if now >= then else now
                for now, then in (
                    (self.requests, before.requests),
                    (self.prompt_tokens, before.prompt_tokens),
                    (self.computed_tokens, before.computed_tokens),
                )
            )
        )

    @property
    def hit_rate(self) -> float | None:
        """The share of prompt tokens that were in the cache."""
        missed = ratio(self.computed_tokens, self.prompt_tokens)
        return None if missed is None else 1 - missed


@dataclass(frozen=True, slots=True)
class Outage:
    """What a node's end cost. Seconds count from the signal; None means that nothing was served after it."""

    failed_running: int
    """Requests that had begun before the signal and failed."""
    failed_new: int
    """Requests that began after the signal and failed."""
    served_again_s: float | None
    """Until the start of the first request from which on no new one failed."""
    first_token_s: float | None
    """Until that request's first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A workload under a policy."""

    policy: str
    workload: str
    nodes: tuple[Counts, ...]
    measures: Measures
    least_tokens: int | None = None
    """Prompt tokens that must be computed: what one node computes, and each further copy of the shared prefix."""
    outage: Outage | None = None
    troubles: tuple[str, ...] = ()
    """The errors of failed requests, each once."""

    predicted: Counts | None = None
    """What the simulator says about all nodes together."""

    @property
    def total(self) -> Counts:
        """Of all nodes."""
        return Counts(
            requests=sum(node.requests for node in self.nodes),
            prompt_tokens=sum(node.prompt_tokens for node in self.nodes),
            computed_tokens=sum(node.computed_tokens for node in self.nodes),
        )

    @property
    def busiest_share(self) -> float | None:
        """The share of the requests that the busiest node had."""
        return ratio(max((node.requests for node in self.nodes), default=0), self.total.requests)

    @property
    def work_ratio(self) -> float | None:
        """Computed prompt tokens, divided by the least that must be computed."""
        return ratio(self.total.computed_tokens, self.least_tokens)

    @property
    def holds(self) -> bool | None:
        """Whether the policy computes little and balances well. None if there is nothing to compare with."""
        if self.work_ratio is None or self.busiest_share is None or len(self.nodes) < 2:
            return None
        return self.work_ratio <= MAX_WORK and self.busiest_share * len(self.nodes) <= 2 * MAX_SHARE

    @property
    def deviation(self) -> float | None:
        """The greater one of the deviations of the simulated tokens and hit rate from the measured ones, as a share."""
        if self.predicted is None:
            return None
        ratios = (
            ratio(self.predicted.computed_tokens, self.total.computed_tokens),
            ratio(self.predicted.hit_rate, self.total.hit_rate),
        )
        return max((abs(each - 1) for each in ratios if each is not None), default=None)


def compared(run: Run, alone: Run, prefix_tokens: int) -> Run:
    """The run beside that of one node. `prefix_tokens` is the prefix that all its requests share."""
    served = sum(node.requests > 0 for node in run.nodes)
    return replace(run, least_tokens=alone.total.computed_tokens + max(0, served - 1) * prefix_tokens)


def outage(records: Sequence[Record], signal_at: float) -> Outage:
    """What happened to requests before and after `signal_at`, which is a time of the records' clock."""
    failed_running = sum(r.error is not None and r.start < signal_at for r in records)
    new = sorted((r for r in records if r.start >= signal_at), key=lambda r: r.start)
    failures = [index for index, record in enumerate(new) if record.error is not None]
    served = new[failures[-1] + 1 :] if failures else new
    first = served[0] if served else None
    waited = None if first is None else ttft(first)
    return Outage(
        failed_running=failed_running,
        failed_new=len(failures),
        served_again_s=(0.0 if not failures else first.start - signal_at) if first else None,
        first_token_s=None if first is None or waited is None else first.start + waited - signal_at,
    )


def times(records: Sequence[Record]) -> Measures:
    """Times and errors as clients saw them."""
    summary = summarize(records)
    return {
        "errors": float(summary.errors),
        "ttft_p50_s": summary.ttft_p50_s,
        "ttft_p99_s": summary.ttft_p99_s,
        "tokens_per_s": summary.tokens_per_s,
        "wall_s": wall_seconds(records),
    }
