"""Counts what each request has used, for `cortex usage`."""

from api.serving.observer import RequestRecord
from api.tenants.usage import Used
from api.tenants.usage_buffer import UsageBuffer


class UsageObserver:
    """Counts each request that reached an engine when it ends. Its tokens count if it got any result."""

    def __init__(self, buffer: UsageBuffer) -> None:
        self._buffer = buffer

    def began(self, record: RequestRecord) -> None:
        """Nothing is used yet."""

    def ended(self, record: RequestRecord) -> None:
        if record.submitted is None:
            return
        if record.last_output is None:
            used = Used(1)
        else:
            used = Used(1, record.prompt_tokens, record.cached_tokens, record.answer_tokens)
        self._buffer.add(record.tenant, record.model, used)
