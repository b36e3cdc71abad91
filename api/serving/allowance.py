"""What one tenant has and uses, or all tenants together: counts, limits and quotas."""

from collections.abc import Iterator
from dataclasses import dataclass

from api.engine.drain import DrainRate, retry_after
from api.errors import ApiError
from api.serving.bucket import Bucket, duration
from api.tenants.tenant import Limits


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit, as the headers `x-ratelimit-...` describe it."""

    limit: int
    remaining: int
    reset: float
    """Seconds until everything is free again, as far as it is known now."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A limit that a request exceeds now."""

    what: str
    limit: int
    used: int
    requested: int
    seconds: float
    """The time after which there may be room."""
    unit: str = "requests"
    """`requests` or `tokens`: the type of OpenAI's error."""


class Allowance:
    """What one tenant, or all of them together, have and use."""

    def __init__(self, owner: str, limits: Limits, now: float) -> None:
        """`owner`: who it is, for error messages."""
        self.waiting = 0
        """Sequences and requests for embeddings without any output."""
        self.concurrent = 0
        """Those that have not ended."""
        self._owner = owner
        self._begins = DrainRate(now)
        self._ends = DrainRate(now)
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.limits = limits

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = _resized(self._requests, limits.requests_per_minute)
        self._tokens = _resized(self._tokens, limits.tokens_per_minute)

    def is_idle(self, now: float) -> bool:
        """Whether it is as a new one."""
        buckets = (self._requests, self._tokens)
        return not self.concurrent and all(bucket is None or bucket.is_full(now) for bucket in buckets)

    # -- checks ------------------------------------------------------------------------------------------------------

    def check_size(self, num_sequences: int, param: str) -> None:
        """Raises ApiError 400 if so many sequences can never be admitted."""
        bounds = (("wait", self._limits.waiting), ("run and wait", self._limits.concurrent))
        for what, limit in bounds:
            if limit and num_sequences > limit:
                message = (
                    f"This request asks for {num_sequences} completions at once, but at most {limit} may {what} "
                    f"{self._owner}. Send several requests with fewer prompts or choices."
                )
                raise ApiError(400, message, param=param, code="invalid_value")

    def refusals(self, num_sequences: int, now: float) -> Iterator[Refusal]:
        """The limits that a new request exceeds."""
        limits = self._limits
        for what, limit, used, drain in (
            ("waiting sequences", limits.waiting, self.waiting, self._begins),
            ("concurrent sequences", limits.concurrent, self.concurrent, self._ends),
        ):
            excess = used + num_sequences - (limit or 0)
            if limit and excess > 0:
                yield Refusal(what, limit, used, num_sequences, drain.seconds_until(excess, now))
        if self._requests is not None and (seconds := self._requests.seconds_until(1, now)):
            bucket = self._requests
            yield Refusal("requests per min (RPM)", bucket.size, bucket.used(now), 1, seconds)
        yield from self.token_refusals(1, now)

    def token_refusals(self, num_tokens: int, now: float) -> Iterator[Refusal]:
        """The limits that a prompt of so many tokens exceeds."""
        bucket = self._tokens
        if bucket is not None and (seconds := bucket.seconds_until(num_tokens, now)):
            yield Refusal("tokens per min (TPM)", bucket.size, bucket.used(now), num_tokens, seconds, "tokens")

    def check_tokens(self, num_tokens: int) -> None:
        """Raises ApiError 400 if a prompt of so many tokens can never be admitted."""
        bucket = self._tokens
        if bucket is not None and num_tokens > bucket.size:
            message = (
                f"This request has {num_tokens} prompt tokens, but at most {bucket.size} tokens per minute are allowed "
                f"{self._owner}. Send less."
            )
            raise ApiError(400, message, code="invalid_value")

    def error(self, refusal: Refusal) -> ApiError:
        """The error in OpenAI's words. Clients read the time from its last sentence."""
        seconds = retry_after(refusal.seconds)
        message = (
            f"Rate limit reached {self._owner} on {refusal.what}: Limit {refusal.limit}, Used {refusal.used}, "
            f"Requested {refusal.requested}. Please try again in {duration(seconds)}."
        )
        return ApiError(429, message, kind=refusal.unit, code="rate_limit_exceeded", retry_after=seconds)

    # -- changes -----------------------------------------------------------------------------------------------------

    def enter(self, num_sequences: int, now: float) -> None:
        if not self.concurrent:
            self._ends.restart(now)
        if not self.waiting:
            self._begins.restart(now)
        self.waiting += num_sequences
        self.concurrent += num_sequences
        if self._requests is not None:
            self._requests.take(1, now)

    def begin(self, now: float) -> None:
        """A sequence has its first output, or ends without any."""
        self.waiting -= 1
        self._begins.left(now)

    def end(self, now: float) -> None:
        self.concurrent -= 1
        self._ends.left(now)

    def charge(self, num_tokens: int, now: float) -> None:
        if self._tokens is not None:
            self._tokens.take(num_tokens, now)

    def give_request_back(self) -> None:
        if self._requests is not None:
            self._requests.give_back(1)

    # -- headers -----------------------------------------------------------------------------------------------------

    def request_quotas(self, now: float) -> list[Quota | None]:
        """The quotas of requests: in a minute, of concurrent sequences, of waiting ones. None without a limit."""
        return [
            _bucket_quota(self._requests, now),
            _count_quota(self._limits.concurrent, self.concurrent, self._ends, now),
            _count_quota(self._limits.waiting, self.waiting, self._begins, now),
        ]

    def token_quota(self, now: float) -> Quota | None:
        return _bucket_quota(self._tokens, now)


def _resized(bucket: Bucket | None, size: int | None) -> Bucket | None:
    if not size:
        return None
    if bucket is None:
        return Bucket(size)
    bucket.size = size
    return bucket


def _bucket_quota(bucket: Bucket | None, now: float) -> Quota | None:
    return Quota(bucket.size, bucket.room(now), bucket.seconds_until_full(now)) if bucket is not None else None


def _count_quota(limit: int | None, used: int, drain: DrainRate, now: float) -> Quota | None:
    if not limit:
        return None
    reset = float(retry_after(drain.seconds_until(used, now))) if used else 0.0
    return Quota(limit, max(limit - used, 0), reset)


def refuse(refusals: list[tuple[Allowance, Refusal]]) -> None:
    """Raises the ApiError for the limit that takes the longest, if there is one."""
    if refusals:
        allowance, refusal = max(refusals, key=lambda each: each[1].seconds)
        raise allowance.error(refusal)
