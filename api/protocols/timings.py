"""Times of an answer on request, with llama-server's names."""

from typing import Any

from api.protocols.fields import GenerationRequest
from api.serving.observer import RequestRecord


class TimedRequest(GenerationRequest):
    """A request that may ask for the times of its answer."""

    timings: bool | None = None
    """Whether the whole answer, or the last chunk of a stream, has them. This server's own name."""
    timings_per_token: bool | None = None
    """Whether each chunk of a stream has them, too. llama-server's name."""

    @property
    def wants_timings(self) -> bool:
        return bool(self.timings or self.timings_per_token)


def timings(
    record: RequestRecord,
    *,
    num_prompt: int,
    num_cached: int,
    num_answer: int,
    num_accepted: int,
    num_rejected: int,
) -> dict[str, Any]:
    """The times up to now, in milliseconds. Empty before the first token.

    The numbers of tokens are sums over all choices. The times are those of the whole request: until its first choice
    was admitted, until the first token of any choice, and from then to the last token of any choice. As in
    llama-server, the numbers of drafts are left out if there were none.
    """
    if record.first_output is None or record.last_output is None or record.submitted is None:
        return {}
    num_computed = num_prompt - num_cached
    prompt_seconds = max(record.first_output - record.submitted - record.queue_seconds, 0.0)
    answer_seconds = record.last_output - record.first_output
    num_drafts = num_accepted + num_rejected
    drafts = {"draft_n": num_drafts, "draft_n_accepted": num_accepted} if num_drafts else {}
    return drafts | {
        "queue_ms": _milliseconds(record.queue_seconds),
        "cache_n": num_cached,
        "prompt_n": num_computed,
        "prompt_ms": _milliseconds(prompt_seconds),
        "prompt_per_token_ms": _milliseconds(_ratio(prompt_seconds, num_computed)),
        "prompt_per_second": _ratio(num_computed, prompt_seconds),
        "predicted_n": num_answer,
        "predicted_ms": _milliseconds(answer_seconds),
        "predicted_per_token_ms": _milliseconds(_ratio(answer_seconds, num_answer)),
        "predicted_per_second": _ratio(num_answer, answer_seconds),
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _ratio(number: float, per: float) -> float:
    """0 if there is nothing to divide by: JSON has no infinity."""
    return round(number / per, 6) if per else 0.0
